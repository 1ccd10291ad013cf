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
    """`fedpft`: a sub-FM of compressed FFNs (its ablations are settings of `align`); `fedot`: offsite tuning, a proxy
    of fewer layers; `fedproxy`: a proxy without the layers of least influence, with LoRA on all that are left; `full`:
    FedPETuning, clients tune the FM itself; or one of others, `module:Class` or a plug-in's name, with the protocol
    `fedpft.methods.base.Method`, whose sub-FMs are never cached."""
    retained_ratio: float = 0.25
    """`fedpft`: neurons kept in every compressed FFN, a fraction in (0, 1]."""
    uncompressed_layers: tuple[int, ...] = ()
    """`fedpft`: layers whose FFN stays whole; negative numbers count from the last layer."""
    scorer: str = "weight_norm"
    """`fedpft`: neuron saliency, the paper's `weight_norm`; on public data, `activation`, or `greedy` elimination of
    what others can take over; the `random` control; or one of others, `module:function` or a plug-in's name, whose
    sub-FMs are never cached."""
    adapter_layers: int = 2
    """`fedot`: layers at either end of the FM that carry the adapter; no other layer has LoRA."""
    kept_layers: int | None = None
    """`fedot`, `fedproxy`: layers of the proxy; of `fedot` the adapter's are among them, the others are its frozen
    emulator. null: 7 of 12, the paper's budget."""
    plug_in: Literal["copy", "distill"] = "copy"
    """How the tuned adapter gets back into the FM: its values as they are (the paper), or these as the start of a few
    label-free steps on public data towards the tuned proxy's outputs (`align.adapter`). `full` has nothing to carry."""

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
    """Inner size of the two matrices, r."""
    ranks: tuple[int, ...] = ()
    """Of the clients, none above `rank`: dealt out in turn in an order that the clients' seed draws, so [8, 2, 2] gives
    a third of them 8; empty: `rank` for all. Needs `federated.lora_aggregation: svd`."""
    lora_alpha: int = 48
    """Their product is multiplied by `lora_alpha / rank`."""
    dropout: float = 0.1
    """Probability of dropping an input of LoRA in training."""
    target_modules: tuple[str, ...] = ()
    """Module name suffixes; empty: query, key, value and attention output of the FM's family."""

    def __post_init__(self) -> None:
        require_positive("lora", self, "rank", "lora_alpha")
        ok = all(1 <= rank <= self.rank for rank in self.ranks)
        require(ok, "lora.ranks", list(self.ranks), f"integers from 1 to lora.rank = {self.rank}")
        require(0 <= self.dropout < 1, "lora.dropout", self.dropout, "a fraction in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class LayerAlignConfig:
    """Layer-level alignment of the sub-FM with the FM, before federated learning."""

    kind: Literal["distill", "closed_form", "closed_form+distill", "none"] = "distill"
    """`distill`: gradient descent (the paper); `closed_form`: ridge regression of every down projection, in seconds.
    Of `fedot`, the emulator is distilled; `full` has nothing to align."""
    num_examples: int = 400
    """`closed_form`: public examples read, drawn by the seed; their hidden states are held in memory."""
    refit: Literal["down", "bias"] = "down"
    """`closed_form`: the whole down projection, or only its bias; with it the closing LayerNorm of post-LN families."""
    num_steps: int = 1000
    """`distill`: optimiser steps."""
    lr: float = 6e-4
    """`distill`: the highest learning rate, after the warm-up; it then falls linearly to 0."""
    batch_size: int = 32
    """Public examples at a time."""
    product_weight: float = 0.01
    """Weight of the second loss term, the difference of `W_down @ W_up` (the paper's alpha)."""
    warmup_ratio: float = 0.048
    """`distill`: part of the steps in which the learning rate rises."""
    weight_decay: float = 0.01
    """On matrices only."""
    max_grad_norm: float = 1.0
    """`distill`: gradients of a larger norm are scaled down to it."""

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
    """`distill`: gradient descent (the paper); `closed_form`: a regression of the chosen columns of `W_down`."""
    interval: int = 10
    """Align after every round that is a multiple of this, except the last (the paper's t)."""
    update_ratio: float = 0.5
    """Fraction of each compressed layer's neurons that is updated (the paper's p)."""
    counts: Literal["auto", "clients", "public"] = "auto"
    """On whose data it is counted which neurons are used least: the clients', while they train (the paper), or the
    public data, on the server, with the adapter of the round, which tells nothing of a client. `auto`: `clients`, and
    `public` in a run with `privacy.kind`."""
    num_examples: int = 200
    """`closed_form`: public examples read, others each time."""
    num_steps: int = 20
    """`distill`: optimiser steps."""
    lr: float = 6e-4
    """`distill`: the highest learning rate, after the warm-up; it then falls linearly to 0."""
    batch_size: int = 32
    """Public examples at a time."""
    warmup_ratio: float = 0.048
    """`distill`: part of the steps in which the learning rate rises."""
    max_grad_norm: float = 1.0
    """`distill`: gradients of a larger norm are scaled down to it."""

    def __post_init__(self) -> None:
        require_positive("align.neurons", self, "interval", "num_steps", "lr", "batch_size", "max_grad_norm")
        require_repeats("align.neurons", self, "num_steps")
        _require_two_batches("align.neurons", self)
        require(0 < self.update_ratio <= 1, "align.neurons.update_ratio", self.update_ratio, "a fraction in (0, 1]")
        require(0 <= self.warmup_ratio < 1, "align.neurons.warmup_ratio", self.warmup_ratio, "a fraction in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class AdapterAlignConfig:
    """Distillation of the FM's adapter towards the tuned proxy, on the server: `method.plug_in = distill`."""

    num_steps: int = 120
    """Optimiser steps, at every evaluation of the plugged-in FM."""
    lr: float = 3e-4
    """The first; it falls linearly to 0."""
    batch_size: int = 16
    """Public examples of a step."""
    held_out_examples: int = 256
    """Public examples, none of them trained on, on which the new adapter must be nearer to the proxy than the copied
    one, or the copied one stays; at most a quarter of the public data."""
    max_grad_norm: float = 1.0
    """Gradients of a larger norm are scaled down to it."""

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
