"""The board beside a Ray cluster, against a server that answers as Ray 2.60 did."""

import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest
from starlette.testclient import TestClient

from fedpft.board.app import _make, make_app
from fedpft.board.cluster import Cluster
from fedpft.board.index import Index
from fedpft.config import ConfigError
from tests.run_folders import run_folder

TOKEN = {"Authorization": "Bearer secret"}
NODE = "0df1011091de9dc116c75c3854b3812ef080df498e832519a692868f"
COMMAND = "config=$PWD/config.yaml; cd ~ && exec python -m fedpft.cli run $config"
FAILED = (
    "Job entrypoint command failed with exit code 2, last available logs:\nload libraries 11.5 s\nerror: <fm.path>\n"
)


def job(name, number, status, **more):
    return {
        "type": "SUBMISSION", "job_id": number, "submission_id": name, "status": status, "entrypoint": COMMAND,
        "driver_info": None, "message": "Job is currently running.", "error_type": None, "start_time": 1795934778971,
        "end_time": None, "metadata": {}, "runtime_env": {}, "driver_node_id": NODE, "driver_exit_code": None,
    } | more  # fmt: skip


def actor(number, job, pid, stats, **more):
    return {
        "actorId": number, "jobId": job, "className": "ClientActor", "actorClass": "ClientActor", "state": "ALIVE",
        "address": {"nodeId": NODE, "ipAddress": "192.0.2.2", "port": 15177, "workerId": "5b"}, "pid": pid,
        "gpus": [], "processStats": stats,
    } | more  # fmt: skip


def used(pid, **more):
    memory = {"rss": 628416512.0, "vms": 3594665984.0, "pfaults": None, "pageins": None}
    return {"pid": pid, "cpuPercent": 8.0, "memoryInfo": memory, "gpuMemoryUsage": 0, "gpuUtilization": 0} | more


GPU = {
    "index": 1, "name": "NVIDIA H200", "uuid": "GPU-1", "utilizationGpu": 61, "memoryUsed": 4100,
    "memoryTotal": 143771, "processesPids": [{"pid": 5419, "gpuMemoryUsage": 4000, "gpuUtilization": 55}],
}  # fmt: skip


class Head(ThreadingHTTPServer):
    """Answers what it is given, to who has the token."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.jobs, self.actors, self.log, self.asked = [], [], b"round 1\n", []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def answer(self, path):
        if path == "/api/jobs/":
            return json.dumps(self.jobs).encode()
        if path == "/logical/actors":
            actors = {each["actorId"]: each for each in self.actors}
            return json.dumps({"result": True, "msg": "All actors fetched.", "data": {"actors": actors}}).encode()
        return self.log if path == "/api/v0/logs/file" else None


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        parts = urlsplit(self.path)
        self.server.asked.append((parts.path, parse_qs(parts.query)))
        answer = self.server.answer(parts.path)
        is_let_in = self.headers["Authorization"] == TOKEN["Authorization"]
        self.send_response(401 if not is_let_in else 500 if answer is None else 200)
        self.end_headers()
        self.wfile.write(b"401: Unauthorized" if not is_let_in else answer or b"500 Internal Server Error")

    def log_message(self, *_):
        """Be silent."""


@pytest.fixture
def head():
    with Head() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


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

    monkeypatch.setattr(_Handler, "do_GET", redirect)
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
