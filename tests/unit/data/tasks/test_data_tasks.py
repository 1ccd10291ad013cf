import io
import pickle
from dataclasses import replace
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fedpft.config import ConfigError, TaskConfig
from fedpft.data.sources import rows as sources
from fedpft.data.sources.labels import label_codes
from fedpft.data.tasks.loading import TASKS, load_task
from fedpft.metrics.table import METRICS


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def folder(tmp_path: Path, train: dict, validation: dict | None = None, classes: str = "", suffix="parquet") -> str:
    root = tmp_path / "data"
    root.mkdir()
    for split, columns in (("train", train), ("validation", validation or train)):
        getattr(datasets.Dataset.from_dict(columns), f"to_{suffix}")(root / f"{split}.{suffix}")
    if classes:
        (root / "classes.txt").write_text(classes)
    return str(root)


def custom(path: str, **arguments) -> TaskConfig:
    arguments = {"text_columns": ("words",), "label_column": "y", **arguments}
    return TaskConfig(name="custom", path=path, **arguments)


def png(mode: str = "L") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (4, 4)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", ["parquet", "csv", "json"])
def test_a_folder_becomes_normalised_columns(tmp_path, suffix):
    path = folder(tmp_path, {"words": ["a b", "c", "d"], "y": [1, 0, 1], "who": [7, 8, 9]}, suffix=suffix)
    task = load_task(custom(path), seed=0)
    assert set(task.train.column_names) == {"text", "label", "who"}
    assert task.train["label"][:] == [1, 0, 1]
    assert (task.modality, task.label_names) == ("text", ("0", "1"))


def test_pairs_keep_their_order(tmp_path):
    path = folder(tmp_path, {"text": ["second"], "words": ["first"], "y": [0]})
    row = load_task(custom(path, text_columns=("words", "text")), seed=0).train[0]
    assert (row["text"], row["text_pair"]) == ("first", "second")


def test_a_table_row_reads_a_local_folder_with_the_usual_names(tmp_path):
    path = folder(tmp_path, {"sentence1": ["q"], "sentence2": ["a"], "label": [0]}, classes="yes\nno\n")
    task = load_task(TaskConfig(name="qnli", path=path), seed=0)
    assert (task.train[0]["text"], task.train[0]["text_pair"]) == ("q", "a")
    assert task.label_names == ("yes", "no")


def test_columns_may_bear_each_others_names(tmp_path):
    path = folder(tmp_path, {"label": ["not a label"], "words": ["the text"], "text": ["pos"]})
    row = load_task(custom(path, label_column="text"), seed=0).train[0]
    assert row == {"text": "the text", "label": 0}


def test_string_labels_are_numbered_in_sorted_order(tmp_path):
    path = folder(tmp_path, {"words": ["a", "b", "c"], "y": ["pos", "neg", "pos"]})
    task = load_task(custom(path), seed=0)
    assert task.label_names == ("neg", "pos")
    assert task.evaluation["label"][:] == [1, 0, 1]


def test_encoded_images_are_decoded_on_access(tmp_path):
    path = folder(tmp_path, {"pixels": [png(), png("RGB")], "y": [0, 1]})
    task = load_task(custom(path, text_columns=(), image_column="pixels"), seed=0)
    assert task.modality == "image"
    assert task.train[0]["image"].size == (4, 4)


def test_an_image_folder_carries_its_bytes(tmp_path):
    root = tmp_path / "images"
    for split in ("train", "validation"):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            (root / split / name / "x.png").write_bytes(png())
    config = TaskConfig(name="custom", path=str(root), image_column="image", label_column="label")
    task = load_task(config, seed=0)
    assert task.label_names == ("cat", "dog")
    assert task.train.cast_column("image", datasets.Image(decode=False))[0]["image"]["bytes"]


def image_folder(root: Path, *files: str) -> TaskConfig:
    for split in ("train", "validation"):
        for file in files:
            path = root / split / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png() if path.suffix == ".png" else b"file_name,label,age\nx.png,a,1.5\ny.png,b,2.5\n")
    return TaskConfig(name="custom", path=str(root), image_column="image", label_column="label")


@pytest.mark.parametrize("files", [("x.png", "y.png"), ("x.png", "cat/y.png", "dog/z.png")])
def test_images_outside_of_class_folders_are_an_error(tmp_path, files):
    with pytest.raises(ConfigError, match=r"task\.path: found 'images in .*train itself', allowed: train/CLASS"):
        load_task(image_folder(tmp_path, *files), seed=0)


def test_a_table_beside_the_images_labels_them(tmp_path):
    config = image_folder(tmp_path, "x.png", "y.png", "metadata.csv")
    assert load_task(config, seed=0).label_names == ("a", "b")
    ages = load_task(replace(config, label_column="age", kind="regression"), seed=0)
    assert (ages.modality, ages.train["label"][:]) == ("image", [1.5, 2.5])


def test_a_class_may_be_called_like_a_split(tmp_path):
    task = load_task(image_folder(tmp_path, "train/x.png", "validation/y.png"), seed=0)
    assert task.label_names == ("train", "validation")


def test_one_file_cannot_be_training_and_evaluation_data(tmp_path):
    path = folder(tmp_path, {"words": ["a"], "y": [0]})
    with pytest.raises(ConfigError, match=r"task\.path: found '.*train\.parquet', allowed: a folder with train\.\*"):
        load_task(custom(f"{path}/train.parquet"), seed=0)


def test_a_table_row_may_have_further_evaluation_sets(tmp_path):
    pairs = {"premise": ["p"] * 4, "hypothesis": ["h"] * 4, "label": [2, 0, 1, 1]}
    path = folder(tmp_path, pairs, classes="yes\nmaybe\nno\n")
    assert load_task(TaskConfig(name="mnli", path=path), seed=0).other_evaluations == {}
    datasets.Dataset.from_dict(pairs | {"label": [2, 2, 2, 2]}).to_csv(f"{path}/validation_mismatched.csv")
    task = load_task(TaskConfig(name="mnli", path=path, max_eval_examples=3), seed=0)
    assert list(task.other_evaluations) == ["mismatched"]
    mismatched = task.other_evaluations["mismatched"]
    assert mismatched["label"][:] == [2, 2, 2]
    assert (mismatched[0]["text"], mismatched[0]["text_pair"]) == ("p", "h")


def test_bad_labels_in_a_further_evaluation_set_are_an_error(tmp_path):
    pairs = {"premise": ["p"] * 2, "hypothesis": ["h"] * 2, "label": [0, 1]}
    path = folder(tmp_path, pairs)
    datasets.Dataset.from_dict(pairs | {"label": [0, -1]}).to_parquet(f"{path}/validation_mismatched.parquet")
    with pytest.raises(ConfigError, match="label -1 in column label"):
        load_task(TaskConfig(name="mnli", path=path), seed=0)


def test_the_hub_is_asked_for_the_rows_splits_and_revision(monkeypatch):
    asked = []

    def load(path, config_name, *, split, revision, keep_in_memory):
        asked.append((path, config_name, split, revision))
        columns = ["text", "coarse_label"] if "trec" in path else ["premise", "hypothesis", "label"]
        return datasets.Dataset.from_dict({name: [0, 1] if "label" in name else ["a", "b"] for name in columns})

    monkeypatch.setattr(sources.datasets, "load_dataset", load)
    load_task(TaskConfig(name="mnli"), seed=0)
    splits = ["train", "validation_matched", "validation_mismatched"]
    assert asked == [("nyu-mll/glue", "mnli", split, None) for split in splits]
    asked.clear()
    load_task(TaskConfig(name="trec"), seed=0)
    assert asked == [("CogComp/trec", None, split, "refs/convert/parquet") for split in ("train", "test")]
    asked.clear()
    load_task(TaskConfig(name="mnli", path="me/my-mnli", eval_split="dev"), seed=0)
    assert asked == [("me/my-mnli", None, split, None) for split in ("train", "dev")]


def test_metrics_are_the_configs_else_the_rows_else_the_kinds(tmp_path):
    path = folder(tmp_path, {"sentence1": ["q"] * 2, "sentence2": ["a"] * 2, "label": [0, 1]})
    mrpc = TaskConfig(name="mrpc", path=path)
    assert load_task(mrpc, seed=0).metrics == ("accuracy", "f1")
    assert load_task(replace(mrpc, metrics=("matthews", "f1")), seed=0).metrics == ("matthews", "f1")
    assert load_task(replace(mrpc, kind="regression"), seed=0).metrics == ("pearson", "spearman")
    other = custom(path, text_columns=("sentence1",), label_column="label")
    assert load_task(other, seed=0).metrics == ("accuracy",)


@pytest.mark.parametrize(
    ("labels", "settings", "message"),
    [
        ([0, 1], {"metrics": ("f2",)}, "found 'f2', allowed: for 2 classes: accuracy, f1, macro_f1, matthews"),
        (
            [0, 1, 2],
            {"metrics": ("accuracy", "f1")},
            "found 'f1', allowed: for 3 classes: accuracy, macro_f1, matthews",
        ),
        ([0, 1], {"metrics": ("pearson",)}, "found 'pearson', allowed: for 2 classes: accuracy"),
        (
            [0, 1],
            {"metrics": ("accuracy",), "kind": "regression"},
            "found 'accuracy', allowed: for regression: pearson, spearman, mse, mae",
        ),
    ],
)
def test_a_metric_that_the_task_cannot_have_is_an_error(tmp_path, labels, settings, message):
    path = folder(tmp_path, {"words": ["a"] * len(labels), "y": labels})
    with pytest.raises(ConfigError, match=rf"task\.metrics: {message}"):
        load_task(custom(path, **settings), seed=0)


def test_subsets_depend_on_the_seed_and_pickle_small(tmp_path):
    path = folder(tmp_path, {"words": ["word " * 50] * 1000, "y": [0] * 1000, "i": list(range(1000))})
    config = custom(path, max_train_examples=5)
    first, again, other = (load_task(config, seed).train["i"][:] for seed in (0, 0, 1))
    assert first == again != other
    task = load_task(config, 0)
    assert (len(task.train), len(task.evaluation)) == (5, 1000)
    assert len(pickle.dumps(task.train)) < 20_000


@pytest.mark.parametrize(
    ("columns", "arguments", "message"),
    [
        ({"words": ["a"], "z": [0]}, {}, r"task\.label_column: found 'y', allowed: .*words, z"),
        ({"sentence": ["a"], "y": [0]}, {}, r"task\.text_columns: found 'words', allowed: .*sentence, y"),
        ({"words": ["a", None], "y": [0, 1]}, {}, r"task\.text_columns: found '1 nulls in column words'"),
        ({"words": ["a", "b"], "y": [0, None]}, {}, r"task\.label_column: found '1 nulls in column y'"),
        ({"words": ["a"], "y": [-1]}, {"classes": "p\nq"}, r"label -1 in column y', allowed: 0\.\.1"),
        ({"words": ["a"], "y": [2]}, {"classes": "p\nq"}, r"label 2 in column y', allowed: 0\.\.1"),
        (
            {"words": ["a"], "y": ["r"]},
            {"classes": "p\nq"},
            r"label 'r' in column y\", allowed: one of p, q",
        ),
        (
            {"words": ["a"], "y": [0.5]},
            {},
            r"column y of type double', allowed: integers or strings, or task\.kind=regr",
        ),
        ({"words": ["a"], "y": [[0]]}, {}, r"column y of type list.*', allowed: integers or strings"),
        ({"words": ["a", "b"], "y": [0, -2]}, {}, r"label -2 in column y', allowed: 0\.\.99999, or strings"),
        ({"words": ["a", "b"], "y": [0, 10**12]}, {}, r"label 1000000000000 in column y', allowed: 0\.\.99999, or"),
        ({"words": ["a", "b"], "y": ["p", ""]}, {}, r"task\.label_column: found '1 empty values in column y'"),
        ({"words": ["a"], "y": ["p"]}, {"classes": "p\nq\np"}, r"task\.path: found \"'p' more than once in .*classes"),
        ({"words": [3], "y": [0]}, {}, r"column words of type int64', allowed: a column of strings"),
    ],
)
def test_bad_columns_are_named(tmp_path, columns, arguments, message):
    with pytest.raises(ConfigError, match=message) as error:
        load_task(custom(folder(tmp_path, columns, **arguments)), seed=0)
    assert "\n" not in str(error.value)


def test_an_evaluation_label_that_training_lacks_is_an_error(tmp_path):
    path = folder(tmp_path, {"words": ["a"], "y": ["p"]}, {"words": ["a"], "y": ["q"]})
    with pytest.raises(ConfigError, match="label 'q' in column y"):
        load_task(custom(path), seed=0)


def test_a_label_beyond_the_class_names_of_the_data_is_an_error(tmp_path):
    names = datasets.ClassLabel(names=["p", "q"])
    features = datasets.Features({"words": datasets.Value("string"), "y": names})
    path = folder(tmp_path, {"words": ["a"] * 3, "y": [0, 1, 2]})
    codes = pq.read_table(f"{path}/train.parquet").replace_schema_metadata(features.arrow_schema.metadata)
    for split in ("train", "validation"):
        pq.write_table(codes, f"{path}/{split}.parquet")
    with pytest.raises(ConfigError, match=r"label 2 in column y', allowed: 0\.\.1, the labels of the training data"):
        load_task(custom(path), seed=0)


def test_texts_of_a_csv_file_are_taken_as_they_stand(tmp_path):
    path = folder(tmp_path, {"words": ["", "None", "NA", " "], "y": [0, 1, 0, 1]}, suffix="csv")
    task = load_task(custom(path), seed=0)
    assert task.train["text"][:] == ["", "None", "NA", " "]
    assert task.label_names == ("0", "1")


def test_a_label_that_a_csv_file_lacks_is_an_error(tmp_path):
    path = folder(tmp_path, {"words": ["a", "b"], "y": [0, None]}, suffix="csv")
    with pytest.raises(ConfigError, match=r"task\.label_column: found '1 empty values in column y', allowed: a value"):
        load_task(custom(path), seed=0)


def test_an_empty_data_set_is_an_error(tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    features = datasets.Features({"words": datasets.Value("string"), "y": datasets.Value("int64")})
    for split in ("train", "validation"):
        datasets.Dataset.from_dict({"words": [], "y": []}, features=features).to_parquet(root / f"{split}.parquet")
    with pytest.raises(ConfigError, match=r"task\.path: found .*"):
        load_task(custom(str(root)), seed=0)


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(ConfigError, match=r"task\.name: found 'sst-2'.*did you mean sst2\?"):
        load_task(TaskConfig(name="sst-2"), seed=0)


def test_a_missing_folder_or_split_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"task\.path: found .*nowhere.*existing"):
        load_task(custom(str(tmp_path / "nowhere")), seed=0)
    (tmp_path / "only.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"only\.txt.*exactly one train\.\*"):
        load_task(custom(str(tmp_path)), seed=0)


def test_an_unreadable_file_is_one_line(tmp_path):
    for split in ("train", "validation"):
        (tmp_path / f"{split}.parquet").write_bytes(b"not parquet")
    with pytest.raises(ConfigError, match=r"task\.path: found .*train\.parquet") as error:
        load_task(custom(str(tmp_path)), seed=0)
    assert "\n" not in str(error.value)


def test_an_unreachable_hub_names_the_way_out(monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("no\nroute")

    monkeypatch.setattr(sources.datasets, "load_dataset", unreachable)
    with pytest.raises(ConfigError, match=r"nyu-mll/glue sst2.*no route.*local folder in task\.path") as error:
        load_task(TaskConfig(name="sst2"), seed=0)
    assert "\n" not in str(error.value)


def test_every_row_has_a_source_and_one_kind_of_input():
    for name, row in TASKS.items():
        assert bool(row.path) != bool(row.loader), name
        inputs = (bool(row.text_columns), bool(row.image_column), bool(row.response_column))
        assert sum(inputs) == 1, name
        assert (row.kind == "causal_lm") == inputs[2], name
        assert row.metrics, name
        assert all(METRICS[metric].kind == row.kind for metric in row.metrics), name


def test_no_row_reads_a_test_split_of_glue():
    glue = [row for row in TASKS.values() if row.path == "nyu-mll/glue"]
    assert len(glue) == 8
    for row in glue:
        assert all("test" not in split for split in (row.train_split, row.eval_split, *row.other_eval_splits.values()))


def test_digits_clients_own_five_to_nine():
    pytest.importorskip("sklearn", reason="the quickstart extra is not installed")
    task = load_task(TaskConfig(name="digits"), seed=0)
    assert task.label_names == ("5", "6", "7", "8", "9")
    assert len(task.evaluation) / (len(task.train) + len(task.evaluation)) == pytest.approx(0.25, abs=0.01)
    assert task.train[0]["image"].mode == "RGB"
    assert set(task.train["label"][:]) == set(task.evaluation["label"][:]) == set(range(5))


def test_class_folders_missing_from_a_split_do_not_shift_the_labels():
    def split(names: list[str], labels: list[int]) -> datasets.Dataset:
        features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
        return datasets.Dataset.from_dict({"text": ["x"] * len(labels), "label": labels}, features=features)

    train, validation = split(["a", "b", "c"], [0, 1, 2]), split(["a", "c"], [0, 1])
    (_, codes), names = label_codes([train, validation], "label", None, "task.label_column")
    assert names == ("a", "b", "c")
    assert codes.tolist() == [0, 2]


def test_a_text_column_may_be_called_label(tmp_path):
    path = folder(tmp_path, {"label": ["a film", "a book"], "class": ["pos", "neg"], "text": ["x", "y"]}, suffix="csv")
    task = load_task(custom(path, text_columns=("label",), label_column="class"), seed=0)
    assert task.train[0] == {"text": "a film", "label": 1}
    pair = load_task(custom(path, text_columns=("text", "label"), label_column="class"), seed=0)
    assert pair.train[0] == {"text": "x", "text_pair": "a film", "label": 1}


def test_a_column_that_only_bears_an_inputs_name_is_none(tmp_path):
    path = folder(tmp_path, {"words": ["a"], "text": ["b"], "text_pair": ["c"], "image": ["d"], "y": ["p"]})
    assert load_task(custom(path), seed=0).train[0] == {"text": "a", "label": 0}


def test_a_pair_is_two_columns(tmp_path):
    with pytest.raises(ConfigError, match=r"task\.text_columns: found \['words', 'words'\], allowed: two different"):
        custom(str(tmp_path), text_columns=("words", "words"))


def test_a_label_that_is_held_out_with_all_its_rows_stays_a_class(tmp_path):
    path = folder(tmp_path, {"words": ["a"] * 20, "y": ["p"] * 10 + ["q"] * 9 + ["rare"]})
    names = [load_task(custom(path, eval_ratio=ratio), seed=0).label_names for ratio in (0.05, 0.5, 0.95)]
    assert names == [("p", "q", "rare")] * 3


@pytest.mark.parametrize("content", ["\ufeffneg\r\npos\r\n", " neg\npos \n\n"])
def test_names_of_classes_are_words_whatever_stands_around_them(tmp_path, content):
    path = folder(tmp_path, {"words": ["a", "b"], "y": ["pos", "neg"]}, classes=content)
    assert load_task(custom(path), seed=0).label_names == ("neg", "pos")


@pytest.mark.parametrize("content", [b"neg\n\npos\n", b"\n", b"n\xe9g\npos\n"])
def test_a_list_of_classes_that_is_none_is_an_error(tmp_path, content):
    path = folder(tmp_path, {"words": ["a", "b"], "y": ["pos", "neg"]})
    (Path(path) / "classes.txt").write_bytes(content)
    with pytest.raises(ConfigError, match=r"task\.path: found .*classes\.txt.*, allowed: a class name a line"):
        load_task(custom(path), seed=0)


def test_bad_examples_are_refused_or_dropped_and_counted(tmp_path):
    columns = {"words": ["a", None, "c", ""], "y": ["p", "p", None, "q"], "pixels": [png(), png(), png(), None]}
    path = folder(tmp_path, columns)
    with pytest.raises(ConfigError, match=r"task\.label_column: found '1 nulls in column y', .*first is in row 2"):
        load_task(custom(path), seed=0)
    with pytest.warns(UserWarning, match=r"dropped 2 of 4 training .* \(no words in row 1; no y in row 2\)"):
        task = load_task(custom(path, on_bad_example="drop"), seed=0)
    assert task.train["text"][:] == ["a", ""]
    images = custom(path, text_columns=(), image_column="pixels", on_bad_example="drop")
    with pytest.warns(UserWarning, match="dropped 2 of 4 training examples"):
        assert load_task(images, seed=0).train["label"][:] == [0, 0]


def test_a_table_of_images_may_lie_beside_other_files(tmp_path):
    config = image_folder(tmp_path, "cat/x.png", "dog/y.png")
    (tmp_path / "train/README.txt").write_text("read me")
    with pytest.warns(UserWarning, match=r"no images \(1\): README\.txt"):
        assert load_task(config, seed=0).label_names == ("cat", "dog")
