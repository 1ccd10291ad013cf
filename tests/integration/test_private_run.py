"""Whole private runs: resumed to the same bits and epsilon; strict ones leave nothing private behind."""

import csv
import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from fedpft.cli.main import app
from fedpft.config import load_config
from fedpft.federated.client import LocalClient
from fedpft.federated.reticence import SIMULATION_ONLY
from fedpft.report.audit import audit_rows
from fedpft.report.card import model_card
from fedpft.report.plan import print_plan
from fedpft.run.audit import audit
from fedpft.run.pipeline import run
from fedpft.run.planning import plan
from fedpft.run.resume import go_on
from tests.integration.test_resume import Stop, StopBefore, outcome
from tests.tiny import tiny_text_run

SECRET = "zqxsecret"
PRIVATE = [
    "federated={sampling: poisson, aggregation: uniform, rounds: 4}",
    "privacy={kind: client, target_epsilon: 20.0, clipping: adaptive, clip: 0.5}",
]
NOISED = [*PRIVATE, "privacy.target_epsilon=null", "privacy.noise_multiplier=0.5"]
"""As private, but nobody searches for the noise of a budget, which takes seconds."""


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


def files_with(folder: Path, token: str) -> list[str]:
    """Return the files in whose bytes or names a token is, in any of two encodings."""
    needles = [token.encode(), token.encode("utf-16-le")]
    return [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and (token in path.name or any(needle in path.read_bytes() for needle in needles))
    ]


def test_a_private_run_that_goes_on_has_the_same_bits_and_the_same_epsilon(settings, straight, tmp_path):
    config = load_config(None, [*settings, f"output_dir={tmp_path / 'out'}"])
    with pytest.raises(Stop):
        go_on(config, StopBefore(3))
    go_on(config)
    assert outcome(tmp_path / "out") == outcome(straight)


@pytest.mark.parametrize(
    ("more", "unit"),
    [pytest.param(NOISED, "client", id="private"), pytest.param([], "example", id="plain", marks=pytest.mark.cluster)],
)
def test_a_run_with_canaries_goes_on_to_the_same_bits_and_its_audit_bounds_epsilon_by_them(tmp_path, more, unit):
    settings = [*tiny_text_run(tmp_path), *more, "privacy.canaries=3", "federated.rounds=2", "align.neurons.kind=none"]
    for name in ("one", "two"):
        config = load_config(None, [*settings, f"output_dir={tmp_path / name}"])
        if name == "two":
            with pytest.raises(Stop):
                go_on(config, StopBefore(2))
        go_on(config)
    assert outcome(tmp_path / "two") == outcome(tmp_path / "one")
    found = audit(tmp_path / "one")
    result = json.loads((tmp_path / "one" / "result.json").read_text())
    planted, accounted = found["planted"], result.get("privacy", {}).get("epsilon")
    assert planted.items() >= {"unit": unit, "num_canaries": 3, "accounted_epsilon": accounted}.items()
    assert 0 <= planted["epsilon"] <= (accounted or 3.0)
    assert found["membership"]["fm"]["num_members"] <= 48, "canaries are no members"
    said = "no guarantee" if accounted is None else "accounted"
    assert any(title == "epsilon by this run" and said in note for title, _, note in audit_rows(found))


def test_a_run_with_secure_aggregation_goes_on_to_the_same_bits_and_says_what_it_costs(tmp_path):
    settings = [*tiny_text_run(tmp_path), "privacy.secure_aggregation=true", "federated.rounds=3"]
    straight, resumed = (load_config(None, [*settings, f"output_dir={tmp_path / name}"]) for name in ("one", "two"))
    result = run(straight).result
    with pytest.raises(Stop):
        go_on(resumed, StopBefore(2))
    go_on(resumed)
    assert outcome(tmp_path / "two") == outcome(tmp_path / "one")
    records = [json.loads(line) for line in (tmp_path / "one" / "rounds.jsonl").read_text().splitlines()]
    assert {"client_losses", "train_loss"} <= set(records[1]["simulation_only"])
    assert sum(record.get("comm/bytes_masked", 0) for record in records) > 0
    planned = plan(straight, counts_memory=False)
    told = planned["secure_aggregation"]
    assert told.items() >= result["secure_aggregation"].items()
    assert result["bytes_up_per_client_round"] == planned["bytes_up_per_client_round"]
    assert planned["bytes_up_per_client_round"] > 8 * planned["num_params_adapter"]
    screen = Console(width=200, record=True, file=StringIO())
    print_plan(screen, planned)
    shown = screen.export_text()
    assert f"{told['threshold']} of {told['clients']} clients must be there at a round's end" in shown
    assert f"masked {told['bytes_per_client']['masked']}" in shown


def test_result_rounds_page_and_card_carry_the_guarantee(settings, straight):
    result = json.loads((straight / "result.json").read_text())
    privacy = result["privacy"]
    assert 19 < privacy["epsilon"] <= 20 <= privacy["epsilon_rdp"]
    assert privacy.items() >= {"delta": 1e-5, "unit": "client", "sampling": "poisson, rate 0.75", "releases": 4}.items()
    assert "add or remove" in privacy["neighbours"]
    records = [json.loads(line) for line in (straight / "rounds.jsonl").read_text().splitlines()]
    assert records[-1]["privacy/epsilon"] == privacy["epsilon"]
    assert {"clients", "client_losses", "privacy/num_clipped"} <= set(records[0]["simulation_only"])
    assert "client_expected_accuracy" in result["simulation_only"]
    assert "align/loss" in records[1], "counted on public data"
    shown = f"{privacy['epsilon']:.3f}"
    page = (straight / "report.html").read_text()
    card = str(model_card(result, load_config(straight / "config.yaml"), "AutoModel", merged=False))
    assert all(shown in text and "add or remove" in text for text in (page, card))
    planned = plan(load_config(None, settings), counts_memory=False)["privacy"]
    assert planned["epsilon_by_round"][4] == privacy["epsilon"]
    assert planned["noise_multiplier"] == privacy["noise_multiplier"]


def test_a_strict_run_leaves_no_token_of_the_clients_data_and_nothing_of_single_clients(
    settings, tmp_path, monkeypatch, capfd
):
    monkeypatch.setenv("WANDB_DATA_DIR", "")  # restored afterwards
    task = tmp_path / "task"
    task.mkdir()
    source = Path(load_config(None, settings).task.path)
    for name in ("train", "validation"):
        with (source / f"{name}.csv").open(newline="") as stream:
            head, *rows = csv.reader(stream)
        with (task / f"{name}.csv").open("w", newline="") as stream:
            planted = [[f"{text} {SECRET}{name}{number}", label] for number, (text, label) in enumerate(rows)]
            csv.writer(stream).writerows([head, *planted])
    fit = LocalClient.fit

    def failing(self, plan, client_id):
        if client_id == 1:
            raise ValueError(f"{SECRET}: cannot read this")
        return fit(self, plan, client_id)

    monkeypatch.setattr(LocalClient, "fit", failing)
    config = load_config(None, [
        *settings, f"output_dir={tmp_path / 'out'}", f"task.path={task}", "privacy.strict=true",
        "tracking.wandb=offline", "federated.rounds=2", "federated.sampling=full",
    ])  # fmt: skip
    result = run(config).result
    folder = tmp_path / "out"
    assert files_with(tmp_path, f"{SECRET}train0") == ["task/train.csv"], "the search finds what there is"
    assert files_with(folder, SECRET) == []
    assert SECRET not in "".join(capfd.readouterr())
    names = {path.name for path in folder.iterdir()}
    assert not names & {"partition.json", "examples.safetensors"}
    records = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    plain = {pattern for pattern in SIMULATION_ONLY if "*" not in pattern}
    assert not plain & {*result, *(key for record in records for key in record)}
    assert not any(key.startswith(("clients/", "time/actor_utilisation")) for record in records for key in record)
    assert result["privacy"]["releases"] == 2
    assert plan(config, counts_memory=False)["label_histogram"] is None


def test_an_audit_of_a_private_run_has_every_meter_and_changes_nothing_else(straight):
    before = {path: path.stat().st_mtime_ns for path in straight.rglob("*") if path.name != "audit.json"}
    said = CliRunner().invoke(app, ["audit", str(straight), "--format", "json"])
    assert said.exit_code == 0
    found = json.loads(said.stdout)
    assert found == json.loads((straight / "audit.json").read_text())
    assert {path: path.stat().st_mtime_ns for path in straight.rglob("*") if path.name != "audit.json"} == before
    assert set(found["membership"]) == {"untuned_fm", "fm", "sub_fm"}
    assert all(0 <= attack["auc"] <= 1 for attack in found["membership"].values())
    assert 0 <= found["update_membership"]["auc"] <= 1
    result = json.loads((straight / "result.json").read_text())
    assert found["delta"] == result["fm"] - result["sub_fm"]
    assert 0 < found["canaries"]["epsilon"] <= found["canaries"]["accounted_epsilon"] == result["privacy"]["epsilon"]
    records = [json.loads(line) for line in (straight / "rounds.jsonl").read_text().splitlines()]
    sizes = json.loads((straight / "partition.json").read_text())["label_histogram"]
    trained = {client for record in records for client in record["clients"]}
    assert found["membership"]["fm"]["num_members"] == sum(sum(sizes[client]) for client in trained)
    assert any("epsilon by canaries" in title for title, *_ in audit_rows(found))
    (straight / "audit.json").unlink()
