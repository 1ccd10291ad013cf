"""A mask that the CPU knows says what a plain one says, and no GPU is waited for."""

import copy
import pickle

import bitsandbytes  # noqa: F401 - it looks for a GPU when it is imported, and one that is pretended has no library
import pytest
import torch

from fedpft.attention_mask import KnownMask, real_tokens
from tests.pretend_cuda import pretended_cuda
from tests.tiny import TEXT_FAMILIES, tiny_batch, tiny_fm

ONES = torch.ones(2, 4, dtype=torch.long)
PADDED = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])

QUESTIONS = {
    "all": lambda mask: mask.all(),
    "torch's all of truth values": lambda mask: torch.all(mask.bool()),
    "sum": lambda mask: mask.to(torch.bool).sum(),
    "all of a slice": lambda mask: mask.bool()[:, :2].all(),
    "sum of the rest, negated": lambda mask: (~mask.bool()[:, 2:]).sum(),
    "all of several clients'": lambda mask: torch.cat([mask, mask]).all(),
    "all of a view": lambda mask: mask.view(len(mask), -1).all(),
    "places": real_tokens,
}


@pytest.mark.parametrize("mask", [ONES, PADDED])
@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS)
def test_what_is_asked_of_a_known_mask_is_answered_as_by_a_plain_one_and_no_gpu_is_waited_for(mask, question):
    with pretended_cuda() as gpu:
        answer = question(KnownMask.of(mask).to("cuda", non_blocking=True)).tolist()
        waits = gpu.syncs.total()
        wanted = question(mask.to("cuda", non_blocking=True)).tolist()
    assert answer == wanted
    assert (gpu.violations, waits) == ([], answer.__class__ is list), "the places themselves lie on the GPU"
    assert gpu.syncs.total() > waits, "of a plain one it waits"


WRITES = {
    "item": lambda mask: mask.__setitem__((0, 1), 0),
    "fill_": lambda mask: mask.fill_(0),
    "and": lambda mask: mask.__iand__(PADDED),
    "through a slice": lambda mask: mask[:, :2].fill_(0),
    "through a row": lambda mask: mask[0].zero_(),
    "through a view": lambda mask: mask.view(-1).zero_(),
    "through a transpose": lambda mask: mask.t().zero_(),
    "detached": lambda mask: mask.detach().zero_(),
    "as out": lambda mask: torch.mul(ONES, 0, out=mask),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_mask_that_was_written_into_is_asked_itself(write):
    mask = KnownMask.of(ONES.clone())
    moved, view = mask.clone(), mask.view(2, 4)
    write(mask)
    assert not mask.all()
    assert not view.all()
    assert len(real_tokens(mask)) < 8
    assert moved.all(), "a copy of before was not written into"


def test_a_mask_without_values_is_asked_itself():
    """A plan counts the memory of the largest that it can be."""
    assert type(KnownMask.of(ONES).to("meta")) is torch.Tensor


def test_a_part_that_was_copied_is_one_piece_on_the_cpu_too():
    part = KnownMask.of(PADDED)[:, :3]
    for copied in (part.contiguous(), part.clone(), part.bool(), part.to("cpu", copy=True)):
        assert copied.reshape(-1).sum() == 5
    assert part.contiguous().view(-1).sum() == 5


def test_arguments_may_be_named():
    mask = KnownMask.of(PADDED)
    assert torch.equal(torch.cat(tensors=[mask, mask]), torch.cat([PADDED, PADDED]))
    assert not torch.cat([mask, mask], dim=1).all()
    assert mask.view(size=(8,)).sum() == mask.reshape(shape=(8,)).sum() == mask.sum(dim=(0, 1)) == 6


def test_a_copy_of_a_known_mask_is_known_and_in_a_file_it_is_a_plain_one(tmp_path):
    made = copy.deepcopy(KnownMask.of(PADDED))
    assert type(made) is KnownMask
    assert len(real_tokens(made)) == 6
    torch.save({"attention_mask": KnownMask.of(PADDED)}, tmp_path / "batch.pt")
    opened = [torch.load(tmp_path / "batch.pt")["attention_mask"], pickle.loads(pickle.dumps(KnownMask.of(PADDED)))]
    for plain in opened:
        assert type(plain) is torch.Tensor
        assert torch.equal(plain, PADDED)


def test_what_is_computed_with_a_known_mask_is_a_plain_tensor():
    mask = KnownMask.of(PADDED)
    for made in (mask + 1, mask == 0, mask.sum(dim=1), mask[0], mask[:, None], mask.float() * 2, mask.float().mean()):
        assert type(made) is torch.Tensor


@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_a_model_gives_the_same_bits_with_a_known_mask_as_with_a_plain_one(family):
    model = tiny_fm(family).eval()
    padded = tiny_batch(family)
    assert not padded["attention_mask"].all()
    for batch in (padded, padded | {"attention_mask": torch.ones_like(padded["attention_mask"])}):
        known = batch | {"attention_mask": KnownMask.of(batch["attention_mask"])}
        with torch.no_grad():
            assert torch.equal(model(**known).logits, model(**batch).logits)
