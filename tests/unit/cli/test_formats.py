"""`--format json`: all numbers on stdout, for other programs; and what a new user begins with."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedpft.cli import main as cli
from fedpft.config import Config, config_keys, load_config, resolved
from fedpft.config.schema import config_schema
from fedpft.construct.store import Store
from tests.tiny import tiny_text_run

STARTERS = Path(cli.__file__).parents[1] / "starters"


def fedpft(*arguments: object) -> Any:
    result = CliRunner().invoke(cli.app, [*map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result


def test_the_cache_as_json(tmp_path: Path) -> None:
    Store(tmp_path).entry_folder("0a" * 16).mkdir(parents=True)
    found = json.loads(fedpft("cache", "list", "--dir", tmp_path, "--format", "json").stdout)
    assert [entry["key"] for entry in found["entries"]] == ["0a" * 16]


def test_a_run_and_its_plan_as_json(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("name: tiny\n")
    settings = [*tiny_text_run(tmp_path), "federated.rounds=1"]
    planned = json.loads(fedpft("plan", config, *settings, "--format", "json").stdout)
    assert sum(map(sum, planned["label_histogram"])) == 48
    done = json.loads(fedpft("run", config, *settings, "--format", "json").stdout)
    assert done["rounds"] == 1
    assert done["locations"]["result"] == str(tmp_path / "out" / "result.json")
    again = json.loads(fedpft("resume", tmp_path / "out", "--format", "json").stdout)
    assert again["fm"] == done["fm"]
    compared = json.loads(fedpft("compare", tmp_path / "out", "--out", tmp_path / "c", "--format", "json").stdout)
    assert compared["groups"][0]["mean"] == done["fm"]


def test_the_schema_knows_every_key_with_its_meaning() -> None:
    schema = json.loads(fedpft("schema").stdout)
    assert schema == config_schema()

    def keys(node: dict[str, Any], prefix: str = "") -> list[str]:
        found = []
        for name, entry in node["properties"].items():
            options = [entry, *entry.get("anyOf", [])]
            below = next((option["$ref"] for option in options if "$ref" in option), None)
            section = below and schema["$defs"][below.rpartition("/")[2]]
            found += keys(section, f"{prefix}{name}.") if section else [prefix + name]
        return found

    assert [key for key in keys(schema) if key != "parts"] == config_keys()
    pool = schema["$defs"]["PoolConfig"]["properties"]
    assert pool["kind"]["enum"] == ["ray", "sequential"]
    assert "each actor claims from Ray" in pool["gpus_per_actor"]["description"]
    assert resolved(Config()) == load_config(), "pydantic reads the dataclasses and leaves them as they are"


def test_the_schema_takes_the_starters_and_refuses_a_typo() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    from omegaconf import OmegaConf

    for path in sorted(STARTERS.glob("*.yaml")):
        jsonschema.validate(OmegaConf.to_container(OmegaConf.load(path)), config_schema())
    jsonschema.validate({"fm": "roberta", "parts": {"task": "qnli"}}, config_schema())
    with pytest.raises(jsonschema.ValidationError, match="round"):
        jsonschema.validate({"federated": {"round": 4}}, config_schema())


@pytest.mark.parametrize("name", ["quickstart", "digits", "own-data", "language-model"])
def test_every_starter_is_a_config_that_loads_with_its_data_beside_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = fedpft("init", name, "start").stdout.splitlines()
    assert all(Path(line).stat().st_size for line in said[:-1])
    assert said[-1] == "next  cd start && fedpft run config.yaml"
    monkeypatch.chdir("start")
    config = load_config("config.yaml")
    if config.task.name == "custom":
        from fedpft.data.corpora.public import load_corpus
        from fedpft.data.tasks.loading import load_task

        assert len(load_task(config.task, config.seed).train) > 100
        assert len(load_corpus(config.public, 0)) > 1000  # type: ignore[arg-type]


def test_a_folder_with_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("mine")
    result = CliRunner().invoke(cli.app, ["init", "digits", str(tmp_path)])
    assert "FOLDER: found" in str(result.exception)
    assert (tmp_path / "config.yaml").read_text() == "mine"


def test_a_file_of_another_version_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"config_version: found 0, allowed: 1: the file is of another version .*CHANGELOG"
    ):
        load_config(None, ["config_version=0"])


def test_shell_completion_is_offered() -> None:
    assert "--install-completion" in fedpft("--help").stdout


def test_every_key_says_in_whole_sentences_what_it_means() -> None:
    said = {
        f"{section}.{key}": " ".join(entry["description"].split())
        for section, found in config_schema()["$defs"].items()
        for key, entry in found["properties"].items()
        if "description" in entry
    }
    assert len(said) > 150
    begins = re.compile(r"(?!(Of|For|On|Over|By|Beside|Beyond) )[A-Z]\w*[ ,']")
    assert [key for key, text in said.items() if not begins.match(text) or not text.endswith(".")] == []
