import sys
import warnings
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpft.federated import memory
from fedpft.federated.memory import MAX_ROUNDS, MIN_ROUNDS, WARM_UP_ROUNDS, MemoryWatchdog, grows, process_memory, slope

MB = 10**6


def measure(watchdog, values, name="object_store_bytes"):
    """Feed one value a round; return the texts of the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for value in values:
            watchdog.measure({name: int(value)})
    return [str(warning.message) for warning in caught]


@pytest.fixture(autouse=True)
def steady_driver(monkeypatch):
    """Keep the process that runs the tests out of it."""
    held = memory.ProcessMemory(rss_bytes=500 * MB, gpu_bytes=0)
    monkeypatch.setattr(memory, "process_memory", lambda: held)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone has two numbers")
def test_a_peak_is_this_process_own_not_that_of_the_one_that_started_it(monkeypatch):
    of_a_large_parent = SimpleNamespace(ru_maxrss=2**40)
    monkeypatch.setattr(memory.resource, "getrusage", lambda who: of_a_large_parent)
    assert psutil.Process().memory_info().rss <= 1.01 * memory.process_peak_memory_bytes() < 1024 * 2**40


@given(st.floats(-1e9, 1e9), st.floats(0, 1e9), st.integers(2, 60))
def test_the_slope_of_a_line_is_its_slope(rise, start, length):
    line = start + rise * np.arange(length)
    assert slope(line) == pytest.approx(rise, rel=1e-6, abs=1e-3)


def test_the_slope_is_the_least_squares_one():
    assert slope([0.0, 0.0, 3.0]) == pytest.approx(1.5)  # sum (x - 1)(y - 1) / sum (x - 1)^2 = 3 / 2


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (300 * MB + 2 * MB * np.arange(30), True),
        (300 * MB + 2 * MB * np.arange(MIN_ROUNDS - 1), False),  # too short to say
        (300 * MB + 0.9 * MB * np.arange(40), False),  # under 1 MB a round
        (2000 * MB + 2 * MB * np.arange(40), False),  # under 5 %
        (300 * MB - 5 * MB * np.arange(40), False),
        (np.where(np.arange(40) < 20, 300 * MB, 600 * MB), False),  # one step
        (300 * MB + 20 * MB * np.minimum(np.arange(40), 18), False),  # a plateau
        (300 * MB + 50 * MB * (np.arange(40) % 2), False),  # up and down
        (300 * MB + 3 * MB * np.arange(40) + 5 * MB * (np.arange(40) % 2), True),
    ],
)
def test_growth_is_steady_fast_and_large(values, expected):
    assert grows(list(values)) is expected


def test_a_leak_is_reported_once_with_its_slope():
    (text,) = measure(MemoryWatchdog(), 300 * MB + 5 * MB * np.arange(100))
    assert text.startswith("memory/object_store_bytes grows by 5.0 MB a round over the last 20 rounds")


def test_a_leak_that_starts_late_is_found_within_the_window():
    late = np.concatenate([np.full(500, 300 * MB), 300 * MB + 5 * MB * np.arange(1, MAX_ROUNDS + 1)])
    assert measure(MemoryWatchdog(), late[:500]) == []
    assert len(measure(MemoryWatchdog(), late)) == 1


def test_the_first_rounds_do_not_count():
    filling = 100 * MB * np.arange(WARM_UP_ROUNDS)
    assert measure(MemoryWatchdog(), np.concatenate([filling, np.full(60, filling[-1])])) == []


def test_records_hold_the_driver_and_what_the_pool_says(monkeypatch):
    found = MemoryWatchdog().measure({"actor_rss_bytes_max": 3, "object_store_bytes": 4})
    expected = {"driver_rss_bytes": 500 * MB, "actor_rss_bytes_max": 3, "object_store_bytes": 4}
    assert found == {f"memory/{name}": value for name, value in expected.items()}
    monkeypatch.setattr(memory, "process_memory", lambda: memory.ProcessMemory(rss_bytes=1, gpu_bytes=2))
    assert MemoryWatchdog().measure({}) == {"memory/driver_rss_bytes": 1, "memory/driver_gpu_bytes": 2}


def test_resident_memory_is_this_process():
    before = process_memory().rss_bytes
    block = np.ones(50 * MB, dtype=np.uint8)
    assert process_memory().rss_bytes - before > 0.9 * block.nbytes
