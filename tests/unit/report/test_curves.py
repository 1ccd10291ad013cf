from unittest.mock import Mock, call

from fedpft.federated.observer import SilentObserver
from fedpft.report.curves import Curves


def curves():
    observer, tracker = Mock(spec=SilentObserver), Mock(spec=["log_stage", "log_figure"])
    return Curves(observer, tracker), observer, tracker


def test_every_event_is_passed_on():
    made, observer, _ = curves()
    made.stage("align layers")
    made.progress(1, 2, {"loss": 0.5})
    made.note("dashboard  http://x")
    made.run_started({"round": 0})
    made.round_started(1, 3, [4, 5])
    made.client_finished("update")
    made.round_finished({"round": 1})
    assert observer.mock_calls == [
        call.stage("align layers"),
        call.progress(1, 2, {"loss": 0.5}),
        call.note("dashboard  http://x"),
        call.run_started({"round": 0}),
        call.round_started(1, 3, [4, 5]),
        call.client_finished("update"),
        call.round_finished({"round": 1}),
    ]


def test_steps_count_on_in_a_resumed_run():
    tracker = Mock(spec=["log_stage"])
    made = Curves(Mock(spec=SilentObserver), tracker, steps=7)
    made.stage("align neurons")
    made.progress(1, 2, {"loss": 0.5})
    tracker.log_stage.assert_called_once_with({"align/step": 8, "align/step_loss": 0.5})
    assert made.steps == 8


def test_only_alignments_are_logged_and_their_steps_count_on():
    made, _, tracker = curves()
    made.stage("pre-train FM on public data")
    made.progress(1, 1, {"loss": 9.0})
    made.stage("align layers")
    made.progress(1, 2, {"loss": 0.5})
    made.progress(2, 2, {"loss": 0.4})
    made.stage("evaluate")
    made.progress(8, 8, {})
    made.stage("align neurons")
    made.progress(1, 1, {"loss": 0.3})
    made.progress(1, 1, {})
    logged = [made_call.args[0] for made_call in tracker.log_stage.mock_calls]
    assert logged == [
        {"align/step": 1, "align/step_loss": 0.5},
        {"align/step": 2, "align/step_loss": 0.4},
        {"align/step": 3, "align/step_loss": 0.3},
    ]


def test_each_measurement_adds_a_column_to_the_heat_map():
    made, _, tracker = curves()
    quantities = ("hidden_error", "gradient_cosine", "gradient_norm_ratio")
    fidelity = {name: [0.1, 0.2] for name in quantities}
    made.run_started({"round": 0, "fidelity": fidelity})
    made.round_finished({"round": 1})
    made.round_finished({"round": 2, "fidelity": fidelity})
    names, figures = zip(*(made_call.args for made_call in tracker.log_figure.mock_calls), strict=True)
    assert names == ("fidelity/heat_map", "fidelity/heat_map")
    assert [figure.data[0].x for figure in figures] == [("before",), ("before", "2")]


def test_without_the_meter_there_is_no_figure():
    made, _, tracker = curves()
    made.run_started({"round": 0, "fm": 0.1})
    made.round_finished({"round": 1, "fm": 0.2})
    assert tracker.log_figure.mock_calls == []
