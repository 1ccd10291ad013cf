"""How soon `fedpft board` shows many long runs, what it holds in memory, and what it costs while nobody starts a run.

    python experiments/benchmarks/board/measure.py --runs 1000 --rounds 1000

A board of its own for each cold measurement; the files are in the system's cache, as they were just written.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[3]))

from experiments.benchmarks.board.pretend import many, records
from tests.browser import CHROMIUM, Browser

PAINTS = """new Promise(done => {
  const paints = () => performance.getEntriesByType('paint').map(each => [each.name, each.startTime]);
  const found = () => Object.fromEntries(paints());
  const look = () => found()['first-contentful-paint'] ? done({...found(),
    loaded: performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd,
    rows: document.querySelectorAll('#rows tr').length}) : setTimeout(look, 20);
  look();
})"""


class Board:
    """A process of the command."""

    def __init__(self, root: Path) -> None:
        start = time.perf_counter()
        command = [sys.executable, "-u", "-m", "fedpft.cli", "board", str(root), "--port", "0"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().split()[1].rstrip("/")
        self.start_seconds = time.perf_counter() - start
        self._seen = psutil.Process(self._process.pid)

    def get(self, path: str) -> float:
        """Return the seconds until a whole page has come."""
        start = time.perf_counter()
        with urllib.request.urlopen(self.address + path) as answer:
            answer.read()
        return time.perf_counter() - start

    @property
    def megabytes(self) -> float:
        """Resident."""
        return self._seen.memory_info().rss / 1e6

    @property
    def cpu_seconds(self) -> float:
        """Used so far."""
        times = self._seen.cpu_times()
        return times.user + times.system

    @property
    def read_megabytes(self) -> float:
        """From files, whatever the system had of them."""
        return self._seen.io_counters().read_chars / 1e6

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(timeout=30)


def cold(root: Path, size: float) -> dict[str, Any]:
    """Return what a reader waits for who opens the table of a board that has just started; `size`: MB of rounds."""
    board = Board(root)
    try:
        with Browser() as browser:
            browser.open(board.address + "/")
            paint = browser.ask(PAINTS)
            first_memory = board.megabytes
            seconds = {path: board.get(path) for path in ("/?page=2", "/?sort=metric", "/?q=lora_alpha%3D7.0")}
            start = time.perf_counter()
            while board.read_megabytes < size:
                time.sleep(1)
            read_seconds, read_cpu = time.perf_counter() - start, board.cpu_seconds
            time.sleep(5)
            warm = board.get("/")
            before, since = board.cpu_seconds, time.perf_counter()
            time.sleep(15)
            idle = (board.cpu_seconds - before) / (time.perf_counter() - since)
            growing = next(path for path in sorted(root.iterdir()) if (path / ".lock.json").exists())
            last, done = next(iter(records(1, 0.8, 0.03, 7))), (growing / "rounds.jsonl").read_text().count("\n")
            delays = []
            for index in range(done + 1, done + 6):
                with (growing / "rounds.jsonl").open("a") as file:
                    file.write(json.dumps(last | {"round": index}) + "\n")
                written = time.perf_counter()
                browser.wait(f"document.querySelector('#rows').innerText.includes('{index}/')")
                delays.append(time.perf_counter() - written)
                time.sleep(1)
            return {
                "start_seconds": board.start_seconds,
                "first_contentful_paint_seconds": paint["first-contentful-paint"] / 1e3,
                "rows_of_the_first_page": paint["rows"], "dom_content_loaded_seconds": paint["loaded"] / 1e3,
                "memory_megabytes_at_first_paint": first_memory, "seconds_until_all_is_read": read_seconds,
                "cpu_seconds_until_all_is_read": read_cpu,
                "memory_megabytes_when_all_is_read": board.megabytes, "warm_page_seconds": warm,
                "while_reading_page_seconds": seconds, "compare_300_runs_seconds": board.get("/compare"),
                "memory_megabytes_after_compare": board.megabytes,
                "cpu_share_while_one_page_is_open": idle, "seconds_from_a_written_round_to_the_screen": delays,
            }  # fmt: skip
    finally:
        board.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--root", type=Path, help="keep the runs here, or use those that are there")
    given = parser.parse_args()
    assert CHROMIUM, "needs Chromium or Chrome in PATH"
    with tempfile.TemporaryDirectory() as temporary:
        root = given.root or Path(temporary, "runs")
        if not root.exists():
            root.mkdir()
            many(root, given.runs, given.rounds)
        for held in root.rglob(".lock.json"):
            os.utime(held)
        size = sum(path.stat().st_size for path in root.rglob("rounds.jsonl")) / 1e6
        found = {"runs": given.runs, "rounds": given.rounds, "rounds_megabytes": size, "cores": os.cpu_count()}
        found |= {"load_average": os.getloadavg()[0], **cold(root, size)}
    place = Path(__file__).parents[2] / "results" / "board" / f"runs_{given.runs}.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(found, indent=2) + "\n")
    print(place.read_text())
