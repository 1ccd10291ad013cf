"""Public images: drawn from what is too large to be read whole, by file or by row group."""

import dataclasses
import io
import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fedpft.config import ConfigError, PublicConfig
from fedpft.data.collate import rows
from fedpft.data.corpora import public
from fedpft.data.corpora.public import load_corpus
from fedpft.data.digest import dataset_digest
from fedpft.seeding import numpy_rng

REAL_DATA = Path(__file__).parents[5] / "shared" / "data"


def refusal(config):
    with pytest.raises(ConfigError) as error:
        load_corpus(config, 0)
    assert "\n" not in str(error.value)
    return str(error.value)


def png(grey: int, mode: str = "L") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (4, 4), grey).save(buffer, "PNG")
    return buffer.getvalue()


def write_images(folder, num_images=40):
    for index in range(num_images):
        file = folder / "train" / ["cat", "dog", "a-b", "a"][index % 4] / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(index))


def test_images_drawn_from_a_large_folder_are_those_drawn_from_memory(tmp_path, monkeypatch):
    write_images(tmp_path)
    config = PublicConfig(name="custom", path=str(tmp_path), image_column="image", max_examples=7)
    whole = load_corpus(config, 3)
    monkeypatch.setattr(public, "MAX_WHOLE_BYTES", 0)
    drawn = load_corpus(config, 3)
    expected = whole.select(numpy_rng(3, "public").permutation(40)[:7])
    assert dataset_digest(drawn, ["image", "label"]) == dataset_digest(expected, ["image", "label"])


def image_shards(folder, images):
    """Write two shards of 10 rows a row group: every other image, label 0 or 1 of 3."""
    folder.mkdir()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["x", "y", "z"])})
    for shard in range(2):
        columns = {
            "image": [{"bytes": image, "path": None} for image in images[shard::2]],
            "label": [index % 3 % 2 for index in range(len(images))][shard::2],
        }
        table = pa.Table.from_pydict(columns, schema=features.arrow_schema)
        pq.write_table(table, folder / f"train-{shard:05d}-of-00002.parquet", row_group_size=10)
    return str(folder)


def test_images_are_drawn_from_parquet_shards_with_their_labels(tmp_path, large):
    path = image_shards(tmp_path / "i", [png(i) for i in range(60)])
    config = PublicConfig(name="imagenet-1k", path=path, max_examples=25)
    first, again, other = (load_corpus(config, seed) for seed in (0, 0, 1))
    greys = [row["image"].convert("RGB").getpixel((0, 0))[0] for row in rows(first, range(25))]
    assert len(set(greys)) == 25
    assert first["label"][:] == [grey % 3 % 2 for grey in greys]
    digests = [dataset_digest(dataset, ["image"]) for dataset in (first, again, other)]
    assert digests[0] == digests[1]
    assert len(load_corpus(dataclasses.replace(config, max_examples=1000), 0)) == 60
    assert len(other) == 25


@pytest.mark.parametrize(
    ("broken", "expected"),
    [(b"no image", "no image that Pillow knows"), (png(1)[:20], "an image"), (None, "an image without bytes")],
)
def test_a_broken_image_of_a_stream_is_named_by_file_and_row(tmp_path, large, broken, expected):
    images = [png(i) for i in range(60)]
    images[15] = broken
    path = image_shards(tmp_path / "i", images)
    config = PublicConfig(name="imagenet-1k", path=path, max_examples=60)
    message = refusal(config)
    assert message.startswith(f"public.image_column: found '{expected}")
    assert f"in {path}/train-00001-of-00002.parquet, row 7 of column image'" in message


def test_images_in_a_format_without_random_access_are_refused(tmp_path, large):
    (tmp_path / "train.jsonl").write_text(json.dumps({"image": "a.png"}) + "\n")
    config = PublicConfig(name="custom", path=str(tmp_path), image_column="image", max_examples=1)
    assert refusal(config) == ("public.path: found 'images in json files', allowed: parquet files or an image folder")


def test_images_are_not_mixed(tmp_path):
    write_images(tmp_path)
    config = PublicConfig(name="custom+custom", path=f"{tmp_path}+{tmp_path}", image_column="image")
    assert refusal(config) == "public.name: found 'custom+custom', allowed: a mixture of texts"


@pytest.mark.skipif(not REAL_DATA.is_dir(), reason=f"no real data at {REAL_DATA}")
def test_real_images_some_of_them_grey_become_rgb(large):
    config = PublicConfig(name="custom", path=str(REAL_DATA / "tiny_imagenet"), image_column="image", max_examples=200)
    drawn = load_corpus(config, 0)
    pictures = [row["image"] for row in rows(drawn, range(200))]
    assert {picture.mode for picture in pictures} == {"RGB", "L"}
    assert len(set(drawn["label"][:])) > 50
