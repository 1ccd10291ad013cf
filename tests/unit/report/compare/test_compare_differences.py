import json

import pytest
from typer.testing import CliRunner

from fedpft.cli.main import app
from fedpft.config import ConfigError
from fedpft.report.compare.comparison import compare
from fedpft.report.compare.differences import UNKNOWN, differences, differences_section, read_traits
from fedpft.report.compare.page import compare_page
from fedpft.storage.output import cpu_model, machine
from tests.run_folders import run_folder

HERE = {"versions": {"torch": "2.6"}, "environment": {"CPU": "A", "driver threads": 2}}
THERE = {"versions": {"torch": "2.7"}, "environment": {"CPU": "B", "driver threads": 2}}


def test_settings_seed_versions_and_machine_differ_and_nothing_else(tmp_path):
    first = run_folder(tmp_path / "a", "lora.rank=4", seed=1, **HERE)
    second = run_folder(tmp_path / "b", "lora.rank=8", "name=other", seed=2, fm=0.9, **THERE)
    assert differences(read_traits(first), read_traits(second)) == {
        "lora.rank": ("4", "8"),
        "seed": ("1", "2"),
        "torch version": ("2.6", "2.7"),
        "CPU": ("A", "B"),
    }


def test_a_run_without_a_result_tells_its_machine_by_its_newest_checkpoint(tmp_path):
    first, second = run_folder(tmp_path / "a", **HERE), run_folder(tmp_path / "b")
    (second / "result.json").unlink()
    for number, cpu in ((1, "old"), (2, "new")):
        place = second / f"checkpoints/round-000{number}/state.json"
        place.parent.mkdir(parents=True)
        place.write_text(json.dumps({"state": {"environment": {"torch": "2.6", "CPU": cpu}}}))
    found = differences(read_traits(first), read_traits(second))
    assert found == {"CPU": ("A", "new"), "driver threads": ("2", UNKNOWN)}


def test_what_cannot_be_read_is_unknown_and_a_folder_without_a_run_is_refused(tmp_path):
    first, second = run_folder(tmp_path / "a"), run_folder(tmp_path / "b", versions=3, environment=["x"])
    assert differences(read_traits(first), read_traits(second)) == {}
    with pytest.raises(ConfigError, match="RUN_DIR: found"):
        read_traits(tmp_path)


def test_the_page_has_the_values_of_all_runs_that_differ_and_begins_with_baseline_and_best(tmp_path):
    for rank, fm in ((4, 0.6), (8, 0.9)):
        for seed in (1, 2):
            run_folder(tmp_path / f"{rank}_{seed}", f"lora.rank={rank}", seed=seed, fm=fm, **HERE)
    html = compare_page(compare([tmp_path]))
    start = html.index('<div class="pair">')
    data = html[html.index(">{", start) + 1 : html.index("</script>", start)]
    assert json.loads(data) == {"lora.rank": ["4", "4", "8", "8"], "seed": ["1", "2", "1", "2"]}
    assert html.count("<option selected>4_1</option>", start) == html.count("<option selected>8_1</option>", start) == 1


def test_one_run_has_nothing_to_differ_from():
    assert differences_section([]) == ""


def test_the_terminal_compares_two_runs_that_cannot_be_ranked(tmp_path):
    folders = [run_folder(tmp_path / "a", "federated.rounds=2"), run_folder(tmp_path / "b", "federated.rounds=3")]
    arguments = ["compare", *map(str, folders), "--what-differs"]
    said = CliRunner().invoke(app, arguments)
    assert said.exit_code == 0
    assert "federated.rounds 2 3" in " ".join(said.stdout.split())
    said = CliRunner().invoke(app, [*arguments, "--format", "json"])
    assert json.loads(said.stdout) == {"federated.rounds": ["2", "3"]}
    with pytest.raises(ConfigError, match="found 1 folder"):
        CliRunner().invoke(app, ["compare", str(folders[0]), "--what-differs"], catch_exceptions=False)


def test_a_machine_has_a_name():
    assert cpu_model()
    assert machine()["CPU"] == cpu_model()
