"""Whole runs with a pretended GPU: nothing mixes devices, nothing of the GPU is sent, and the GPU is seldom waited for."""

import pickle

import pytest

from fedpft.config import load_config
from fedpft.federated.pool import SequentialPool
from fedpft.run.pipeline import run
from tests.pretend_cuda import pretended_cuda
from tests.tiny import tiny_causal_run, tiny_text_run, tiny_vision_run

AUTO = ["pool.accelerator=auto", "server.accelerator=auto", "federated.rounds=2", "align.neurons.interval=1"]
MIXED = ["server.precision=bf16-mixed", "pool.precision=bf16-mixed"]
RUNS = {
    "bert": (tiny_text_run, ["align.layers.kind=closed_form+distill", "method.scorer=greedy"]),
    "vit": (tiny_vision_run, ["method.scorer=activation"]),
    "llama": (tiny_causal_run, [*MIXED, "align.layers.kind=closed_form", "align.neurons.kind=closed_form"]),
    "fedot": (tiny_text_run, ["method.name=fedot", "method.adapter_layers=1"]),
    "full": (tiny_text_run, ["method.name=full"]),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", RUNS)
def test_a_run_on_a_gpu_mixes_no_devices_and_sends_nothing_of_it(name, tmp_path, monkeypatch):
    make, settings = RUNS[name]
    config = load_config(None, [*make(tmp_path), *AUTO, *settings, f"cache.dir={tmp_path / 'cache'}"])
    with pretended_cuda() as gpu:

        def send(pool, package, broadcast=SequentialPool.broadcast):
            broadcast(pool, pickle.loads(pickle.dumps(package)))

        monkeypatch.setattr(SequentialPool, "broadcast", send)
        result = run(config).result
    assert gpu.violations == []
    assert gpu.uploads > 100, "it worked on the GPU"
    assert gpu.pickled == 0, "a node that gets it may have no GPU"
    assert result["rounds"] == 2
