import errno
import os
from pathlib import Path

import pytest
import torch

from fedpft.models.on_disk import all_on_disk, at, on_disk


@pytest.mark.parametrize(
    "tensor",
    [torch.randn(2, 3), torch.randn(5, 7).bfloat16(), torch.arange(6) > 2, torch.tensor(3.0), torch.ones(0, 4)],
    ids=["float32", "bfloat16", "bool", "a number", "empty"],
)
def test_a_copy_has_the_bits_and_outlives_its_original(tensor):
    expected = tensor.clone()
    copy = on_disk(tensor)
    tensor.zero_()
    assert torch.equal(copy, expected)
    assert (copy.dtype, copy.shape) == (expected.dtype, expected.shape)


def test_what_was_expanded_takes_the_place_of_one(monkeypatch):
    asked = []
    monkeypatch.setattr(os, "posix_fallocate", lambda file, start, size: asked.append(size))
    mask = torch.randn(1, 1, 1, 5).expand(8, 1, 5, 5)
    copy = on_disk(mask)
    assert asked == [5 * 4]
    assert torch.equal(copy, mask)
    assert copy.stride()[0] == copy.stride()[2] == 0


def test_one_tensor_in_several_places_stays_one_and_other_values_are_handed_on():
    mask, kept = torch.ones(2, 2), object()
    copies = all_on_disk([(mask, {"mask": mask}), kept, None])
    assert copies[0][0] is copies[0][1]["mask"]
    assert copies[1:] == [kept, None]
    assert torch.equal(at(torch.device("cpu"), copies[0][0]), mask)


def test_the_file_is_gone_at_once(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    copy = on_disk(torch.ones(1000))
    assert list(tmp_path.iterdir()) == []
    assert any(str(tmp_path) in line for line in Path("/proc/self/maps").read_text().splitlines())
    assert copy.sum() == 1000


def test_a_full_disk_is_an_error_and_not_the_end_of_the_process(monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        on_disk(torch.ones(3))


def test_a_tensor_without_values_has_none_on_disk_either():
    copy = on_disk(torch.ones(4, 5, device="meta"))
    assert (copy.shape, copy.device.type) == ((4, 5), "meta")
    assert copy.untyped_storage().nbytes() == 4
