"""All on which a constructed and layer-aligned sub-FM depends, bit for bit, and no more: what its cache key hashes.

What a new scorer or kind of alignment reads is assumed to be everything, until a row here says less.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from transformers import PreTrainedModel

from fedpft.align.public import PublicData
from fedpft.config import Config, LayerAlignConfig, MethodConfig
from fedpft.config.method import SCORER_NAMES
from fedpft.config.unread import is_read
from fedpft.construct.block_influence import num_kept
from fedpft.construct.compress import resolve_layers
from fedpft.construct.layer_drop import choose_layers
from fedpft.devices import is_spread
from fedpft.models.digest import backbone_digest
from fedpft.models.ffn import find_ffns
from fedpft.storage.output import package_versions
from fedpft.trainer import device_kind

CACHE_FORMAT = 2
"""Raise it with every change of the code after which equal ingredients give another sub-FM or another entry."""

PACKAGES = ("fedpft", "torch", "transformers", "lightning", "pillow")
"""Their code computes the bits."""

DATA_FREE_SCORERS = frozenset({"weight_norm", "random"})
"""Scorers that read no public data."""

_REGRESSION = ("num_examples", "refit")
_DESCENT = ("num_steps", "lr", "product_weight", "warmup_ratio", "weight_decay", "max_grad_norm")

SETTINGS_OF_KIND: Mapping[str, tuple[str, ...]] = {
    "none": (),
    "closed_form": ("batch_size", *_REGRESSION),
    "distill": ("batch_size", *_DESCENT),
}
"""`align.layers.kind` -> the other settings of the section that it reads; a kind without a row reads all."""


def can_be_cached(public: PublicData, config: Config) -> bool:
    """Whether everything that the sub-FM depends on is known; the code of a method or scorer of others is not."""
    if config.method.is_own or config.method.scorer not in SCORER_NAMES:
        return False
    return public.identity is not None or not _reads_public_data(config)


def sub_fm_ingredients(fm: PreTrainedModel, public: PublicData, config: Config) -> dict[str, Any]:
    """Return what the sub-FM depends on, as JSON: contents by their digests, settings by their values.

    Of the FM only the backbone counts: construction and alignment do not read the head.
    """
    installed = package_versions()
    ingredients = {
        "format": CACHE_FORMAT,
        "fm": {"model_type": fm.config.model_type, "digest": backbone_digest(fm)},
        "constructor": _constructor(config.method, len(find_ffns(fm))),
        "align_layers": _settings_read(config.align.layers, config.method.name),
        "seed": config.server_seed,
        "arithmetic": {
            "device": device_kind(config.server),
            "precision": config.server.precision,
            "matmul_precision": config.server.matmul_precision,
            "deterministic": config.server.deterministic,
            "num_threads": torch.get_num_threads(),
            **_devices(config, fm),
            **({} if config.fm.dtype == "float32" else {"fm_dtype": config.fm.dtype}),
        },
        "versions": {name: installed[name] for name in PACKAGES},
    }
    if _reads_public_data(config):
        assert public.identity is not None, "can_be_cached says so"
        ingredients["public"] = public.identity()
    return ingredients


def _devices(config: Config, fm: PreTrainedModel) -> dict[str, Any]:
    """Return what a distillation's bits depend on: every GPU draws a dropout of its own."""
    if "distill" not in config.align.layers.kind:
        return {}
    if is_spread(fm):
        return {"layers_on": [next(ffn.layer.parameters()).device.index for ffn in find_ffns(fm)]}
    return {"devices": config.server.devices} if config.server.devices > 1 else {}


def _constructor(method: MethodConfig, num_layers: int) -> dict[str, Any]:
    if method.name == "fedot":
        layer_map = choose_layers(num_layers, adapter_layers=method.adapter_layers, kept_layers=method.kept_layers)
        return {"kept_layers": list(layer_map.kept), "emulator": list(layer_map.emulator)}
    if method.name == "fedproxy":
        return {"least_influence": num_layers - num_kept(num_layers, method.kept_layers)}
    uncompressed = sorted(resolve_layers(method.uncompressed_layers, num_layers))
    return {
        "scorer": method.scorer,
        "retained_ratio": method.retained_ratio,
        "uncompressed_layers": uncompressed,
    }


def _reads_public_data(config: Config) -> bool:
    if config.method.name == "fedproxy":
        return True  # the influence of layers is measured on them
    scores = config.method.name == "fedpft" and config.method.scorer not in DATA_FREE_SCORERS
    return scores or config.align.layers.kind != "none"


def _settings_read(layers: LayerAlignConfig, method: str) -> dict[str, Any]:
    settings = asdict(layers)
    names = ("kind", *SETTINGS_OF_KIND.get(layers.kind, settings))
    return {name: settings[name] for name in names if is_read(f"align.layers.{name}", method)}
