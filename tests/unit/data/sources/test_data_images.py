import io
import re

import datasets
import numpy as np
import pytest
from PIL import Image

from fedpft.config import ConfigError
from fedpft.data.collate import rows
from fedpft.data.sources.images import as_images

KEY = "task.image_column"
NARROW_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB")


def encoded(mode: str = "RGB", size: tuple[int, int] = (3, 2)) -> bytes:
    buffer = io.BytesIO()
    if mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        Image.new(mode, size).save(buffer, "PNG")
    else:
        Image.new(mode, size).save(buffer, "TIFF", compression="tiff_lzw")  # Pillow 12 opens no YCbCr without
    return buffer.getvalue()


def column(*images: object) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"pixels": list(images)})


def message(*images: object) -> str:
    with pytest.raises(ConfigError) as error:
        as_images(column(*images), "pixels", KEY)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("mode", NARROW_MODES)
def test_every_mode_of_8_bits_is_taken_and_becomes_rgb(mode):
    (row,) = rows(as_images(column(encoded(mode)), "pixels", KEY), [0])
    assert row["pixels"].convert("RGB").size == (3, 2)


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_modes_that_rgb_would_clip_are_refused_with_their_row(mode):
    expected = f"{KEY}: found 'an image of mode {mode} in row 1 of column pixels', allowed: images of 8 bits a channel"
    assert message(encoded(), encoded(mode)).startswith(expected)


def test_sixteen_bits_would_be_clipped():
    wide = Image.fromarray(np.array([[300, 60_000]], dtype=np.uint16))
    assert np.asarray(wide.convert("RGB")).min() == 255, "the reason for refusing them"


@pytest.mark.parametrize("broken", [b"", b"\x89PNG and no more", encoded()[:20]], ids=["empty", "garbage", "cut"])
def test_what_cannot_be_opened_is_refused_with_its_row(broken):
    reason = "(no image that Pillow knows|an image that cannot be opened .*)"
    expected = rf"{KEY}: found '{reason} in row 2 of column pixels', allowed: images of 8 bits"
    assert re.match(expected, message(encoded(), encoded(), broken))


def test_a_file_that_is_not_there_is_refused(tmp_path):
    assert "No such file" in message(str(tmp_path / "nowhere.png"))


def test_rows_are_counted_across_batches(monkeypatch):
    monkeypatch.setattr("fedpft.data.sources.images._ROWS_AT_ONCE", 2)
    assert "in row 4 of column pixels" in message(*[encoded()] * 4, encoded("F"))


def test_pixels_that_are_cut_off_are_one_line_when_they_are_decoded():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    noise.save(buffer, "PNG")
    dataset = as_images(column(encoded(), buffer.getvalue()[:2000]), "pixels", KEY)
    with pytest.raises(ConfigError, match=r"path: found a broken image among rows 0, 1 \(image file is truncated"):
        rows(dataset, [0, 1])
