import dataclasses
import io

import cloudpickle
import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from fedpft.config import Config, ConfigError, FederatedConfig, FMConfig, PartitionConfig, PublicConfig, TaskConfig
from fedpft.data.collate import ImageCollator, TextCollator, rows, text_lengths
from fedpft.data.corpora.chunks import chunk_corpus, special_tokens
from fedpft.data.corpora.public import CORPORA, load_corpus, python_reference
from fedpft.data.datamodule import build_data, partition_task
from fedpft.data.tasks.loading import TaskData, load_task
from fedpft.data.tasks.tokens import tokenise
from tests.tiny import TEXT_FAMILIES, tiny_causal_tokenizer, tiny_fm, tiny_tokenizer

WORDS = [f"w{i}" for i in range(40)]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocab = {token: i for i, token in enumerate([*special, *WORDS])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_input_names=inputs, **names)


@pytest.fixture(scope="module")
def processor() -> ViTImageProcessorPil:
    return ViTImageProcessorPil(size={"height": 6, "width": 6})


def text_task(pair: bool = False) -> TaskData:
    columns = {"text": [" ".join(WORDS[: i + 1]) for i in range(12)], "label": [i % 2 for i in range(12)]}
    columns["who"] = [f"p{i % 3}" for i in range(12)]
    if pair:
        columns["text_pair"] = ["w0 w1"] * 12
    dataset = datasets.Dataset.from_dict(columns)
    return TaskData(dataset, dataset.select(range(4)), "text", ("no", "yes"))


def images(count: int, labelled: bool = True) -> datasets.Dataset:
    modes = ["RGB", "L", "P", "RGBA"]
    columns = {"image": [Image.new(modes[i % 4], (5, 4), 9 * i if i % 4 == 1 else None) for i in range(count)]}
    if labelled:
        columns["label"] = [i % 2 for i in range(count)]
    return datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())


def corpus(num_texts: int = 200) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"text": [" ".join(WORDS[i % 7 : i % 7 + 9]) for i in range(num_texts)]})


def config(seed: int = 42, client_seed: int | None = None, **arguments) -> Config:
    partition = PartitionConfig(**arguments.pop("partition", {}))
    federated = FederatedConfig(num_clients=3, clients_per_round=2, partition=partition, seed=client_seed)
    public = PublicConfig(chunk_length=10, **arguments)
    return Config(seed=seed, fm=FMConfig(max_length=8), federated=federated, public=public)


def test_who_owns_what_stays_with_the_clients_seed_whatever_the_runs_seed_is(tokenizer):
    def order(*seeds):
        return build_data(text_task(), corpus(), tokenizer, config(*seeds)).partition.order.tolist()

    assert order(1, 7) == order(2, 7) == order(7, None) != order(1, None)


def test_clients_hold_out_some_of_their_own_examples_by_their_seed_and_train_on_the_others(tokenizer):
    def built(ratio, client_seed=1):
        plain = config(2, client_seed)
        federated = dataclasses.replace(plain.federated, client_eval_ratio=ratio)
        return build_data(text_task(), corpus(), tokenizer, dataclasses.replace(plain, federated=federated))

    whole, data = built(0.0).partition, built(0.5)
    assert built(0.0).held_out is None
    for client in range(3):
        kept, held, owned = (part.shard(client).tolist() for part in (data.partition, data.held_out, whole))
        assert (len(kept), len(held)) == (2, 2)
        assert sorted(kept + held) == sorted(owned)
        assert kept == [row for row in owned if row in kept], "in the same order"
    assert built(0.5).held_out.order.tolist() == data.held_out.order.tolist()
    assert built(0.2).held_out.sizes.tolist() == [0, 0, 0], "4 examples are too few for a fifth"
    regression = dataclasses.replace(text_task(), kind="regression")
    federated = dataclasses.replace(config().federated, client_eval_ratio=0.5)
    with pytest.raises(ConfigError, match=r"client_eval_ratio: found 0\.5, allowed: 0 because task\.kind is"):
        build_data(regression, corpus(), tokenizer, dataclasses.replace(config(), federated=federated))


def test_text_rows_are_cut_and_unpadded(tokenizer):
    data = build_data(text_task(), corpus(), tokenizer, config())
    lengths = [len(ids) for ids in data.train["input_ids"][:]]
    assert lengths == [min(8, i + 3) for i in range(12)]
    assert set(data.train.column_names) == {"input_ids", "token_type_ids", "label"}
    assert data.partition.sizes.tolist() == [4, 4, 4]


def test_pairs_are_marked_by_token_types(tokenizer):
    row = tokenise(text_task(pair=True).train, tokenizer, 8)[0]
    assert row["input_ids"] == [2, 4, 3, 4, 5, 3]
    assert row["token_type_ids"] == [0, 0, 0, 1, 1, 1]


def test_text_batches_equal_the_tokenizers_own(tokenizer):
    task = text_task()
    data = build_data(task, corpus(), tokenizer, config())
    batch = data.collate(rows(data.train, [0, 2]))
    expected = tokenizer(
        [task.train[0]["text"], task.train[2]["text"]], padding=True, truncation=True, max_length=8, return_tensors="pt"
    )
    assert set(batch) == {*expected, "labels"}
    for name, tensor in expected.items():
        assert torch.equal(batch[name], tensor)
    assert batch["labels"].tolist() == [0, 0]


def test_public_chunks_are_full_and_framed_by_special_tokens(tokenizer):
    chunks = np.array(chunk_corpus(corpus(), tokenizer, 10, None, np.random.default_rng(0))["input_ids"][:])
    assert chunks.shape == (200 * 9 // 8, 10)
    assert (chunks[:, 0] == 2).all()
    assert (chunks[:, -1] == 3).all()
    stream = tokenizer(" ".join(corpus()["text"][:]), add_special_tokens=False)["input_ids"]
    assert chunks[:, 1:-1].ravel().tolist() == stream[: chunks.shape[0] * 8]


def test_max_examples_draws_other_chunks_with_another_seed(tokenizer):
    drawn = [
        chunk_corpus(corpus(), tokenizer, 10, 5, np.random.default_rng(seed))["input_ids"][:] for seed in (0, 0, 1)
    ]
    assert [len(chunks) for chunks in drawn] == [5, 5, 5]
    assert drawn[0] == drawn[1] != drawn[2]


def test_public_batches_have_no_labels(tokenizer):
    data = build_data(text_task(), corpus(), tokenizer, config(max_examples=4))
    batch = data.collate(rows(data.public, range(4)))
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        "input_ids": (4, 10),
        "attention_mask": (4, 10),
    }


def test_a_corpus_shorter_than_a_chunk_is_an_error(tokenizer):
    with pytest.raises(ConfigError, match=r"public\.chunk_length: found 500"):
        chunk_corpus(corpus(2), tokenizer, 500, None, np.random.default_rng(0))


def test_public_text_in_the_form_of_pairs_is_what_the_tokenizer_makes_of_two_texts(tokenizer):
    chunks = chunk_corpus(corpus(), tokenizer, 12, None, np.random.default_rng(0), pairs=True)
    whole = chunk_corpus(corpus(), tokenizer, 11, None, np.random.default_rng(0))
    lengths = set()
    for row, plain in zip(chunks, whole, strict=True):
        words, types = np.array(row["input_ids"]), np.array(row["token_type_ids"])
        texts = [tokenizer.decode(words[types == kind], skip_special_tokens=True) for kind in (0, 1)]
        expected = {"input_ids": list(words), "token_type_ids": list(types)}
        assert dict(tokenizer(*texts, return_attention_mask=False)) == expected
        assert " ".join(texts) == tokenizer.decode(plain["input_ids"], skip_special_tokens=True), "the same texts"
        lengths.add(len(texts[0].split()))
    assert len(lengths) > 4, "cut anywhere"
    assert lengths <= set(range(1, 9))


def test_the_form_of_the_task_is_that_of_its_examples(tokenizer):
    pair = text_task(pair=True)
    for task, form, has_types in ((pair, "task", True), (pair, "text", False), (text_task(), "task", False)):
        public = build_data(task, corpus(), tokenizer, config(format=form)).public
        assert ("token_type_ids" in public.column_names) == has_types
        assert {len(row) for row in public["input_ids"]} == {10}


def test_a_chunk_without_room_for_its_special_tokens_and_texts_is_an_error(tokenizer):
    with pytest.raises(ConfigError, match=r"public\.chunk_length: found 4, allowed: at least 5"):
        chunk_corpus(corpus(), tokenizer, 4, None, np.random.default_rng(0), pairs=True)


def test_special_tokens_are_found_by_asking(tokenizer):
    assert special_tokens(tokenizer) == ([2], [3])


def test_natural_partition_follows_the_column(tokenizer):
    settings = config(partition={"kind": "natural", "column": "who"})
    data = build_data(text_task(), corpus(), tokenizer, settings)
    assert data.partition.shard(1).tolist() == [1, 4, 7, 10]
    with pytest.raises(ConfigError, match=r"federated\.partition\.column: found 'whom', allowed: .*who"):
        build_data(text_task(), corpus(), tokenizer, config(partition={"kind": "natural", "column": "whom"}))


def test_images_of_every_mode_become_pixels(processor):
    task = TaskData(images(8), images(4), "image", ("a", "b"))
    data = build_data(task, images(6, labelled=False), processor, config(max_examples=4))
    batch = data.collate(rows(data.train, [0, 1, 2, 3]))
    assert batch["pixel_values"].shape == (4, 3, 6, 6)
    assert batch["labels"].tolist() == [0, 1, 0, 1]
    assert len(data.public) == 4
    assert set(data.collate(rows(data.public, [0]))) == {"pixel_values"}


def test_labels_of_public_images_are_kept(processor):
    task = TaskData(images(8), images(4), "image", ("a", "b"))
    data = build_data(task, images(6), processor, config())
    assert "labels" in data.collate(rows(data.public, [0]))


def test_data_survives_pickling(tokenizer, processor):
    text = build_data(text_task(), corpus(), tokenizer, config())
    image = build_data(TaskData(images(8), images(4), "image", ("a", "b")), images(4), processor, config())
    for data in (text, image):
        copy = cloudpickle.loads(cloudpickle.dumps(data))
        ours, theirs = (d.collate(rows(d.train, d.partition.shard(1))) for d in (data, copy))
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_one_label_is_nothing_to_learn(tokenizer):
    task = dataclasses.replace(text_task(), label_names=("yes",))
    with pytest.raises(
        ConfigError, match=r"task\.label_column: found '1 label in the training data', allowed: at least"
    ):
        build_data(task, corpus(), tokenizer, config())


def test_empty_texts_are_texts(tokenizer):
    dataset = datasets.Dataset.from_dict({"text": ["", " ", "w0"], "label": [0, 1, 0]})
    data = build_data(TaskData(dataset, dataset, "text", ("no", "yes")), corpus(), tokenizer, config())
    assert data.train["input_ids"][:] == [[2, 3], [2, 3], [2, 4, 3]]


def test_modalities_must_agree(tokenizer, processor):
    with pytest.raises(ConfigError, match=r"task\.name: found 'text data', allowed: image data"):
        build_data(text_task(), corpus(), processor, config())
    with pytest.raises(ConfigError, match=r"public\.name: .*allowed: text data"):
        build_data(text_task(), images(4), tokenizer, config())


def test_lengths_of_texts_are_those_of_their_rows_in_order():
    dataset = datasets.Dataset.from_dict({"input_ids": [[7] * (i % 5) for i in range(30)]}).shuffle(seed=0)
    assert text_lengths(dataset).tolist() == [len(ids) for ids in dataset["input_ids"]]
    assert text_lengths(images(2)) is None


def test_rows_come_in_the_order_asked():
    dataset = datasets.Dataset.from_dict({"label": [10, 11, 12]})
    assert rows(dataset, np.array([2, 0, 2])) == [{"label": 12}, {"label": 10}, {"label": 12}]
    assert rows(dataset, []) == []


def test_collators_ignore_columns_that_models_do_not_take(tokenizer, processor):
    assert set(TextCollator(tokenizer)([{"input_ids": [2, 3], "who": "x"}])) == {"input_ids", "attention_mask"}
    row = {"image": Image.new("L", (3, 3)), "who": "x"}
    assert set(ImageCollator(processor)([row])) == {"pixel_values"}


def test_python_reference_is_prose_without_markup():
    texts = python_reference()["text"][:]
    assert len(texts) == len(set(texts)) > 500
    assert not any(mark in text for text in texts for mark in ("****", "====", "::=", ">>>", "``", "\n"))


def test_a_local_corpus_file_needs_one_column(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path = tmp_path / "texts.parquet"
    datasets.Dataset.from_dict({"body": ["a b"], "n": [1]}).to_parquet(path)
    loaded = load_corpus(PublicConfig(name="custom", path=str(path), text_column="body"), seed=0)
    assert loaded.to_dict() == {"text": ["a b"]}
    with pytest.raises(ConfigError, match=r"public\.text_column / public\.image_column: .*body, n"):
        load_corpus(PublicConfig(name="custom", path=str(path)), seed=0)
    with pytest.raises(ConfigError, match=r"public\.text_column: found 'text'"):
        load_corpus(PublicConfig(name="wikitext", path=str(path)), seed=0)


def test_labelled_image_corpora_keep_labels(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2)).save(buffer, "PNG")
    datasets.Dataset.from_dict({"image": [buffer.getvalue()], "label": [3]}).to_parquet(tmp_path / "train.parquet")
    loaded = load_corpus(PublicConfig(name="imagenet-1k", path=str(tmp_path)), seed=0)
    assert loaded[0]["label"] == 0, "the only class that there is"
    assert loaded[0]["image"].size == (2, 2)


def test_unknown_corpora_suggest_the_nearest():
    with pytest.raises(ConfigError, match=r"public\.name: .*did you mean wikitext\?"):
        load_corpus(PublicConfig(name="wiki-text"), seed=0)
    assert all(bool(row.path) != bool(row.loader) for row in CORPORA.values())


def owners_of(tmp_path, column, **columns):
    for split in ("train", "validation"):
        datasets.Dataset.from_dict({"text": ["w1"] * 3, **columns}).to_csv(tmp_path / f"{split}.csv")
    task = load_task(
        TaskConfig(name="custom", path=str(tmp_path), text_columns=("text",), label_column="class"), seed=0
    )
    federated = FederatedConfig(
        num_clients=3, clients_per_round=1, partition=PartitionConfig(kind="natural", column=column)
    )
    partition = partition_task(task, federated, seed=0)
    return [int(partition.shard(client)[0]) for client in range(3)]


def test_owners_are_read_from_the_datas_own_column_whatever_its_name_is_here(tmp_path):
    columns = {"class": ["c", "a", "b"], "who": [9, 100, 10], "label": ["z", "y", "x"]}
    assert owners_of(tmp_path, "class", **columns) == [1, 2, 0]
    assert owners_of(tmp_path, "who", **columns) == [0, 2, 1], "integers, though csv has no types"
    with pytest.raises(ConfigError, match=r"federated\.partition\.column: found 'label', allowed: "):
        owners_of(tmp_path, "label", **columns)


@pytest.mark.parametrize("owners", [[0.5, 1.5, 2.5], [[1], [2], [3]], [1, None, 2]])
def test_what_names_no_owners_is_an_error(owners, tokenizer):
    task = text_task()
    train = datasets.Dataset.from_dict({"text": ["w1"] * 3, "label": [0, 1, 0], "who": owners})
    settings = config(partition={"kind": "natural", "column": "who"})
    with pytest.raises(ConfigError, match=r"^federated\.partition\.column: found '.*column who"):
        build_data(dataclasses.replace(task, train=train), corpus(), tokenizer, settings)


def test_a_text_without_a_token_gets_one_and_is_counted(tokenizer):
    bare = tiny_causal_tokenizer(has_bos=False)
    dataset = datasets.Dataset.from_dict({"text": ["", " ", "w0"], "label": [0, 1, 0]})
    with pytest.warns(UserWarning, match=r"2 of 3 training texts have no token: each gets <s>"):
        tokenised = tokenise(dataset, bare, 8)
    assert tokenised["input_ids"][:2] == [[bare.bos_token_id]] * 2
    batch = TextCollator(bare)(rows(tokenised, [0, 1]))
    assert batch["attention_mask"].tolist() == [[1], [1]]


def test_images_of_different_shapes_need_a_processor_that_makes_them_one():
    shapes = [Image.new("RGB", size) for size in ((4, 4), (4, 4), (4, 4), (8, 4))]
    dataset = datasets.Dataset.from_dict({"image": shapes, "label": [0, 1, 0, 1]})
    square = dataset.select(range(3))
    edge = ViTImageProcessorPil(size={"shortest_edge": 6})
    build_data(TaskData(square, square, "image", ("a", "b")), square, edge, config())
    with pytest.raises(ConfigError, match=r"^fm\.path: found 'an image processor that makes \(3, 6, .*\) of .* pixels"):
        build_data(TaskData(dataset, square, "image", ("a", "b")), square, edge, config())


@pytest.mark.parametrize("text_family", TEXT_FAMILIES)
def test_a_text_has_the_same_logits_alone_and_beside_longer_ones(text_family):
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = "left"
    collate, fm = TextCollator(tokenizer), tiny_fm(text_family, pad_token_id=0)
    examples = [{"input_ids": [2, *range(4, 4 + length), 3]} for length in (1, 9, 4, 14)]
    with torch.no_grad():
        together = fm(**collate(examples)).logits
        alone = torch.cat([fm(**collate([example])).logits for example in examples])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
