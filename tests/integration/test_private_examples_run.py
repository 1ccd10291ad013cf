"""Whole runs under differential privacy of examples."""

import json

import pytest
from rich.console import Console
from typer.testing import CliRunner

from fedpft.cli.main import app
from fedpft.config import load_config
from fedpft.report.card import model_card
from fedpft.report.plan import print_plan
from fedpft.run.pipeline import run
from fedpft.run.planning import plan
from fedpft.run.resume import go_on
from tests.integration.test_resume import Stop, StopBefore, outcome
from tests.tiny import tiny_text_run

PRIVATE = ["federated={rounds: 3, batch_size: 3}", "privacy={kind: example, target_epsilon: 20.0, clip: 0.5}"]


@pytest.fixture(autouse=True)
def _few_canary_runs(monkeypatch):
    monkeypatch.setattr("fedpft.run.audit.CANARY_RELEASES", 0)  # the least that an audit makes; seconds otherwise


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return [*tiny_text_run(tmp_path_factory.mktemp("data")), *PRIVATE]


@pytest.fixture(scope="module")
def straight(settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight") / "out"
    run(load_config(None, [*settings, f"output_dir={folder}"]))
    return folder


def test_a_run_that_goes_on_has_the_same_bits_and_the_same_epsilon(settings, straight, tmp_path):
    config = load_config(None, [*settings, f"output_dir={tmp_path / 'out'}"])
    with pytest.raises(Stop):
        go_on(config, StopBefore(2))
    go_on(config)
    assert outcome(tmp_path / "out") == outcome(straight)


def test_plan_result_rounds_page_and_card_carry_the_guarantee(settings, straight):
    result = json.loads((straight / "result.json").read_text())
    privacy = result["privacy"]
    assert privacy["unit"] == "example"
    assert 0 < privacy["epsilon"] <= 20
    records = [json.loads(line) for line in (straight / "rounds.jsonl").read_text().splitlines()]
    assert records[-1]["privacy/epsilon"] == privacy["epsilon"]
    assert {"clients", "client_losses", "clients/clipped"} <= set(records[1]["simulation_only"])
    planned = plan(load_config(None, settings), counts_memory=False)
    assert privacy["epsilon"] <= planned["privacy"]["epsilon_by_round"][3] <= 20
    assert planned["privacy"]["noise_multiplier"] == privacy["noise_multiplier"]
    screen = Console(width=300)
    with screen.capture() as shown:
        print_plan(screen, planned)
    assert "noise over the longest mean gradient of a step" in shown.get()
    page = (straight / "report.html").read_text()
    card = str(model_card(result, load_config(straight / "config.yaml"), "AutoModel", merged=False))
    assert all(f"{privacy['epsilon']:.3f}" in text and "unit: example" in text for text in (page, card))


def test_an_audit_has_canary_examples(straight):
    said = CliRunner().invoke(app, ["audit", str(straight), "--format", "json"])
    assert said.exit_code == 0
    found = json.loads(said.stdout)["canaries"]
    assert 0 < found["epsilon"] <= found["accounted_epsilon"]


def test_a_strict_run_with_secure_aggregation_tells_no_clients_size_and_can_be_audited(settings, tmp_path):
    more = ["privacy.secure_aggregation=true", "privacy.strict=true", "federated.rounds=1"]
    more += ["privacy.target_epsilon=null", "privacy.noise_multiplier=0.5"]
    config = load_config(None, [*settings, *more, f"output_dir={tmp_path / 'out'}"])
    result = run(config).result
    assert "releases" not in result["privacy"]
    assert result["privacy"]["sampling"] == "poisson within a client, rate B/n"
    records = [json.loads(line) for line in (tmp_path / "out" / "rounds.jsonl").read_text().splitlines()]
    assert not any(key.startswith("clients") for record in records for key in record)
    assert CliRunner().invoke(app, ["audit", str(tmp_path / "out")]).exit_code == 0
