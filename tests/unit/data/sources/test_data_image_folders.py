"""Which images of a folder are examples of which class, and what is left out."""

import io

import pytest
from PIL import Image

from fedpft.config import ConfigError
from fedpft.data.sources.files import find_local
from fedpft.data.sources.rows import load_local, read_images

KEY = "task.path"


def write(root, *files):
    for number, name in enumerate(files):
        file = root / "train" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".png":
            Image.new("L", (2, 2), number).save(file)
        else:
            file.write_text("file_name,label\n" if file.suffix == ".csv" else "not an image")


def load(root):
    dataset = load_local(str(root), "train", KEY)
    names = dataset.features["label"].names
    greys = [image.getpixel((0, 0)) for image in dataset["image"][:]]
    return dict(zip(greys, [names[code] for code in dataset["label"][:]], strict=True))


def test_links_to_class_folders_are_followed(tmp_path):
    write(tmp_path, "cat/0.png", "../elsewhere/1.png")
    (tmp_path / "train/dog").symlink_to(tmp_path / "elsewhere")
    assert load(tmp_path) == {0: "cat", 1: "dog"}


def test_folders_within_a_class_folder_are_of_that_class(tmp_path):
    write(tmp_path, "cat/0.png", "cat/old/1.png", "dog/old/2.png")
    assert load(tmp_path) == {0: "cat", 1: "cat", 2: "dog"}
    files = find_local(str(tmp_path), "train", KEY)
    drawn = read_images(files.paths[:1], files)
    assert drawn.features["label"].names == ["cat", "dog"], "also of images that are drawn"


def test_a_link_that_leads_back_is_an_error(tmp_path):
    write(tmp_path, "cat/0.png")
    (tmp_path / "train/cat/again").symlink_to(tmp_path / "train")
    with pytest.raises(ConfigError, match=r"^task\.path: found '.*cat/again, a link to .*train, which it is in'"):
        load(tmp_path)


def test_what_is_left_out_is_named(tmp_path):
    write(tmp_path, "cat/0.png", "dog/1.png", "README.txt", "dog/Thumbs.db", ".DS_Store", "cat/.hidden.png")
    (tmp_path / "train/empty").mkdir()
    (tmp_path / "train/cat/nowhere.png").symlink_to(tmp_path / "gone.png")
    with pytest.warns(UserWarning, match="train: left out") as said:
        assert load(tmp_path) == {0: "cat", 1: "dog"}
    lines = sorted(str(warning.message).partition("left out, as they are ")[2] for warning in said)
    assert lines == ["folders without images (1): empty", "no images (3): README.txt, cat/nowhere.png, dog/Thumbs.db"]


@pytest.mark.parametrize(("mark", "end"), [("", "\n"), ("\ufeff", "\r\n")])
def test_a_table_beside_the_images_says_which_there_are(tmp_path, mark, end):
    write(tmp_path, "0.png", "b/1.png", "2.png")
    (tmp_path / "train/metadata.csv").write_bytes(f"{mark}file_name,label{end}b/1.png,x{end}0.png,y{end}".encode())
    with pytest.warns(UserWarning, match=r"images not in metadata\.\* \(1\): 2\.png"):
        dataset = load_local(str(tmp_path), "train", KEY)
    assert [(row["image"].getpixel((0, 0)), row["label"]) for row in dataset] == [(0, "y"), (1, "x")], (
        "in the order of the files"
    )


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("file,label\n0.png,a\n", "with the columns file, label', allowed: a column file_name"),
        ("file_name\nx.png\n", "no image "),
    ],
)
def test_a_table_that_names_no_images_is_an_error(tmp_path, table, expected):
    write(tmp_path, "0.png")
    (tmp_path / "train/metadata.csv").write_text(table)
    with pytest.raises(ConfigError, match=r"^task\.path: found ") as error:
        load_local(str(tmp_path), "train", KEY)
    assert expected in str(error.value)


def test_a_broken_image_is_named_by_its_file(tmp_path):
    from fedpft.data.sources.images import as_images, look_at_pixels

    write(tmp_path, "cat/0.png", "dog/1.png")
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(buffer, "JPEG")
    (tmp_path / "train/cat/bad.jpg").write_bytes(buffer.getvalue()[:-300])
    dataset = load_local(str(tmp_path), "train", KEY)
    with pytest.raises(ConfigError, match=r"found 'a broken image \(.*truncated.*\) in train/cat/bad\.jpg, row 1 of"):
        as_images(dataset, "image", KEY, look=look_at_pixels)
    with pytest.warns(UserWarning, match=r"dropped 1 of 3 training examples .*bad\.jpg"):
        kept = as_images(dataset, "image", KEY, look=look_at_pixels, drop="training")
    assert kept["label"][:] == [0, 1]
