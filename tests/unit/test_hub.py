"""A hub that does not answer costs one question; what was downloaded before is there without it."""

import socket

import datasets
import pytest
from huggingface_hub import HfApi, constants

from fedpft.config import ConfigError, FMConfig
from fedpft.data.sources.files import find_hub
from fedpft.data.sources.rows import load_hub
from fedpft.hub import hub_or_cache
from fedpft.models.loading import load_fm_config


@pytest.fixture
def questions(monkeypatch):
    """Let the hub not answer; return what it was asked."""
    asked = []

    def repo_info(self, path, **how):
        asked.append(path)
        raise ConnectionError("no route")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(HfApi, "repo_info", repo_info)
    return asked


@pytest.mark.parametrize("read", [load_hub, find_hub])
def test_without_an_answer_its_clients_ask_nothing_and_the_error_is_one_line(questions, read, monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("the hub was asked again"))
    with pytest.raises(
        ConfigError, match=r"^task.path: found hub data set no/set, split train .*, allowed: "
    ) as raised:
        read("no/set", None, "train", "task.path")
    assert "\n" not in str(raised.value)
    assert "Offline" not in str(raised.value)
    assert questions == ["no/set"]
    assert (constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE) == (False, False), "for this one alone"


def test_a_folder_is_no_question_and_an_answer_changes_nothing(questions, monkeypatch, tmp_path):
    for path in (str(tmp_path), "scratch://bert"):
        with hub_or_cache(path, "model"):
            assert not constants.HF_HUB_OFFLINE
    assert questions == []
    monkeypatch.setattr(HfApi, "repo_info", lambda self, path, **how: None)
    with hub_or_cache("some/set", "dataset"):
        assert not constants.HF_HUB_OFFLINE


def test_a_model_is_asked_for_once_too(questions, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("the hub was asked again"))
    with pytest.raises(ConfigError, match=r"^fm.path: found 'no/model', allowed: a hub id, "):
        load_fm_config(FMConfig(path="no/model"), 2, "classification")
    assert questions == ["no/model"]
