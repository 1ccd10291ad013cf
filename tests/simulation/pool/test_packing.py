"""What a client needs and what there is: RAM for real, a GPU that is made up."""

import mmap
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedpft.federated.client import LocalClient
from tests.tiny import tiny_package

pytest.importorskip("fedpft.simulation.pool.packing", reason="Ray is not installed", exc_type=ImportError)
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayTaskError

from fedpft.simulation.cluster import Node
from fedpft.simulation.pool import packing

MIB, GIB = 2**20, 2**30


@pytest.mark.parametrize(
    ("peak", "free", "expected"),
    [(2, 80, 34), (2, 4.6, 2), (2, 4.5, 1), (100, 80, 1)],  # 2 GiB are reckoned as 2.3
)
def test_actors_fit_with_a_margin_and_one_is_tried_in_any_case(peak, free, expected):
    use = packing.MemoryUse(peak_bytes=peak * GIB, free_bytes=int(free * GIB) + 1)
    assert use.num_actors == expected


def test_a_use_is_told_in_gibibytes():
    use = packing.MemoryUse(peak_bytes=19 * GIB // 10, free_bytes=80 * GIB)
    assert str(use) == "1.9 GiB a client, 80.0 GiB free"


@pytest.mark.parametrize("num_actors", range(1, 60))
def test_a_gpu_holds_as_many_actors_as_its_share_says_and_no_more(num_actors):
    share = packing.gpu_share(num_actors)
    assert Node(1000, 2).fits(1, share) == 2 * num_actors
    assert share * 1e4 == pytest.approx(round(share * 1e4)), "Ray cuts off what is finer"
    assert Node(1000, 0.5).fits(1, packing.gpu_share(num_actors, 0.5)) == num_actors


def test_the_hungriest_client_owns_the_longest_examples_of_all_for_two_steps():
    package = tiny_package(batch_size=3)
    lengths = np.array([len(ids) for ids in package.train["input_ids"]])
    hungry = packing.hungriest(package)
    assert hungry.partition.num_clients == 1
    assert sorted(lengths[hungry.partition.shard(0)]) == sorted(lengths)[-6:]
    assert replace(hungry, partition=package.partition) == package, "nothing else is another"


def test_where_there_are_fewer_examples_it_owns_all():
    package = tiny_package(shard_sizes=(2, 3), batch_size=8)
    assert sorted(packing.hungriest(package).partition.shard(0)) == [0, 1, 2, 3, 4]


def test_host_memory_has_the_peak_since_the_reset_of_what_is_not_shared():
    memory = packing.HostMemory()
    ballast = np.ones(200 * MIB, dtype=np.uint8)
    del ballast
    memory.reset_peak()
    before = memory.use()
    ballast = np.ones(100 * MIB, dtype=np.uint8)
    del ballast
    after = memory.use()
    assert 80 * MIB < after.peak_bytes - before.peak_bytes < 120 * MIB
    memory.reset_peak()
    shared = np.frombuffer(mmap.mmap(-1, 100 * MIB), dtype=np.uint8)
    shared[:] = 1
    assert memory.use().peak_bytes < before.peak_bytes + 50 * MIB, "what actors share is there once"


class FakeCuda:
    """A GPU of 80 GiB of which others hold 50; this process 1 now, 5 at most, and its context."""

    def __init__(self):
        self.calls = []

    def reset_peak_memory_stats(self):
        self.calls.append("reset")

    def memory_reserved(self):
        return 1 * GIB

    def max_memory_reserved(self):
        assert self.calls == ["reset"]
        return 5 * GIB

    def mem_get_info(self):
        return 29 * GIB - packing.CUDA_CONTEXT_BYTES, 80 * GIB


def test_cuda_memory_leaves_to_others_what_they_hold_and_counts_the_context_of_every_process(monkeypatch):
    fake = FakeCuda()
    for name in ("reset_peak_memory_stats", "memory_reserved", "max_memory_reserved", "mem_get_info"):
        monkeypatch.setattr(torch.cuda, name, getattr(fake, name))
    memory = packing.CudaMemory()
    memory.reset_peak()
    use = memory.use()
    assert use.free_bytes == 30 * GIB
    assert use.peak_bytes == 5 * GIB + packing.CUDA_CONTEXT_BYTES
    assert use.num_actors == 4, "30 / (5.6 x 1.15)"
    assert packing.CudaMemory(0.25).use().free_bytes == 20 * GIB, (
        "the server has the rest, of which it holds little now"
    )


def test_a_probe_sees_what_a_client_takes_and_leaves_the_random_state(monkeypatch):
    package = tiny_package()
    idle, state = packing.probe(package), torch.get_rng_state()
    fit = LocalClient.fit

    def fit_with_ballast(self, plan, client_id):
        ballast = np.ones(300 * MIB, dtype=np.uint8)
        assert len(ballast)
        return fit(self, plan, client_id)

    monkeypatch.setattr(LocalClient, "fit", fit_with_ballast)
    hungry = packing.probe(package)
    assert hungry.peak_bytes - idle.peak_bytes > 250 * MIB
    assert idle.peak_bytes > 30 * MIB
    assert torch.equal(torch.get_rng_state(), state)


def torch_refuses_ram():
    try:
        torch.empty(2**60)
    except RuntimeError as error:
        return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (MemoryError(), True),
        (OutOfMemoryError("killed by the node's watch"), True),
        (torch_refuses_ram(), True),
        (
            torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be reported asynchronously"),
            True,
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"), False),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("shapes cannot be multiplied"), False),
        (TimeoutError("no answer within 4 s"), False),
        (ActorDiedError(), False),
    ],
)
def test_want_of_memory_is_told_from_other_failures_wherever_it_was_raised(error, expected):
    assert packing.is_out_of_memory(error) is expected
    assert packing.is_out_of_memory(RayTaskError("fit", "Traceback ...", error)) is expected
