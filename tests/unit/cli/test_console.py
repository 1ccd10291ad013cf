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


def test_a_run_on_an_old_system_leaves_files_that_every_command_reads(tmp_path):
    config = load_config(None, [*tiny_text_run(tmp_path), "name=größe", "federated.rounds=1", "align.layers.kind=none"])
    (tmp_path / "base.yaml").write_text(dump_config(config), encoding="utf-8")
    command = [sys.executable, "-m", "fedpft.cli"]
    given = {"capture_output": True, "env": os.environ | OLD, "check": False}
    done = subprocess.run([*command, "run", tmp_path / "base.yaml"], **given)
    assert done.returncode == 0, done.stderr
    assert load_config(tmp_path / "out/config.yaml").name == "größe"
    assert b"gr\\xf6\\xdfe: fedpft" in done.stdout
    assert "größe" in (tmp_path / "out/report.html").read_text(encoding="utf-8")


def test_a_folder_that_the_system_cannot_name_is_one_line(tmp_path):
    (tmp_path / "base.yaml").write_text(f"output_dir: {tmp_path}/größe\n", encoding="utf-8")
    command = [sys.executable, "-m", "fedpft.cli", "run", tmp_path / "base.yaml"]
    done = subprocess.run(command, capture_output=True, env=os.environ | OLD, check=False)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith(b"error")]
    assert line.startswith(b"error: output_dir: found ")
    assert line.endswith(b"which is not in ascii, or any with PYTHONUTF8=1")
