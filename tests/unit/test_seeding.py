import numpy as np
import pytest
import torch

from fedpft.seeding import derive_seed, isolated_torch_rng, numpy_rng


def test_seeds_are_the_same_for_ever():
    """Pinned by hand: blake2b of b"42/partition/0/0" and b"42/client/3/17", 8 bytes, shifted right by one bit."""
    assert derive_seed(42, "partition") == 2475024867229755183
    assert derive_seed(42, "client", 3, 17) == 4123687409732191189


def test_every_argument_changes_the_seed():
    arguments = [
        (0, "a", 0, 0), (1, "a", 0, 0), (0, "b", 0, 0), (0, "a", 1, 0), (0, "a", 0, 1), (1, "a", 1, 1), (0, "a", 1, 11),
        (0, "a", 11, 1),
    ]  # fmt: skip
    assert len({derive_seed(*a) for a in arguments}) == len(arguments)


def test_seeds_fit_torch_and_numpy():
    for client_id in range(200):
        seed = derive_seed(7, "x", client_id=client_id)
        assert 0 <= seed < 2**63
        torch.Generator().manual_seed(seed)


def test_numpy_generators_are_fresh_and_equal():
    first, second = numpy_rng(1, "x"), numpy_rng(1, "x")
    assert np.array_equal(first.random(5), second.random(5))
    assert not np.array_equal(first.random(5), numpy_rng(2, "x").random(5))


def test_torch_is_seeded_inside_the_block_and_restored_after():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with isolated_torch_rng(5):
        inside = torch.rand(3)
    assert torch.equal(inside, torch.rand(3, generator=torch.Generator().manual_seed(5)))
    assert torch.equal(torch.rand(3), expected)
    with isolated_torch_rng(5):
        assert torch.equal(torch.rand(3), inside)


def test_torch_is_restored_after_an_error():
    def fails():
        with isolated_torch_rng(5):
            torch.rand(3)
            raise RuntimeError("mine")

    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="mine"):
        fails()
    assert torch.equal(torch.get_rng_state(), state)
