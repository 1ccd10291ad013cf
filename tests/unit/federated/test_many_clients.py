import tracemalloc

import numpy as np
import pytest

from tests.unit.federated.test_driver import FakePool, driver, start


@pytest.mark.parametrize(("sampling", "most_bytes"), [("uniform", 10e6), ("md", 50e6)])
def test_nothing_is_held_of_a_million_clients_but_who_owns_what(sampling, most_bytes):
    sizes = np.ones(10**6, dtype=np.int8)
    made, _ = driver(pool=FakePool(sizes=sizes), sizes=sizes, num_clients=10**6, sampling=sampling)
    tracemalloc.start()
    try:
        made.run(start())
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 2e5
    assert peak < most_bytes, "the sizes for a moment; for md the probabilities, too"
