"""What is sent to a cluster and what comes back, with a client that is made up."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from fedpft.cli import main as cli
from fedpft.config import Config, ConfigError, PoolConfig, ServerConfig, load_config

jobs = pytest.importorskip("fedpft.simulation.jobs", reason="Ray is not installed", exc_type=ImportError)
Status = jobs.JobStatus


class FakeClient:
    """Takes one job; its states, one for each look at it, and its log are given."""

    def __init__(self, states=(), log=(), log_error=None):
        self.states, self.log, self.log_error = list(states), log, log_error
        self.submitted, self.stopped = None, []

    def submit_job(self, **request):
        self.submitted = request
        self.config = Path(request["runtime_env"]["working_dir"], "config.yaml").read_text()
        return request["submission_id"]

    def get_job_info(self, job_id):
        if not self.states:
            raise RuntimeError(f"Request failed with status code 404: Job {job_id} does not exist.")
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        return SimpleNamespace(**({"message": None, "driver_exit_code": None} | state))

    async def tail_job_logs(self, job_id):
        for text in self.log:
            yield text
        if self.log_error:
            raise self.log_error

    def stop_job(self, job_id):
        self.stopped.append(job_id)
        return True


@pytest.fixture
def connect(monkeypatch):
    """Return a function that connects to a made-up cluster and returns `Jobs` and its client."""
    monkeypatch.setattr(jobs, "_POLL_SECONDS", 0)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://elsewhere:8265")

    def connect(*states, **log):
        client = FakeClient(states, **log)
        monkeypatch.setattr(jobs, "JobSubmissionClient", lambda address: client)
        return jobs.Jobs("http://head:8265"), client

    return connect


@pytest.fixture
def lines():
    return []


def test_the_given_address_wins_over_the_environment(connect):
    connect()
    assert os.environ["RAY_API_SERVER_ADDRESS"] == "http://head:8265"


def test_the_job_gets_the_config_but_for_the_cluster_which_it_joins(connect, tmp_path):
    made, client = connect()
    made.submit(Config(name="x", seed=7, pool=PoolConfig(actors=3, address="10.0.0.1:6379")))
    (tmp_path / "config.yaml").write_text(client.config)
    expected = Config(name="x", seed=7, output_dir="outputs/x", pool=PoolConfig(actors=3, address="auto"))
    assert load_config(tmp_path / "config.yaml") == expected
    assert client.submitted["metadata"] == {"run_folder": "outputs/x"}, "by which the board finds its run"


def test_code_travels_without_what_lies_around_it(connect):
    made, client = connect()
    made.submit(Config())
    environment = client.submitted["runtime_env"]
    (package,) = environment["py_modules"]
    assert Path(package) == Path(cli.__file__).parents[1], "the package alone: no outputs, no .venv, no .git"
    assert environment["excludes"] == ["__pycache__"]
    assert int(environment["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]) > 60


@pytest.mark.parametrize("name", ["tiny", "a b/c;$(d)"])
def test_job_ids_are_new_each_time_and_fit_into_a_url(connect, name):
    made, _ = connect()
    ids = {made.submit(Config(name=name)) for _ in range(3)}
    assert len(ids) == 3
    assert all(set(job_id) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") for job_id in ids)


@pytest.mark.parametrize("resume", [False, True])
def test_the_command_runs_the_config_from_the_home_folder(connect, tmp_path, resume):
    made, client = connect()
    (tmp_path / "a b").mkdir()
    python = tmp_path / "a b" / "python"
    python.write_text('#!/bin/sh\npwd\necho "$@"\n')
    python.chmod(0o755)
    made.submit(Config(), python=str(python), resume=resume)
    (tmp_path / "home").mkdir()
    done = subprocess.run(
        client.submitted["entrypoint"],
        shell=True,
        cwd=tmp_path,
        env=os.environ | {"HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        check=True,
    )
    arguments = f"-m fedpft.cli run {tmp_path}/config.yaml" + " --resume" * resume
    assert done.stdout.splitlines() == [f"{tmp_path}/home", arguments]


def test_resources_of_the_driver_are_asked_for_only_when_wanted(connect):
    made, client = connect()
    made.submit(Config())
    assert client.submitted["entrypoint_num_cpus"] is client.submitted["entrypoint_num_gpus"] is None
    made.submit(Config(), driver_cpus=2, driver_gpus=0.5)
    assert (client.submitted["entrypoint_num_cpus"], client.submitted["entrypoint_num_gpus"]) == (2, 0.5)


def test_a_server_that_wants_gpus_is_the_drivers_own_place_there(connect, tmp_path):
    made, client = connect()
    made.submit(Config(output_dir="x", server=ServerConfig(num_gpus=2)), driver_gpus=1)
    assert client.submitted["entrypoint_num_gpus"] == 2
    (tmp_path / "config.yaml").write_text(client.config)
    assert load_config(tmp_path / "config.yaml").server.num_gpus == 0, "it is there already"


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ({"status": Status.SUCCEEDED, "driver_exit_code": 0}, 0),
        ({"status": Status.FAILED, "driver_exit_code": 2}, 2),
        ({"status": Status.STOPPED}, 143),
    ],
)
def test_following_passes_the_log_on_and_returns_the_exit_code(connect, lines, state, expected):
    made, _ = connect({"status": Status.RUNNING}, {"status": Status.RUNNING}, state, log=["a\nb", "\n"])
    assert made.follow("x", lines.append, pytest.fail) == expected
    assert "".join(lines) == "a\nb\n"


def test_a_job_that_never_ran_fails_with_ray_s_reason(connect, lines):
    made, _ = connect({"status": Status.FAILED, "message": "no such package"})
    assert made.follow("x", pytest.fail, lines.append) == 1
    assert lines == ["x: no such package"]


def test_why_a_job_does_not_start_is_said_once_for_each_reason(connect, lines, monkeypatch):
    monkeypatch.setattr(jobs, "_PATIENCE_SECONDS", -1)
    pending = {"status": Status.PENDING, "message": "waits for GPUs"}
    other = pending | {"message": "waits for its environment"}
    made, _ = connect(pending, pending, other, {"status": Status.SUCCEEDED, "driver_exit_code": 0})
    assert made.follow("x", pytest.fail, lines.append) == 0
    assert lines == ["x: waits for GPUs", "x: waits for its environment"]


def test_a_job_that_starts_soon_says_nothing_before(connect):
    made, _ = connect(
        {"status": Status.PENDING, "message": "not yet"}, {"status": Status.SUCCEEDED, "driver_exit_code": 0}
    )
    assert made.follow("x", pytest.fail, pytest.fail) == 0


def test_a_log_that_breaks_off_is_told_from_a_failed_run(connect, lines):
    made, _ = connect({"status": Status.RUNNING}, log=["a"], log_error=RuntimeError("closed\nin many lines"))
    with pytest.raises(ConnectionError, match=r"^x: its log broke off: closed$"):
        made.follow("x", lines.append, pytest.fail)


def test_stopping_waits_for_the_end(connect):
    made, client = connect({"status": Status.RUNNING}, {"status": Status.RUNNING}, {"status": Status.STOPPED})
    assert made.stop("x")
    assert client.stopped == ["x"]
    assert client.states == [{"status": Status.STOPPED}]


@pytest.mark.parametrize("method", ["stop", "follow"])
def test_an_unknown_job_is_one_line(connect, method):
    made, client = connect()
    arguments = [] if method == "stop" else [pytest.fail, pytest.fail]
    with pytest.raises(ConfigError, match=r"^JOB_ID: found 'x', allowed: a job of this cluster$"):
        getattr(made, method)("x", *arguments)
    assert client.stopped == []


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionError("nobody there\nmore"), "nobody there"),
        (RuntimeError("too old"), "too old"),
        (jobs.AuthenticationError("no token"), "export RAY_AUTH_MODE=token"),
    ],
)
def test_a_cluster_out_of_reach_is_one_line(monkeypatch, error, reason):
    def refuse(address):
        raise error

    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    monkeypatch.setattr(jobs, "JobSubmissionClient", refuse)
    with pytest.raises(ConfigError, match=r"^--address: found 'http://head:8265', allowed: [^\n]*$") as caught:
        jobs.Jobs("http://head:8265")
    assert reason in str(caught.value)


@pytest.mark.parametrize("address", ["auto", "head:8265", "ray://head:10001", "http://"])
def test_addresses_of_other_kinds_are_refused_before_anybody_is_asked(monkeypatch, address):
    monkeypatch.setattr(jobs, "JobSubmissionClient", lambda address: pytest.fail("asked"))
    with pytest.raises(ConfigError, match="allowed: the URL of the head's dashboard"):
        jobs.Jobs(address)


def fedpft(monkeypatch, *arguments):
    """Run `fedpft ...` in this process; return its exit code."""
    monkeypatch.setattr(sys, "argv", ["fedpft", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    return exit_.value.code


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("name: tiny\noutput_dir: there/out\n")
    return path


def test_a_detached_submission_prints_the_id_and_nothing_else(connect, monkeypatch, capsys, config):
    _, client = connect()
    assert fedpft(monkeypatch, "submit", config, "--detach", "--resume") in (0, None)
    assert capsys.readouterr().out == client.submitted["submission_id"] + "\n"
    assert client.submitted["entrypoint"].endswith("--resume")


def test_a_followed_submission_prints_job_folder_and_log_and_ends_with_the_job_s_code(
    connect, monkeypatch, capsys, config
):
    _, client = connect({"status": Status.FAILED, "driver_exit_code": 2}, log=["round 1\n"])
    assert fedpft(monkeypatch, "submit", config) == 2
    job_id = client.submitted["submission_id"]
    assert capsys.readouterr().out == f"job         {job_id}\nrun folder  ~/there/out\nround 1\n"


def test_when_the_connection_is_lost_the_user_hears_that_the_job_goes_on(connect, monkeypatch, capsys):
    connect({"status": Status.RUNNING}, log_error=RuntimeError("closed"))
    assert fedpft(monkeypatch, "follow", "x") == 1
    assert capsys.readouterr().err == (
        "error: x: its log broke off: closed; the job goes on; see it with: fedpft follow x\n"
    )


def test_ctrl_c_leaves_the_job_alone_and_says_how_to_end_it(connect, monkeypatch, capsys):
    _, client = connect({"status": Status.RUNNING}, log_error=cli.Interrupted(2))
    assert fedpft(monkeypatch, "follow", "x") == 130
    assert "the job goes on" in (said := capsys.readouterr().err)
    assert "fedpft stop x" in said
    assert client.stopped == []


def test_a_setting_that_cannot_work_is_found_before_anything_is_packed(monkeypatch, capsys, config):
    monkeypatch.setattr(jobs, "Jobs", lambda address: pytest.fail("connected"))
    assert fedpft(monkeypatch, "submit", config, "federated.round=4") == 2
    assert capsys.readouterr().err == "error: federated.round: unknown key; did you mean federated.rounds?\n"
