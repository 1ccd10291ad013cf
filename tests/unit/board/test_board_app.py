import asyncio
import json
import re
import sys
from html import unescape

import pytest
from starlette.testclient import TestClient

from fedpft.board.app import _events, make_app
from fedpft.board.folder import key_of
from fedpft.board.index import Index
from fedpft.board.serve import serve
from fedpft.board.views.choice import Choice
from fedpft.config import ConfigError
from tests.run_folders import run_folder, sweep_folder

NASTY = """a</script><b>"q"'&{rows}"""


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return Index([sweep_folder(tmp_path_factory.mktemp("sweep"))])


def client(index, token=None, host="localhost:8642"):
    return TestClient(make_app(index, token), base_url=f"http://{host}", follow_redirects=False)


def test_every_page_answers_and_links_only_to_pages_that_do(index):
    board = client(index)
    seen, todo = set(), {"/", "/compare", "/sweeps"}
    while todo:
        address = todo.pop()
        seen.add(address)
        answer = board.get(address)
        assert answer.status_code == 200, address
        assert "cannot be made" not in answer.text
        todo |= {unescape(link) for link in re.findall(r'(?:href|src)="(/[^"]*)"', answer.text)} - seen
    assert len([address for address in seen if address.startswith("/run/")]) == 8
    assert any(address.startswith("/assets/plotly.js") for address in seen)


@pytest.mark.parametrize(
    "address",
    [
        *("/run/nothing", "/sweep/nothing", "/run/../../etc/passwd", "/run/..%2f..%2fetc%2fpasswd", "/assets/board.py"),
        *("/assets/..%2f..%2fapp.py", "/assets/", "/etc/passwd", "//etc/passwd", "/live/../run", "/static/x"),
    ],
)
def test_nothing_but_what_was_found_has_an_address(index, address):
    answer = client(index).get(address)
    assert "root:" not in answer.text
    assert "import" not in answer.text
    assert answer.status_code in (200, 404)
    if not address.startswith("/live"):
        assert answer.status_code == 404


def test_names_are_never_markup(tmp_path):
    folder = run_folder(tmp_path / NASTY)
    with (folder / "rounds.jsonl").open("a") as file:
        file.write(
            json.dumps({"round": 3, "lr": 0.1, "train_loss": 0.4, "failures": ["client 1: <script>x</script>"]}) + "\n"
        )
    other = run_folder(tmp_path / "b", f"fm.path={json.dumps('x/' + NASTY.replace('{rows}', ''))}")
    board = client(Index([tmp_path]))
    key = key_of(other.resolve())
    for address in ("/", f"/?q={NASTY}", "/compare", f"/compare?baseline={NASTY}", f"/run/{key}"):
        text = board.get(address).text
        bare = re.sub(r'<script (defer src="[^"]*"|type="application/json")>.*?</script>', "", text, flags=re.DOTALL)
        assert "<script" not in bare, address
        assert "<b>" not in bare
        assert "</script>" not in bare
    found = board.get("/run/" + re.findall("/run/([0-9a-f]+)", board.get("/").text)[0])
    assert found.status_code == 200


def test_what_is_chosen_stands_in_the_address(index):
    board = client(index)

    def shown(query):
        return set(re.findall(r'href="/run/[0-9a-f]+">([^<]*)<', board.get(f"/{query}").text))

    assert len(shown("")) == 8
    assert shown("?q=retained_ratio%3D0.25+quarter_2") == {"quarter_2"}
    assert shown("?q=FEDOT") == {"x_fedot_1", "x_fedot_2"}
    assert shown("?state=running") == set()
    assert "No run is like that" in board.get("/?state=running").text
    rows = re.findall(r'href="/run/[0-9a-f]+">([^<]*)<', board.get("/?sort=metric").text)
    assert rows[0] == "x_fedot_2", "the best first"
    assert 'value="fedot" selected' in board.get("/compare?baseline=fedot").text
    assert "No group is called &#x27;gone&#x27; any more" in board.get("/compare?baseline=gone").text


def test_a_choice_survives_its_own_address_and_anything_else_is_the_default():
    choice = Choice(
        q="a=b c", state=("stale", "failed"), run=("x", "y"), sort="metric", page=3, baseline="r=1, s", set="q"
    )
    from urllib.parse import parse_qsl

    assert Choice.of(parse_qsl(choice.query()[1:])) == choice
    bad = [("page", "-1"), ("page", "²"), ("sort", "x"), ("state", "dead"), ("other", "x")]
    assert Choice.of(bad) == Choice()
    assert Choice().query() == ""


def test_without_a_token_only_this_machines_names_are_answered(index):
    assert client(index, host="127.0.0.1:9").get("/").status_code == 200
    assert client(index, host="[::1]:9").get("/").status_code == 200
    for host in ("evil.example", "localhost.evil.example:8642", "127.0.0.1.evil.example"):
        assert client(index, host=host).get("/").status_code == 400


def test_a_token_is_asked_for_everywhere_and_once(index):
    board = client(index, token="a" * 16, host="cluster:1")
    for address in ("/", "/assets/board.js", "/live/", "/?token=b", "/?token=", "/?token=%C3%A9"):
        assert board.get(address).status_code == 401
    board.cookies.set("fedpft_board_x", "y")
    first = board.get("http://cluster:1//evil.example/x?q=1&token=" + "a" * 16)
    assert (first.status_code, first.headers["location"]) == (303, "/evil.example/x?q=1")
    assert "HttpOnly" in first.headers["set-cookie"]
    assert "a" * 16 not in first.headers["set-cookie"]
    assert board.get("/").status_code == 200
    other = client(index, token="b" * 16, host="cluster:1")
    other.cookies = board.cookies
    assert other.get("/").status_code == 401, "a cookie is of one token"


def test_every_answer_forbids_requests_elsewhere_and_only_reading_is_possible(index):
    board = client(index)
    for address in ("/", "/nothing", "/assets/board.js"):
        assert "default-src 'none'" in board.get(address).headers["content-security-policy"]
    for method in (board.post, board.put, board.delete):
        assert method("/").status_code == 405


def test_events_tell_what_changed_and_nothing_twice(tmp_path):
    folder = run_folder(tmp_path / "a")
    run_folder(tmp_path / "b", seed=2)
    index = Index([tmp_path])

    async def watch():
        page = client(index).get("/").text
        have = re.search('data-have="(.*?)"', page)[1]
        events = _events(index, "/", [], have)
        assert await anext(events) == "retry: 2000\n\n"
        (folder / "result.json").unlink()
        index._looks = -1
        index._next_look = 0.0
        message = await anext(events)
        name, data = message.strip().split("\n")
        run_folder(tmp_path / "c", seed=3)
        index._next_walk = 0.0
        more = await anext(events)
        await events.aclose()
        return (
            name,
            json.loads(data.removeprefix("data: ")),
            json.loads(more.strip().split("\n")[1].removeprefix("data: ")),
        )

    name, first, second = asyncio.run(watch())
    row = f"r-{key_of(folder.resolve())}"
    assert name == "event: change"
    assert row in first["parts"]
    assert "stopped" in first["parts"][row]
    assert len(second["order"]) == 3
    assert row not in second["parts"]


def test_events_of_a_run_that_is_gone_end(tmp_path):
    async def watch():
        return [event async for event in _events(Index([tmp_path]), "/run/gone", [], "")]

    assert asyncio.run(watch())[-1] == "event: gone\ndata: {}\n\n"


def test_bad_words_are_one_line_each(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"FOLDERS: found the file .*, allowed: folders of runs"):
        serve([tmp_path / "file"])
    with pytest.raises(ConfigError, match=r"--host / --port: found 127\.0\.0\.1:99999, .*; allowed: a free port"):
        serve([tmp_path], port=99999)
    monkeypatch.setenv("FEDPFT_BOARD_TOKEN", "short")
    with pytest.raises(ConfigError, match=r"FEDPFT_BOARD_TOKEN: found 5 signs, allowed: at least 16 of ASCII"):
        serve([tmp_path], with_token=True)


def test_without_the_extra_the_command_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(ConfigError, match=r"board: found no uvicorn, which it needs: pip install 'fedpft\[board\]'"):
        serve([tmp_path])
