"""What every test shares: one thread, quiet libraries, and the numbers computed with the authors' code."""

import functools
import json
import logging
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from lightning.fabric.utilities import registry
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from fedpft.federated import step_costs
from fedpft.interrupt import SIGNALS
from fedpft.models.loading import resize_ffns
from fedpft.models.recompute import recomputed_layers
from fedpft.trainer import hush_lightning

settings.register_profile("fixed", derandomize=True, database=None)
settings.register_profile("anew", derandomize=False, print_blob=True)
settings.load_profile("fixed")
"""Property tests try the same examples every time; `make draw-test` draws others."""

torch.set_num_threads(1)
transformers_logging.disable_progress_bar()
hush_lightning()
# each Fabric and Trainer asks for plugins, and looking through what is installed takes longer than making one
registry.entry_points = functools.cache(registry.entry_points)

GOLDEN = Path(__file__).parents[2] / "shared" / "golden"
RAY_STARTS = 3
"""How often Ray is started: it gives itself 30 seconds, which a busy machine may not have."""
VIT_NAMES = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "encoder.layer.": "layers.",
}
"""Parts of ViT's parameter names: transformers 4.35 -> 5.x, in the order in which they are replaced."""


class Golden:
    """Reads the golden files and compares with them; `--golden` prints how far each comparison was off."""

    def __init__(self, record_property: Callable[[str, Any], None]) -> None:
        self._record = record_property

    def load(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return a file's tensors, under the names of today's transformers, and its description."""
        tensors = load_file(GOLDEN / f"{name}.safetensors")
        renamed = {self.modern(key): value for key, value in tensors.items()} if "vit" in name else tensors
        return renamed, json.loads((GOLDEN / f"{name}.json").read_text())

    @staticmethod
    def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose names start with a prefix, without it."""
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

    def modern(self, name: str) -> str:
        """Translate a ViT parameter name of transformers 4.35."""
        for old, new in VIT_NAMES.items():
            name = name.replace(old, new)
        return name

    def model(self, kind: str, auto: Any, weights: Mapping[str, Tensor], **config: Any) -> PreTrainedModel:
        """Return the tiny model of a kind (bert, vit) with the given backbone weights, whatever its FFN sizes."""
        fields = json.loads((GOLDEN / f"{kind}_fm.json").read_text())["config"]
        no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        model = auto.from_config(AutoConfig.for_model(kind, **(fields | no_dropout | config)))
        up_biases = [name for name in weights if name.endswith(("fc1.bias", "intermediate.dense.bias"))]
        resize_ffns(model, [len(weights[name]) for name in sorted(up_biases)])
        missing, unexpected = model.base_model.load_state_dict(weights, strict=False)
        assert not missing
        assert not [name for name in unexpected if not name.startswith("pooler.")]
        return model.eval()

    def close(self, what: str, found: Any, expected: Any, tolerance: float) -> None:
        """Assert that numbers or tensors (or dicts of them) differ by at most `tolerance`."""
        if not isinstance(expected, Mapping):
            found, expected = {"": found}, {"": expected}
        assert found.keys() == expected.keys()
        largest = max(_difference(found[key], expected[key]) for key in expected)
        self._record(f"{what} (tolerance {tolerance:.0e})", f"{largest:.1e}")
        assert largest <= tolerance, f"{what}: differs by {largest:.2e}, allowed {tolerance:.0e}"


@pytest.fixture
def golden(record_property: Callable[[str, Any], None]) -> Golden:
    """Give access to the numbers computed with the authors' code, where they lie beside the repository."""
    if not GOLDEN.is_dir():
        pytest.skip(f"the authors' numbers are not at {GOLDEN}")
    return Golden(record_property)


@pytest.fixture
def heeded_signals() -> Iterator[None]:
    """Heed what ends a process, also where whoever started this one (nohup, a script's `&`) lets it be ignored."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        if handler is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep sub-FMs in a folder of this test session, not in the user's home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDPFT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


_COUNTS: dict[str, step_costs.StepCount] = {}


@pytest.fixture(scope="module")
def steps_counted_once() -> Iterator[None]:
    """Count a step once for all runs of one architecture and shape of batch: of a tiny run that takes a fifth."""
    count = step_costs.count_step

    def counted(
        module: Any, batch: Mapping[str, Tensor], targets: Sequence[Tensor] | None = None
    ) -> step_costs.StepCount:
        weights = [(name, w.shape, w.dtype, w.requires_grad) for name, w in module.named_parameters()]
        config = next((m.config.to_dict() for m in module.modules() if isinstance(m, PreTrainedModel)), {})
        shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in batch.items()}
        found = [part.shape for part in targets or ()]
        key = str((module, weights, config | {"_name_or_path": ""}, shapes, found, len(recomputed_layers(module))))
        if key not in _COUNTS:
            _COUNTS[key] = count(module, batch, targets)
        return _COUNTS[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_costs, "count_step", counted)
        yield


@pytest.fixture(scope="session")
def local_ray() -> Iterator[Any]:
    """Start Ray with 2 CPUs and a pretended GPU once for all tests; every pool of every test joins it."""
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    size = {"num_cpus": 2, "num_gpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}
    for attempt in range(RAY_STARTS):
        try:
            ray.init(address="local", log_to_driver=False, logging_level=logging.ERROR, **size)
            break
        except Exception:
            ray.shutdown()  # what has started of it
            if attempt == RAY_STARTS - 1:
                raise
    yield ray
    ray.shutdown()


def _difference(found: Any, expected: Any) -> float:
    found, expected = torch.as_tensor(found).double(), torch.as_tensor(expected).double()
    assert found.shape == expected.shape
    return float((found - expected).abs().max())
