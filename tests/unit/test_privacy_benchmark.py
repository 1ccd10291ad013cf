"""The privacy benchmark: its cells are what the table says, and differ in nothing else."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from experiments.benchmarks.privacy import utility
from experiments.benchmarks.privacy.utility import NOT_PRIVATE, POPULATIONS, Clipped, all_cells
from fedpft.config.flat import flat_settings
from fedpft.privacy.client_level import ClientLevel

CLIENT_LEVEL = [cell for cell in all_cells() if POPULATIONS[cell.population].unit == "client"]


def settings(cell):
    return flat_settings(asdict(cell.config(Path("data"))))


def test_no_two_cells_share_a_name():
    names = [cell.name for cell in all_cells()]
    assert len(names) == len(set(names))


def test_cells_of_a_row_differ_in_the_budget_alone():
    row = [cell for cell in CLIENT_LEVEL if (cell.population, cell.task, cell.seed) == ("1000", "sst2", 42)]
    known = [{k: v for k, v in settings(cell).items() if not k.startswith("privacy.")} for cell in row]
    assert len(row) == 5
    assert all(each == known[0] for each in known)


@pytest.mark.parametrize("name", [name for name, each in POPULATIONS.items() if each.unit == "client"])
def test_a_populations_delta_is_a_tenth_of_1_divided_by_its_clients(name):
    cell = next(cell for cell in CLIENT_LEVEL if cell.population == name and cell.epsilon is not NOT_PRIVATE)
    config = cell.config(Path("data"))
    guarantee = ClientLevel.of(config.privacy, config.federated, noise_multiplier=50.0)
    clients = guarantee.summary(guarantee.start()).get("simulated_population", guarantee.cohort_size / guarantee.rate)
    assert POPULATIONS[name].delta == pytest.approx(0.1 / clients)


def test_a_cell_that_this_version_cannot_run_is_left_out_with_its_reason(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(utility, "RESULTS", tmp_path)
    monkeypatch.setattr(utility, "WORK", tmp_path)
    cell = next(all_cells())
    wrong = utility.Population(settings=("privacy.kind=planet",), delta=1e-5)
    monkeypatch.setitem(POPULATIONS, cell.population, wrong)
    utility.measure(cell, None)
    assert capsys.readouterr().out.startswith(f"{cell.name}: left out, privacy.kind: Invalid value 'planet'")
    assert not list(tmp_path.iterdir())


def test_the_record_says_which_part_of_the_updates_was_clipped():
    tracker = Clipped()
    tracker.log_round({"round": 0, "fm": 0.5})
    for number, clients in ((3, [1, 2, 3, 4]), (0, [5, 6])):
        tracker.log_round({"clients": clients, "privacy/num_clipped": number, "privacy/clip": 0.5})
    tracker.log_clients(1, [])
    assert tracker.summary() == {"part_clipped": 0.5, "clips": [0.5, 0.5]}
    assert Clipped().summary() == {}


def test_the_table_has_a_row_for_each_population_that_was_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(utility, "RESULTS", tmp_path)
    for epsilon, accuracy in ((8.0, 0.5), (NOT_PRIVATE, 0.75)):
        known = {"task": "docs", "population": "1000", "epsilon": epsilon, "fm": accuracy, "untuned_fm": 0.125}
        (tmp_path / f"{epsilon}.json").write_text(json.dumps(known))
    *_, row = utility.table()
    assert row == "| docs | 1000 | client |  |  |  | 50.0 | 75.0 | 12.5 |"
