"""Tests of whole runs and plans."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def _quick_counts(steps_counted_once: None) -> None:
    """Count each kind of step once."""
