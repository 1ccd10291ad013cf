"""Of changed weights only the rows or columns that differ are sent, and give the same bits."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedpft.models.patches import HeldWeights, Patch, difference, num_bytes
from fedpft.models.weights import as_array, patched, replace_weights


def model_of(weight):
    model = nn.Linear(weight.shape[1], weight.shape[0], bias=False).to(weight.dtype).requires_grad_(False)
    model.weight.data = weight.clone()
    return model


@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    changed=st.sets(st.tuples(st.integers(0, 4), st.integers(0, 4))),
)
def test_whatever_changes_a_place_has_the_new_bits(shape, dtype, changed):
    before = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    after = before.clone()
    for row, column in changed:
        if row < shape[0] and column < shape[1]:
            after[row, column] += 1
    change = difference(as_array(before), as_array(after))
    assert change.nbytes <= after.nbytes
    place = model_of(before)
    (whole,) = patched(place, {"weight": change}).values()
    assert whole.tobytes() == as_array(after).tobytes()
    assert torch.equal(place.weight, before), "it did not change yet"
    replace_weights(place, {"weight": change})
    assert torch.equal(place.weight, after)


@pytest.mark.parametrize(("axis", "chosen"), [(0, np.s_[[1, 3]]), (1, np.s_[:, [1, 3]])])
def test_rows_and_columns_travel_alone(axis, chosen):
    before = np.zeros((40, 30), np.float32)
    after = before.copy()
    after[chosen] = 2
    change = difference(before, after)
    assert isinstance(change, Patch)
    assert (change.axis, change.index.tolist()) == (axis, [1, 3])
    assert change.nbytes == 4 * 2 + 4 * 2 * (30 if axis == 0 else 40)


def test_a_zero_of_another_sign_is_another_number():
    before, after = np.zeros(9, np.float32), np.zeros(9, np.float32)
    after[4] = -0.0
    assert difference(before, after).index.tolist() == [4]


def test_a_later_change_is_one_to_what_is_held_and_all_together_are_whole():
    first = {"w": np.zeros((8, 4), np.float32), "b": np.zeros(8, np.float32)}
    held = HeldWeights(first)
    second, third = (first["w"].copy() for _ in range(2))
    second[2] = third[2] = 1
    third[5] = 1
    assert num_bytes(held.changes({"w": second})) == 4 + 4 * 4
    assert held.changes({"w": third})["w"].index.tolist() == [5]
    assert held.changed["w"] is third
    assert set(held.changed) == {"w"}


def test_a_patch_of_another_shape_is_refused():
    patch = Patch(axis=0, index=np.array([1], np.int32), values=np.ones((1, 5), np.float32))
    with pytest.raises(ValueError, match=r"weight update 'weight' of shape \(1, 5\): the model has \(3, 4\)"):
        replace_weights(model_of(torch.zeros(3, 4)), {"weight": patch})
