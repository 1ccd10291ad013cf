"""Three nodes with addresses of their own, and one that is lost while it trains; see `make cluster-test`."""

import time

import pytest

from experiments.benchmarks.simulation.machines import why_impossible
from experiments.benchmarks.simulation.nodes import adapter, ray_nodes, rounds, run_here, run_on_nodes

OVERRIDES = ["federated.rounds=4", "fm.pretrain.num_epochs=2", "align.layers.num_steps=20"]
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(bool(why_impossible()), reason=f"several machines: {why_impossible()}"),
]


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("here") / "run"
    run_here(folder, OVERRIDES)
    return adapter(folder)


def test_three_nodes_give_the_bits_of_one_machine_and_little_but_adapters_crosses_the_wire(expected, tmp_path):
    with ray_nodes(3) as machines:
        _, traffic = run_on_nodes(machines, tmp_path / "nodes", OVERRIDES)
    assert adapter(tmp_path / "nodes") == expected
    log = rounds(tmp_path / "nodes")
    one_adapter = log[0]["comm/bytes_up"] / len(log[0]["clients"])
    for worker in (1, 2):
        sent = [each[worker].sent_bytes for each in traffic]
        assert max(sent) > one_adapter, "each trains one of the five clients at least"
        assert max(sent) < 2 * log[0]["comm/bytes_up"]


def test_a_node_that_is_switched_off_within_a_round_costs_time_and_no_bit(expected, tmp_path):
    def lose_one(round_index):
        if round_index == 2:
            time.sleep(0.2)  # into the third round
            machines[2].switch_off()

    with ray_nodes(3) as machines:
        said, _ = run_on_nodes(machines, tmp_path / "lost", OVERRIDES, lose_one)
    assert "pool: goes on with 2 actor(s)" in said
    assert adapter(tmp_path / "lost") == expected
