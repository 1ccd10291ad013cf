import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from fedpft.config import ConfigError, load_config
from fedpft.federated import memory
from fedpft.federated.memory import MemoryWatchdog, ProcessMemory
from fedpft.interrupt import Interrupted, RunStoppedError
from fedpft.tracking import notify
from fedpft.tracking.notify import notifying
from fedpft.tracking.services import make_trackers


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch):
    """Serve on loopback: `posts` it got, `answers` it gives, 200 after them."""
    monkeypatch.setattr(notify, "WAITS_SECONDS", (0.01, 0.01))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.server.posts.append(json.loads(body, parse_constant=pytest.fail))
            self.send_response(self.server.answers.pop(0) if self.server.answers else 200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        server.posts, server.answers = [], []
        server.url = f"http://127.0.0.1:{server.server_port}/s3cret"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def settings(url: str):
    return load_config(None, ["name=mine", f"tracking.notify={url}", "tracking.to=[]"])


def events(hook) -> list[str]:
    return sorted(post["event"] for post in hook.posts)


def test_the_end_is_told_with_the_result(hook, tmp_path: Path):
    config = settings(hook.url)
    with notifying(config, tmp_path) as hearing:
        tracker = make_trackers(config, tmp_path, more=hearing)
        tracker.log_round({"round": 3})
        tracker.finish({"metric": "accuracy", "fm": 0.5, "sub_fm": float("nan"), "wall_seconds": 2.0}, {})
        assert hook.posts == [], "not before all is written"
    (post,) = hook.posts
    assert post.items() >= {"event": "finished", "name": "mine", "rounds": 3, "fm": 0.5, "sub_fm": None}.items()
    assert post["output_dir"] == str(tmp_path)
    assert post["text"] == "mine finished after round 3: metric accuracy, fm 0.5"
    assert not {"host", "time"} - post.keys()


@pytest.mark.parametrize(
    ("error", "event", "reason"),
    [
        (RunStoppedError("no client came\nmore"), "failed", "no client came more"),
        (ConfigError("task.path: found nothing"), "failed", "task.path: found nothing"),
        (Interrupted(15), "interrupted", "interrupted (SIGTERM)"),
        (Interrupted(2), "interrupted", "interrupted (SIGINT)"),
        (KeyboardInterrupt(), "interrupted", "interrupted (KeyboardInterrupt)"),
    ],
)
def test_a_failure_and_a_signal_are_told_with_the_reason_and_go_on_as_they_were(hook, tmp_path, error, event, reason):
    with pytest.raises(type(error)) as raised, notifying(settings(hook.url), tmp_path):
        raise error
    assert raised.value is error
    assert [(post["event"], post["reason"]) for post in hook.posts] == [(event, reason)]


def test_a_strict_run_sends_no_message_that_may_quote_data(hook, tmp_path):
    config = settings(hook.url)
    config = replace(config, privacy=replace(config.privacy, strict=True))
    with pytest.raises(ValueError, match="Jane Doe"), notifying(config, tmp_path):
        raise ValueError("row 7: 'Jane Doe'")
    assert [(post["event"], post["reason"]) for post in hook.posts] == [("failed", "ValueError")]


def test_memory_that_grows_is_told_in_the_round_in_which_it_is_seen(hook, tmp_path, monkeypatch):
    held = iter(range(10**9, 10**10, 10**8))
    monkeypatch.setattr(memory, "process_memory", lambda: ProcessMemory(rss_bytes=next(held), gpu_bytes=0))
    watchdog, config = MemoryWatchdog(), settings(hook.url)
    with pytest.warns(UserWarning, match="driver_rss_bytes grows by"):
        rounds = [{"round": number, **watchdog.measure({})} for number in range(1, 31)]
    with notifying(config, tmp_path) as hearing:
        tracker = make_trackers(config, tmp_path, more=hearing)
        for record in rounds:
            tracker.log_round(record)
    assert events(hook) == ["alarm", "finished"]
    (alarm,) = (post for post in hook.posts if post["event"] == "alarm")
    assert alarm["reason"].startswith("memory/driver_rss_bytes grows by 100.0 MB a round")
    assert alarm["rounds"] == 25
    lines = [json.loads(line) for line in (tmp_path / "rounds.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines if "memory/alarms" in line] == [25]


@pytest.mark.parametrize(("answers", "tries"), [([503, 429], 3), ([200], 1)])
def test_a_server_that_is_busy_is_asked_again(hook, tmp_path, recwarn, answers, tries):
    hook.answers = answers
    with notifying(settings(hook.url), tmp_path):
        pass
    assert len(hook.posts) == tries
    assert not recwarn.list


@pytest.mark.parametrize(("answers", "tries", "said"), [([503] * 9, 3, "503"), ([404] * 9, 1, "404")])
def test_a_post_that_fails_is_one_warning_without_the_address(hook, tmp_path, recwarn, answers, tries, said):
    hook.answers = answers
    with notifying(settings(hook.url), tmp_path):
        pass
    (warning,) = recwarn.list
    assert str(warning.message) == f"tracking.notify failed, nobody may have heard: the server answers {said}"
    assert len(hook.posts) == tries


def test_nobody_there_is_one_warning_and_does_not_hide_why_a_run_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(notify, "WAITS_SECONDS", (0.01, 0.01))
    with (
        pytest.warns(UserWarning, match=r"^tracking\.notify failed, nobody may have heard: .*refused"),
        pytest.raises(RunStoppedError, match="why"),
        notifying(settings("http://127.0.0.1:9/s3cret"), tmp_path),
    ):
        raise RunStoppedError("why")


def test_a_server_that_never_answers_holds_nothing_up(hook, tmp_path, monkeypatch):
    monkeypatch.setattr(notify, "END_SECONDS", 0.05)
    waiting = threading.Event()
    monkeypatch.setattr(notify, "urlopen", lambda *_, **__: waiting.wait(20))
    with pytest.warns(UserWarning, match=r"no answer in 0\.05 s$"), notifying(settings(hook.url), tmp_path):
        pass
    waiting.set()


def test_an_address_may_be_a_variables(hook, tmp_path, monkeypatch):
    monkeypatch.setenv("HOOK", hook.url)
    with notifying(settings("$HOOK"), tmp_path):
        pass
    assert events(hook) == ["finished"]


@pytest.mark.parametrize("value", [None, "s3cret"])
def test_a_variable_without_an_address_is_one_line_before_any_work(tmp_path, monkeypatch, value):
    monkeypatch.setenv("HOOK", value) if value else monkeypatch.delenv("HOOK", raising=False)
    with (
        pytest.raises(ConfigError, match=r"^tracking\.notify: found '\$HOOK', which is no") as error,
        notifying(settings("$HOOK"), tmp_path),
    ):
        pytest.fail("it began")
    assert "s3cret" not in str(error.value)


def test_without_the_setting_nothing_is_sent(hook, tmp_path):
    with notifying(load_config(None, []), tmp_path) as hearing:
        assert not hearing
    assert hook.posts == []
