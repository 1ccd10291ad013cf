"""Every setting of a run: frozen dataclasses, one per section of the YAML file.

Defaults < YAML < ``key=value`` overrides, merged once by OmegaConf (:func:`load_config`) and saved with the run. What
cannot work raises :class:`ConfigError` with the key, what was found and what is allowed, before any model loads.
"""

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union

from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException


class ConfigError(ValueError):
    """A setting that the user must change; the message is one line."""


def _require(condition: bool, key: str, found: object, allowed: str) -> None:
    if not condition:
        raise ConfigError(f"{key}: found {found!r}, allowed: {allowed}")


def _require_positive(section: str, config: object, *names: str) -> None:
    for name in names:
        _require(getattr(config, name) > 0, f"{section}.{name}", getattr(config, name), "a number > 0")


def _require_non_negative(section: str, config: object, *names: str) -> None:
    for name in names:
        _require(getattr(config, name) >= 0, f"{section}.{name}", getattr(config, name), "a number >= 0")


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Supervised pre-training of a `scratch://` FM on the labelled public data, by the server, before the run."""

    num_epochs: int = 0
    """Epochs over the public data; 0 leaves the FM at its random initialisation."""
    lr: float = 1e-3
    batch_size: int = 64


@dataclass(frozen=True, kw_only=True)
class FMConfig:
    """The server's foundation model."""

    path: str = "google-bert/bert-base-uncased"
    """Hub id, local folder, `package://module/sub/folder` (weights shipped in a Python package) or `scratch://model_type`."""
    max_length: int = 128
    """Longest text in tokens, special tokens included; longer texts are cut."""
    config: dict[str, Any] = field(default_factory=dict)
    """Fields of the transformers config to set: the architecture of a `scratch://` FM (`hidden_size: 64`), or what a
    loaded one should do differently (`hidden_dropout_prob: 0.0`)."""
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)

    def __post_init__(self) -> None:
        _require(bool(self.path), "fm.path", self.path, "hub id, folder, package://... or scratch://model_type")
        _require(self.max_length >= 8, "fm.max_length", self.max_length, "an integer >= 8")
        _require_non_negative("fm.pretrain", self.pretrain, "num_epochs")
        _require_positive("fm.pretrain", self.pretrain, "lr", "batch_size")


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """The labelled data that the clients own, and the evaluation set."""

    name: str = "sst2"
    """A row of `fedpft.data.tasks.TASKS`, or `custom` (then `path`, the columns and `label_column` describe it)."""
    path: str | None = None
    """Hub id, or a folder with `train.*` and `validation.*` files (parquet, csv, json) or an image folder."""
    text_columns: tuple[str, ...] = ()
    """One column, or two for sentence pairs; empty: those of the table row."""
    image_column: str | None = None
    label_column: str | None = None
    train_split: str | None = None
    eval_split: str | None = None
    max_train_examples: int | None = None
    """Use a random subset of the training data; None: all."""
    max_eval_examples: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_train_examples", "max_eval_examples"):
            value = getattr(self, name)
            _require(value is None or value > 0, f"task.{name}", value, "null or an integer > 0")
        if self.name == "custom":
            _require(self.path is not None, "task.path", self.path, "a hub id or folder, because task.name is custom")
            has_input = bool(self.text_columns) != bool(self.image_column)
            found = [*self.text_columns, self.image_column]
            _require(
                has_input, "task.text_columns / task.image_column", found, "exactly one of the two for a custom task"
            )
        _require(len(self.text_columns) <= 2, "task.text_columns", list(self.text_columns), "at most two columns")


@dataclass(frozen=True, kw_only=True)
class PublicConfig:
    """Unlabelled public data on which the server aligns the sub-FM with the FM."""

    name: str = "wikitext"
    """A row of `fedpft.data.public.CORPORA`, or `custom` (then `path` and a column describe it)."""
    path: str | None = None
    """Hub id, folder or file instead of the row's own."""
    text_column: str | None = None
    image_column: str | None = None
    chunk_length: int = 128
    """Text: tokens per chunk, special tokens included."""
    max_examples: int | None = None
    """Chunks or images used; None: all."""

    def __post_init__(self) -> None:
        _require(self.chunk_length >= 8, "public.chunk_length", self.chunk_length, "an integer >= 8")
        ok = self.max_examples is None or self.max_examples > 0
        _require(ok, "public.max_examples", self.max_examples, "null or an integer > 0")


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """How the FM becomes the proxy that clients tune."""

    name: Literal["fedpft"] = "fedpft"
    retained_ratio: float = 0.25
    """Neurons kept in every compressed FFN, a fraction in (0, 1]."""
    uncompressed_layers: tuple[int, ...] = ()
    """Layers whose FFN stays whole; negative numbers count from the last layer."""
    scorer: Literal["weight_norm", "activation", "random"] = "weight_norm"
    """Neuron saliency: the paper's `weight_norm`, data-dependent `activation`, or the `random` control."""

    def __post_init__(self) -> None:
        _require(0 < self.retained_ratio <= 1, "method.retained_ratio", self.retained_ratio, "a fraction in (0, 1]")


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """The adapter's low-rank part; defaults are the authors'."""

    rank: int = 8
    lora_alpha: int = 48
    dropout: float = 0.1
    target_modules: tuple[str, ...] = ()
    """Module name suffixes; empty: query, key, value and attention output of the FM's family."""

    def __post_init__(self) -> None:
        _require_positive("lora", self, "rank", "lora_alpha")
        _require(0 <= self.dropout < 1, "lora.dropout", self.dropout, "a fraction in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class LayerAlignConfig:
    """Layer-level alignment of the sub-FM with the FM, before federated learning."""

    kind: Literal["distill", "none"] = "distill"
    num_steps: int = 1000
    """Optimiser steps."""
    lr: float = 6e-4
    batch_size: int = 32
    product_weight: float = 0.01
    """Weight of the second loss term, the difference of `W_down @ W_up` (the paper's alpha)."""
    warmup_ratio: float = 0.048
    weight_decay: float = 0.01
    """On matrices only."""
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        _require_positive("align.layers", self, "num_steps", "lr", "batch_size", "max_grad_norm")
        _require_non_negative("align.layers", self, "product_weight", "weight_decay")
        _require(0 <= self.warmup_ratio < 1, "align.layers.warmup_ratio", self.warmup_ratio, "a fraction in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class NeuronAlignConfig:
    """Neuron-level alignment between rounds, of the neurons that the task uses least."""

    kind: Literal["distill", "none"] = "distill"
    interval: int = 10
    """Align after every round that is a multiple of this, except the last (the paper's t)."""
    update_ratio: float = 0.5
    """Fraction of each compressed layer's neurons that is updated (the paper's p)."""
    num_steps: int = 20
    lr: float = 6e-4
    batch_size: int = 32
    warmup_ratio: float = 0.048
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        _require_positive("align.neurons", self, "interval", "num_steps", "lr", "batch_size", "max_grad_norm")
        _require(0 < self.update_ratio <= 1, "align.neurons.update_ratio", self.update_ratio, "a fraction in (0, 1]")
        _require(0 <= self.warmup_ratio < 1, "align.neurons.warmup_ratio", self.warmup_ratio, "a fraction in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class AlignConfig:
    """Both alignments."""

    layers: LayerAlignConfig = field(default_factory=LayerAlignConfig)
    neurons: NeuronAlignConfig = field(default_factory=NeuronAlignConfig)


@dataclass(frozen=True, kw_only=True)
class PartitionConfig:
    """How the training data is dealt out to the clients."""

    kind: Literal["iid", "dirichlet", "shards", "natural"] = "iid"
    dirichlet_alpha: float = 1.0
    """Concentration of the clients' label laws."""
    concentration: Literal["total", "per_label"] = "total"
    """`total`: Dir(dirichlet_alpha * p), p the global label law (the paper); `per_label`: Dir(dirichlet_alpha * 1)."""
    labels_per_client: int = 2
    """For `shards`."""
    column: str | None = None
    """For `natural`: the column whose values are the owners."""
    size_imbalance: float = 0.0
    """Sigma of the log-normal law of client sizes; 0: equal sizes. Not for `natural`."""

    def __post_init__(self) -> None:
        _require_positive("federated.partition", self, "dirichlet_alpha", "labels_per_client")
        _require_non_negative("federated.partition", self, "size_imbalance")
        if self.kind == "natural":
            _require(self.column is not None, "federated.partition.column", None, "a column name for kind natural")


@dataclass(frozen=True, kw_only=True)
class FederatedConfig:
    """Clients, rounds and local training; local defaults are the authors'."""

    num_clients: int = 100
    rounds: int = 100
    clients_per_round: int = 10
    sampling: Literal["uniform", "md", "full"] = "uniform"
    """`uniform` without replacement; `md` by data volume with replacement; `full`: everyone."""
    aggregation: Literal["weighted", "uniform"] = "weighted"
    """Weights of the mean: examples of each client, or equal."""
    local_epochs: int = 1
    batch_size: int = 4
    lr: float = 8e-4
    head_lr_ratio: float = 1.0
    """Learning rate of the task head over `lr`; above 1 helps a new head on an FM whose pooled features are small."""
    lr_schedule: Literal["constant", "exponential", "inverse", "linear"] = "linear"
    """Over rounds; within a round the rate is constant."""
    lr_decay: float = 0.95
    """Factor per round of the `exponential` schedule."""
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    partition: PartitionConfig = field(default_factory=PartitionConfig)

    def __post_init__(self) -> None:
        names = ("num_clients", "rounds", "clients_per_round", "local_epochs", "batch_size", "lr")
        _require_positive("federated", self, *names, "head_lr_ratio", "max_grad_norm")
        _require_non_negative("federated", self, "weight_decay")
        _require(0 < self.lr_decay <= 1, "federated.lr_decay", self.lr_decay, "a fraction in (0, 1]")
        if self.sampling == "uniform":
            allowed = f"at most federated.num_clients = {self.num_clients}"
            _require(
                self.clients_per_round <= self.num_clients,
                "federated.clients_per_round",
                self.clients_per_round,
                allowed,
            )


@dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """Where the clients run."""

    kind: Literal["ray", "sequential"] = "ray"
    """`ray`: actors; `sequential`: in the driver's process, one after the other, with the same result."""
    actors: Union[int, str] = "auto"  # noqa: UP007 - OmegaConf reads this form
    """`auto`: as many as fit; `per_client`: one for each sampled client; or a number."""
    cpus_per_actor: float = 1.0
    gpus_per_actor: float = 0.0
    threads_per_client: int = 1
    """Torch threads while a client trains; part of the numerics, so equal for every pool."""
    address: str | None = None
    """Ray cluster: null starts one on this machine, `auto` joins the running one, or `ray://host:port`."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """Lightning precision of local training (no float16: its gradient scaler would carry over between clients)."""
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of local training: `auto` takes the GPU that the actor was given, or any GPU for `sequential`."""

    def __post_init__(self) -> None:
        ok = self.actors in ("auto", "per_client") or (isinstance(self.actors, int) and self.actors > 0)
        _require(ok, "pool.actors", self.actors, "auto, per_client or an integer > 0")
        _require_non_negative("pool", self, "gpus_per_actor")
        _require_positive("pool", self, "cpus_per_actor", "threads_per_client")


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """The driver's own work: construction, alignment, evaluation."""

    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    num_threads: int | None = None
    """Torch threads of the driver; null: one per core."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """When and how models are evaluated, always on the whole evaluation set."""

    interval: int = 5
    """Evaluate after every round that is a multiple of this, and after the last."""
    batch_size: int = 64

    def __post_init__(self) -> None:
        _require_positive("evaluation", self, "interval", "batch_size")


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Weights & Biases; `rounds.jsonl` and `result.json` are written whatever this says."""

    wandb: Literal["offline", "online", "disabled"] = "offline"
    project: str = "fedpft"
    entity: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run."""

    name: str = "fedpft"
    seed: int = 42
    output_dir: str = "outputs/${name}"
    fm: FMConfig = field(default_factory=FMConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    public: PublicConfig = field(default_factory=PublicConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    align: AlignConfig = field(default_factory=AlignConfig)
    federated: FederatedConfig = field(default_factory=FederatedConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        _require(self.seed >= 0, "seed", self.seed, "an integer >= 0")


def doubtful_settings(config: Config) -> list[str]:
    """Return one line for each setting that changes nothing in this run, or hardly what its author wants."""
    federated, neurons, lines = config.federated, config.align.neurons, []
    if neurons.kind != "none" and neurons.interval >= federated.rounds:
        lines.append(
            f"align.neurons.interval = {neurons.interval} has no effect with federated.rounds = {federated.rounds}: "
            "the sub-FM is re-aligned after every round that is a multiple of it, except the last"
        )
    if federated.sampling == "full" and federated.clients_per_round != federated.num_clients:
        lines.append("federated.clients_per_round has no effect with federated.sampling = full")
    if federated.sampling == "md" and federated.aggregation == "weighted":
        lines.append(
            "federated.sampling = md already draws by data volume: aggregation = uniform is its unbiased partner"
        )
    if config.pool.kind == "sequential" and config.pool.actors != "auto":
        lines.append("pool.actors has no effect with pool.kind = sequential")
    return lines


def config_keys() -> list[str]:
    """Return every dotted key that a config file or override may set."""
    return [key for key, section in _walk(Config) if section is None]


def _walk(config_class: type, prefix: str = "") -> Iterator[tuple[str, type | None]]:
    """Yield every dotted key, with its dataclass if it is a section."""
    for entry in fields(config_class):
        section = entry.default_factory if is_dataclass(entry.default_factory) else None
        assert section is None or isinstance(section, type)
        yield prefix + entry.name, section
        if section is not None:
            yield from _walk(section, f"{prefix}{entry.name}.")


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Merge defaults, a YAML file and ``key=value`` overrides into a validated :class:`Config`.

    Raises:
        ConfigError: unreadable file, unknown key, wrong type or a value out of range, in one line.

    """
    for item in overrides:
        if "=" not in item.lstrip("="):
            raise ConfigError(f"override {item!r}: allowed: key=value, e.g. federated.rounds=4")
    try:
        layers = [OmegaConf.load(path)] if path is not None else []
        if layers and not OmegaConf.is_dict(layers[0]):
            raise ConfigError(f"{path}: found a list, allowed: sections and keys such as `federated: {{rounds: 4}}`")
        layers.append(OmegaConf.from_dotlist(list(overrides)))
        merged = OmegaConf.merge(OmegaConf.structured(Config), *layers)
        config = OmegaConf.to_object(merged)
    except FileNotFoundError:
        raise ConfigError(f"config file {str(path)!r}: not found") from None
    except ConfigError:
        raise
    except Exception as error:  # OmegaConf and YAML errors carry many lines; the user gets the first
        raise ConfigError(_one_line(error, path)) from None
    assert isinstance(config, Config)
    return config


def dump_config(config: Config) -> str:
    """Return the resolved config as YAML that :func:`load_config` reads back to an equal config."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _one_line(error: Exception, path: str | Path | None) -> str:
    key = getattr(error, "full_key", None) or ""
    if isinstance(error, ConfigKeyError):
        close = difflib.get_close_matches(key, [known for known, _ in _walk(Config)], n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else f"known sections: {', '.join(f.name for f in fields(Config))}"
        return f"{key}: unknown key; {hint}"
    first = str(error).splitlines()[0]
    if match := re.search(r"not a subclass of (\w+). value: (.*)", first):
        section = next(key for key, kind in _walk(Config) if kind and kind.__name__ == match[1])
        return f"{section}: found {match[2]!r}, allowed: a section with keys of its own"
    if isinstance(error, OmegaConfBaseException):
        return f"{key or path or 'overrides'}: {first}"
    return f"{path}: not readable as YAML: {' '.join(str(error).split())}"
