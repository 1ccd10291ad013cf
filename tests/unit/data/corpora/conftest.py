"""What the tests of corpora share."""

import datasets
import pytest

from fedpft.data.corpora import public


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def large(monkeypatch):
    """Let every corpus in files count as too large to be read whole."""
    monkeypatch.setattr(public, "MAX_WHOLE_BYTES", 0)
