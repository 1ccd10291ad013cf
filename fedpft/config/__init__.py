"""Every setting of a run: frozen dataclasses, one per section of the YAML file, each field with its meaning.

What cannot work raises :class:`ConfigError` with the key, what was found and what is allowed, before any model loads.
"""

from fedpft.config.adversary import AdversaryConfig
from fedpft.config.algorithms import AggregatorConfig, LoraAggregation, ServerOptimiserConfig
from fedpft.config.checks import ConfigError
from fedpft.config.client import ClientConfig
from fedpft.config.compare import changed_settings
from fedpft.config.data import FMConfig, PretrainConfig, PublicConfig, TaskConfig
from fedpft.config.doubtful import doubtful_settings
from fedpft.config.federated import FederatedConfig, PartitionConfig
from fedpft.config.loading import config_keys, dump_config, load_config, resolved
from fedpft.config.method import (
    AdapterAlignConfig,
    AlignConfig,
    LayerAlignConfig,
    LoraConfig,
    MethodConfig,
    NeuronAlignConfig,
    reported_name,
)
from fedpft.config.pool import PoolConfig
from fedpft.config.privacy import PrivacyConfig
from fedpft.config.run import (
    CacheConfig,
    CheckpointConfig,
    Config,
    EvaluationConfig,
    ServerConfig,
)
from fedpft.config.stop import StopConfig
from fedpft.config.tracking import TrackingConfig
from fedpft.metrics.table import TaskKind

__all__ = [
    "AdapterAlignConfig",
    "AdversaryConfig",
    "AggregatorConfig",
    "AlignConfig",
    "CacheConfig",
    "CheckpointConfig",
    "ClientConfig",
    "Config",
    "ConfigError",
    "EvaluationConfig",
    "FMConfig",
    "FederatedConfig",
    "LayerAlignConfig",
    "LoraAggregation",
    "LoraConfig",
    "MethodConfig",
    "NeuronAlignConfig",
    "PartitionConfig",
    "PoolConfig",
    "PretrainConfig",
    "PrivacyConfig",
    "PublicConfig",
    "ServerConfig",
    "ServerOptimiserConfig",
    "StopConfig",
    "TaskConfig",
    "TaskKind",
    "TrackingConfig",
    "changed_settings",
    "config_keys",
    "doubtful_settings",
    "dump_config",
    "load_config",
    "reported_name",
    "resolved",
]
