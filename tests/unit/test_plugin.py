import numpy as np
import pytest
import torch

from fedpft.config import LoraConfig
from fedpft.construct.compress import compress
from fedpft.models.lora import attach_lora, get_adapter
from fedpft.plugin import check_same_layout, plug_in
from tests.tiny import FAMILIES, tiny_batch, tiny_fm


def adapted(model, rank=2):
    return attach_lora(model, LoraConfig(rank=rank), seed=0).eval()


@pytest.mark.parametrize("model_type", FAMILIES)
def test_an_adapter_of_the_sub_fm_fits_the_fm_name_by_name(model_type):
    fm = tiny_fm(model_type)
    sub_fm, _ = compress(fm, retained_ratio=0.25, uncompressed_layers=(1,))
    fm, sub_fm = adapted(fm), adapted(sub_fm)
    check_same_layout(fm, sub_fm)
    tuned = get_adapter(sub_fm) + 0.1
    assert get_adapter(plug_in(fm, tuned)).tobytes() == tuned.tobytes()


@pytest.mark.parametrize("model_type", FAMILIES)
def test_plugging_in_twice_is_plugging_in_once(model_type):
    fm = adapted(tiny_fm(model_type))
    tuned = get_adapter(fm) + 0.1
    frozen = {n: p.detach().clone() for n, p in fm.named_parameters() if not p.requires_grad}
    with torch.no_grad():
        once = plug_in(fm, tuned)(**tiny_batch(model_type)).logits
        twice = plug_in(plug_in(fm, tuned), tuned)(**tiny_batch(model_type)).logits
    assert torch.equal(once, twice)
    assert all(torch.equal(p, frozen[n]) for n, p in fm.named_parameters() if n in frozen)


def test_the_fm_does_not_alias_the_adapter():
    fm = adapted(tiny_fm("bert"))
    tuned = get_adapter(fm) + 0.1
    kept = tuned.copy()
    plug_in(fm, tuned)
    tuned[:] = np.nan
    assert get_adapter(fm).tobytes() == kept.tobytes()


def test_an_adapter_of_another_length_is_refused():
    fm = adapted(tiny_fm("bert"))
    with pytest.raises(ValueError, match="adapter: found shape"):
        plug_in(fm, get_adapter(fm)[1:])


def test_layouts_that_differ_are_noticed():
    with pytest.raises(AssertionError, match="adapter layouts differ"):
        check_same_layout(adapted(tiny_fm("bert"), rank=2), adapted(tiny_fm("bert"), rank=3))
