"""Settings of the method: compression, adapter, alignments."""

from dataclasses import dataclass, field
from typing import Literal

from fedpft.config.checks import (
    require,
    require_non_negative,
    require_positive,
    require_positive_or_none,
    require_repeats,
)
from fedpft.config.plugins import is_own

METHOD_NAMES = ("fedpft", "fedot", "fedproxy", "full")
"""The methods that come with this package; all that a `Literal` would say, were it not for those of others."""

SCORER_NAMES = ("weight_norm", "activation", "greedy", "random")
"""The scorers that come with this package."""


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """How the FM becomes the proxy that clients tune."""

    name: str = "fedpft"
    """How the FM becomes a proxy. `fedpft` makes a sub-FM with compressed FFNs (its ablations are settings of `align`).
    `fedot` is offsite tuning with a proxy of fewer layers. `fedproxy` is a proxy without the layers of least influence,
    with LoRA on all that are left. `full` is FedPETuning: clients tune the FM itself. A method of your own is
    `module:Class` or a plug-in's name, with the protocol `fedpft.methods.base.Method`; its sub-FMs are never cached."""
    retained_ratio: float = 0.25
    """With `fedpft`, the fraction of neurons that each compressed FFN keeps, in (0, 1]."""
    uncompressed_layers: tuple[int, ...] = ()
    """With `fedpft`, the layers whose FFN stays whole. Negative numbers count from the last layer."""
    scorer: str = "weight_norm"
    """With `fedpft`, how neurons are ranked before the least important ones are removed. `weight_norm` is the paper's.
    `activation` reads public data, and so does `greedy`, which removes the neurons that others can best replace.
    `random` is a control. A scorer of your own is `module:function` or a plug-in's name; its sub-FMs are never
    cached."""
    adapter_layers: int = 2
    """With `fedot`, how many layers at each end of the FM carry the adapter. No other layer has LoRA."""
    kept_layers: int | None = None
    """With `fedot` and `fedproxy`, how many layers the proxy has. With `fedot` the adapter's are among them, and the
    others are its frozen emulator. null keeps 7 of 12 layers, the paper's budget."""
    plug_in: Literal["auto", "copy", "distill"] = "auto"
    """How the tuned adapter gets back into the FM. `copy` takes its values as they are (the paper). `distill` starts
    from them and makes a few label-free steps on public data towards the tuned proxy's outputs (`align.adapter`).
    `auto` distils with `fedpft` where no neurons are aligned between rounds, so that nobody has brought the sub-FM near
    to the FM since the adapter began to move, and copies otherwise. With `full` there is nothing to carry back."""

    def __post_init__(self) -> None:
        known = self.name in METHOD_NAMES or self.is_own
        require(known, "method.name", self.name, f"{', '.join(METHOD_NAMES)}, module:Class or a plug-in's name")
        require(0 < self.retained_ratio <= 1, "method.retained_ratio", self.retained_ratio, "a fraction in (0, 1]")
        known = self.scorer in SCORER_NAMES or is_own("scorer", self.scorer)
        require(known, "method.scorer", self.scorer, f"{', '.join(SCORER_NAMES)}, module:function or a plug-in's name")
        require_positive("method", self, "adapter_layers")
        fewest = 2 * self.adapter_layers
        if self.name == "fedproxy":
            require_positive_or_none("method", self, "kept_layers")
            return
        enough = self.kept_layers is None or self.kept_layers >= fewest
        require(enough, "method.kept_layers", self.kept_layers, f"null or an integer >= 2 * adapter_layers = {fewest}")

    @property
    def is_own(self) -> bool:
        """Whether `name` is that of a method of others."""
        return self.name not in METHOD_NAMES and is_own("method", self.name)


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """The adapter's low-rank part; defaults are the authors'."""

    rank: int = 8
    """The inner size r of LoRA's two matrices."""
    ranks: tuple[int, ...] = ()
    """Ranks of the clients, none above `rank`. They are dealt out in turn, in an order that the clients' seed draws:
    [8, 2, 2] gives a third of the clients rank 8. An empty list gives all of them `rank`. Needs
    `federated.lora_aggregation: svd`."""
    lora_alpha: int = 48
    """Scale of LoRA: the product of its matrices is multiplied by `lora_alpha / rank`."""
    dropout: float = 0.1
    """Probability that an input of LoRA is dropped in training."""
    target_modules: tuple[str, ...] = ()
    """Suffixes of the names of modules that get LoRA. An empty list takes query, key, value and attention output of the
    FM's family; `all-linear` takes these and the FFNs. On FFNs, the neurons that clients have carry LoRA; in the FM the
    others stay as they were."""

    def __post_init__(self) -> None:
        require_positive("lora", self, "rank", "lora_alpha")
        ok = all(1 <= rank <= self.rank for rank in self.ranks)
        require(ok, "lora.ranks", list(self.ranks), f"integers from 1 to lora.rank = {self.rank}")
        require(0 <= self.dropout < 1, "lora.dropout", self.dropout, "a fraction in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class LayerAlignConfig:
    """Layer-level alignment of the sub-FM with the FM, before federated learning."""

    kind: Literal["distill", "closed_form", "closed_form+distill", "none"] = "distill"
    """How the sub-FM is aligned. `distill` is gradient descent (the paper); `closed_form` is a ridge regression of
    every down projection, which takes seconds. With the method `fedot` the emulator is distilled; with `full` there is
    nothing to align."""
    num_examples: int = 400
    """With `closed_form`, how many public examples are read; the seed draws which. Their hidden states lie in temporary
    files while it works."""
    refit: Literal["down", "bias"] = "down"
    """With `closed_form`, what is fitted: the whole down projection (`down`), or its bias only (`bias`). In post-LN
    families the closing LayerNorm is fitted as well."""
    num_steps: int = 1000
    """With `distill`, the number of optimiser steps."""
    lr: float = 6e-4
    """With `distill`, the highest learning rate. It is reached after the warm-up and then falls linearly to 0."""
    batch_size: int = 32
    """How many public examples are read at a time."""
    product_weight: float = 0.01
    """Weight of the loss's second term, the difference of the products `W_down @ W_up` (the paper's alpha)."""
    warmup_ratio: float = 0.048
    """With `distill`, the fraction of the steps in which the learning rate rises."""
    weight_decay: float = 0.01
    """Weight decay of matrices; biases and norms have none."""
    max_grad_norm: float = 1.0
    """With `distill`, gradients with a larger norm are scaled down to it."""

    def __post_init__(self) -> None:
        require_positive("align.layers", self, "num_steps", "lr", "batch_size", "max_grad_norm")
        require_repeats("align.layers", self, "num_steps")
        _require_two_batches("align.layers", self)
        require_non_negative("align.layers", self, "product_weight", "weight_decay")
        require(0 <= self.warmup_ratio < 1, "align.layers.warmup_ratio", self.warmup_ratio, "a fraction in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class NeuronAlignConfig:
    """Neuron-level alignment between rounds, of the neurons that the task uses least."""

    kind: Literal["distill", "closed_form", "none"] = "distill"
    """How the neurons are aligned. `distill` is gradient descent (the paper); `closed_form` is a regression of the
    chosen columns of `W_down`."""
    interval: int = 10
    """Align after every round that is a multiple of this, except the last (the paper's t)."""
    update_ratio: float = 0.5
    """Fraction of each compressed layer's neurons that is updated (the paper's p)."""
    counts: Literal["auto", "clients", "public"] = "auto"
    """Whose data show which neurons are used least. `clients` counts on the clients' data while they train (the paper).
    `public` counts on the public data, on the server, with the round's adapter, which tells nothing about a client.
    `auto` takes `clients`, and `public` in a run with `privacy.kind`."""
    num_examples: int = 200
    """With `closed_form`, how many public examples are read, others each time."""
    num_steps: int = 20
    """With `distill`, the number of optimiser steps."""
    lr: float = 6e-4
    """With `distill`, the highest learning rate. It is reached after the warm-up and then falls linearly to 0."""
    batch_size: int = 32
    """How many public examples are read at a time."""
    warmup_ratio: float = 0.048
    """With `distill`, the fraction of the steps in which the learning rate rises."""
    max_grad_norm: float = 1.0
    """With `distill`, gradients with a larger norm are scaled down to it."""

    def __post_init__(self) -> None:
        require_positive("align.neurons", self, "interval", "num_steps", "lr", "batch_size", "max_grad_norm")
        require_repeats("align.neurons", self, "num_steps")
        _require_two_batches("align.neurons", self)
        require(0 < self.update_ratio <= 1, "align.neurons.update_ratio", self.update_ratio, "a fraction in (0, 1]")
        require(0 <= self.warmup_ratio < 1, "align.neurons.warmup_ratio", self.warmup_ratio, "a fraction in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class AdapterAlignConfig:
    """Distillation of the FM's adapter towards the tuned proxy, on the server, where `method.plug_in` asks for it."""

    num_steps: int = 120
    """How many optimiser steps are made at every evaluation of the plugged-in FM."""
    lr: float = 3e-4
    """The first learning rate. It falls linearly to 0."""
    batch_size: int = 16
    """How many public examples each step takes."""
    held_out_examples: int = 256
    """How many public examples decide whether the new adapter is used: on them it must be closer to the proxy than the
    copied one, or the copied one stays. They are not trained on, and are at most a quarter of the public data."""
    max_grad_norm: float = 1.0
    """Gradients with a larger norm are scaled down to it."""

    def __post_init__(self) -> None:
        require_positive("align.adapter", self, "num_steps", "lr", "batch_size", "held_out_examples", "max_grad_norm")
        require_repeats("align.adapter", self, "num_steps")


def _require_two_batches(section: str, config: LayerAlignConfig | NeuronAlignConfig) -> None:
    if "closed_form" in config.kind:
        allowed = f"more than {section}.batch_size = {config.batch_size}: a second batch chooses the ridge"
        require(config.num_examples > config.batch_size, f"{section}.num_examples", config.num_examples, allowed)


@dataclass(frozen=True, kw_only=True)
class AlignConfig:
    """All alignments."""

    layers: LayerAlignConfig = field(default_factory=LayerAlignConfig)
    neurons: NeuronAlignConfig = field(default_factory=NeuronAlignConfig)
    adapter: AdapterAlignConfig = field(default_factory=AdapterAlignConfig)


_ABLATIONS = {(False, False): "fedpft_n", (True, False): "fedpft_b", (False, True): "fedpft_d", (True, True): "fedpft"}
"""(layers aligned before federated learning, neurons aligned during it) -> the paper's name."""


def reported_name(method: MethodConfig, align: AlignConfig) -> str:
    """Return what results call the method: an ablation of FedPFT is a setting of `align`; of an own one, its class."""
    if method.name != "fedpft":
        return method.name.rpartition(":")[2]
    return _ABLATIONS[align.layers.kind != "none", align.neurons.kind != "none"]
