"""Runs of other tools in W&B: the real client logs one to a server on loopback, and reads it and others again."""

import json

import pytest
import wandb
from typer.testing import CliRunner

from fedpft.cli.main import app
from fedpft.config import ConfigError
from fedpft.report.compare.comparison import compare
from fedpft.report.compare.elsewhere import elsewhere_note
from fedpft.report.compare.page import compare_page
from tests.run_folders import run_folder
from tests.wandb_server import Run, wandb_server

ONE = {"seed": 1, "lr": 0.1}
OTHERS = [
    ("two", {"train": {"seed": 2}, "lr": 0.1}, {"accuracy": 0.72}, 0),
    ("percent", {"seed": 1}, {"accuracy": 72.0}, 0),
    ("other-metric", {"seed": 1}, {"eval/acc": 0.5, "loss": 1.0, "text": "x", "_step": 3}, 0),
    ("best-only", {"seed": 1}, {"accuracy": {"max": 0.8}}, 0),
    ("no-seed", {"lr": 0.1}, {"accuracy": 0.5}, 0),
    ("crashed", {"seed": 1}, {"accuracy": 0.5}, 1),
]
"""Name, config, summary and exit code of runs beside the one that is really logged."""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """W&B's server on loopback with runs of another tool."""
    with wandb_server() as serving, pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("wandb")
        for name in ("CACHE", "CONFIG", "DATA"):
            patch.setenv(f"WANDB_{name}_DIR", str(folder / name))
        patch.setenv("WANDB_API_KEY", "a" * 40)
        patch.setenv("WANDB_BASE_URL", serving.url)
        patch.setenv("WANDB_ERROR_REPORTING", "false")
        wandb.teardown()  # what another test was told of
        quiet = wandb.Settings(silent=True, console="off", save_code=False, disable_git=True, x_disable_stats=True)

        with wandb.init(entity="me", project="p", id="one", config=ONE, dir=folder, settings=quiet) as run:
            for row in ({"accuracy": 0.5}, {"loss": 2.0}, {"accuracy": 0.7}):
                run.log(row)
        for name, config, summary, exit_code in OTHERS:
            serving.runs[name] = found = Run()
            found.upserts.append({"config": json.dumps({key: {"value": value} for key, value in config.items()})})
            found.summary, found.exit_codes = summary, [exit_code]
        yield serving
        wandb.teardown()


@pytest.fixture
def ours(tmp_path):
    return [run_folder(tmp_path / f"ours_{seed}", fm=0.8 + seed / 100, seed=seed) for seed in (1, 2)]


def test_a_run_of_another_tool_stands_beside_ours_with_metric_and_curve(server, ours):
    found = compare(ours, wandb=["me/p/one", "me/p/two"])
    theirs = [group for group in found.groups if group.is_elsewhere]
    values = {run.folder.name: (run.seed, run.value) for group in theirs for run in group.runs}
    assert values == {"one": (1, 0.7), "two": (2, 0.72)}
    (one,) = [run for group in theirs for run in group.runs if run.folder.name == "one"]
    assert [(record["round"], record["fm"]) for record in one.records] == [(0, 0.5), (2, 0.7)]
    assert all("W&B me/p" in group.label for group in theirs)
    assert "whether data, split, evaluation and budget are the same nobody has checked" in elsewhere_note(found.groups)
    assert [found.costs[group.label] for group in theirs] == [{}] * len(theirs), "no price, not one of 0 s"
    assert found.noise == compare(ours).noise, "how much our runs vary"
    assert found.setting_rows() == [], "settings are told of our runs alone"
    assert "W&amp;B me/p" in compare_page(found)
    assert elsewhere_note(compare(ours).groups) == ""
    assert not server.unknown


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("percent", "its accuracy is 72, ours is a fraction from 0 to 1"),
        ("other-metric", "its summary in W&B has no last number 'accuracy'; it has: eval/acc, loss"),
        ("best-only", "its summary in W&B has no last number 'accuracy'; it has: none"),
        ("no-seed", "its config in W&B has no whole number `seed`, by which runs are grouped"),
        ("crashed", "not finished: failed, says W&B"),
    ],
)
def test_what_cannot_stand_beside_ours_is_left_out_with_a_reason(server, ours, name, reason):
    (left,) = compare(ours, wandb=[f"me/p/{name}"]).left_out
    assert (str(left.folder), left.reason) == (f"me/p/{name}", reason)


@pytest.mark.parametrize("path", ["me/p/nobody", "me/elsewhere/one", "one", "https://wandb.ai/me/p/runs/one", "me/p/"])
def test_a_run_that_w_and_b_does_not_have_is_one_line(server, ours, path):
    with pytest.raises(ConfigError, match=r"^--wandb: found '[^\n]*allowed: [^\n]*$"):
        compare(ours, wandb=[path])


def test_the_command_takes_them(server, ours, tmp_path):
    words = ["compare", *map(str, ours), "--wandb", "me/p/one", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "of another tool, read from W&B" in done.output
    assert "beats" in done.output or "not distinguishable" in done.output
