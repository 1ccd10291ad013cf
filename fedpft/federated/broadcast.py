"""From the run's settings, proxy and data to what is broadcast to every place that plays clients."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from fedpft.config import Config
from fedpft.data.datamodule import FederatedData
from fedpft.federated.adversary.clients import Adversaries
from fedpft.federated.adversary.poison import poisoned
from fedpft.federated.client_ranks import client_ranks
from fedpft.federated.messages import LocalSettings
from fedpft.federated.package import ClientPackage
from fedpft.federated.step_costs import StepCosts
from fedpft.methods.base import Proxy
from fedpft.models.lora import AdaptedModel
from fedpft.models.quantize import pack_quantized, quantizable, quantize_changes
from fedpft.models.quantized_linear import QuantKind, check_quantizer
from fedpft.models.weights import PackedModel, pack_model
from fedpft.privacy.dp_sgd import ExampleNoise
from fedpft.trainer import accelerator


def client_package(
    config: Config,
    proxy: Proxy,
    data: FederatedData,
    step_costs: StepCosts | None = None,
    adversaries: Adversaries | None = None,
    example_noise: ExampleNoise | None = None,
) -> ClientPackage:
    """Return what goes to the clients before the first round: the proxy and the data, nothing of the FM.

    Of adversaries the data are spoilt, if that is what they do.
    """
    train, partition = poisoned(config, data, adversaries)
    return ClientPackage(
        proxy=packed_proxy(config, proxy.model),
        watched_layers=proxy.watched_layers,
        train=train,
        partition=partition,
        collate=data.collate,
        settings=replace(local_settings(config), example_noise=example_noise),
        ranks=client_ranks(config, partition.num_clients),
        step_costs=step_costs,
    )


def packed_proxy(config: Config, model: AdaptedModel) -> PackedModel:
    """Return a proxy as clients hold it.

    Raises:
        ConfigError: `pool.quantize` asks for what cannot be done here.

    """
    kind = quant_kind(config)
    return pack_model(model) if kind is None else pack_quantized(model, kind)


def packed_changes(config: Config, model: AdaptedModel, weights: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """Return changed weights of a proxy as clients take them over."""
    kind = quant_kind(config)
    return weights if kind is None else quantize_changes(model, weights, kind)


def check_quantize(config: Config) -> None:
    """Refuse `pool.quantize` where this machine cannot do it, before any actor starts.

    The server quantises on a CPU, and `sequential` clients compute here; actors look for themselves.

    Raises:
        ConfigError: names the setting and what to install.

    """
    kind, pool = quant_kind(config), config.pool
    if kind is not None:
        check_quantizer(kind)
        if pool.kind == "sequential":
            check_quantizer(kind, accelerator(pool.accelerator))


def quantized_lines(config: Config, model: AdaptedModel) -> list[str]:
    """Return a line on what `pool.quantize` leaves of a proxy, which may be on the meta device; none without it."""
    kind = quant_kind(config)
    if kind is None:
        return []
    before, after = (
        sum(p.nbytes for p in m.parameters() if not p.requires_grad)
        for m in (model, packed_proxy(config, model).skeleton)
    )
    layers = quantizable(model)
    return [
        f"pool.quantize = {kind}: of {before / 1e6:.1f} MB of frozen weights {after / 1e6:.1f} MB are sent and held by "
        f"clients: {len(layers)} linear layers in few bits, embeddings and all else as they are"
    ]


def quant_kind(config: Config) -> QuantKind | None:
    """Return in what clients hold frozen weights; None: as the server does."""
    return None if config.pool.quantize == "none" else config.pool.quantize


def local_settings(config: Config) -> LocalSettings:
    """Return what every client is told about local training."""
    device = config.pool.accelerator
    if device == "auto" and config.pool.kind == "ray":
        device = "cuda" if config.pool.gpu_claim else "cpu"  # an actor uses a GPU only if it was given one
    return LocalSettings(
        seed=config.seed,
        num_epochs=config.federated.local_epochs,
        batch_size=config.federated.batch_size,
        head_lr_ratio=config.federated.head_lr_ratio,
        weight_decay=config.federated.weight_decay,
        max_grad_norm=config.federated.max_grad_norm,
        num_threads=config.pool.threads_per_client,
        precision=config.pool.precision,
        accelerator=accelerator(device),
        frozen_dtype=config.fm.dtype,
        recomputes=config.federated.gradient_checkpointing,
        accumulate=config.federated.accumulate,
        client=config.federated.client,
        clients_per_batch=config.pool.clients_per_batch,  # type: ignore[arg-type]  # a str is `auto`
    )
