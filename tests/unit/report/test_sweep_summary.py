"""What came out of a sweep: ranks, means with their intervals, and what is printed."""

import io
import json

import pytest
from rich.console import Console

from fedpft.config import ConfigError
from fedpft.config.sweep import SweepConfig
from fedpft.report.intervals import half_interval
from fedpft.report.sweep import SweepScreen, print_sweep, with_interval
from fedpft.sweeps.sweep import TrialOutcome, evaluations, metric_in, summarise

SWEEP = SweepConfig(base="base.yaml")


def ended(rank, seed, value, status="finished", *, sign=1, error=None):
    return TrialOutcome(
        name=f"rank-{rank}_seed-{seed}", settings={"lora.rank": rank}, seed=seed, status=status, round=4, value=value,
        score=None if value is None else sign * value, metric="accuracy", error=error,
    )  # fmt: skip


def ranks(outcomes):
    return [point["settings"]["lora.rank"] for point in summarise(SWEEP, outcomes)["points"]]


def test_an_interval_is_students():
    assert half_interval([0.5]) is None
    assert half_interval([1.0, 3.0]) == pytest.approx(12.7062)  # t of 1 degree, standard error 1
    assert half_interval([1.0, 2.0, 3.0]) == pytest.approx(4.30265 / 3**0.5, rel=1e-5)


def test_points_are_ranked_by_their_mean_over_seeds_the_better_first():
    outcomes = [ended(1, 1, 0.9), ended(1, 2, 0.1), ended(2, 2, 0.6), ended(2, 1, 0.6)]
    assert ranks(outcomes) == [2, 1]
    best = summarise(SWEEP, outcomes)["points"][0]
    assert (best["mean"], best["interval"], best["seeds"], best["values"]) == (0.6, 0.0, [1, 2], [0.6, 0.6])


def test_a_metric_that_should_be_small_ranks_the_other_way():
    assert ranks([ended(1, 1, 0.9, sign=-1), ended(2, 1, 0.1, sign=-1)]) == [2, 1]


def test_trials_that_were_stopped_come_after_those_that_finished_and_failures_last_and_in_no_mean():
    outcomes = [
        ended(1, 1, None, "failed", error="ValueError: no"), ended(2, 1, 0.9, "stopped"), ended(3, 1, 0.2),
        ended(3, 2, 0.7, "failed", error="ValueError: no"), ended(4, 1, 0.1),
    ]  # fmt: skip
    assert ranks(outcomes) == [4, 2, 3, 1]
    point = next(p for p in summarise(SWEEP, outcomes)["points"] if p["settings"]["lora.rank"] == 3)
    assert (point["mean"], point["status"]) == (0.2, {"finished": 1, "failed": 1})


def test_a_summary_is_json_and_is_printed_with_the_reasons_of_failures():
    outcomes = [ended(1, 1, 0.86), ended(1, 2, 0.88), ended(2, 1, None, "failed", error="ValueError: [no]")]
    summary = json.loads(json.dumps({"wall_seconds": 3.0, "resumed": True, **summarise(SWEEP, outcomes)}))
    console = Console(file=io.StringIO(), width=120)
    print_sweep(console, summary)
    text = console.file.getvalue()
    assert "87.0 % ± 12.7" in text
    assert "2 finished" in text
    assert "3 trials, 3.0 s since --resume" in text
    assert "rank-2_seed-1 failed: ValueError: [no]" in text


def test_values_have_the_unit_of_their_metric():
    assert with_interval(0.869, 0.004, "accuracy") == "86.9 % ± 0.4"
    assert with_interval(0.869, None, "accuracy") == "86.9 %"
    assert with_interval(0.8641, 0.0123, "pearson") == "0.864 ± 0.012"
    assert with_interval(12.3456, 0.5, None) == "12.35 ± 0.5"
    assert with_interval(None, None, "accuracy") == "-"


def test_a_metric_is_a_number_of_the_record_by_its_dotted_key():
    record = {"fm": 0.5, "metric": "accuracy", "counted": False, "metrics": {"fm": {"macro_f1": 0.25}}}
    assert metric_in(record, "metrics.fm.macro_f1") == 0.25
    with pytest.raises(ConfigError, match=r"^metric: found 'f1', allowed: fm, metrics.fm.macro_f1$"):
        metric_in(record, "f1")


def test_evaluations_are_the_whole_lines_with_a_score(tmp_path):
    assert evaluations(tmp_path) == []
    (tmp_path / "rounds.jsonl").write_text('{"round": 1}\n{"round": 2, "fm": 0.5}\n{"round": 4, "fm": 0.')
    assert evaluations(tmp_path) == [{"round": 2, "fm": 0.5}]


@pytest.mark.parametrize("terminal", [False, True])
def test_the_screen_leaves_a_line_for_each_trial_that_ends(terminal):
    console = Console(file=io.StringIO(), width=100, force_terminal=terminal)
    with SweepScreen(console, "fm", 2) as screen:
        screen.trial_started("a")
        screen.trial_reported("a", 4, 0.5)
        screen.trial_retried("a", "ValueError: [no]")
        screen.trial_ended("a", failed=False)
        screen.trial_started("b")
        screen.trial_ended("b", failed=True)
    text = console.file.getvalue()
    assert "trial 1/2  a  round 4  fm 0.5000" in text
    assert "trial 2/2  b  round 0" in text
    assert "trial a failed, tried again: ValueError: [no]" in text
    assert text.count("failed") == 2
