import datasets
import numpy as np
import pytest
from PIL import Image
from transformers import ViTImageProcessorPil

from fedpft.data.collate import ImageCollator, TextCollator
from fedpft.data.digest import dataset_digest, public_identity
from tests.tiny import tiny_tokenizer

NUM_ROWS = 2500
IDS = np.random.default_rng(0).integers(0, 1000, (NUM_ROWS, 12)).astype(np.int32)


def text(ids=IDS):
    return datasets.Dataset.from_dict({"input_ids": ids})


def digest(dataset):
    return dataset_digest(dataset, dataset.column_names)


def test_equal_rows_have_equal_digests_however_they_are_stored(tmp_path):
    plain = text()
    backwards = text(IDS[::-1])
    padded = text(np.concatenate([IDS[:7], IDS, IDS[:7]]))
    plain.save_to_disk(tmp_path / "folder")
    plain.to_parquet(tmp_path / "file.parquet")
    stored = {
        "sliced": padded.select(range(7, 7 + NUM_ROWS)),
        "mapped by indices": backwards.select(np.arange(NUM_ROWS)[::-1]),
        "in pieces": datasets.concatenate_datasets([plain.select(range(33)), plain.select(range(33, NUM_ROWS))]),
        "memory mapped": datasets.load_from_disk(tmp_path / "folder"),
        "from a file": datasets.Dataset.from_parquet(str(tmp_path / "file.parquet"), cache_dir=str(tmp_path / "cache")),
        "shuffled and back": plain.shuffle(seed=1).select(np.argsort(plain.shuffle(seed=1)._indices[0].to_numpy())),
    }
    different = {name for name, dataset in stored.items() if digest(dataset) != digest(plain)}
    assert different == set()


@pytest.mark.parametrize("size", [100, 1000, 1001, 2000])
def test_digests_tell_lengths_apart(size):
    assert digest(text().select(range(size))) != digest(text().select(range(size - 1)))


def changed(where, value):
    ids = IDS.copy()
    ids[where] = value
    return text(ids)


def test_any_change_of_content_is_another_digest():
    variants = [
        text(),
        changed((0, 0), 1001),
        changed((NUM_ROWS - 1, -1), 1001),
        text(IDS[np.r_[1, 0, 2:NUM_ROWS]]),
        text().cast(datasets.Features({"input_ids": datasets.List(datasets.Value("int64"))})),
        text().rename_column("input_ids", "other_ids"),
        text(IDS.reshape(2 * NUM_ROWS, 6)),
    ]
    assert len({digest(variant) for variant in variants}) == len(variants)


def test_rows_of_other_lengths_with_the_same_numbers_differ():
    assert digest(text([[1, 2], [3]])) != digest(text([[1], [2, 3]]))


def images(*pictures):
    features = datasets.Features({"image": datasets.Image()})
    return datasets.Dataset.from_dict({"image": list(pictures)}, features=features)


@pytest.fixture
def pictures(tmp_path):
    """Write three pictures; return their paths."""
    rng = np.random.default_rng(0)
    paths = [str(tmp_path / f"{number}.png") for number in range(3)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
    return paths


def encoded(paths, name):
    """Return rows that hold the pictures' bytes under some file name."""
    rows = []
    for path in paths:
        with open(path, "rb") as stream:
            rows.append({"bytes": stream.read(), "path": name})
    return images(*rows)


def test_images_are_their_bytes_wherever_the_files_are(pictures):
    by_path = images(*pictures)
    assert digest(by_path) == digest(encoded(pictures, None)) == digest(encoded(pictures, "elsewhere.png"))
    assert digest(by_path.select([2, 1])) == digest(images(pictures[2], pictures[1]))
    assert digest(by_path) != digest(images(*reversed(pictures)))


def test_a_picture_that_changed_on_disk_is_another_digest(pictures):
    before = digest(images(*pictures))
    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(pictures[1])
    assert digest(images(*pictures)) != before


def test_public_identity_leaves_labels_out_and_takes_the_collator_in():
    tokenizer = tiny_tokenizer()
    plain = public_identity(text(), TextCollator(tokenizer))
    labelled = text().add_column("label", [0] * NUM_ROWS)
    assert public_identity(labelled, TextCollator(tokenizer)) == plain
    assert plain["num_examples"] == NUM_ROWS
    tokenizer.padding_side = "left"
    assert public_identity(text(), TextCollator(tokenizer)) == plain, "texts are padded on the right anyway"
    tokenizer.pad_token = "[UNK]"
    assert public_identity(text(), TextCollator(tokenizer)) != plain


def test_an_image_processors_settings_are_plain_values():
    small, large = (ImageCollator(ViTImageProcessorPil(size={"height": s, "width": s})).settings() for s in (8, 16))
    assert small["size"] == {"height": 8, "width": 8}
    assert small != large
    assert {name for name in small if small[name] != large[name]} == {"size"}
