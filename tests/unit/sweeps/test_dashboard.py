"""The dashboard in W&B: its names are those that runs log, and it is updated, not made again."""

import json
import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import wandb

from fedpft.cli.dashboard import dashboard
from fedpft.config import ConfigError, load_config
from fedpft.config.sweep import SweepConfig
from fedpft.run.pipeline import run
from fedpft.sweeps.dashboard import Dashboard, save, specs, sweep_dashboard
from tests.tiny import tiny_text_run
from tests.wandb_file import OfflineRun

pytest.importorskip("wandb_workspaces", reason="the extra `dashboard` is not installed")


def panels(spec: Any) -> Iterator[dict[str, Any]]:
    """Yield every panel of a spec, wherever it lies in it."""
    if isinstance(spec, dict):
        if "viewType" in spec:
            yield spec
        for value in spec.values():
            yield from panels(value)
    elif isinstance(spec, list):
        for value in spec:
            yield from panels(value)


def names(panel: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield kind (`history`, `summary`, `config`) and name of all that a panel shows, as W&B reads them."""
    config = panel["config"]
    if panel["viewType"] == "Run History Line Plot":
        yield from (("history", name) for name in [config["xAxis"], *config["metrics"]])
        if "metricRegex" in config:
            yield "regex", config["metricRegex"]
    elif panel["viewType"] == "Media Browser":
        yield from (("history", f"{key}/path") for key in config["mediaKeys"])
    elif panel["viewType"] == "Parameter Importance":
        yield "summary", config["targetKey"]
    elif panel["viewType"] == "Bar Chart":
        yield from (("summary", name) for name in config["metrics"])
    else:
        columns = config.get("columns") or [{"accessor": config[axis]} for axis in ("xAxis", "yAxis")]
        yield from (tuple(column["accessor"].split(":", 1)) for column in columns)


def has(content: dict[str, Any], name: str) -> bool:
    """Whether nested content has a number or word under a dotted name, whose first part may itself have dots."""
    if name in content:
        return not isinstance(content[name], dict)
    ends = [match.start() for match in re.finditer(r"\.", name)]
    return any(has(content[name[:end]], name[end + 1 :]) for end in ends if isinstance(content.get(name[:end]), dict))


def test_no_panel_is_empty_every_name_is_one_that_a_real_run_logged(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_DATA_DIR", "")
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    ran = run(load_config(None, [*tiny_text_run(tmp_path), "evaluation.interval=2", "tracking.wandb=offline"]))
    wandb.teardown()
    logged = OfflineRun.in_folder(type(tmp_path)(ran.locations["wandb"]))
    for spec in specs(Dashboard(project="p", settings=("method.retained_ratio", "align.layers.kind"))).values():
        shown = {name for panel in panels(spec) for name in names(panel)}
        assert {kind for kind, _ in shown} == {"history", "summary", "config", "regex"}
        missing = {
            (kind, name)
            for kind, name in shown
            if not (
                (kind == "history" and name in logged.history)
                or (kind == "regex" and any(re.search(name, key) for key in logged.history))
                or (kind == "summary" and has(logged.summary, name))
                or (kind == "config" and has({"method.value": logged.config["method"],
                                              "align.value": logged.config["align"]}, name))
            )
        }  # fmt: skip
        assert not missing


def test_workspace_and_report_have_the_same_panels_and_only_the_groups_runs():
    made = specs(Dashboard(project="p", group="sizes"))
    configs = [[panel["config"] for panel in panels(spec)] for spec in made.values()]
    assert configs[0] == configs[1]
    group = {"key": {"section": "run", "name": "group"}, "op": "=", "value": "sizes", "disabled": False}
    for spec in made.values():
        text = json.dumps(spec)
        assert spec["displayName"] == "fedpft: sizes"
        assert text.count(json.dumps(group)) == text.count('"filterV2"') > 0
    assert '"op": "="' not in json.dumps(specs(Dashboard(project="p"))["workspace"]), "all runs: no filter"


@pytest.mark.parametrize(("goal", "line"), [("max", "showMaxYAxisLine"), ("min", "showMinYAxisLine")])
def test_the_pareto_line_goes_the_metrics_way(goal, line):
    plots = [p["config"] for p in panels(specs(Dashboard(project="p", goal=goal))) if p["viewType"] == "Scatter Plot"]
    assert plots
    assert all({"showMaxYAxisLine", "showMinYAxisLine"} & plot.keys() == {line} for plot in plots)
    assert not any(
        {"showMaxYAxisLine", "showMinYAxisLine"} - {line} & plot.keys() for plot in plots if line not in plot
    )


def test_a_sweeps_dashboard_sets_its_searched_keys_against_the_outcome(tmp_path):
    (tmp_path / "base.yaml").write_text("tracking: {project: mine, entity: us}\n")
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "small.yaml").write_text("method: {retained_ratio: 0.25}\nlora: {rank: 2}\n")
    (tmp_path / "method" / "large.yaml").write_text("method: {retained_ratio: 0.5}\nlora: {rank: 4}\n")
    space = {"method": {"grid": ["small", "large"]}, "federated.lr": {"grid": [0.1, 0.2]}}
    sweep = SweepConfig(name="sizes", base=str(tmp_path / "base.yaml"), space=space, seeds=(1, 2))
    shown = sweep_dashboard(sweep)
    assert (shown.project, shown.entity, shown.group, shown.goal) == ("mine", "us", "sizes", "max")
    assert set(shown.settings) == {"method.retained_ratio", "lora.rank", "federated.lr"}
    (plot,) = (p for p in panels(specs(shown)["report"]) if p["viewType"] == "Parallel Coordinates Plot")
    axes = [column["accessor"] for column in plot["config"]["columns"]]
    assert set(axes) == {"config:method.value.retained_ratio", "config:lora.value.rank",
                         "config:federated.value.lr", "summary:result/fm"}  # fmt: skip


def test_a_name_with_symbols_that_wandb_refuses_is_still_a_name():
    assert specs(Dashboard(project="p", group="lr=0.1 + 🙂"))["workspace"]["displayName"] == "fedpft: lr-0.1 - -"


def test_the_command_writes_the_spec_of_a_sweep_and_its_options_come_first(tmp_path, capsys):
    (tmp_path / "base.yaml").write_text("tracking: {project: mine}\n")
    (tmp_path / "sweep.yaml").write_text("name: ratios\nbase: base.yaml\nspace: {lora.rank: {grid: [1, 2]}}\n")
    spec = tmp_path / "new" / "spec.json"
    dashboard(tmp_path / "sweep.yaml", entity="us", spec=spec)
    assert capsys.readouterr().out == f"spec      {spec}\n"
    made = json.loads(spec.read_text())
    assert (made["workspace"]["project"], made["workspace"]["entity"]) == ("mine", "us")
    assert made["report"]["displayName"] == "fedpft: ratios"
    dashboard(tmp_path / "sweep.yaml", project="other", group="g", spec=spec)
    made = json.loads(spec.read_text())
    assert (made["workspace"]["project"], made["workspace"]["displayName"]) == ("other", "fedpft: g")


class Server:
    """Answers what wandb-workspaces asks of W&B's GraphQL, and keeps the views."""

    app_url = "https://wandb.example"

    def __init__(self) -> None:
        self.views: dict[str, dict[str, Any]] = {}
        self.saved: list[tuple[str, str | None]] = []
        self.projects: list[SimpleNamespace] = []

    def execute_graphql(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        if "upsertView" in query:
            self.saved.append((variables["type"], variables.get("id")))
            key = variables.get("id") or f"VmlldzoxMjM{len(self.views)}"
            project = {"name": variables["projectName"], "entityName": variables["entityName"]}
            self.views[key] = {"id": key, "description": "", "project": project} | {
                field: variables[field] for field in ("name", "displayName", "type", "spec")
            }
            return {"upsertView": {"view": dict(self.views[key]), "inserted": True}}
        if "allViews" in query:
            found = [view for view in self.views.values() if view["name"] == variables["viewName"]]
            return {"project": {"allViews": {"edges": [{"node": dict(view)} for view in found]}}}
        return {"view": dict(view) if (view := self.views.get(variables["reportId"])) else None}


@pytest.fixture
def server(monkeypatch) -> Server:
    made = Server()

    class Api:
        def __init__(self, timeout: int | None = None) -> None:
            self._service_api, self.default_entity = made, "me"

        def projects(self, entity: str) -> list[SimpleNamespace]:
            return made.projects

        def create_project(self, name: str, entity: str) -> None:
            made.projects.append(SimpleNamespace(name=name))

    monkeypatch.setattr(wandb, "Api", Api)
    return made


def test_saving_again_updates_workspace_and_report_and_one_that_was_deleted_is_made_again(server, tmp_path):
    """The transport is faked, because there is no W&B server here; all above it is wandb-workspaces' own code."""
    known, shown = tmp_path / "below" / "dashboards.json", Dashboard(project="p", group="sizes")
    first = save(shown, known)
    assert [project.name for project in server.projects] == ["p"]
    assert [(kind, key is None) for kind, key in server.saved] == [("runs", True), ("project-view", True)]
    assert first["workspace"].startswith("https://wandb.example/me/p?nw=")
    assert json.loads(known.read_text()) == {"me/p/fedpft: sizes": first}

    assert save(shown, known) == first
    assert len(server.views) == 2
    assert {key for _, key in server.saved[2:]} == server.views.keys(), "the same two views"

    other = save(Dashboard(project="p"), known)
    assert len(server.views) == 4
    assert other.keys() == first.keys()

    server.views.clear()
    again = save(shown, known)
    assert len(server.views) == 2
    assert json.loads(known.read_text())["me/p/fedpft: sizes"] == again


@pytest.mark.parametrize("entity", [None, "us"])
def test_without_a_key_one_line_says_what_can_be_done(monkeypatch, tmp_path, entity):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"^dashboard: W&B says: .*wandb login.*wandb sync.*--spec FILE") as error:
        save(Dashboard(project="p", entity=entity), tmp_path / "dashboards.json")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "dashboards.json").exists()
