"""The board beside a Ray cluster, against a server that answers as Ray 2.60 did."""

import re
import threading
import time

import pytest
from starlette.testclient import TestClient

from fedpft.board.app import _make, make_app
from fedpft.board.cluster import Cluster
from fedpft.board.index import Index
from fedpft.config import ConfigError
from tests.ray_dashboard import FAILED, GPU, NODE, Handler, Head, actor, job, used
from tests.run_folders import run_folder

TOKEN = {"Authorization": "Bearer secret"}


@pytest.fixture
def head():
    with Head(TOKEN["Authorization"]) as server:
        yield server


@pytest.fixture
def index(head, tmp_path, monkeypatch):
    """An index whose cluster is asked when a test says so, never by its thread."""
    run = run_folder(tmp_path / "runs" / "linked")
    monkeypatch.setattr(Cluster, "_work", lambda self: None)
    head.jobs = [
        job("other", "01000000", "RUNNING", entrypoint="python train.py"),
        job("linked-4439", "03000000", "RUNNING", metadata={"run_folder": str(run)}),
        job("broken-9b80", None, "FAILED", message=FAILED, start_time=1795934753465, end_time=1795934773465),
        job(None, "04000000", "RUNNING", type="DRIVER", entrypoint="fedpft run a.yaml", driver_node_id=None),
    ]
    head.actors = [
        actor("f6b7", "01000000", 30887, used(30887)),
        actor("3e01", "03000000", 5419, used(5419, gpuMemoryUsage=4000, gpuUtilization=55), gpus=[GPU]),
        actor("59d8", "03000000", 5421, None),
        actor("dead", "03000000", 5000, None, state="DEAD"),
    ]
    return Index([tmp_path / "runs"], cluster=Cluster(head.url, lambda: TOKEN))


def text_of(index, address):
    made = _make(index, address, [], 5.0)
    assert made.page is not None, f"nothing at {address}"
    return " ".join(re.sub(r"<[^>]*>", " ", made.page.html("", 0.0, "")).split())


def test_our_jobs_stand_beside_the_folders_with_state_and_what_their_actors_use(index, head):
    assert f"Asking {head.url}" in text_of(index, "/"), "the first page does not wait"
    index.cluster.ask()
    assert "2 running" in text_of(index, "/")
    page = _make(index, "/cluster", [], 5.0).page.html("", 0.0, "")
    run = next(iter(index.runs))
    assert f'href="/run/{run.key}"' in page
    assert f'href="{head.url}/#/actors/3e01"' in page
    assert "train.py" not in page, "what is not ours"
    assert "dead" not in page
    assert "f6b7" not in page
    said = text_of(index, "/cluster")
    assert "192.0.2.2, process 5419 8 % 628.4 MB 1 NVIDIA H200 55 % 4.2 GB" in said
    assert "error: &lt;fm.path&gt; ✕ failed" in said, "of a reason the line that says it"
    assert "20.0 s" in said
    assert "fedpft run a.yaml" in said
    assert "Job linked-4439" in text_of(index, f"/run/{run.key}")


def test_a_job_s_page_has_the_end_of_its_log_asked_for_while_it_is_looked_at_and_once_when_it_is_over(index, head):
    index.cluster.ask()
    assert not [path for path, _ in head.asked if "logs" in path], "nobody looks at a log"
    head.log = b"round 7 </pre>\n"
    text_of(index, "/job/linked-4439")
    index.cluster.ask()
    assert "round 7 &lt;/pre&gt;" in text_of(index, "/job/linked-4439")
    (query,) = [query for path, query in head.asked if path == "/api/v0/logs/file"]
    assert (query["node_id"], query["filename"]) == ([NODE], ["job-driver-linked-4439.log"])
    page = _make(index, "/job/linked-4439", [], 5.0).page.html("", 0.0, "")
    assert f'href="{head.url}/#/jobs/03000000"' in page
    head.jobs[1] |= {"status": "SUCCEEDED", "end_time": 1795934799000}
    before = len(head.asked)
    for _ in range(3):
        index.cluster.ask()
    assert len([path for path, _ in head.asked[before:] if "logs" in path]) == 1, "the last lines came after the end"
    head.log = None
    text_of(index, "/job/broken-9b80")
    index.cluster.ask()
    assert "no log: the dashboard answers 500" in text_of(index, "/job/broken-9b80")
    assert "where it was started" in text_of(index, "/job/04000000")
    board = TestClient(make_app(index), base_url="http://localhost")
    assert board.get("/job/linked-4439").status_code == 200
    assert board.get("/job/other").status_code == 404, "what is not ours"


def test_what_changed_on_the_cluster_changes_its_pages_and_no_comparison(index, head):
    index.cluster.ask()
    first, other = _make(index, "/cluster", [], 5.0), _make(index, "/compare", [], 5.0)
    index.cluster.ask()
    assert _make(index, "/cluster", [], 5.0, first.version).page is None, "it says the same"
    head.actors[1]["processStats"]["cpuPercent"] = 99.0
    index.cluster.ask()
    assert "99 %" in _make(index, "/cluster", [], 5.0, first.version).page.html("", 0.0, "")
    assert _make(index, "/compare", [], 5.0, other.version).page is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda head: setattr(head, "jobs", {"a": 1}), "what answers there is no Ray dashboard"),
        (lambda head: setattr(head, "answer", lambda path: b"<html>"), "what answers there is no Ray dashboard"),
        (lambda head: setattr(head, "answer", lambda path: None), "it answers 500"),
        (lambda head: (head.shutdown(), head.server_close()), "Connection refused"),
    ],
)
def test_without_an_answer_the_page_says_why_in_a_line_keeps_what_it_had_and_recovers(index, head, change, reason):
    index.cluster.ask()
    jobs = index.cluster.look().jobs
    change(head)
    found = index.cluster.ask()
    assert found.error.startswith(reason)
    assert "\n" not in found.error
    assert (found.jobs, found.actors) == (jobs, ())
    for address in ("/", "/cluster", "/job/linked-4439"):
        assert f"No answer from {head.url}: {reason}" in text_of(index, address)
    if change.__code__.co_names[0] == "setattr":
        head.jobs, head.answer = [job("new", None, "PENDING")], Head.answer.__get__(head)
        assert list(index.cluster.ask().jobs) == ["new"]
        assert "pending" in text_of(index, "/cluster")
        assert "No answer" not in text_of(index, "/cluster")


def test_a_token_goes_to_the_cluster_and_to_no_place_that_it_names(index, head, monkeypatch):
    assert "RAY_AUTH_MODE=token" in Cluster(head.url).ask().error
    elsewhere = []

    def redirect(handler):
        elsewhere.append(handler.path)
        handler.send_response(302)
        handler.send_header("Location", f"{head.url}/stolen")
        handler.end_headers()

    monkeypatch.setattr(Handler, "do_GET", redirect)
    assert index.cluster.ask().error == "it answers 302"
    assert elsewhere == ["/api/jobs/"]


def test_a_cluster_that_is_silent_keeps_no_page_waiting(tmp_path):
    asked = threading.Event()

    def never():
        asked.set()
        threading.Event().wait()

    index = Index([tmp_path], cluster=Cluster("http://127.0.0.1:1", never))
    board = TestClient(make_app(index), base_url="http://localhost")
    for address in ("/", "/cluster", "/job/x", "/compare"):
        assert board.get(address).status_code == 200
    assert asked.wait(300), "it is asked in the background"


def test_the_thread_asks_again_while_somebody_looks(head, monkeypatch):
    monkeypatch.setattr("fedpft.board.cluster._PAUSE_SECONDS", 0.0)
    cluster = Cluster(head.url, lambda: TOKEN)
    cluster.look()
    end = time.monotonic() + 300
    while len(head.asked) < 3 and time.monotonic() < end:
        time.sleep(0.01)
    assert len(head.asked) >= 3
    cluster._looked = 0.0


@pytest.mark.parametrize(
    "address", ["auto", "head:8265", "ray://head:10001", "http://", "http://me:x@head:1", "http://h/p"]
)
def test_an_address_of_another_kind_is_one_line_without_its_secrets(address):
    with pytest.raises(
        ConfigError, match=r"^--address: found [^\n]*, allowed: the URL of the head's dashboard"
    ) as caught:
        Cluster(address)
    assert "me:x" not in str(caught.value)


def test_without_a_cluster_the_board_has_none_of_its_pages(tmp_path):
    board = TestClient(make_app(Index([tmp_path])), base_url="http://localhost")
    assert "/cluster" not in board.get("/").text
    assert board.get("/cluster").status_code == board.get("/job/x").status_code == 404
