"""Any text on any terminal, and UTF-8 in every file."""

import io
import os
import subprocess
import sys

import pytest
from rich.console import Console
from rich.table import Table

from fedpft.cli.console import take_any_text
from fedpft.config import dump_config, load_config
from tests.run_folders import run_folder
from tests.tiny import tiny_text_run

SIGNS = "größe · ░▒▓█ ✓ → ± 中"


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("utf-8", SIGNS),
        ("ascii", "gr\\xf6\\xdfe . .:*# v -> +- \\u4e2d"),
        ("latin-1", "größe · .:*# v -> ± \\u4e2d"),
        ("gbk", "gr\\xf6\\xdfe · .:▓█ v → ± 中"),
    ],
)
def test_signs_that_a_terminal_does_not_have_become_plain_ones(monkeypatch, encoding, expected):
    screen = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    take_any_text()
    table = Table("a")
    table.add_row(SIGNS)
    Console(file=screen, width=80).print(table)
    screen.flush()
    shown = screen.buffer.getvalue().decode(encoding)
    assert expected in shown


OLD = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
"""Files and terminal are ASCII."""


ONE_AFTER_THE_OTHER = """
import sys
from fedpft.cli.main import main
for words in COMMANDS:
    sys.argv = ["fedpft", *words]
    try:
        main()
    except SystemExit as end:
        assert not end.code, end.code
"""


@pytest.mark.cluster
def test_a_run_on_an_old_system_leaves_files_that_every_command_reads(tmp_path):
    config = load_config(None, [*tiny_text_run(tmp_path), "name=größe", "federated.rounds=1", "align.layers.kind=none"])
    (tmp_path / "base.yaml").write_text(dump_config(config), encoding="utf-8")
    commands = [["run", "base.yaml"], ["export", "out", "--merge"]]
    given = {"capture_output": True, "env": os.environ | OLD, "check": False, "cwd": tmp_path}
    done = subprocess.run([sys.executable, "-c", f"COMMANDS = {commands}\n{ONE_AFTER_THE_OTHER}"], **given)
    assert done.returncode == 0, done.stderr
    assert load_config(tmp_path / "out/config.yaml").name == "größe"
    assert b"gr\\xf6\\xdfe: fedpft" in done.stdout
    assert "größe" in (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert "größe" in (tmp_path / "out/export/README.md").read_text(encoding="utf-8")
    assert b"exported to" in done.stdout


def test_the_board_on_an_old_system_shows_any_name_and_folder(tmp_path):
    pytest.importorskip("starlette")
    run_folder(tmp_path / "größe", "name=größe 中")
    code = (
        "import re, sys; from pathlib import Path; from starlette.testclient import TestClient\n"
        "from fedpft.board.app import make_app; from fedpft.board.index import Index\n"
        "board = TestClient(make_app(Index([Path(sys.argv[1])]), None), base_url='http://localhost:8642')\n"
        "index = board.get('/').content; page = board.get(re.search(rb'/run/\\w+', index)[0].decode()).content\n"
        "sys.stdout.buffer.write(index + page)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, env=os.environ | OLD, check=False
    )
    assert done.returncode == 0, done.stderr
    shown = done.stdout.decode("utf-8")
    assert "gr????e" in shown, "the folder, whose name the system cannot read"
    assert "größe" in shown, "what the run's own files say"


def test_a_folder_that_the_system_cannot_name_is_one_line(tmp_path):
    (tmp_path / "base.yaml").write_text(f"output_dir: {tmp_path}/größe\n", encoding="utf-8")
    command = [sys.executable, "-m", "fedpft.cli", "run", tmp_path / "base.yaml"]
    done = subprocess.run(command, capture_output=True, env=os.environ | OLD, check=False)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith(b"error")]
    assert line.startswith(b"error: output_dir: found ")
    assert line.endswith(b"which is not in ascii, or any with PYTHONUTF8=1")
