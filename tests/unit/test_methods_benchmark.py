"""The methods benchmark: equal terms for all, rates chosen by the rule, tables that are those of the records."""

import json
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

import pytest

from experiments.benchmarks.methods import table
from experiments.benchmarks.methods.cells import (
    ABLATIONS,
    EMULATED,
    LARGER,
    LEARNING_RATES,
    METHODS_AT_50,
    METHODS_AT_67,
    MORE_ROUNDS,
    MORE_SEEDS,
    SEARCH_SEEDS,
    SEEDS,
    TASKS,
    Cell,
    all_cells,
    best_rates,
    finalists,
    search_cells,
)
from fedpft.config.flat import flat_settings

RATES = {(task, method): 1e-3 for task in TASKS for method in (*METHODS_AT_67, *METHODS_AT_50, *EMULATED)}
README = Path(table.__file__).with_name("README.md")
METHOD_SETTINGS = ("method.", "align.")


@pytest.fixture(scope="module")
def settings() -> dict[Cell, dict[str, str]]:
    """Every cell -> its settings as JSON, by dotted key."""
    return {
        cell: flat_settings(asdict(cell.config(Path("data"), Path("work"))))
        for cell in all_cells(RATES)
        if cell.seed in SEEDS[:2]
    }


def test_no_two_cells_share_a_name():
    names = [cell.name for cell in all_cells(RATES)]
    assert len(names) == len(set(names)) > 40


def test_methods_differ_in_nothing_but_the_method_and_its_alignment(settings):
    rows = defaultdict(list)
    for cell, found in settings.items():
        shared = {key: value for key, value in found.items() if not key.startswith(METHOD_SETTINGS)}
        rows[cell.task, cell.partition, cell.seed, cell.rounds].append(shared)
    assert all(len(row) > 1 for (*_, rounds), row in rows.items() if rounds != MORE_ROUNDS)
    for row in rows.values():
        assert all(shared == row[0] for shared in row)


def test_seeds_share_the_settings_of_the_sub_fm_and_differ_in_the_seed_alone(settings):
    rows = defaultdict(list)
    for cell, found in settings.items():
        rows[cell.task, cell.method, cell.partition, cell.rounds].append({**found, "seed": ""})
    for row in rows.values():
        assert all(found == row[0] for found in row)
        assert row[0]["server.seed"] == "7"


@pytest.mark.parametrize(
    ("method", "missing"),
    [("fedpft_67_n", {"layers", "neurons"}), ("fedpft_67_b", {"neurons"}), ("fedpft_67_d", {"layers"})],
)
def test_an_ablation_is_the_whole_method_without_an_alignment(settings, method, missing):
    whole, ablated = (
        next(found for cell, found in settings.items() if (cell.task, cell.method) == ("qnli", name))
        for name in ("fedpft_67", method)
    )
    changed = {key for key in whole if whole[key] != ablated[key]}
    assert {key.split(".")[1] for key in changed if key.startswith("align.")} == missing
    assert changed == {key for key in changed if key.startswith("align.")}
    assert all(json.loads(ablated[f"align.{part}.kind"]) == "none" for part in missing)


@pytest.mark.parametrize("method", [*ABLATIONS, *LARGER])
def test_what_has_no_search_of_its_own_has_the_rate_of_the_whole_method(method):
    rates = {("qnli", "fedpft_67"): 3e-3, ("qnli", "full"): 1e-3}
    assert {cell.lr for cell in all_cells(rates) if cell.method == method} == {3e-3}


class TestSearch:
    def test_every_method_of_a_task_has_the_same_trials_with_seeds_that_no_cell_has(self):
        tried = {(task, method): {lr: {7: 0.5} for lr in LEARNING_RATES[task]} for task, method in RATES}
        trials = defaultdict(set)
        for cell in search_cells(lambda: tried):
            trials[cell.task, cell.method].add((cell.lr, cell.seed))
        for task, method in RATES:
            if task in ("sst2", "qnli") or method in METHODS_AT_67:
                assert len(trials[task, method]) == len(trials[task, "full"]) >= len(LEARNING_RATES[task])
        assert not {seed for found in trials.values() for _, seed in found} & {*SEEDS, *MORE_SEEDS}

    def test_finalists_wait_until_every_rate_has_been_tried(self):
        found = {lr: {SEARCH_SEEDS[0]: lr} for lr in LEARNING_RATES["sst2"][:-1]}
        assert finalists("sst2", found) == []
        last = LEARNING_RATES["sst2"][-1]
        assert finalists("sst2", found | {last: {SEARCH_SEEDS[0]: 0.0}}) == [8e-3, 4e-3]

    def test_the_best_mean_of_those_tried_with_most_seeds_wins(self):
        first = dict(zip(LEARNING_RATES["sst2"], (0.6, 0.8, 0.7, 0.5, 0.5), strict=True))
        found = {lr: {7: accuracy} for lr, accuracy in first.items()}
        found[2e-3][8], found[4e-3][8] = 0.6, 0.75
        assert best_rates({("sst2", "full"): found}) == {("sst2", "full"): 4e-3}

    def test_the_smaller_of_equal_rates_wins(self):
        found = {lr: {7: 0.7} for lr in reversed(LEARNING_RATES["qnli"])}
        assert best_rates({("qnli", "full"): found}) == {("qnli", "full"): 2e-3}

    @pytest.mark.parametrize("missing", [(8e-3, 7), (4e-3, 8)])
    def test_there_is_no_best_rate_before_the_search_is_over(self, missing):
        found = {lr: {7: 0.5} for lr in LEARNING_RATES["sst2"]} | {4e-3: {7: 0.7, 8: 0.7}, 2e-3: {7: 0.6, 8: 0.6}}
        assert best_rates({("sst2", "full"): found}) == {("sst2", "full"): 4e-3}
        del found[missing[0]][missing[1]]
        assert best_rates({("sst2", "full"): found}) == {}


class TestTable:
    def test_an_interval_is_students_t_over_seeds(self):
        assert table.interval([0.7, 0.8, 0.9]) == "80.0 ± 24.8"  # 4.303 * 10 / sqrt(3)
        assert table.interval([0.7]) == "70.0"
        assert table.interval([]) == ""

    def test_the_better_of_two_methods_is_that_of_the_seeds_that_both_have(self):
        accuracies = {("a", 1): 0.6, ("a", 2): 0.9, ("b", 1): 0.7}
        cells = [{"method": method, "seed": seed, "fm": fm} for (method, seed), fm in accuracies.items()]
        assert table._best(("a", "b"), cells) == "b"
        assert table._best(("a", "c"), cells) == "a"
        assert table._best(("c",), cells) == ""
        assert table._best(("a", "b"), cells[1:]) == "a", "none in common"

    def test_the_readme_has_the_tables_of_the_committed_records(self, monkeypatch, capsys):
        monkeypatch.chdir(README.parents[3])
        table.main()
        rows = [line for line in capsys.readouterr().out.splitlines() if line]
        text = README.read_text().splitlines()
        assert len(rows) > 40
        assert [row for row in rows if row not in text] == []
