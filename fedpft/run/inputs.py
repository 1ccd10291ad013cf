"""What a run takes in, each part checked against the others: data and configs first, the FM's weights last.

All that :func:`load_data` refuses is refused before an actor starts, what :func:`load_fm` refuses before training.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import PIL
from datasets import Dataset
from transformers import BaseImageProcessor, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from fedpft.config import Config, TaskKind
from fedpft.config.checks import require
from fedpft.construct.store import cache_dir
from fedpft.data.corpora.corpus import Corpus, sample_texts
from fedpft.data.corpora.public import load_corpus
from fedpft.data.datamodule import FederatedData, build_data
from fedpft.data.digest import dataset_digest
from fedpft.data.planting import with_canaries
from fedpft.data.shared import SharedTask, absolute, contents_of
from fedpft.data.sources.columns import TEXT
from fedpft.data.sources.images import Look, are_embedded, look_at_headers, look_at_pixels
from fedpft.data.sources.memory import GivenData
from fedpft.data.tasks.instructions import without_prompts
from fedpft.data.tasks.loading import kind_and_modality, load_task
from fedpft.federated.adversary.poison import check_adversary
from fedpft.models import loading
from fedpft.models.limits import check_texts_fit, fit_inputs
from fedpft.models.origin import origin_of, remember_origin
from fedpft.models.pretrain import pretrain_backbone, pretrain_language_model
from fedpft.models.processor import load_processor
from fedpft.models.sources import is_from_scratch
from fedpft.models.tokenizer import train_tokenizer
from fedpft.run.rehearsal import PROBLEM_TYPES, check_can_be_saved, rehearse, try_examples
from fedpft.seeding import derive_seed, numpy_rng
from fedpft.trainer import Progress

TOKENIZER_TOKENS = 10_000_000
"""Of a corpus in files, about as much makes a tokenizer: its merges settle long before."""


def load_fm_and_data(
    config: Config, progress: Progress, saved_fm: Path | None = None
) -> tuple[PreTrainedModel, FederatedData]:
    """Do :func:`load_data` and :func:`load_fm`."""
    data = load_data(config, progress)
    return load_fm(config, data, progress, saved_fm), data


def load_data(config: Config, progress: Progress, given: GivenData | None = None) -> FederatedData:
    """Load task, public corpus and processor, and prepare the data for the FM.

    A `scratch://` language model gets a tokenizer made from the public corpus. Data that the caller has in memory are
    `given`.

    Raises:
        ConfigError: what cannot be loaded, or does not fit together or the FM.

    """
    progress.stage("load data")
    look, source = image_check(config, progress), None
    if config.task.data == "broadcast":
        task = load_task(config.task, config.client_seed, look, given)
        fm = loading.load_fm_config(config.fm, len(task.label_names), task.kind)
        corpus = load_corpus(config.public, config.server_seed, look, given)
        processor = _processor(config, fm, task.kind, task.modality, corpus)
    else:  # rows are made for a processor, so that comes first
        settings, cache = absolute(config.task), cache_dir(config.cache.dir).resolve()
        contents = contents_of(settings, cache)
        kind, modality = kind_and_modality(settings)
        fm = loading.load_fm_config(config.fm, 2, kind)
        corpus = load_corpus(config.public, config.server_seed, look, given)
        processor = _processor(config, fm, kind, modality, corpus)
        progress.stage("prepare training data on disk")
        source = SharedTask(
            config=settings, seed=config.client_seed, processor=processor, max_length=config.fm.max_length,
            owner=config.federated.partition.column, cache=cache, contents=contents,
        )  # fmt: skip
        task, _ = source.open()
    rehearse(config, task)
    data = with_canaries(build_data(task, corpus, processor, config, source), config)
    check_adversary(config.federated.adversary, data)
    metrics = [*data.metrics, *(f"{name}/{metric}" for name in data.other_evaluations for metric in data.metrics)]
    require(config.stop.metric in (None, *metrics), "stop.metric", config.stop.metric, ", ".join(["null", *metrics]))
    return data


def _processor(
    config: Config, fm: PretrainedConfig, kind: TaskKind, modality: loading.Modality, corpus: Corpus
) -> PreTrainedTokenizerBase | BaseImageProcessor:
    """Return the FM's tokenizer or image processor, of which the FM takes what it makes."""
    if is_from_scratch(config.fm) and kind == "causal_lm" and TEXT in corpus.column_names:
        texts = sample_texts(corpus, TOKENIZER_TOKENS, numpy_rng(config.server_seed, "tokenizer"))
        processor = train_tokenizer(texts, fm.vocab_size)
    else:
        processor = load_processor(config.fm, modality)
    if isinstance(processor, PreTrainedTokenizerBase):
        check_texts_fit(config, fm, processor)
        fit_inputs(fm, processor)
    return processor


def image_check(config: Config, progress: Progress) -> Look:
    """Return what decodes every image, unless the same images were decoded before.

    Of those it remembers a digest, the name of an empty file in the cache's `images/`.
    """

    def look(dataset: Dataset, column: str) -> Mapping[int, str]:
        known = None
        if config.cache.enabled and not look_at_headers(dataset, column) and are_embedded(dataset, column):
            digest = dataset_digest(dataset, [column])
            known = cache_dir(config.cache.dir) / "images" / f"{digest}-pillow-{PIL.__version__}"
            if known.exists():
                return {}
        flaws = look_at_pixels(dataset, column, lambda done, total: progress.progress(done, total, {}))
        if known and not flaws:
            with suppress(OSError):  # it only saves time
                known.parent.mkdir(parents=True, exist_ok=True)
                known.touch()
        return flaws

    return look


def load_fm(config: Config, data: FederatedData, progress: Progress, saved_fm: Path | None = None) -> PreTrainedModel:
    """Load the FM; it bears the task's label names. A `scratch://` FM is pre-trained here unless it was saved.

    Args:
        config: the run's.
        data: of :func:`load_data`.
        progress: hears about the stages.
        saved_fm: folder of the run's own FM, to use in place of `config.fm`.

    Raises:
        ConfigError: as `fedpft.models.loading.load_fm`; or the FM fails on examples of the task.

    """
    progress.stage("load FM")
    pad_token_id = data.collate.settings().get("pad_token_id")
    fm = load_untuned_fm(config, data.kind, data.modality, data.label_names, pad_token_id, saved_fm)
    try_examples(fm, data, config.fm.path)
    check_can_be_saved(fm, config.fm.path)
    if config.fm.pretrain.num_epochs and not saved_fm:
        progress.stage("pre-train FM on public data")
        if data.kind == "causal_lm":
            pretrain, public = pretrain_language_model, without_prompts(data.public)
        else:
            pretrain, public = pretrain_backbone, data.public
        pretrain(
            fm, public, data.collate, config=config.fm.pretrain, server=config.server,
            seed=derive_seed(config.server_seed, "pretrain"), on_step=progress.progress,
        )  # fmt: skip
        remember_origin(fm, replace(origin_of(fm), new_modules=()))  # trained by now, and saved with the FM
    return fm


def load_untuned_fm(
    config: Config,
    kind: TaskKind,
    modality: loading.Modality,
    label_names: Sequence[str],
    pad_token_id: int | None,
    saved_fm: Path | None = None,
    *,
    empty: bool = False,
) -> PreTrainedModel:
    """Load the FM without the data, but for the names of its labels; see :func:`load_fm`. `empty`: without weights."""
    source = replace(config.fm, path=str(saved_fm), revision=None, config={}) if saved_fm else config.fm
    seed = config.server_seed if is_from_scratch(source) else config.seed  # else only a new head draws
    fm = loading.load_fm(
        source, modality=modality, kind=kind, num_labels=len(label_names), seed=seed, pad_token_id=pad_token_id,
        label_names=label_names, empty=empty,
    )  # fmt: skip
    if kind in PROBLEM_TYPES:
        fm.config.id2label = dict(enumerate(label_names))
        fm.config.label2id = {name: label for label, name in enumerate(label_names)}
        fm.config.problem_type = PROBLEM_TYPES[kind]  # else the first labelled batch decides
    return fm
