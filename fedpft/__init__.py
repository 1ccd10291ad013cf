"""Federated Proxy Fine-Tuning of foundation models: what a notebook or a script works with.

    config = fedpft.load_config("quickstart.yaml", ["federated.rounds=4"])   # or fedpft.Config(...)
    result = fedpft.run(config)                                              # a fedpft.Result
    result.rounds, result.metrics, result.tuned_fm(), result.sub_fm()

Importing this package loads neither torch nor transformers: a name is imported when it is first used.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedpft.api.many import compare, sweep
    from fedpft.api.models import align, compress, fidelity, load_sub_fm, plug_in
    from fedpft.api.result import Result, load_result
    from fedpft.api.runs import run
    from fedpft.config import (
        AdapterAlignConfig,
        AdversaryConfig,
        AggregatorConfig,
        AlignConfig,
        CacheConfig,
        CheckpointConfig,
        ClientConfig,
        Config,
        ConfigError,
        EvaluationConfig,
        FederatedConfig,
        FMConfig,
        LayerAlignConfig,
        LoraConfig,
        MethodConfig,
        NeuronAlignConfig,
        PartitionConfig,
        PoolConfig,
        PretrainConfig,
        PrivacyConfig,
        PublicConfig,
        ServerConfig,
        ServerOptimiserConfig,
        StopConfig,
        TaskConfig,
        TrackingConfig,
        dump_config,
        load_config,
    )
    from fedpft.config.sweep import SweepConfig, load_sweep

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
    "LoraConfig",
    "MethodConfig",
    "NeuronAlignConfig",
    "PartitionConfig",
    "PoolConfig",
    "PretrainConfig",
    "PrivacyConfig",
    "PublicConfig",
    "Result",
    "ServerConfig",
    "ServerOptimiserConfig",
    "StopConfig",
    "SweepConfig",
    "TaskConfig",
    "TrackingConfig",
    "align",
    "compare",
    "compress",
    "dump_config",
    "fidelity",
    "load_config",
    "load_result",
    "load_sub_fm",
    "load_sweep",
    "plug_in",
    "run",
    "sweep",
]

_PLACES = {
    "fedpft.api.many": ("compare", "sweep"),
    "fedpft.api.models": ("align", "compress", "fidelity", "load_sub_fm", "plug_in"),
    "fedpft.api.result": ("Result", "load_result"),
    "fedpft.api.runs": ("run",),
    "fedpft.config.sweep": ("SweepConfig", "load_sweep"),
}
"""Module -> the public names that it defines; all others are `fedpft.config`'s."""

_MODULE_OF = {name: module for module, names in _PLACES.items() for name in names}


class _CallablePackage(ModuleType):
    """A folder that is also a public function: `fedpft.run` and `fedpft.align` are both."""

    @property
    def __wrapped__(self) -> Any:
        """The function, for `inspect.signature` and `help`."""
        name = self.__name__.rpartition(".")[2]
        return getattr(importlib.import_module(_MODULE_OF[name]), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return self.__wrapped__(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        """Pickle by name, as plain modules are where functions of a notebook travel."""
        return importlib.import_module, (self.__name__,)


class _Package(ModuleType):
    """This package: a folder of a public function's name becomes callable as soon as it is imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _MODULE_OF and type(value) is ModuleType:
            value.__class__ = _CallablePackage
        super().__setattr__(name, value)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return importlib.import_module, (self.__name__,)


def __getattr__(name: str) -> Any:
    if name in ("align", "run"):
        return importlib.import_module(f"{__name__}.{name}")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULE_OF.get(name, "fedpft.config")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


sys.modules[__name__].__class__ = _Package
