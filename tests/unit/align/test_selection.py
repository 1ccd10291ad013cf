import pytest
import torch

from fedpft.align.selection import average_percentage_of_zeros, least_used


def test_apoz_is_the_fraction_of_inactive_positions():
    apoz = average_percentage_of_zeros(torch.tensor([0, 1, 4]), 4)
    assert apoz.dtype == torch.float64
    assert apoz.tolist() == [0, 0.25, 1]


def test_apoz_without_positions_is_an_error():
    with pytest.raises(ValueError, match="at least one real token position"):
        average_percentage_of_zeros(torch.zeros(3), 0)


def test_the_least_used_neurons_are_chosen():
    assert least_used(torch.tensor([0.1, 0.9, 0.5, 0.7]), 0.5).tolist() == [False, True, False, True]


def test_of_equally_used_neurons_the_lower_index_is_chosen():
    assert least_used(torch.full((100,), 0.5), 0.3).nonzero().flatten().tolist() == list(range(30))


@pytest.mark.parametrize(("update_ratio", "num_updated"), [(1e-9, 1), (0.3, 3), (1.0, 10)])
def test_at_least_one_and_at_most_all_neurons_are_chosen(update_ratio, num_updated):
    assert least_used(torch.rand(10), update_ratio).sum() == num_updated
