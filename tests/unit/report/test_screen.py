import re
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from fedpft.federated.messages import ClientFailure, ClientUpdate
from fedpft.report.fidelity import gap_meaning
from fedpft.report.plan import partition_picture, print_plan
from fedpft.report.scores import why_stopped
from fedpft.report.screen import Screen, print_result
from fedpft.report.wording import round_line

SIZES = {"num_params_fm": 22_713_600, "num_params_sub_fm": 14_123_456, "num_params_adapter": 151_234}
SIZES |= {"num_transformer_params_fm": 85_054_464, "num_transformer_params_sub_fm": 49_641_984}
SIZES |= {"bytes_up_per_client_round": 604_936, "bytes_down_per_client_round": 704_936}
PLAN = SIZES | {
    "config_yaml": "name: demo\nseed: 42\nfm:\n  path: package://a/b\n",
    "own_settings": {"name": "demo", "fm": {"path": "package://a/b"}},
    "method": "fedpft",
    "label_histogram": [[10, 0, 0], [2, 8, 30]],
    "label_names": ["asyncio", "email", "xml"],
    "actors": 2,
    "pool": "ray",
    "data": "shared, as task.data says",
    "notes": ["method.scorer has no effect [yet]"],
}
RESULT = SIZES | {"name": "demo", "seed": 42, "method": "fedpft", "metric": "accuracy", "rounds": 8, "versions": {}}
ACCURACIES = {"untuned_fm": 0.103, "sub_fm": 0.741, "fm": 0.823}
RESULT |= ACCURACIES | {"wall_seconds": 141.2, "metrics": {key: {"accuracy": v} for key, v in ACCURACIES.items()}}
EVALUATED = {"fm": 0.712, "sub_fm": 0.64, "metric": "accuracy"}


def make_console(terminal: bool) -> Console:
    return Console(file=StringIO(), force_terminal=terminal, width=100, legacy_windows=False)


def written(console: Console) -> str:
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_a_note_is_a_line_at_once_whatever_it_contains():
    console = make_console(terminal=False)
    with Screen(console) as screen:
        screen.note("dashboard  http://[::1]:8265 [red]")
        assert written(console) == "dashboard  http://[::1]:8265 [red]\n"


def watch_a_run(console: Console, num_rounds: int = 2, client_ids: tuple[int, ...] = (3, 7)) -> None:
    with Screen(console) as screen:
        screen.stage("tune")  # over at once: leaves no line
        screen.stage("align layers")
        screen.progress(1, 2, {"loss": 0.91})
        screen.progress(2, 2, {"loss": 0.12})
        for index in range(1, num_rounds + 1):
            screen.round_started(index, num_rounds, client_ids)
            for client_id in client_ids:
                metrics = {"loss": 0.25, "seconds": 1.0}
                screen.client_finished(
                    ClientUpdate(client_id=client_id, num_examples=1, adapter=np.zeros(1), metrics=metrics)
                )
            screen.stage("align neurons")
            screen.progress(1, 1, {"loss": 0.5})
            record = {"round": index, "clients": list(client_ids), "train_loss": 0.912, "lr": 6.2e-4, "seconds": 14.1}
            screen.round_finished(record | (EVALUATED if index == num_rounds else {}))


def test_plain_lines():
    console = make_console(terminal=False)
    watch_a_run(console)
    assert [re.sub(r"\b0\.\d s", "0.0 s", line) for line in written(console).splitlines()] == [
        "align layers  0.0 s  loss 0.91 -> 0.12",
        "round 1/2  2 clients  loss 0.912  lr 6.2e-04  14.1 s",
        "round 2/2  2 clients  loss 0.912  lr 6.2e-04  14.1 s  fm 71.2 %  sub-fm 64.0 %",
        "2 rounds  0.0 s  loss 0.912 -> 0.912  fm 71.2 %  sub-fm 64.0 %",
    ]


def test_plain_lines_stay_within_80_columns():
    console = make_console(terminal=False)
    watch_a_run(console, num_rounds=100, client_ids=tuple(range(10)))
    assert max(map(len, written(console).splitlines())) <= 80


def test_terminal_shows_bars_and_leaves_finished_stages(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    console = make_console(terminal=True)
    watch_a_run(console)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", written(console))
    assert re.search(r"✓ align layers  0\.\d s  loss 0\.91 → 0\.12", text)
    assert re.search(r"✓ 2 rounds  0\.\d s", text)
    assert "━" in text
    assert "client 7  loss 0.250" in text
    assert "✓ align neurons" not in text


def test_a_failed_run_leaves_no_finished_line():
    console = make_console(terminal=False)
    screen = Screen(console)
    screen.stage("align layers")
    screen.progress(1, 2, {"loss": 0.9})
    screen.__exit__(RuntimeError)
    assert written(console) == ""


def test_a_dropped_client_has_a_line_and_its_traceback_is_shown_once():
    console = make_console(terminal=False)
    with Screen(console) as screen:
        for index, client_id, reason in ((1, 4, "ValueError: [x]"), (2, 5, "ValueError: [x]"), (2, 6, "OSError: y")):
            screen.round_started(index, 3, [client_id])
            known = {"client_id": client_id, "attempts": 3, "actor": "actor-2", "node": "host", "reason": reason}
            screen.client_failed(ClientFailure(round_index=index, traceback=f"trace of {reason}", **known))
    assert written(console).splitlines() == [
        "dropped: round 1, client 4 (actor-2 on host, 3 attempts): ValueError: [x]",
        "trace of ValueError: [x]",
        "dropped: round 2, client 5 (actor-2 on host, 3 attempts): ValueError: [x]",
        "dropped: round 2, client 6 (actor-2 on host, 3 attempts): OSError: y",
        "trace of OSError: y",
    ]


def test_a_round_says_when_clients_are_missing_and_when_it_does_not_count():
    record = {"round": 2, "clients": [], "train_loss": None, "lr": 1e-3, "seconds": 1.0, "counted": False}
    assert round_line(record | {"dropped": [1, 2]}, 9, []) == (
        "round 2/9  0 clients  2 dropped  does not count  lr 1.0e-03  1.0 s"
    )


@pytest.mark.parametrize("terminal", [False, True])
def test_plan_shows_config_partition_costs_and_warnings(terminal: bool):
    console = make_console(terminal)
    print_plan(console, PLAN)
    text = written(console)
    assert ("\x1b" in text) == terminal
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    assert text.startswith(
        "Settings other than the defaults; --full shows all:\nname: demo\nfm:\n  path: package://a/b\n\n"
    )
    assert "data: shared, as task.data says" in text
    for shown in (
        "22.71 M",
        "14.12 M",
        "1.61 x smaller",
        "81.11 Mi",
        "47.34 Mi",
        "1.71 x smaller",
        "604.9 kB",
        "704.9 kB",
        "pool ray",
        "note: method.scorer has no effect [yet]",
    ):
        assert shown in text


def test_a_full_plan_shows_every_setting():
    console = make_console(terminal=False)
    print_plan(console, PLAN, full=True)
    assert written(console).startswith(PLAN["config_yaml"])


def test_picture_shades_shares():
    lines = list(partition_picture(PLAN["label_histogram"], PLAN["label_names"], 80))
    assert lines[:3] == [
        "client    size  asyncio email   xml    ",
        "     0      10  ███████ ······· ·······",
        "     1      40  ░░░░░░░ ▒▒▒▒▒▒▒ ███████",
    ]


def test_of_data_without_labels_the_picture_tells_sizes_alone():
    written = "\n".join(partition_picture([[3], [5]], ["all"], 80))
    assert "size             min 3" in written
    assert "label" not in written


@pytest.mark.parametrize("num_labels", [2, 10, 30, 500])
def test_picture_fits_and_summarises_many_clients(num_labels: int):
    histogram = np.ones((100, num_labels), dtype=int)
    lines = list(partition_picture(histogram.tolist(), ["a long label name"] * num_labels, 80))
    assert max(map(len, lines)) <= 80
    assert len(lines) < 30
    assert "   ... 80 more" in lines
    assert any(re.search(rf"size +min {num_labels} .*median {num_labels} .*max {num_labels}", line) for line in lines)


@pytest.mark.parametrize(
    ("construction", "row"),
    [
        ({"key": "0123456789abcdef", "cached": True, "seconds": 0.42}, "sub-FM 0123456789ab from cache, 0.4 s"),
        ({"key": "0123456789abcdef", "cached": False, "seconds": 130}, "sub-FM 0123456789ab built, 2 min 10 s"),
        ({"key": None, "cached": False, "seconds": 5}, "sub-FM built, 5.0 s"),
    ],
)
def test_result_names_the_sub_fm(construction, row):
    console = make_console(terminal=False)
    print_result(console, RESULT | {"construction": construction}, {})
    assert row in [" ".join(line.split()) for line in written(console).splitlines()]


def test_result_shows_the_accuracy_on_the_clients_labels():
    console, spread = make_console(terminal=False), {"mean": 0.75, "p10": 0.52, "min": 0.5, "max": 1.0, "values": []}
    print_result(console, RESULT | {"client_expected_accuracy": spread}, {})
    rows = [" ".join(line.split()) for line in written(console).splitlines()]
    assert "accuracy, mean client 75.0 % 10th perc. 52.0 %, worst 50.0 %" in rows


def test_result_shows_the_accuracy_on_the_clients_own_examples_and_who_has_none():
    spread = {"mean": 0.75, "variance": 0.01, "worst_decile": 0.5, "clients": 9, "without": 3, "values": []}
    console = make_console(terminal=False)
    print_result(console, RESULT | {"client_accuracy": spread}, {})
    rows = [" ".join(line.split()) for line in written(console).splitlines()]
    assert "accuracy, own examples 75.0 % worst 10 % 50.0 %, var. 0.0100" in rows
    assert "3 of 12 clients are too small to hold out an example" in rows


def test_result_ends_with_the_clients_that_never_trained():
    console = make_console(terminal=False)
    print_result(console, RESULT | {"never_trained": [3, 7]}, {"result": Path("result.json")})
    last = written(console).splitlines()[-1]
    assert last == "never trained: 2 of the clients that were drawn, 3, 7; rounds.jsonl has their failures"


def test_result_shows_accuracies_gains_and_paths():
    console = make_console(terminal=False)
    print_result(console, RESULT, {"result": Path("outputs/demo/result.json"), "wandb": "https://wandb.test/run"})
    text = written(console)
    assert "\x1b" not in text
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert "accuracy, untuned FM 10.3 %" in rows
    assert "accuracy, sub-FM 74.1 % +63.8 points" in rows
    assert "accuracy, plugged-in FM 82.3 % +72.0 points" in rows
    assert "parameters, sub-FM 14.12 M 1.61 x smaller" in rows
    assert "transformer layers, FM 81.11 Mi" in rows
    assert "transformer layers, sub-FM 47.34 Mi 1.71 x smaller" in rows
    assert "wall time 2 min 21 s" in rows
    assert not any(row.startswith("sub-FM") for row in rows), "a method without one"
    assert rows[-2:] == ["result outputs/demo/result.json", "wandb https://wandb.test/run"]


def fidelity(error: float, cosine: list[float | None]) -> dict:
    layers = {"hidden_error": [error] * 2, "gradient_cosine": cosine, "gradient_norm_ratio": [1.0, 1.0]}
    return layers | {"total": {name: values[-1] for name, values in layers.items()}}


METER = {"before": fidelity(0.412, [0.9, None]), "after": fidelity(0.25, [0.876, 0.5]), "seconds": 1.3}
METERED = RESULT | {"rounds_seconds": 130.0, "fidelity": METER | {"leakage_gap_before": 0.0, "leakage_gap": 0.082}}


def test_result_shows_the_meter_and_its_cost():
    console = make_console(terminal=False)
    print_result(console, METERED, {})
    rows = [" ".join(line.split()) for line in written(console).splitlines()]
    assert "hidden error, last layer 0.41 -> 0.25 0: the FM's own" in rows
    assert "gradient cosine none -> 0.50 1: the FM's direction" in rows
    assert "gradient norm ratio 1.00 -> 1.00 1: the FM's length" in rows
    assert "leakage gap +8.2 points plugged-in FM minus sub-FM: the FM is better" in rows
    assert "fidelity meter 1.3 s 1.0 % of the rounds' time" in rows
    assert "gradient cosine by layer, from 0: 0.88 0.50" in rows


@pytest.mark.parametrize(("num_layers", "shown"), [(12, True), (24, False)])
def test_the_line_of_layers_is_left_out_where_it_does_not_fit(num_layers: int, shown: bool):
    console = make_console(terminal=False)
    meter = METERED["fidelity"] | {"after": fidelity(0.25, [0.5] * num_layers)}
    print_result(console, METERED | {"fidelity": meter}, {})
    assert ("by layer" in written(console)) == shown
    assert max(map(len, written(console).splitlines())) <= 100


@pytest.mark.parametrize(("gap", "goal", "said"), [
    (0.1, "max", "the FM is better"), (-0.1, "max", "the FM is no better"),
    (0.0, "max", "the FM is no better"), (-0.1, "min", "the FM is better"),
])  # fmt: skip
def test_the_sign_of_the_leakage_gap_is_said_in_words(gap: float, goal: str, said: str):
    assert gap_meaning({"fidelity": {"leakage_gap": gap}, "metric_goal": goal}).endswith(said)


def test_the_result_says_what_the_untuned_sub_fm_has_of_the_fm():
    console = make_console(terminal=False)
    print_result(console, METERED | {"skill": {"agreement": 0.9, "hidden": 0.5, "probe": None, "loss": None}}, {})
    rows = [" ".join(line.split()) for line in written(console).splitlines() if "shared skill" in line]
    assert rows == [
        "shared skill, agreement 90.0 % same answers of FM and sub-FM, both untuned",
        "shared skill, hidden 50.0 % of the untuned FM's last hidden states",
    ]


def test_result_without_the_meter_says_nothing_of_it():
    console = make_console(terminal=False)
    print_result(console, RESULT, {})
    assert not any(word in written(console) for word in ("gradient", "leakage", "fidelity"))


STOPPED = {"metric": "accuracy", "best": 0.83, "round": 3, "num_worse": 2, "reason": "patience", "patience": 2}
STOPPED |= {"min_delta": 0.0, "target": None, "planned_rounds": 20}


def test_a_run_that_stopped_early_says_after_which_round_of_how_many_and_why():
    console = make_console(terminal=False)
    with Screen(console) as screen:
        screen.round_started(3, 20, [1])
        record = {"round": 3, "clients": [1], "train_loss": 0.9, "lr": 1e-4, "seconds": 1.0, "stopped": "patience"}
        screen.round_finished(record | EVALUATED)
    print_result(console, RESULT | {"stopped": STOPPED}, {})
    first, last, *table = written(console).splitlines()
    assert first.endswith("stops early: patience")
    assert re.fullmatch(r"3 rounds  .* stopped early: patience", last)
    assert "8 of 20 rounds, seed 42" in table[0]
    assert "stopped early, after 8 of 20 rounds: accuracy did not beat 83.0 % of round 3 in 2 evaluation(s)" in table
    target = RESULT | {"stopped": STOPPED | {"reason": "target", "target": 0.8}}
    assert why_stopped(target) == "accuracy has reached its target 80.0 %"
