"""Images are decoded and resized once in a process, as far as there is room, and no bit depends on it."""

import pickle

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import DeiTImageProcessor, ViTImageProcessor
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from fedpft.data import collate as module_under_test
from fedpft.data.collate import ImageCollator, TextCollator, prepared_rows, rows
from fedpft.data.sources.columns import IMAGE, LABEL
from tests.tiny import tiny_tokenizer

SIZE = {"height": 8, "width": 8}
IMAGE_BYTES = 3 * 8 * 8 * 4
PROCESSORS = {
    "vit": ViTImageProcessor(size=SIZE),
    "pil": ViTImageProcessorPil(size=SIZE),
    "deit": DeiTImageProcessor(size=SIZE, crop_size=SIZE),
}


def images(num_images=12):
    """Return images of several sizes and modes, as their files have them."""
    rng = np.random.default_rng(0)
    made = []
    for index in range(num_images):
        pixels = rng.integers(0, 256, (5 + index % 4, 9 + index % 3, 3), dtype=np.uint8)
        made.append(Image.fromarray(pixels).convert(("RGB", "L", "P")[index % 3]))
    features = datasets.Features({IMAGE: datasets.Image(), LABEL: datasets.Value("int64")})
    return datasets.Dataset.from_dict({IMAGE: made, LABEL: list(range(num_images))}, features=features)


ORDERS = ([0, 1, 2, 3, 4], [7, 3, 3, 11, 0], [5, 6])


@pytest.mark.parametrize("room", [0, 4 * IMAGE_BYTES, 2**20], ids=["none", "some", "all"])
@pytest.mark.parametrize("processor", PROCESSORS.values(), ids=PROCESSORS)
def test_batches_have_the_same_bits_whatever_is_kept(processor, room, monkeypatch):
    monkeypatch.setattr(module_under_test, "KEPT_IMAGE_BYTES", room)
    dataset, collate = images(), ImageCollator(processor)
    for order in (*ORDERS, *ORDERS):
        expected = ImageCollator(processor)(rows(dataset, order))
        found = collate(prepared_rows(dataset, order, collate))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert sum(kept[IMAGE].nbytes for kept in collate._kept.values()) <= room


def test_an_image_is_decoded_once_and_those_of_other_data_are_others(monkeypatch):
    read, real = [], module_under_test.rows
    monkeypatch.setattr(module_under_test, "rows", lambda data, wanted: read.extend(wanted) or real(data, wanted))
    dataset, collate = images(), ImageCollator(PROCESSORS["vit"])
    for _ in range(3):
        prepared_rows(dataset, [0, 1, 2], collate)
    assert read == [0, 1, 2]
    (row,) = prepared_rows(dataset.select([4, 5]), [0], collate)
    assert row[LABEL] == 4


def test_a_collator_travels_without_its_images():
    dataset, collate = images(), ImageCollator(PROCESSORS["vit"])
    before = len(pickle.dumps(collate))
    prepared_rows(dataset, range(12), collate)
    assert len(pickle.dumps(collate)) == before
    assert pickle.loads(pickle.dumps(collate))._kept == {}


def test_texts_are_read_as_ever():
    dataset = datasets.Dataset.from_dict({"input_ids": [[1, 2], [3]]})
    assert prepared_rows(dataset, [1, 0], TextCollator(tiny_tokenizer())) == rows(dataset, [1, 0])
