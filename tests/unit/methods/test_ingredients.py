import dataclasses
import json
from pathlib import Path

import pytest
import torch

from fedpft.align.public import PublicData
from fedpft.config import LayerAlignConfig, MethodConfig, ServerConfig, config_keys, load_config
from fedpft.construct.store import key_of
from fedpft.methods import ingredients as module_under_test
from fedpft.methods.ingredients import can_be_cached, sub_fm_ingredients
from fedpft.models.spread import spread
from fedpft.run.inputs import load_fm_and_data
from fedpft.run.tuning import public_data
from fedpft.trainer import SilentProgress
from tests.pretend_cuda import pretended_cuda
from tests.tiny import tiny_fm, tiny_text_run, tiny_texts, tiny_vision_run

BASE = ["fm.config={hidden_act: gelu}", "public.max_examples=40", "align.layers.warmup_ratio=0.5"]
"""Beside a tiny run's settings: what lets a change of one key be a valid config."""

CHANGES_THE_SUB_FM = {
    "seed": 43,
    "fm.path": "OTHER_FM",
    "fm.config": "{hidden_act: relu}",
    "public.path": "OTHER_PUBLIC",
    "public.chunk_length": 12,
    "public.max_examples": 30,
    "method.retained_ratio": 0.25,
    "method.uncompressed_layers": [-1],
    "method.scorer": "activation",
    "align.layers.kind": "none",
    "align.layers.num_steps": 4,
    "align.layers.lr": 1e-3,
    "align.layers.batch_size": 8,
    "align.layers.product_weight": 0.5,
    "align.layers.warmup_ratio": 0.25,
    "align.layers.weight_decay": 0.5,
    "align.layers.max_grad_norm": 2.0,
    "server.precision": "bf16-mixed",
    "server.matmul_precision": "high",
    "server.deterministic": True,
    "server.num_threads": 2,
    "server.devices": 2,
    "server.seed": 43,
}
LEAVES_THE_SUB_FM = {
    "name": "other",
    "output_dir": "elsewhere",
    "fm.max_length": 24,
    "task.path": "OTHER_TASK",
    "task.max_train_examples": 20,
    "task.max_eval_examples": 20,
    "task.eval_ratio": 0.5,
    "task.kind": "regression",
    "task.metrics": ["macro_f1"],
    "task.on_bad_example": "drop",
    "task.data": "shared",
    "federated.allow_dropped": True,
    "pool.clients_per_batch": 2,
    "method.name": "fedpft",
    "method.adapter_layers": 1,
    "method.kept_layers": 7,
    "method.plug_in": "distill",
    "align.adapter.num_steps": 7,
    "align.adapter.lr": 1e-3,
    "align.adapter.batch_size": 2,
    "align.adapter.held_out_examples": 7,
    "align.adapter.max_grad_norm": 2.0,
    "lora.rank": 3,
    "lora.ranks": [1],
    "lora.lora_alpha": 5,
    "lora.dropout": 0.0,
    "lora.target_modules": ["query"],
    "align.layers.num_examples": 7,
    "align.layers.refit": "bias",
    "align.neurons.kind": "none",
    "align.neurons.counts": "public",
    "align.neurons.num_examples": 7,
    "align.neurons.interval": 1,
    "align.neurons.update_ratio": 0.1,
    "align.neurons.num_steps": 1,
    "align.neurons.lr": 1e-3,
    "align.neurons.batch_size": 2,
    "align.neurons.warmup_ratio": 0.5,
    "align.neurons.max_grad_norm": 2.0,
    "federated.num_clients": 5,
    "federated.rounds": 7,
    "federated.clients_per_round": 2,
    "federated.sampling": "full",
    "federated.num_candidates": 3,
    "federated.seed": 7,
    "federated.client_eval_ratio": 0.2,
    "federated.adversary.kind": "label_flip",
    "federated.adversary.fraction": 0.5,
    "federated.adversary.scale": 0.5,
    "federated.adversary.target_label": 1,
    "federated.adversary.poison_ratio": 0.25,
    "federated.adversary.trigger": "w1",
    "federated.adversary.patch_ratio": 0.5,
    "stop.metric": "accuracy",
    "stop.patience": 2,
    "stop.min_delta": 0.5,
    "stop.target": 0.5,
    "federated.aggregation": "uniform",
    "federated.aggregator.kind": "median",
    "federated.aggregator.num_byzantine": 1,
    "federated.aggregator.num_selected": 2,
    "federated.aggregator.norm": 2.0,
    "federated.aggregator.iterations": 2,
    "federated.aggregator.keep": 0.5,
    "federated.aggregator.smoothing": 1e-3,
    "federated.server.kind": "adam",
    "federated.lora_aggregation": "ffa",
    "federated.server.lr": 0.5,
    "federated.server.head_lr": 0.5,
    "federated.server.beta1": 0.5,
    "federated.server.beta2": 0.5,
    "federated.server.tau": 0.5,
    "federated.local_epochs": 2,
    "federated.batch_size": 2,
    "federated.accumulate": 2,
    "federated.gradient_checkpointing": True,
    "federated.client.kind": "prox",
    "federated.client.optimiser": "adamw",
    "federated.client.momentum": 0.5,
    "federated.client.mu": 0.5,
    "federated.client.schedule": "cosine",
    "federated.client.warmup_steps": 2,
    "federated.lr": 1e-3,
    "federated.head_lr_ratio": 2.0,
    "federated.head_inputs": "standardized",
    "federated.lr_schedule": "constant",
    "federated.lr_decay": 0.5,
    "federated.weight_decay": 0.5,
    "federated.max_grad_norm": 2.0,
    "federated.partition.kind": "shards",
    "federated.partition.dirichlet_alpha": 2.0,
    "federated.partition.concentration": "per_label",
    "federated.partition.labels_per_client": 1,
    "federated.partition.column": "label",
    "federated.partition.size_imbalance": 0.5,
    "pool.kind": "ray",
    "pool.actors": 2,
    "pool.cpus_per_actor": 0.5,
    "pool.gpus_per_actor": 0.5,
    "pool.threads_per_client": 2,
    "pool.address": "auto",
    "pool.precision": "bf16-mixed",
    "pool.quantize": "nf4",
    "pool.accelerator": "auto",
    "pool.deterministic": True,
    "pool.matmul_precision": "high",
    "pool.max_retries": 7,
    "pool.client_timeout_seconds": 7.0,
    "pool.start_timeout_seconds": 7.0,
    "pool.max_actor_memory_gigabytes": 7.0,
    "pool.memory_per_actor_gigabytes": 0.7,
    "pool.gpu_gigabytes": 24.0,
    "server.gpu_gigabytes": 80.0,
    "server.num_gpus": 1,
    "federated.min_clients": 2,
    "federated.dropout_ratio": 0.1,
    "federated.over_selection": 1.1,
    "federated.deadline": 7.0,
    "federated.speed_sigma": 0.5,
    "checkpoint.interval": 7,
    "cache.enabled": False,
    "cache.dir": "elsewhere",
    "cache.max_gigabytes": 1.0,
    "evaluation.interval": 1,
    "evaluation.batch_size": 2,
    "evaluation.fidelity_examples": 3,
    "tracking.to": ["csv"],
    "tracking.wandb": "offline",
    "tracking.mlflow_uri": "http://localhost",
    "tracking.notify": "http://localhost",
    "tracking.project": "other",
    "tracking.entity": "someone",
    "tracking.group": "some",
    "tracking.tags": ["one"],
    "tracking.also": ["a:B"],
    "tracking.job_type": "trial",
    "privacy.noise_multiplier": 2.0,
    "privacy.target_epsilon": 3.0,
    "privacy.delta": 1e-6,
    "privacy.clip": 2.0,
    "privacy.clipping": "adaptive",
    "privacy.clip_quantile": 0.25,
    "privacy.clip_lr": 0.5,
    "privacy.clip_count_noise": 2.0,
    "privacy.noise_cohort_size": 50,
    "privacy.counts_share": 0.5,
    "privacy.canaries": 3,
    "privacy.strict": True,
    "privacy.secure_aggregation": True,
    "privacy.secure_threshold": 0.75,
    "privacy.secure_bound": 2.0,
}
NOT_HERE = {
    "fm.revision",  # of the hub's: the weights count
    *("fm.pretrain.num_epochs", "fm.pretrain.lr", "fm.pretrain.batch_size"),  # only for a scratch:// FM, see below
    *("task.name", "task.text_columns", "task.image_column", "task.label_column"),  # read through the public data's
    *("task.train_split", "task.eval_split"),
    *("task.prompt_column", "task.response_column", "task.prompt_template", "task.chat_template"),  # language models'
    "config_version",  # of the file
    "privacy.kind",  # asks for a noise multiplier and a way to draw clients, which stand above
    *(
        "public.name",
        "public.text_column",
        "public.image_column",
        "public.format",
    ),  # content alone counts, see the digests' tests
    "fm.dtype",  # it asks for a precision, see below
    "server.accelerator",  # the device that it means counts, see below
    "fm.device_map",  # the GPUs on which layers then lie count, see below
}


READ_WITH_THE_DATA = (
    "task", "fm", "federated.num_clients", "federated.partition", "federated.client_eval_ratio", "federated.seed",
    "federated.adversary",
)  # fmt: skip
"""Beginnings of keys that the loading of FM and data reads."""


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Write a tiny run, and another FM, task and corpus for it; return its settings."""
    folder = tmp_path_factory.mktemp("base")
    made = [*tiny_text_run(folder), *BASE]
    other = tmp_path_factory.mktemp("other")
    tiny_text_run(other)
    tiny_fm("bert", seed=1).save_pretrained(other / "fm")
    for name in ("task/train", "task/validation", "public/train"):
        texts, labels = tiny_texts(70, seed=9)
        rows = "".join(f"{text},{label}\n" for text, label in zip(texts, labels, strict=True))
        (other / f"{name}.csv").write_text(f"text,label\n{rows}")
    return made, {"OTHER_FM": other / "fm", "OTHER_TASK": other / "task", "OTHER_PUBLIC": other / "public"}


def key(settings, *overrides):
    """Return the key that a run with these settings would use."""
    config = load_config(None, [*settings, *overrides])
    before = torch.get_num_threads()
    torch.set_num_threads(config.server.num_threads or before)  # as the pipeline does
    try:
        fm, data = load_fm_and_data(config, SilentProgress())
        return key_of(sub_fm_ingredients(fm, public_data(data), config))
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def base_key(settings):
    return key(settings[0])


def override(settings, name, value):
    value = settings[1].get(value, value) if isinstance(value, str) else value
    return f"{name}={json.dumps(value) if not isinstance(value, str | Path) else value}"


def with_value(config, name, value):
    """Return a config with one key changed, checked as every config is; reading all anew takes many times as long."""
    section, _, rest = name.partition(".")
    if rest:
        value = with_value(getattr(config, section), rest, value)
    return dataclasses.replace(config, **{section: tuple(value) if isinstance(value, list) else value})


def test_weights_of_another_type_make_another_sub_fm(settings):
    mixed = [*settings[0], "server.precision=bf16-mixed"]
    assert key(mixed, "fm.dtype=bfloat16") != key(mixed, "fm.dtype=float32") == key(mixed)


def test_every_key_of_the_config_is_in_one_of_the_lists():
    lists = (CHANGES_THE_SUB_FM, LEAVES_THE_SUB_FM, NOT_HERE)
    assert set(config_keys()) == set().union(*lists)
    assert sum(map(len, lists)) == len(config_keys())


@pytest.mark.parametrize("name", CHANGES_THE_SUB_FM)
def test_what_the_sub_fm_depends_on_changes_its_key(settings, base_key, name):
    assert key(settings[0], override(settings, name, CHANGES_THE_SUB_FM[name])) != base_key


@pytest.mark.parametrize("name", [name for name in LEAVES_THE_SUB_FM if name.startswith(READ_WITH_THE_DATA)])
def test_what_goes_through_the_loading_of_fm_and_data_but_not_into_the_sub_fm_leaves_its_key(settings, base_key, name):
    assert key(settings[0], override(settings, name, LEAVES_THE_SUB_FM[name])) == base_key


def test_everything_else_leaves_the_key(settings, base_key):
    config = load_config(None, settings[0])
    fm, data = load_fm_and_data(config, SilentProgress())
    changed, public = {}, public_data(data)
    for name, value in LEAVES_THE_SUB_FM.items():
        partner = with_value(config, "federated.lora_aggregation", "svd") if name == "lora.ranks" else config
        other = with_value(partner, name, str(settings[1].get(value, value)) if isinstance(value, str) else value)
        assert other != config or name == "method.name", name
        changed[name] = key_of(sub_fm_ingredients(fm, public, other))
    assert set(changed.values()) == {base_key}


def test_another_copy_of_fm_and_data_has_the_same_key(settings, base_key, tmp_path):
    assert key([*tiny_text_run(tmp_path), *BASE]) == base_key


def test_the_device_that_is_meant_counts_not_its_name(settings, base_key, monkeypatch):
    if not torch.cuda.is_available():
        assert key(settings[0], "server.accelerator=auto") == base_key, "both are this CPU"
    monkeypatch.setattr(module_under_test, "device_kind", lambda server: "cuda something")
    assert key(settings[0]) != base_key


@pytest.mark.parametrize(("kind", "counts"), [("distill", True), ("closed_form+distill", True), ("closed_form", False)])
def test_the_gpus_on_which_layers_lie_count_where_dropout_is_drawn_on_them(settings, kind, counts):
    config = load_config(None, [*settings[0], f"align.layers.kind={kind}", "server.accelerator=auto"])
    data = load_fm_and_data(config, SilentProgress())[1]
    keys = set()
    for places in ((0, 0, 0), (0, 1, 1), (0, 0, 1)):
        fm = tiny_fm("bert")
        with pretended_cuda(2):
            spread(fm, [torch.device("cuda", place) for place in places], torch.device("cuda", 0))
            keys.add(key_of(sub_fm_ingredients(fm, public_data(data), config)))
    assert len(keys) == (3 if counts else 1)


def test_the_pre_training_of_an_fm_counts(tmp_path):
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    settings = tiny_vision_run(tmp_path)
    changes = ([], ["fm.pretrain.num_epochs=0"], ["fm.pretrain.lr=1e-2"], ["fm.pretrain.batch_size=32"])
    assert len({key(settings, *change) for change in changes}) == len(changes)


@pytest.mark.parametrize("tiny_run", [tiny_text_run, tiny_vision_run])
def test_with_a_seed_of_the_server_runs_of_other_seeds_tune_one_sub_fm(tmp_path, tiny_run):
    if tiny_run is tiny_vision_run:
        pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    settings = tiny_run(tmp_path)
    keys = {key(settings, "server.seed=1", f"seed={seed}") for seed in (1, 2)}
    assert keys == {key(settings, "seed=1")}


def test_versions_and_the_format_count(settings, base_key, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(module_under_test, "CACHE_FORMAT", 0)
        assert key(settings[0]) != base_key
    installed = module_under_test.package_versions()
    for name in ("fedpft", "torch", "transformers"):
        monkeypatch.setattr(module_under_test, "package_versions", lambda name=name: installed | {name: "0"})
        assert key(settings[0]) != base_key


# --- what is read decides what counts ---


def of(public=None, *, layers=None, **method):
    """Return the ingredients of a tiny BERT; public data is known by a name."""
    config = dataclasses.replace(
        load_config(), method=MethodConfig(**method), server=ServerConfig(accelerator="cpu")
    )  # fmt: skip
    config = dataclasses.replace(
        config, align=dataclasses.replace(config.align, layers=LayerAlignConfig(**layers or {}))
    )  # fmt: skip
    identity = None if public is None else lambda: {"digest": public}
    data = PublicData(dataset=[], collate=dict, identity=identity)
    return sub_fm_ingredients(tiny_fm("bert"), data, config) if can_be_cached(data, config) else None


def test_layers_count_by_what_they_mean():
    ways = [(0, 2), (2, 0), (-1, 0), (-3, -1, 2)]
    assert len({key_of(of("a", uncompressed_layers=way)) for way in ways}) == 1
    assert of("a", uncompressed_layers=(0,)) != of("a", uncompressed_layers=(1,))


def test_without_alignment_its_settings_and_the_public_data_do_not_count():
    none = of("a", layers={"kind": "none"})
    assert none["align_layers"] == {"kind": "none"}
    assert none == of("b", layers={"kind": "none", "num_steps": 7, "batch_size": 3}) == of(layers={"kind": "none"})


@pytest.mark.parametrize("scorer", ["activation", "greedy"])
def test_a_scorer_of_activations_reads_public_data_but_no_setting_of_an_alignment(scorer):
    def scored(public, batch_size):
        return of(public, scorer=scorer, layers={"kind": "none", "batch_size": batch_size})

    assert scored("a", 4) != scored("b", 4)
    assert scored("a", 4) == scored("a", 8)


def test_each_kind_of_alignment_counts_its_own_settings_alone():
    def aligned(kind, **settings):
        return of("a", layers={"kind": kind, "batch_size": 2} | settings)

    for kind in ("closed_form", "closed_form+distill"):
        assert aligned(kind, num_examples=9) != aligned(kind)
        assert aligned(kind, refit="bias") != aligned(kind)
        assert aligned(kind, batch_size=3) != aligned(kind)
    assert aligned("closed_form", num_steps=7, lr=0.5) == aligned("closed_form")
    assert aligned("closed_form+distill", num_steps=7) != aligned("closed_form+distill")
    assert aligned("closed_form+distill") != aligned("closed_form") != aligned("distill")


def test_a_new_kind_or_scorer_reads_everything(monkeypatch):
    monkeypatch.setattr(module_under_test, "SETTINGS_OF_KIND", {})
    monkeypatch.setattr(module_under_test, "DATA_FREE_SCORERS", frozenset())
    settings = of("a", layers={"kind": "none"})
    assert settings["align_layers"].keys() == {field.name for field in dataclasses.fields(LayerAlignConfig)}
    assert "public" in settings


def test_public_data_of_unknown_content_cannot_be_cached_where_it_is_read():
    assert of() is None
    assert of(scorer="activation", layers={"kind": "none"}) is None
    assert of(layers={"kind": "none"}) is not None


def test_of_fedot_the_kept_layers_and_the_distillation_count_and_no_setting_of_a_sub_fm():
    def drop(layers=(), public="a", **settings):
        fedot = {"name": "fedot", "adapter_layers": 1, "kept_layers": 3} | settings
        return of(public, layers={"kind": "distill"} | dict(layers), **fedot)

    base = drop()
    assert base["constructor"] == {"kept_layers": [0, 1, 2], "emulator": [1]}
    assert base == drop(scorer="greedy", retained_ratio=0.5) == drop({"product_weight": 0.5, "refit": "bias"})
    changed = [drop(kept_layers=2), drop({"num_steps": 7}), drop({"lr": 0.1}), drop({"kind": "none"}), drop(public="b")]
    assert base not in changed
    assert drop({"kind": "none"}) == drop({"kind": "none"}, public="b", scorer="greedy"), "no public data is read"
