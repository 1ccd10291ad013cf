import logging
import os
import warnings
from pathlib import Path

import pytest

from fedpft.cli import environment
from fedpft.cli.environment import CACHES, hush_libraries, settle_caches


@pytest.fixture
def home(tmp_path, monkeypatch):
    for name in (*CACHES, "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(environment, "own_folder", lambda: tmp_path / "own")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def test_the_hubs_tries_are_not_said_unless_asked_for(monkeypatch):
    monkeypatch.setattr(os, "environ", {"FEDPFT_VERBOSE": "1"})
    hush_libraries()
    assert os.environ == {"FEDPFT_VERBOSE": "1"}
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(logging, "raiseExceptions", True)  # restored afterwards
    with warnings.catch_warnings():
        hush_libraries()
    assert os.environ["HF_HUB_VERBOSITY"] == "error"


def test_a_home_that_takes_files_is_left_alone(home):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        settle_caches()
    assert not any(name in os.environ for name in CACHES)


def test_where_the_cache_takes_no_files_caches_are_elsewhere_and_models_are_still_read_at_home(home, monkeypatch):
    (home / ".cache").write_text("")
    monkeypatch.setenv("WANDB_CACHE_DIR", "mine")
    with pytest.warns(UserWarning, match=r"/home/\.cache takes no files: caches are in .*/own/cache; HOME or XDG"):
        settle_caches()
    assert os.environ["HF_DATASETS_CACHE"] == str(home.with_name("own") / "cache/huggingface/datasets")
    assert (os.environ["WANDB_CACHE_DIR"], os.environ["HOME"]) == ("mine", str(home))
    assert "HF_HOME" not in os.environ


@pytest.mark.parametrize("missing", ["{}/nowhere", "~"])
def test_without_a_home_there_is_one(home, monkeypatch, missing):
    monkeypatch.setenv("HOME", missing.format(home))
    with pytest.warns(UserWarning, match="there is no home folder: caches are in"):
        settle_caches()
    assert Path.home() == home.with_name("own")


def test_without_any_place_nothing_happens(home, monkeypatch):
    def nowhere():
        raise OSError

    (home / ".cache").write_text("")
    monkeypatch.setattr(environment, "own_folder", nowhere)
    settle_caches()
    assert "HF_DATASETS_CACHE" not in os.environ
