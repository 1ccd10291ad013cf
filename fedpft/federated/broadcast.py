"""From the run's settings, proxy and data to what is broadcast to every place that plays clients."""

from dataclasses import replace

from fedpft.config import Config
from fedpft.data.datamodule import FederatedData
from fedpft.federated.adversary.clients import Adversaries
from fedpft.federated.adversary.poison import poisoned
from fedpft.federated.client_ranks import client_ranks
from fedpft.federated.messages import LocalSettings
from fedpft.federated.package import ClientPackage
from fedpft.federated.step_costs import StepCosts
from fedpft.methods.base import Proxy
from fedpft.models.weights import pack_model
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
        proxy=pack_model(proxy.model),
        watched_layers=proxy.watched_layers,
        train=train,
        partition=partition,
        collate=data.collate,
        settings=replace(local_settings(config), example_noise=example_noise),
        ranks=client_ranks(config, partition.num_clients),
        step_costs=step_costs,
    )


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
