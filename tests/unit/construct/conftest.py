"""What the tests of the sub-FM cache share."""

import pytest

from fedpft.construct.cache import SubFMCache
from tests.sub_fm_builder import PLENTY
from tests.tiny import tiny_fm


@pytest.fixture
def fm():
    return tiny_fm("bert")


@pytest.fixture
def cache(tmp_path):
    return SubFMCache(tmp_path / "cache", PLENTY)
