import json
import os
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from fedpft.cli import main as cli
from fedpft.construct.store import ENTRY_FILE, TENSORS_FILE, Store
from fedpft.data.sources.in_use import DATA_FOLDER

KEYS = ["0a" * 16, "1b" * 16]


@pytest.fixture
def store(tmp_path):
    """Return a store of two entries, the first used 3 hours ago and the second, which is damaged, 10 minutes ago."""
    store = Store(tmp_path / "cache")
    layers = {"kind": "distill", "num_steps": 300}
    content = {
        "ingredients": {
            "fm": {"model_type": "bert", "digest": "f" * 32},
            "constructor": {"scorer": "weight_norm", "retained_ratio": 0.25},
            "align_layers": layers,
            "seed": 42,
        },
        "created": time.time() - 5 * 86400,
    }
    for key, text, hours in ((KEYS[0], json.dumps(content), 3), (KEYS[1], "{", 1 / 6)):
        folder = store.entry_folder(key)
        folder.mkdir(parents=True)
        (folder / ENTRY_FILE).write_text(text)
        (folder / TENSORS_FILE).write_bytes(bytes(2000 - len(text)))
        then = time.time() - 3600 * hours
        os.utime(folder, (then, then))
    return store


def fedpft(*arguments, **env):
    done = CliRunner().invoke(cli.app, list(map(str, arguments)), env={"COLUMNS": "160"} | env)
    return done, [" ".join(line.split()) for line in done.output.splitlines() if line.strip()]


@pytest.mark.parametrize("place", ["option", "environment"])
def test_list_shows_every_entry_with_its_origin_size_and_ages(store, place):
    folder = store.folder
    done, lines = fedpft("cache", "list", "--dir", folder) if place == "option" else fedpft("cache", "list")
    if place == "environment":
        done, lines = fedpft("cache", "list", FEDPFT_CACHE=str(folder))
    assert done.exit_code == 0
    assert lines[0] == "key FM sub-FM age size last used"
    assert lines[2:] == [
        "1b1b1b1b1b1b unfinished, damaged, or of another version 2.0 kB 10 min ago",
        "0a0a0a0a0a0a bert ffffffffffff 0.25 by weight_norm; distill, 300 steps; seed 42 5 days 2.0 kB 3 h ago",
        f"2 sub-FM(s), 4.0 kB in {folder}",
    ]


@pytest.mark.parametrize(
    ("layers", "shown"),
    [
        ({"kind": "none"}, "not aligned"),
        ({"kind": "closed_form", "num_examples": 400}, "closed_form"),
        ({"kind": "closed_form+distill", "num_steps": 100}, "closed_form+distill, 100 steps"),
    ],
)
def test_list_says_how_a_sub_fm_was_aligned(store, layers, shown):
    file = store.entry_folder(KEYS[0]) / ENTRY_FILE
    content = json.loads(file.read_text())
    content["ingredients"]["align_layers"] = layers
    file.write_text(json.dumps(content))
    _, lines = fedpft("cache", "list", "--dir", store.folder)
    assert f"0.25 by weight_norm; {shown}; seed 42" in lines[3]


@pytest.mark.parametrize("created", ['"yesterday"', "null", "[1]"])
def test_an_entry_with_nonsense_in_it_is_listed(store, created):
    file = store.entry_folder(KEYS[0]) / ENTRY_FILE
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"created": json.loads(created)}))
    done, lines = fedpft("cache", "list", "--dir", store.folder)
    assert done.exit_code == 0
    assert lines[-1].startswith("2 sub-FM(s)")


def test_clear_says_what_it_freed(store):
    _, lines = fedpft("cache", "clear", "0a0a0a0a0a0a", "--dir", store.folder)
    assert lines == ["1 sub-FM(s) removed, 2.0 kB freed"]
    assert [entry.key for entry in store.entries()] == [KEYS[1]]
    _, lines = fedpft("cache", "clear", "--dir", store.folder)
    assert lines == ["1 sub-FM(s) removed, 2.0 kB freed"]
    _, lines = fedpft("cache", "list", "--dir", store.folder)
    assert lines == [f"0 sub-FM(s), 0 bytes in {store.folder}"]


def test_prepared_data_are_listed_and_cleared_beside_the_sub_fms(store):
    data = Store(store.folder / DATA_FOLDER)
    for key, content in (
        ("2c" * 16, {"origin": "custom, /my/task", "num_examples": 1234, "created": time.time() - 3 * 3600}),
        ("3d" * 16, {}),
    ):
        data.entry_folder(key).mkdir(parents=True)
        text = json.dumps(content)
        (data.entry_folder(key) / ENTRY_FILE).write_text(text)
        (data.entry_folder(key) / "train.arrow").write_bytes(bytes(3000 - len(text)))
    _, lines = fedpft("cache", "list", "--dir", store.folder)
    assert f"2 sub-FM(s), 4.0 kB in {store.folder}" in lines
    assert "key task examples age size last used" in lines
    assert "2c2c2c2c2c2c custom, /my/task 1,234 3 h 3.0 kB 0 s ago" in lines
    assert any(line.startswith("3d3d3d3d3d3d unfinished, damaged, or of another version 3.0 kB") for line in lines)
    assert lines[-1] == f"2 prepared data set(s), 6.0 kB in {data.folder}"
    done, _ = fedpft("cache", "list", "--dir", store.folder, "--format", "json")
    assert {entry["key"] for entry in json.loads(done.stdout)["data"]} == {"2c" * 16, "3d" * 16}
    _, lines = fedpft("cache", "clear", "2c", "--dir", store.folder)
    assert lines == ["0 sub-FM(s) removed, 0 bytes freed", "1 prepared data set(s) removed, 3.0 kB freed"]
    assert len(store.entries()) == 2


def test_clearing_an_unknown_key_is_one_line_and_exit_code_2(store, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fedpft", "cache", "clear", "9", "--dir", str(store.folder)])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 2
    assert capsys.readouterr().err == f"error: KEY_PREFIX: found '9', allowed: the start of a key in {store.folder}\n"
    assert len(store.entries()) == 2


def test_list_and_clear_load_no_torch(store):
    program = (
        "import sys; from fedpft.cli.main import main\n"
        "for words in (['list'], ['clear']):\n"
        f"    sys.argv = ['fedpft', 'cache', *words, '--dir', {str(store.folder)!r}]\n"
        "    try: main()\n"
        "    except SystemExit as e: assert not e.code\n"
        "print([m for m in ('torch', 'transformers', 'datasets', 'ray', 'lightning') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
