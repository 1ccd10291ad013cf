import json
import os
import platform
import re
import shutil
import subprocess
import time
from collections import Counter

import pytest

from fedpft.board.history import MAX_POINTS, History
from fedpft.board.index import Index
from fedpft.board.state import Sign, is_alive
from fedpft.board.views.run import run_page
from fedpft.board.views.runs import run_row
from fedpft.board.views.sweep import stops_figure, sweep_page
from fedpft.config import dump_config, load_config
from fedpft.report.compare.comparison import compare, compare_runs
from fedpft.report.compare.record import comparison_json
from fedpft.storage.lock import SILENT_SECONDS, held
from tests.run_folders import run_folder, sweep_folder


def unfinished(folder, *overrides, rounds=({"round": 1, "fm": 0.5, "metric": "accuracy", "metric_goal": "max"},)):
    """Write a run without a result."""
    run_folder(folder, *overrides)
    (folder / "result.json").unlink()
    (folder / "rounds.jsonl").write_text("".join(json.dumps(record) + "\n" for record in rounds))
    return folder


def hold(folder, age=0.0, host="elsewhere", **more):
    path = folder / ".lock.json"
    path.write_text(json.dumps({"host": host, "pid": 1, "what": "run", "since": "today"} | more))
    os.utime(path, (time.time() - age,) * 2)


def index_of(folder, **more):
    """Return an index that has looked and read all."""
    index = Index([folder], **more)
    look(index)
    return index


def look(index):
    """Look at all at once, settled runs too, however short ago it was."""
    index._next_look = index._next_walk = 0.0
    index._looks = -1
    index.look()
    assert index.read(300.0)


def states(index):
    return {run.title: run.state for run in index.runs}


def test_a_run_is_what_its_lock_its_result_and_its_last_sign_say(tmp_path):
    run_folder(tmp_path / "finished")
    hold(unfinished(tmp_path / "running"))
    hold(unfinished(tmp_path / "stale"), age=SILENT_SECONDS + 1)
    unfinished(tmp_path / "stopped")
    uncounted = [{"round": index, "counted": False, "clients": []} for index in (1, 2)]
    unfinished(tmp_path / "failed", rounds=uncounted)
    (tmp_path / "begun").mkdir()
    hold(tmp_path / "begun")
    (tmp_path / "no run").mkdir()
    assert states(index_of(tmp_path)) == {
        **{state: state for state in ("finished", "running", "stale", "stopped", "failed")}, "begun": "running",
    }  # fmt: skip


@pytest.mark.parametrize(("kind", "state"), [("failed", "failed"), ("interrupted", "stopped")])
def test_a_run_that_left_a_reason_shows_it_until_somebody_goes_on(tmp_path, kind, state):
    folder = unfinished(tmp_path / "run")
    (folder / "ended.json").write_text(json.dumps({"kind": kind, "reason": "no <memory>"}))
    index = index_of(tmp_path)
    (run,) = index.runs
    assert (run.state, run.reason) == (state, "no <memory>")
    assert "no &lt;memory&gt;" in run_row(run, private=False, pick=False)
    hold(folder)
    look(index)
    assert run.state == "running"
    assert "memory" not in run_row(run, private=False, pick=False)
    (folder / "ended.json").unlink()
    (folder / ".lock.json").unlink()
    look(index)
    assert (run.state, run.reason) == ("stopped", None)


def test_a_real_lock_is_a_running_run_and_its_end_a_stopped_one(tmp_path):
    folder = unfinished(tmp_path / "run")
    with held(folder):
        index = index_of(tmp_path)
        assert states(index) == {"run": "running"}
        assert index.runs[0].holder.content["pid"] == os.getpid()
    look(index)
    assert states(index) == {"run": "stopped"}


@pytest.mark.parametrize(
    ("ages", "host", "alive"),
    [
        ({"file": 10}, "elsewhere", True),
        ({"file": 200}, "elsewhere", False),
        ({"file": 90_000, "seen": 20}, "elsewhere", True),
        ({"file": -90_000}, "elsewhere", False),
        ({"file": -90_000, "seen": 20}, "elsewhere", True),
        ({"file": 90_000, "seen": 200}, "elsewhere", False),
        ({"file": 20}, "here", True),
        ({"file": 60}, "here", False),
    ],
    ids=["beats", "silent", "slow clock", "fast clock, never seen", "fast clock", "died", "gone, just now", "gone"],
)
def test_signs_of_life_count_whatever_the_other_machines_clock_says(ages, host, alive):
    process = subprocess.Popen(["true"])
    process.wait()  # its number is nobody's now
    holder = {"host": platform.node() if host == "here" else host, "pid": process.pid}
    seen = 1e9 - ages["seen"] if "seen" in ages else None
    assert is_alive(holder, Sign(file_time=1e9 - ages["file"], seen=seen), now=1e9) == alive


def test_what_the_server_works_on_shows_while_the_run_goes_on(tmp_path):
    folder = unfinished(tmp_path / "run", rounds=())
    hold(folder, doing="align layers")
    index = index_of(tmp_path)
    (run,) = index.runs
    version = index.version
    assert "align layers" in run_row(run, private=False, pick=True)
    assert "align layers" in run_page(run).parts["now"]
    hold(folder, doing="evaluate <untuned> FM")
    look(index)
    assert index.version > version
    assert "evaluate &lt;untuned&gt; FM" in run_row(run, private=False, pick=True)
    hold(folder, age=SILENT_SECONDS + 1, doing="load FM")
    assert "load FM" not in run_row(index_of(tmp_path).runs[0], private=False, pick=True), "its process is silent"
    (folder / ".lock.json").unlink()
    look(index)
    assert (run.state, run.doing) == ("stopped", "")


def test_what_a_run_writes_shows_at_the_next_look(tmp_path):
    folder = unfinished(tmp_path / "run", "federated.rounds=4")
    hold(folder)
    index = index_of(tmp_path)
    (run,) = index.runs
    version = index.version
    assert (run.round, run.num_rounds, run.value, run.metric) == (1, 4, 0.5, "accuracy")
    look(index)
    assert index.version == version, "nothing is new"
    more = {"round": 2, "fm": 0.75, "sub_fm": 0.5, "seconds": 10.0, "comm/bytes_up": 7, "comm/bytes_down": 5}
    more |= {"dropped": [3], "clients/flops": 9, "privacy/epsilon": 1.5, "clients": [1, 2], "client_losses": [3.0, 4.0]}
    with (folder / "rounds.jsonl").open("a") as file:
        file.write(json.dumps(more) + '\n{"round": 3, ')
    look(index)
    assert index.version > version
    history = run.history
    assert (run.round, run.value, list(history.fm)) == (2, 0.75, [0.5, 0.75])
    assert (history.num_bytes, history.num_dropped, history.flops, history.epsilon) == (12, 1, 9, 1.5)
    assert history.losses == {1: 3.0, 2: 4.0}
    assert run.end == pytest.approx(os.stat(folder / "rounds.jsonl").st_mtime + 2 * (0 + 10) / 2)


def test_before_the_rounds_are_read_the_last_line_tells_the_table(tmp_path):
    unfinished(tmp_path / "run", rounds=[{"round": index, "fm": index / 10, "metric": "accuracy"} for index in (1, 2)])
    index = Index([tmp_path])
    index.look()
    (run,) = index.runs
    assert not run.is_followed
    assert (run.round, run.value) == (2, 0.2)
    assert not index.read(0.0)


def test_runs_that_go_and_come_do_so_on_the_board(tmp_path):
    run_folder(tmp_path / "a")
    index = index_of(tmp_path)
    run_folder(tmp_path / "deep" / "b")
    look(index)
    assert states(index).keys() == {"a", "deep/b"}
    shutil.rmtree(tmp_path / "a")
    look(index)
    assert states(index).keys() == {"deep/b"}
    shutil.rmtree(tmp_path)
    look(index)
    assert index.runs == []


def test_files_that_hold_anything_end_nothing(tmp_path):
    for name, content in {"config.yaml": b"\x00[", "result.json": b"[1]", "rounds.jsonl": b"\xff\n1\n"}.items():
        folder = run_folder(tmp_path / name.replace(".", "-"))
        (folder / name).write_bytes(content)
    index = index_of(tmp_path)
    assert len(index.runs) == 3
    odd = {"round": "x", "fm": "high", "seconds": None, "dropped": 3, "clients": 7, "metric": ["accuracy"]}
    history = History()
    for record in (odd, odd | {"round": 1}):
        history.add(record)
    assert (history.round, list(history.fm)) == (1, [])


def test_a_look_changes_nothing(tmp_path):
    sweep_folder(tmp_path / "sweep")
    hold(unfinished(tmp_path / "running"))

    def seen():
        return {path: (os.stat(path).st_mtime_ns, os.stat(path).st_size) for path in [tmp_path, *tmp_path.rglob("*")]}

    before, index = seen(), index_of(tmp_path)
    for _ in range(3):
        look(index)
    assert seen() == before


def test_a_sweep_has_its_trials_its_number_of_them_and_says_who_failed(tmp_path):
    settings = {"space": {"lora.rank": {"grid": [4, 8]}, "method.retained_ratio": {"uniform": [0.1, 0.9]}}}
    settings |= {"seeds": [1, 2, 3], "num_samples": 5, "scheduler": "asha", "grace_rounds": 2, "reduction_factor": 2}
    sweep = tmp_path / "sweep"
    unfinished(sweep / "trials" / "bad")
    run_folder(sweep / "trials" / "good")
    run_folder(tmp_path / "other")
    (sweep / "tune" / "good").mkdir(parents=True)
    (sweep / "tune" / "good" / "rounds.jsonl").write_text("")
    (sweep / "sweep.yaml").write_text(json.dumps(settings))
    index = index_of(tmp_path)
    (found,) = index.sweeps
    assert (found.state, found.num_trials, found.rungs[:3]) == ("stopped", 30, [2, 4, 8])
    assert [trial.title for trial in index.trials(found)] == ["sweep/trials/bad", "sweep/trials/good"]
    (sweep / "sweep.json").write_text(json.dumps({"trials": [{"name": "bad", "error": "no memory"}, {"name": "good"}]}))
    look(index)
    assert (found.state, Counter(trial.state for trial in index.trials(found))) == (
        "finished", {"failed": 1, "finished": 1},
    )  # fmt: skip
    assert next(run for run in index.runs if run.state == "failed").error == "no memory"


def test_a_sweeps_page_has_trials_by_state_where_they_ended_parallel_coordinates_and_prices(tmp_path):
    settings = {"space": {"method.retained_ratio": {"grid": [0.25, 0.5, 0.75]}}, "seeds": [1, 2]}
    settings |= {"scheduler": "asha", "grace_rounds": 1, "reduction_factor": 2}
    trials = tmp_path / "trials"
    for ratio in (0.25, 0.5):
        run_folder(trials / f"done_{ratio}", f"method.retained_ratio={ratio}", fm=0.5 + ratio)
    unfinished(trials / "cut", "method.retained_ratio=0.75")
    (tmp_path / "sweep.yaml").write_text(json.dumps(settings))
    index = index_of(tmp_path)
    (sweep,) = index.sweeps
    figure = stops_figure(sweep, index.trials(sweep))
    ends = sorted((*trace.x[-1:], *trace.y[-1:], trace.marker.symbol) for trace in figure.data if trace.x != (None,))
    assert ends == [(1, 0.5, "square"), (2, 0.75, "circle"), (2, 1.0, "circle")]
    assert [trace.name for trace in figure.data if trace.x == (None,)] == ["stopped", "finished"], "named by form too"
    assert [line.x0 for line in figure.layout.shapes] == [1], "where ASHA decided"
    page = sweep_page(index, sweep)
    assert "2 finished" in page.parts["now"]
    assert 'aria-label="1 stopped, 2 finished, 3 not begun"' in page.parts["now"]
    titles = re.findall("<h2>(.*?)</h2>", "".join(page.parts.values()))
    assert {"How far trials got", "What it costs", "Settings and outcome of every run", "Trials"} <= set(titles)
    assert "Pareto" in page.parts["report"]
    assert len(page.rows) == 3


def test_long_curves_keep_equal_rounds_in_runs_of_equal_length_and_the_last():
    long, short = History(), History()
    for index in range(5, 5001, 5):
        long.add({"round": index, "fm": 0.5})
        if index <= 1000:
            short.add({"round": index, "fm": 0.5})
    kept, others = ([line["round"] for line in history.thinned(5000)] for history in (long, short))
    assert len(kept) <= MAX_POINTS + 1
    assert kept[-1] == 5000
    assert set(others[:-1]) <= set(kept)


def test_finished_runs_compare_as_fedpft_compare_has_them(tmp_path):
    from fedpft.board.compared import comparable_sets

    sweep_folder(tmp_path)
    (found,), left_out = comparable_sets(index_of(tmp_path).runs)
    assert left_out == []
    mine, theirs = comparison_json(compare_runs(found.runs)), comparison_json(compare([tmp_path]))
    assert mine == theirs


def test_unfinished_runs_have_curves_but_no_say(tmp_path):
    from fedpft.board.compared import comparable_sets
    from fedpft.report.compare.figures import curve_figure
    from fedpft.report.compare.page import comparison_parts

    sweep_folder(tmp_path)
    scores = [{"round": 1, "fm": 0.99, "metric": "accuracy", "metric_goal": "max"}]
    unfinished(tmp_path / "half_4", "method.retained_ratio=0.5", "seed=4", rounds=scores)
    unfinished(tmp_path / "new", "method.retained_ratio=0.75", rounds=scores)
    unfinished(tmp_path / "other task", "task.name=qnli", rounds=scores)
    unfinished(tmp_path / "no evaluation", "seed=9", rounds=[{"round": 1}])
    sets, left_out = comparable_sets(index_of(tmp_path).runs)
    assert [(len(each.runs), each.title.partition(":")[0]) for each in sets] == [
        (10, "accuracy on sst2, 2 rounds"), (1, "accuracy on qnli, 2 rounds"),
    ]  # fmt: skip
    assert [left.reason for left in left_out] == ["stopped: no evaluation yet"]
    found, before = compare_runs(sets[0].runs), compare([tmp_path])
    labels = {label: label for label in found.estimates}
    assert all(found.estimates[label] == before.estimates[labels[label]] for label in found.estimates)
    assert (found.num_unfinished, found.groups[-1].label) == (2, "fedpft, retained_ratio=0.75")
    assert found.score(found.groups[-1].label) == "99.0 % so far"
    assert {trace.name for trace in curve_figure(found, "fm").data} == {group.label for group in found.groups}
    html = "\n".join(comparison_parts(found))
    assert "Not finished yet: 2 runs" in html
    assert "<td>3 of 4</td>" in html


def test_the_default_config_has_the_keys_that_the_board_reads():
    keys = load_config(None, ["output_dir=x"])
    assert keys.federated.rounds
    assert "federated:" in dump_config(keys)
