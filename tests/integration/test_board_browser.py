"""The board in a real browser while a run goes on: what appears by itself, and what stays as its reader left it."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.browser import CHROMIUM, Browser
from tests.ray_dashboard import GPU, Head, actor, job, used
from tests.run_folders import run_folder, sweep_folder

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome in PATH")
pytest.importorskip("starlette")
pytest.importorskip("uvicorn")


@pytest.fixture
def runs(tmp_path):
    folder = tmp_path / "runs"
    sweep_folder(folder)
    growing = run_folder(folder / "growing", "method.retained_ratio=0.75", "federated.rounds=9", seed=1)
    (growing / "result.json").unlink()
    (growing / "rounds.jsonl").write_text("")
    (growing / ".lock.json").write_text(json.dumps({"host": "node", "pid": 1, "what": "run", "since": "today"}))
    return folder


@contextmanager
def board(*arguments: str) -> Iterator[str]:
    """Run the command while its address is used."""
    command = [sys.executable, "-m", "fedpft.cli", "board", *arguments, "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    assert process.stdout is not None
    yield re.search(r"http://[^/]*", process.stdout.readline())[0]
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130, "Ctrl-C ends it, open pages or not"


@pytest.fixture
def address(runs):
    with board(str(runs)) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with Browser() as browser:
        yield browser


def look_on_a_phone(browser: Browser, page: str) -> None:
    """Open a page on a narrow dark screen: it fits, and what acts has a name and is reached by keyboard."""
    browser.open(page, width=390, height=844, dark=True)
    browser.wait("document.querySelector('header .live').textContent.includes('live')")
    assert browser.ask("document.documentElement.scrollWidth") <= 390
    assert browser.ask("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 29)"
    named = "each.getAttribute('aria-label') || each.closest('label') || each.textContent.trim()"
    acting = "[...document.querySelectorAll('a, button, summary, .wide, select, input:not([type=hidden])')]"
    assert browser.ask(f"{acting}.every(each => Boolean({named}))")
    reached = "(each.focus(), document.activeElement === each)"
    assert browser.ask(f"{acting}.filter(each => each.offsetParent).every(each => {reached})")


def go_on(runs: Path, index: int, value: float) -> None:
    record = {
        "round": index,
        "clients": [0],
        "lr": 0.1,
        "train_loss": 1 / index,
        "client_losses": [1 / index],
        "seconds": 2.0,
    }
    record |= {"fm": value, "sub_fm": value - 0.1, "metric": "accuracy", "metric_goal": "max"}
    record["metrics"] = {"fm": {"accuracy": value}, "sub_fm": {"accuracy": value - 0.1}}
    with (runs / "growing" / "rounds.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")


def row(browser: Browser) -> str:
    return "[...document.querySelectorAll('#rows tr')].find(row => row.innerText.includes('growing')).innerText"


def test_a_run_is_watched_in_table_comparison_and_page(browser, runs, address):
    browser.open(f"{address}/")
    browser.wait(f"{row(browser)}.includes('0/9')")
    browser.ask("document.querySelector('input[type=search]').value = 'half typed'; scrollTo(0, 40)")
    browser.ask("document.querySelectorAll('#rows input')[1].click()")
    go_on(runs, 1, 0.5)
    browser.wait(f"{row(browser)}.includes('1/9') && {row(browser)}.includes('50.0 %')")
    go_on(runs, 2, 0.625)
    browser.wait(f"{row(browser)}.includes('2/9') && {row(browser)}.includes('left')")
    assert browser.ask("document.querySelector('input[type=search]').value") == "half typed"
    assert browser.ask("document.querySelectorAll('#rows input:checked').length") == 1
    assert browser.ask("document.querySelector('#pick output').textContent") == "1 chosen"
    new = run_folder(runs / "brand new", seed=7)
    browser.wait("document.querySelector('#rows').innerText.includes('brand new')")
    new.rename(runs.parent / "moved")
    browser.wait("!document.querySelector('#rows').innerText.includes('brand new')")
    assert browser.ask("wrong") == []

    browser.open(f"{address}/compare?q=growing")
    points = "(document.querySelector('.js-plotly-plot')?.data.at(-1).x.length)"
    browser.wait(f"{points} === 2")
    browser.ask("document.querySelector('.nsewdrag').scrollIntoView({block: 'center'})")
    x, y = browser.ask("(box => [box.x, box.y])(document.querySelector('.nsewdrag').getBoundingClientRect())")
    for kind, right in (("mousePressed", 40), ("mouseMoved", 200), ("mouseMoved", 400), ("mouseReleased", 400)):
        browser.do("Input.dispatchMouseEvent", type=kind, x=x + right, y=y + 90, button="left", clickCount=1)
    zoomed = browser.ask("document.querySelector('.js-plotly-plot').layout.xaxis.range")
    assert zoomed[0] > 0
    go_on(runs, 3, 0.7)
    browser.wait(f"{points} === 3")
    assert browser.ask("document.querySelector('.js-plotly-plot').layout.xaxis.range") == zoomed
    assert browser.ask("document.body.innerText.includes('Not finished yet: 1 run')")
    assert browser.ask("wrong") == []

    browser.open(f"{address}/?q=growing")
    browser.wait("document.querySelector('#rows a')?.href")
    browser.open(address + browser.ask("document.querySelector('#rows a').getAttribute('href')"))
    browser.wait("Boolean(document.querySelector('.js-plotly-plot'))")
    go_on(runs, 4, 0.75)
    browser.wait("document.querySelector('main').innerText.includes('round 4 of 9')")
    browser.wait("document.querySelector('main').innerText.includes('75.0 %')")
    (runs / "growing" / ".lock.json").unlink()
    browser.wait("document.querySelector('main').innerText.includes('stopped')")
    assert browser.ask("wrong") == []
    assert browser.ask(f"performance.getEntriesByType('resource').every(each => each.name.startsWith('{address}/'))")


def test_what_is_hidden_or_chosen_is_in_the_address_and_comes_back(browser, runs, address):
    browser.open(f"{address}/compare?state=finished")
    browser.wait("Boolean(document.querySelector('.js-plotly-plot'))")
    browser.ask("document.querySelector('.filter input').click()")
    hidden = browser.ask("location.search")
    assert "hide=" in hidden
    label = browser.ask("document.querySelector('.filter input').value")
    browser.ask("const list = document.querySelector('[name=baseline]'); list.selectedIndex = 2;"
                "list.dispatchEvent(new Event('change', {bubbles: true}))")  # fmt: skip
    browser.wait("location.search.includes('baseline=') && Boolean(document.querySelector('.js-plotly-plot'))")
    assert browser.ask("new URLSearchParams(location.search).get('hide')") == label
    assert browser.ask("document.querySelector('.filter output').textContent") == "2 of 3 shown"
    assert browser.ask("document.querySelector('[name=baseline]').selectedIndex") == 2
    assert browser.ask("wrong") == []


@pytest.mark.parametrize("path", ["/", "/compare", "/sweeps", "a run"])
def test_pages_fit_a_phone_a_dark_screen_and_a_keyboard(browser, runs, address, path):
    if path == "a run":
        go_on(runs, 1, 0.5)
        browser.open(f"{address}/?q=growing")
        browser.wait("document.querySelector('#rows a')?.href")
        path = browser.ask("document.querySelector('#rows a').getAttribute('href')")
    look_on_a_phone(browser, address + path)
    values = "[...document.querySelectorAll('[aria-label=settings] td')]"
    assert browser.ask(f"{values}.every(each => each.getBoundingClientRect().right <= 390)"), "read without scrolling"
    assert (browser.ask(f"{values}.length") > 0) == path.startswith("/run/")
    if path == "/":
        browser.do("Input.dispatchKeyEvent", type="keyDown", key="/", text="/")
        assert browser.ask("document.activeElement.type") == "search"
    assert browser.ask("wrong") == []


@pytest.mark.cluster
def test_a_cluster_is_watched_with_its_jobs_what_their_actors_use_and_a_log(browser, runs):
    with Head() as head, board(str(runs), "--address", head.url) as address:
        head.jobs = [
            job("growing-4439", "03000000", "RUNNING", metadata={"run_folder": str(runs / "growing")}),
            job("waiting", None, "PENDING", driver_node_id=None),
        ]
        stats = used(5419, gpuMemoryUsage=4000, gpuUtilization=55)
        head.actors = [actor("3e01", "03000000", 5419, stats, gpus=[GPU]), actor("59d8", "03000000", 5421, None)]
        browser.open(f"{address}/")
        browser.wait("document.querySelector('main').innerText.includes('1 running')")
        browser.open(address + browser.ask("document.querySelector('main a[href=\"/cluster\"]').getAttribute('href')"))
        browser.wait("document.querySelector('#jobs')?.innerText.includes('pending')")
        actors = "document.querySelector('#actors').innerText.replaceAll('\\u00a0', ' ')"
        browser.wait(f"['1 NVIDIA H200', '55 %', '4.2 GB', '628.4 MB'].every(each => {actors}.includes(each))")
        assert browser.ask("document.querySelector('#jobs a[href^=\"/run/\"]').textContent").endswith("growing")
        stats["cpuPercent"], head.jobs[1]["status"] = 99.0, "RUNNING"
        browser.wait(f"{actors}.includes('99 %') && !document.querySelector('#jobs').innerText.includes('pending')")
        out = browser.ask("[...document.querySelectorAll('a[target=_blank]')].map(each => each.href)")
        assert {f"{head.url}/", f"{head.url}/#/actors/3e01", f"{head.url}/#/actors/59d8"} <= set(out)

        browser.open(address + browser.ask("document.querySelector('#jobs a[href^=\"/job/\"]').getAttribute('href')"))
        browser.wait("document.querySelector('.log')?.innerText.includes('round 1')")
        head.log += b"round 2\n"
        browser.wait("document.querySelector('.log').innerText.includes('round 2')")
        assert browser.ask("document.querySelector('a[href*=\"#/jobs/\"]').href") == f"{head.url}/#/jobs/03000000"
        assert browser.ask("wrong") == []

        for page in ("cluster", "job/growing-4439"):
            look_on_a_phone(browser, f"{address}/{page}")
        head.answer = lambda path: None
        browser.wait("document.querySelector('.trouble')?.innerText.includes('it answers 500')")
        assert browser.ask("document.querySelector('.log').innerText.includes('round 2')"), "what is from before stays"
        assert browser.ask("wrong") == []
