import numpy as np
import pytest
from rich.console import Console

from fedpft.config import ConfigError, load_config
from fedpft.report.verification import print_checks
from fedpft.run import verify as module_under_test
from fedpft.run.traces import Difference, Trace, first_difference
from fedpft.run.verify import Check, likely_causes, shortened, verify
from fedpft.storage.checkpoint import RunCheckpoint

ADAPTER = {"a": np.zeros(2, np.float32), "b": np.ones(3, np.float32)}
SUB_FM = {"sub-FM 0.up.weight": np.ones((2, 2), np.float32)}


def trace(rounds=(0, 1, 2, 3), changed=(0, 2)):
    return Trace(
        adapters={i: {name: value + i for name, value in ADAPTER.items()} for i in rounds},
        proxies={i: {name: value + i for name, value in SUB_FM.items()} for i in changed},
    )


def test_equal_traces_have_no_difference():
    assert first_difference(trace(), trace()) is None


def test_the_first_round_and_tensor_are_found_and_the_largest_gap():
    found = trace()
    found.adapters[3]["a"][0] += 1
    found.adapters[2]["b"][:2] += (0.25, -0.5)
    assert first_difference(found, trace()) == Difference(2, "b", 0.5)


def test_the_sub_fm_comes_after_its_rounds_aggregate():
    found = trace()
    found.proxies[2]["sub-FM 0.up.weight"][1, 1] -= 2
    assert first_difference(found, trace()) == Difference(2, "sub-FM 0.up.weight", 2.0)
    found.adapters[2]["a"][0] += 1
    assert first_difference(found, trace()) == Difference(2, "a", 1.0)


def test_one_bit_is_a_difference():
    found = trace()
    found.adapters[1]["a"][0] = np.nextafter(np.float32(1), np.float32(2))
    assert first_difference(found, trace()).tensor == "a"
    found.adapters[1]["a"][0] = 1
    assert first_difference(found, trace()) is None


def test_a_resumed_trace_is_compared_from_where_it_begins():
    for resumed in (trace(rounds=(2, 3), changed=(2,)), trace(rounds=(3,), changed=())):
        assert first_difference(resumed, trace()) is None
        assert first_difference(trace(), resumed) is None
        resumed.adapters[3]["b"] += 1
        assert first_difference(resumed, trace()).round_index == 3


@pytest.mark.parametrize(("rounds", "interval"), [(2, 1), (3, 2), (9, 2)])
def test_the_shortened_run_holds_an_alignment_before_its_last_round(rounds, interval):
    config = shortened(load_config(None, ["federated.rounds=100"]), rounds)
    assert (config.federated.rounds, config.align.neurons.interval, config.evaluation.interval) == (
        rounds,
        interval,
        rounds,
    )


def test_one_round_cannot_be_resumed():
    with pytest.raises(ConfigError, match=r"^--rounds: found 1, allowed: an integer >= 2$"):
        verify(load_config(), 1)


def check(name="two runs"):
    return Check(name, Difference(2, "lora_A", 1e-7))


def test_causes_fit_where_it_ran_and_what_differed(monkeypatch):
    config = load_config(None, ["pool.gpus_per_actor=0.5", "pool.precision=bf16-mixed"])
    assert likely_causes(config, [Check("two runs", None)]) == []
    (threads,) = likely_causes(config, [check()])
    assert "server.num_threads=1" in threads
    assert "actors on nodes" in likely_causes(config, [check("Ray, sequential")])[0]
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    gpu, precision = likely_causes(config, [check()])
    assert "server.deterministic=true pool.deterministic=true" in gpu
    assert "pool.precision=32-true" in precision


def test_the_table_names_round_tensor_and_gap():
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_checks(console, {"two runs": None, "Ray, sequential": str(check().difference)}, ["threads"])
    words = " ".join(console.export_text().split())
    assert "two runs yes" in words
    assert "Ray, sequential no round 2: lora_A, up to 1.0e-07" in words
    assert "may be: threads" in words


@pytest.mark.parametrize(("precision", "compared"), [("32-true", True), ("bf16-mixed", False)])
def test_clients_together_are_compared_with_one_at_a_time_where_they_promise_the_same_bits(
    monkeypatch, precision, compared
):
    def go_through(config, fm, data, saved=None, keep=None):
        if keep:
            server = {"rounds_done": 0, "proxy_version": 0}
            keep(RunCheckpoint(server=server, adapter=np.zeros(5, np.float32), proxy=dict, untuned={}))
        found = trace()
        found.adapters[2]["b"][0] += config.pool.clients_per_batch != 1  # a fault of the grouping
        return found

    monkeypatch.setattr(module_under_test, "trace", go_through)
    monkeypatch.setattr(module_under_test, "load", lambda config: (None, None))
    monkeypatch.setattr(module_under_test, "in_a_new_process", lambda *_: trace())
    settings = ["pool.accelerator=cpu", "pool.clients_per_batch=4", f"pool.precision={precision}"]
    differences = {check.name: check.difference for check in verify(load_config(None, settings))}
    expected = {"sequential, 4 together, sequential": Difference(2, "b", 1.0)} if compared else {}
    assert {name: found for name, found in differences.items() if "together" in name} == expected
