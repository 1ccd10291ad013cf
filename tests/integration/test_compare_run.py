"""`fedpft compare` on what real runs leave, from the command line."""

import json
import sys

import pytest

from fedpft.cli import main as cli
from fedpft.config import load_config
from fedpft.run.pipeline import run
from tests.run_folders import run_folder
from tests.tiny import tiny_text_run


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Return a folder with runs of two methods, one seed each."""
    folder = tmp_path_factory.mktemp("sweep")
    settings = [*tiny_text_run(folder), "federated.rounds=2", "evaluation.interval=1"]
    settings.append("cache.enabled=false")  # a cached sub-FM has no time of its own to compare
    for name in ("fedpft", "full"):
        run(load_config(None, [*settings, f"method.name={name}", f"output_dir={folder / 'runs' / name}"]))
    return folder / "runs"


def test_real_runs_have_every_axis_and_figure(sweep, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["fedpft", "compare", str(sweep), "--baseline", "full", "--out", str(out)])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 0
    printed = capsys.readouterr().out
    content = json.loads((out / "compare.json").read_text())
    results = {name: json.loads((sweep / name / "result.json").read_text()) for name in ("fedpft", "full")}
    groups = {group["label"]: group for group in content["groups"]}
    assert {label: group["mean"] for label, group in groups.items()} == {
        name: result["fm"] for name, result in results.items()
    }
    assert groups["fedpft"]["verdict"] in printed
    assert "not distinguishable from full (n = 1" in printed
    costs = groups["fedpft"]["costs"]
    told = {"bytes", "client_flops", "client_memory", "proxy_params", "align_seconds", "leakage_gap", "agreement"}
    assert costs.keys() == told
    assert costs["agreement"] == results["fedpft"]["skill"]["agreement"]
    assert costs["bytes"] == results["fedpft"]["bytes_up_total"] + results["fedpft"]["bytes_down_total"]
    assert groups["full"]["costs"]["leakage_gap"] == 0
    page = (out / "compare.html").read_text()
    for title in ("Accuracy by round", "What it costs", "Fidelity by layer", "Partition: ", "Spread over clients"):
        assert f"<h2>{title}" in page
    report = (sweep / "fedpft/report.html").read_text()
    assert "<h2>Partition: label shares in each client</h2>" in report
    assert "default-src 'none'" in report


def test_a_run_says_who_owns_what_and_how_each_client_fared(sweep):
    partition = json.loads((sweep / "fedpft/partition.json").read_text())
    assert sum(map(sum, partition["label_histogram"])) == 48
    assert (len(partition["label_histogram"]), len(partition["label_names"])) == (4, 2)
    for line in (sweep / "fedpft/rounds.jsonl").read_text().splitlines():
        record = json.loads(line)
        assert len(record["client_losses"]) == len(record["clients"]) == 3
        assert min(record["client_losses"]) <= record["train_loss"] <= max(record["client_losses"])


def test_an_earlier_comparison_is_kept(tmp_path, monkeypatch):
    run_folder(tmp_path / "a")
    monkeypatch.setattr(sys, "argv", ["fedpft", "compare", str(tmp_path / "a"), "--out", str(tmp_path / "out")])
    for _ in range(2):
        with pytest.raises(SystemExit):
            cli.main()
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out", "out.1"]
    assert sorted(path.name for path in (tmp_path / "out.1").iterdir()) == ["compare.html", "compare.json"]


def test_runs_that_are_not_comparable_are_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys):
    run_folder(tmp_path / "a")
    run_folder(tmp_path / "b", "federated.rounds=3", rounds=3)
    command = ["fedpft", "compare", str(tmp_path), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    (line,) = capsys.readouterr().err.splitlines()
    assert (exit_.value.code, line) == (
        2,
        f"error: not comparable, rounds: found 2 in {tmp_path / 'a'}, 3 in {tmp_path / 'b'}; "
        "allowed: the same in all runs, or --allow-different rounds",
    )
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(sys, "argv", [*command, "--allow-different", "rounds"])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 0
