"""Tables as data: cells, published values, what is missing, the three formats."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from fedpft.config import ConfigError, dump_config
from fedpft.config.suite import load_suite, published_values
from fedpft.report.suite import cell_text, suite_table
from fedpft.report.suite_page import suite_figure, suite_page
from fedpft.sweeps.suite import missing_trials, suite_trials, table_of, uncounted_trials

SUITES = Path(__file__).parents[3] / "experiments/suites"
FILES = sorted(file for file in SUITES.glob("*.yaml") if file.stem != "paper_values")
OURS = ("digits", "robust")
"""Suites of which nobody else reports anything."""
SUITE = """
name: s
base: base.yaml
rows: [{label: FedPFT, set: {method: half}}, {label: Full, set: {method: full}}]
columns: [{label: A, set: {lora.rank: 1}}, {label: B, set: {lora.rank: 1}, metric: other/accuracy, published: other}]
seeds: [1, 2]
paper: {file: values.yaml, table: t, where: {fm: bert}}
"""
NEVER_TRAINED = "never trained: 1 of the clients that were drawn, 3; rounds.jsonl has their failures"
VALUES = """
t:
  - {fm: roberta, method: half, lora.rank: 1, accuracy: 1.0}
  - {fm: bert, method: half, lora.rank: 1, accuracy: 87.5, other: 70.0}
"""


@dataclass(frozen=True)
class Shown:
    values: tuple = ()
    num_seeds: int = 2
    metric: str | None = "accuracy"
    published: float | None = None


@pytest.fixture
def suite(tmp_path):
    for name, text in (("s", SUITE), ("values", VALUES), ("base", "name: base\n")):
        (tmp_path / f"{name}.yaml").write_text(text)
    (tmp_path / "method").mkdir()
    (tmp_path / "method/half.yaml").write_text("method: {retained_ratio: 0.5}\n")
    (tmp_path / "method/full.yaml").write_text("method: {name: full}\n")
    return load_suite(tmp_path / "s.yaml", [f"output_dir={tmp_path / 'out'}"])


def finish(trial, accuracy, other, **more):
    folder = Path(trial.config.output_dir)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_config(trial.config))
    result = {"metric": "accuracy", "metrics": {"fm": {"accuracy": accuracy, "other/accuracy": other}}}
    (folder / "result.json").write_text(json.dumps(result | more))


def test_columns_of_one_setting_share_their_runs(suite):
    names = [trial.name for trial in suite_trials(suite)]
    assert names == [f"method-{method}_rank-1_seed-{seed}" for method in ("half", "full") for seed in (1, 2)]


def test_finished_cells_are_skipped_and_shown_beside_the_published_values(suite):
    first, second, *rest = suite_trials(suite)
    finish(first, 0.86, 0.5)
    assert missing_trials([first, second, *rest]) == [second, *rest]
    (half, other), (full, _) = table_of(suite)
    assert (half.values, half.num_seeds, half.published, other.values, other.published) == (
        (0.86,),
        2,
        87.5,
        (0.5,),
        70.0,
    )
    assert (full.values, full.metric, full.published) == ((), None, None)
    finish(second, 0.88, 0.5)
    assert cell_text(table_of(suite)[0][0]) == "87.5 (paper) / 87.0 ± 12.7"


def test_a_run_in_which_a_client_never_trained_is_in_no_cell_unless_that_is_allowed(suite):
    first, second, *_ = trials = suite_trials(suite)
    finish(first, 0.86, 0.5)
    finish(second, 0.1, 0.5, never_trained=[3])
    assert uncounted_trials(trials) == {second.name: NEVER_TRAINED}
    assert table_of(suite)[0][0].values == (0.86,)
    allowing = replace(suite, run={"federated.allow_dropped": True})
    assert uncounted_trials(suite_trials(allowing)) == {}
    assert table_of(allowing)[0][0].values == (0.86, 0.1)


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"metric": "accuracy", "metrics": {}}'])
def test_a_damaged_result_is_one_line(suite, content):
    first, *_ = suite_trials(suite)
    finish(first, 0.86, 0.5)
    (Path(first.config.output_dir) / "result.json").write_text(content)
    with pytest.raises(ConfigError, match=r"^output_dir: found .*result\.json damaged"):
        table_of(suite)


def test_a_finished_cell_of_other_settings_is_refused(suite):
    first, *_ = trials = suite_trials(suite)
    finish(first, 0.86, 0.5)
    folder = Path(first.config.output_dir)
    (folder / "config.yaml").write_text((folder / "config.yaml").read_text().replace("rounds: 100", "rounds: 3"))
    with pytest.raises(ConfigError, match=r"federated\.rounds: 3 -> 100"):
        missing_trials(trials)


def test_a_cell_says_which_seeds_are_missing():
    assert cell_text(Shown()) == "-"
    assert cell_text(Shown(published=90.0)) == "90.0 (paper) / -"
    assert cell_text(Shown(values=(0.5,))) == "50.0 [1 of 2 seeds]"
    assert cell_text(Shown(values=(0.5, 0.5), metric="pearson")) == "0.500 ± 0.000"


def test_the_three_formats():
    table = ("T 5 %", ["a_b", "c"], ["X"], [[Shown(values=(0.5, 0.5))], [Shown()]])
    assert suite_table(*table, "text").splitlines() == [
        "T 5 %", "     X", "---------------", "a_b  50.0 ± 0.0", "c    -",
    ]  # fmt: skip
    assert suite_table(*table, "markdown").splitlines() == [
        "**T 5 %**", "", "|  | X |", "| --- | --- |", "| a_b | 50.0 ± 0.0 |", "| c | - |",
    ]  # fmt: skip
    latex = suite_table(*table, "latex").splitlines()
    assert r"a\_b & 50.0 $\pm$ 0.0 \\" in latex
    assert r"\begin{tabular}{lc}" in latex
    assert r"\caption{T 5 \%}" in latex


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("rows=[]", "rows: found [], allowed: a list of"),
        ("columns=[{label: A}, {label: A}]", "allowed: labels that differ"),
        ("columns=[{label: A, set: {method: full}}]", "rows.FedPFT.set: found ['method'], allowed: keys that column A"),
        ("colums=[]", "colums: unknown key"),
        ("max_concurrent=0", "max_concurrent: found 0"),
    ],
)
def test_a_suite_that_cannot_work_is_refused_in_one_line(suite, tmp_path, change, message):
    with pytest.raises(ConfigError) as error:
        load_suite(tmp_path / "s.yaml", [change])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_table_that_does_not_exist_is_refused(suite, tmp_path):
    with pytest.raises(ConfigError, match=r"^paper.table: found 'u', allowed: t$"):
        published_values(load_suite(tmp_path / "s.yaml", ["paper.table=u"]))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_cell_of_the_shipped_suites_is_a_config_and_has_its_published_value(file):
    suite = load_suite(file, ["seeds=[1]"])
    assert len(suite_trials(suite)) >= len(suite.rows)
    missing = [value is None for row in published_values(suite) for value in row]
    assert all(missing) if file.stem in OURS else not any(missing)


def test_the_shipped_suites_show_all_published_values():
    shown = [len(row) for file in FILES if file.stem not in OURS for row in published_values(load_suite(file))]
    assert sum(shown) == 2 * 3 * 5 + 2 * 3 * 6 + 6 + 8


def test_the_figure_is_over_the_first_number_that_differs_in_every_column(suite):
    assert suite.numeric_setting is None, "columns of one setting"
    settings = [{"method.name": "full", "lora.rank": rank} for rank in (4, 1)]
    columns = [replace(suite.columns[0], label=f"{i}", set=each) for i, each in enumerate(settings)]
    assert replace(suite, rows=[replace(suite.rows[0], set={})], columns=columns).numeric_setting == (
        "lora.rank",
        [4, 1],
    )
    assert load_suite(SUITES / "robust.yaml").numeric_setting == ("federated.adversary.fraction", [0, 0.1, 0.2, 0.3])


def test_a_line_of_the_figure_is_a_row_with_its_spread_over_seeds():
    cells = {"mean": [Shown(values=(0.5, 0.7)), Shown(values=(0.9,))], "<median>": [Shown(), Shown(values=(0.8,))]}
    figure = suite_figure(cells, "x", [3, 1])
    mean, median = figure.data
    assert (mean.x, mean.name, median.x, median.y) == ((1, 3), "mean", (1,), (0.8,))
    assert mean.y == pytest.approx((0.9, 0.6))
    assert mean.error_y.array == pytest.approx((0, 0.1))
    assert mean.error_y.arrayminus == pytest.approx((0, 0.1))
    page = suite_page("T", list(cells), ["a", "b"], list(cells.values()), ("x", [3, 1]))
    assert "By x" in page
    assert "&lt;median&gt;" in page
    assert suite_figure({"r": [Shown(metric=None)]}, "x", [1]) is None
    assert suite_figure({"r": [Shown(values=(1,)), Shown(values=(1,), metric="pearson")]}, "x", [1, 2]) is None
