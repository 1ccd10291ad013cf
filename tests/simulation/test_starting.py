"""What keeps Ray from starting, or a cluster from being joined: one line, in seconds, before anything was tried."""

import http.server
import os
import signal
import socket
import threading

import pytest

from fedpft.config import ConfigError
from fedpft.interrupt import RunStoppedError

cluster = pytest.importorskip("fedpft.simulation.cluster", reason="Ray is not installed", exc_type=ImportError)
starting = pytest.importorskip("fedpft.simulation.starting")


@pytest.fixture
def nobody():
    """Return a port at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.fixture
def web_server():
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    server.RequestHandlerClass.log_message = lambda *_: None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.fixture
def init(monkeypatch):
    """Let Ray be one that is made up; return what it was started with."""
    seen = {}

    def start(**settings):
        seen.update(settings, blocked=signal.pthread_sigmask(signal.SIG_BLOCK, []))

    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster.ray, "init", start)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    return seen


FORMLESS = ["foo", "localhost:notaport", "localhost:0", "localhost:65536", ":6379", "http://localhost:8265", "a b:3"]
FORMLESS += [""]


@pytest.mark.parametrize("address", FORMLESS)
def test_what_has_not_the_form_of_an_address_is_refused(init, address):
    with pytest.raises(ConfigError, match=r"^pool\.address: found '.*', allowed: auto or host:port .*; it has not"):
        cluster.connect(address)
    assert not init


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_an_address_at_which_nobody_answers_is_refused(init, nobody, monkeypatch, form):
    with pytest.raises(
        ConfigError, match=r"^pool\.address: found '.*127\.0\.0\.1 port \d+ cannot be reached: .*refused"
    ):
        cluster.connect(form.format(nobody))
    monkeypatch.setenv("RAY_ADDRESS", form.format(nobody))
    with pytest.raises(ConfigError, match=r"^pool\.address: found 'auto', .* that is '.*cannot be reached"):
        cluster.connect("auto")
    assert not init


def test_something_that_is_no_ray_is_refused(init, web_server):
    with pytest.raises(ConfigError, match=r"what answers at port \d+ is no Ray cluster"):
        cluster.connect(f"localhost:{web_server}")
    assert not init


def test_a_cluster_is_joined_and_nothing_else_is_asked_of_it(init, local_ray):
    address = local_ray.get_runtime_context().gcs_address
    starting.check_address(address)
    assert cluster.connect(address)
    assert (init["address"], "_temp_dir" in init) == (address, False)


def test_a_ray_of_our_own_takes_no_notice_of_what_ends_the_driver_and_has_a_short_folder(init, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / ("x" * 60)))
    assert cluster.connect(None)
    assert {signal.SIGTERM, signal.SIGHUP} <= init["blocked"]
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert len(init["_temp_dir"]) <= 40
    assert os.stat(init["_temp_dir"]).st_uid == os.getuid()
    monkeypatch.setenv("RAY_TMPDIR", "mine")
    cluster.connect(None)
    assert init["job_config"] is not None


def test_without_a_folder_it_is_one_line_with_the_remedy(init, monkeypatch):
    def nowhere(longest):
        raise OSError("found no folder for your temporary files, allowed: TMPDIR, a folder to write into")

    monkeypatch.setattr(starting, "own_folder", nowhere)
    with pytest.raises(ConfigError, match=r"^TMPDIR: found no folder .* pool\.kind=sequential, which needs no Ray$"):
        cluster.connect(None)
    assert not init


@pytest.mark.parametrize("error", [ValueError("too long\nmore"), Exception("late"), AssertionError(), OSError("no")])
def test_a_ray_that_does_not_start_is_one_line_with_the_remedy(init, monkeypatch, error):
    def fail(**_):
        raise error

    monkeypatch.setattr(cluster.ray, "init", fail)
    monkeypatch.setattr(cluster.ray, "shutdown", lambda: None)
    with pytest.raises(RunStoppedError, match=r"^Ray does not start on this machine \([^\n]+\); pool\.kind=sequential"):
        cluster.connect(None)


def test_workers_import_from_no_folder_that_the_driver_does_not_import_from(init, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", ["/lib", str(tmp_path / "script")])
    cluster.connect(None)
    folders = init["job_config"]._py_driver_sys_path
    folders.extend([str(tmp_path / "script"), str(tmp_path)])  # what Ray does with the script's and the working folder
    assert folders == [str(tmp_path / "script")]
