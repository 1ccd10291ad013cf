"""Public corpora: what fits is read whole, what does not is drawn from its files; both the same for the same seed."""

import dataclasses
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import datasets
import fsspec
import numpy as np
import pytest

from fedpft.config import ConfigError, PublicConfig, load_config
from fedpft.data.collate import TextCollator
from fedpft.data.corpora import public
from fedpft.data.corpora.chunks import chunk_corpus
from fedpft.data.corpora.corpus import BLOCK_ROWS, Mixture, StreamedText, text_blocks
from fedpft.data.corpora.public import CORPORA, load_corpus
from fedpft.data.digest import public_identity
from fedpft.data.sources import rows as sources
from fedpft.run.inputs import load_data
from fedpft.seeding import numpy_rng
from fedpft.trainer import SilentProgress
from tests.tiny import tiny_text_run, tiny_texts, tiny_tokenizer

REAL_DATA = Path(__file__).parents[5] / "shared" / "data"
CHUNK = 10
WHOLE = datasets.Dataset.from_dict({"text": ["w1 w2", "w3"]})


def write_shards(folder, texts, num_shards=3, suffix="parquet", column="text"):
    folder.mkdir(exist_ok=True)
    for shard in range(num_shards):
        part = datasets.Dataset.from_dict({column: texts[shard::num_shards], "n": [1] * len(texts[shard::num_shards])})
        file = folder / f"train-{shard:05d}-of-{num_shards:05d}.{suffix}"
        part.to_parquet(file, batch_size=50) if suffix == "parquet" else part.to_json(file)
    return str(folder)


def custom(path, max_examples=20, **arguments):
    return PublicConfig(
        name="custom", path=path, text_column="text", chunk_length=CHUNK, max_examples=max_examples, **arguments
    )


def chunks(config, seed=0):
    corpus = load_corpus(config, seed)
    return chunk_corpus(corpus, tiny_tokenizer(), CHUNK, config.max_examples, numpy_rng(seed, "public"))


def refusal(action):
    with pytest.raises(ConfigError) as error:
        action()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_corpus_in_memory_is_drawn_in_blocks_of_64_rows_as_it_ever_was():
    texts, _ = tiny_texts(1000)
    drawn = chunk_corpus(
        datasets.Dataset.from_dict({"text": texts}), tiny_tokenizer(), CHUNK, 25, np.random.default_rng(7)
    )
    rng = np.random.default_rng(7)
    ids: list[int] = []
    for start in rng.permutation(np.arange(0, 1000, BLOCK_ROWS)):
        for text in texts[start : start + BLOCK_ROWS]:
            ids += tiny_tokenizer()(text, add_special_tokens=False)["input_ids"]
        if len(ids) >= 25 * (CHUNK - 2):
            break
    bodies = np.array(ids[: len(ids) // 8 * 8]).reshape(-1, 8)
    bodies = bodies[rng.permutation(len(bodies))[:25]]
    assert drawn["input_ids"][:] == [[2, *body, 3] for body in bodies.tolist()]


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_a_large_corpus_gives_the_same_chunks_for_the_same_seed(tmp_path, large, suffix):
    path = write_shards(tmp_path / "c", tiny_texts(900)[0], suffix=suffix)
    first, again, other = (chunks(custom(path), seed)["input_ids"][:] for seed in (0, 0, 1))
    assert first == again != other
    assert np.array(first).shape == (20, CHUNK)


def test_chunks_of_a_large_corpus_are_its_texts(tmp_path, large):
    texts = [f"w{i % 36} w{(i + 1) % 36}" for i in range(400)]
    path = write_shards(tmp_path / "c", texts, num_shards=1)
    for ids in chunks(custom(path))["input_ids"][:]:
        body = np.array(ids[1:-1]) - 4
        assert ((body[2::2] - body[:-2:2]) % 36 == 1).sum() >= 2, "neighbouring rows follow each other"
    assert len(chunks(custom(path, max_examples=10**6))) == 400 * 2 // (CHUNK - 2), "all that there is"


def test_equal_draws_have_equal_identities(tmp_path, large):
    path = write_shards(tmp_path / "c", tiny_texts(900)[0])
    collate = TextCollator(tiny_tokenizer())
    here, again, other = (public_identity(chunks(custom(path), seed), collate) for seed in (0, 0, 1))
    moved = public_identity(chunks(custom(str((tmp_path / "c").rename(tmp_path / "d")))), collate)
    assert here == again == moved != other


def test_a_run_takes_a_large_corpus(tmp_path, large):
    settings = tiny_text_run(tmp_path)
    path = write_shards(tmp_path / "shards", tiny_texts(500)[0])
    config = load_config(None, [*settings, f"public.path={path}", "public.max_examples=30"])
    assert len(load_data(config, SilentProgress()).public) == 30


def test_a_large_corpus_that_save_to_disk_wrote_stays_on_disk(tmp_path, large):
    datasets.Dataset.from_dict({"text": tiny_texts(100)[0]}).save_to_disk(tmp_path / "c")
    corpus = load_corpus(custom(str(tmp_path / "c")), 0)
    assert corpus.cache_files, "mapped, not read"
    assert len(chunks(custom(str(tmp_path / "c")))) == 20


def test_a_large_corpus_is_not_read_whole(tmp_path, large):
    path = write_shards(tmp_path / "c", tiny_texts(100)[0])
    message = refusal(lambda: load_corpus(custom(path, max_examples=None), 0))
    assert message.startswith(f"public.max_examples: found None, allowed: a number, as {path} has 0.0 GB")


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_a_null_in_a_stream_is_named_by_file_and_row(tmp_path, large, suffix):
    texts = tiny_texts(300)[0]
    texts[142] = None
    corpus = load_corpus(custom(write_shards(tmp_path / "c", texts, num_shards=2, suffix=suffix)), 0)
    message = refusal(lambda: list(corpus.blocks(1e4, np.random.default_rng(0))))
    file = tmp_path / "c" / f"train-00000-of-00002.{suffix}"
    assert message == f"public.text_column: found 'a null in {file}, row 71 of column text', allowed: no nulls"


def test_a_null_that_is_not_drawn_does_not_matter(tmp_path, large):
    texts = tiny_texts(3000)[0]
    texts[0] = None
    corpus = load_corpus(custom(write_shards(tmp_path / "c", texts, num_shards=1)), 0)
    assert len(list(islice(corpus.blocks(1, np.random.default_rng(0)), 1))) == 1


@pytest.mark.parametrize(
    ("texts", "arguments", "expected"),
    [
        ([1, 2, 3], {}, "public.text_column: found 'column text of type int64 in "),
        (
            ["w1"] * 9,
            {"text_column": "body"},
            "public.text_column: found 'body', allowed: a column of the data: text, n",
        ),
        (["w1"] * 2, {}, "public.chunk_length: found 10, allowed: at most the corpus's 4 tokens"),
    ],
)
def test_what_a_large_corpus_lacks_is_one_line(tmp_path, large, texts, arguments, expected):
    config = dataclasses.replace(custom(write_shards(tmp_path / "c", texts)), **arguments)
    assert refusal(lambda: chunks(config)).startswith(expected)


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "txt"])
def test_an_empty_large_corpus_is_refused(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(public, "MAX_WHOLE_BYTES", -1)
    file = tmp_path / f"train.{suffix}"
    if suffix == "parquet":
        datasets.Dataset.from_dict({"text": ["w1"], "n": [1]}).select([]).to_parquet(file)
    else:
        file.write_text("")
    assert refusal(lambda: load_corpus(custom(str(file)), 0)).startswith("public.path: found ")


def test_mixtures_take_equal_parts_and_go_on_when_one_ends():
    def part(word, length, num_blocks):
        return datasets.Dataset.from_dict({"text": [word * length] * num_blocks * BLOCK_ROWS})

    mixture = Mixture((part("a", 100, 6), part("b", 50, 6), part("c", 10, 2)))
    for num_tokens in (np.inf, 9.0):
        blocks = [texts[0] for texts in text_blocks(mixture, num_tokens, np.random.default_rng(0))]
        assert "".join(text[0] for text in blocks) == "abccbabbabbaaa"


def test_a_mixture_of_corpora_is_named_with_plus(tmp_path, large):
    paths = [write_shards(tmp_path / name, [f"{word} " * 8] * 300) for name, word in (("a", "w1"), ("b", "w2"))]
    config = PublicConfig(
        name="custom+custom", path="+".join(paths), text_column="text", chunk_length=CHUNK, max_examples=200
    )
    first, again = (np.array(chunks(config)["input_ids"][:])[:, 1:-1] for _ in range(2))
    assert (first == again).all()
    assert (first == 5).mean() == pytest.approx(0.5, abs=0.1)
    assert (first == 6).mean() == pytest.approx(0.5, abs=0.1)


def test_a_mixture_needs_known_names_and_a_path_for_each():
    with pytest.raises(ConfigError, match=r"public\.path: found 'a', allowed: 2 paths joined by \+"):
        PublicConfig(name="wikipedia+bookcorpus", path="a")
    with pytest.raises(ConfigError, match=r"public\.name: .*did you mean bookcorpus\?"):
        load_corpus(PublicConfig(name="python_reference+bookcorpora"), 0)


def hub(monkeypatch, paths):
    config = SimpleNamespace(data_files={"train": paths})
    monkeypatch.setattr(sources.datasets, "load_dataset_builder", lambda *_: SimpleNamespace(config=config))


def test_a_large_hub_corpus_is_drawn_over_the_network_as_the_same_files_here(tmp_path, monkeypatch, large):
    path = write_shards(tmp_path / "c", tiny_texts(900)[0])
    here = chunks(custom(path))
    memory = fsspec.filesystem("memory")
    names = sorted((tmp_path / "c").iterdir())
    for file in names:
        memory.pipe(f"/hub/{file.name}", file.read_bytes())
    hub(monkeypatch, [f"memory://hub/{file.name}" for file in names])
    there = chunks(PublicConfig(name="wikipedia", chunk_length=CHUNK, max_examples=20))
    assert there["input_ids"][:] == here["input_ids"][:]


def test_a_small_hub_corpus_is_downloaded(tmp_path, monkeypatch):
    path = write_shards(tmp_path / "c", tiny_texts(90)[0])
    hub(monkeypatch, [f"file://{file}" for file in sorted((tmp_path / "c").iterdir())])
    whole = sources.load_local(path, "train", "public.path")
    monkeypatch.setattr(sources.datasets, "load_dataset", lambda *_, **__: whole)
    assert load_corpus(PublicConfig(name="wikitext"), 0)["text"][:] == whole["text"][:]


def test_a_hub_corpus_of_unknown_size_stays_on_disk(monkeypatch):
    hub(monkeypatch, [])
    asked = {}
    monkeypatch.setattr(sources.datasets, "load_dataset", lambda *_, **options: asked.update(options) or WHOLE)
    assert load_corpus(PublicConfig(name="wikipedia"), 0)["text"][:] == WHOLE["text"][:]
    assert asked["keep_in_memory"] is False


def test_a_large_hub_corpus_in_other_files_is_refused(tmp_path, monkeypatch, large):
    (tmp_path / "a.tar").write_bytes(b"x")
    hub(monkeypatch, [f"file://{tmp_path}/a.tar"])
    message = refusal(lambda: load_corpus(PublicConfig(name="imagenet-1k", max_examples=3), 0))
    assert message.startswith("public.path: found 'ILSVRC/imagenet-1k, 0.0 GB in files like file://")


def test_a_gated_corpus_says_what_it_takes(monkeypatch):
    def gated(*_):
        raise PermissionError("a gated\ndataset")

    monkeypatch.setattr(sources.datasets, "load_dataset_builder", gated)
    message = refusal(lambda: load_corpus(PublicConfig(name="imagenet-1k"), 0))
    assert message.startswith("public.path: found hub data set ILSVRC/imagenet-1k, split train (a gated dataset)")
    assert "hf auth login, or HF_TOKEN" in message
    assert "HF_TOKEN" not in refusal(lambda: load_corpus(PublicConfig(name="wikipedia"), 0))


def test_every_corpus_has_a_source_and_one_kind_of_column():
    for name, row in CORPORA.items():
        assert bool(row.path) != bool(row.loader), name
        assert bool(row.text_column) != bool(row.image_column), name
        assert "+" not in name


real = pytest.mark.skipif(not REAL_DATA.is_dir(), reason=f"no real data at {REAL_DATA}")


@real
def test_real_text_is_drawn_from_shards(tmp_path, large):
    source = datasets.Dataset.from_parquet(str(REAL_DATA / "align_text" / "train.parquet"))
    write_shards(tmp_path / "c", source["text"][:], num_shards=4)
    corpus = load_corpus(custom(str(tmp_path / "c")), 0)
    assert isinstance(corpus, StreamedText)
    taken = [text for texts in islice(corpus.blocks(2000, np.random.default_rng(0)), 5) for text in texts]
    assert set(taken) <= set(source["text"][:])
    assert len(taken) > 100
