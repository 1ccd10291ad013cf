"""Whole runs with a pretended GPU: nothing mixes devices or is sent from it, and the CPU seldom waits for it."""

import pickle
from dataclasses import replace

import bitsandbytes  # noqa: F401 - it looks for a GPU when it is imported, and one that is pretended has no library
import pytest
import torch

from fedpft.align.distill import align_layers
from fedpft.align.public import AlignmentContext, PublicData
from fedpft.attention_mask import KnownMask
from fedpft.config import LayerAlignConfig, LoraConfig, ServerConfig, load_config
from fedpft.construct.compress import compress
from fedpft.construct.saliency import named_scorer
from fedpft.evaluation.fidelity import measure_fidelity
from fedpft.federated.client import LocalClient
from fedpft.federated.messages import RoundPlan
from fedpft.federated.pool import SequentialPool
from fedpft.methods import find_method
from fedpft.models.lora import attach_lora, get_adapter
from fedpft.models.weights import unpack_model
from fedpft.privacy.dp_sgd import ExampleNoise
from fedpft.run.inputs import load_fm_and_data
from fedpft.run.pipeline import run
from fedpft.run.tuning import public_data
from fedpft.trainer import SilentProgress
from tests.pretend_cuda import pretended_cuda
from tests.tiny import (
    LanguageCollator,
    tiny_batch,
    tiny_causal_run,
    tiny_fm,
    tiny_lm,
    tiny_package,
    tiny_text_run,
    tiny_vision_run,
)

pytestmark = pytest.mark.filterwarnings("ignore")
AUTO = ["pool.accelerator=auto", "server.accelerator=auto", "federated.rounds=2", "align.neurons.interval=1"]
AUTO += ["federated.clients_per_round=2", "evaluation.interval=2", "evaluation.fidelity_examples=8"]
AUTO += ["task.max_eval_examples=16", "public.max_examples=24"]
MIXED = ["server.precision=bf16-mixed", "pool.precision=bf16-mixed"]


def five_layers(folder):
    """Return the settings of a run whose FM has layers to lose and to distil."""
    settings = tiny_text_run(folder)
    tiny_fm("bert", num_hidden_layers=5).save_pretrained(folder / "fm")
    return settings


RUNS = {
    "bert": (tiny_text_run, ["align.layers.kind=closed_form+distill", "method.scorer=greedy"]),
    "vit": (tiny_vision_run, ["method.scorer=activation"]),  # pre-trained
    "llama": (tiny_causal_run, [*MIXED, "align.layers.kind=closed_form", "align.neurons.kind=closed_form"]),
    "nf4": (
        tiny_causal_run,
        [*MIXED, "pool.quantize=nf4", "align.layers.kind=none", "federated.gradient_checkpointing=true"],
    ),
    "fedot": (five_layers, ["method={name: fedot, adapter_layers: 1, kept_layers: 4}"]),
    "full": (tiny_text_run, ["method.name=full", "pool.clients_per_batch=2", "federated.partition.size_imbalance=0"]),
}
IN_THE_LONG_SUITE = {"vit", "fedot"}
"""What their servers do is done on one GPU by `test_several_gpus`, too."""


@pytest.fixture(scope="module", autouse=True)
def _quick_counts():
    """Count steps in each run, in place of once for all: that must mix no devices either."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.cluster] * (name in IN_THE_LONG_SUITE)) for name in RUNS]
)
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


def known_collate(rows):
    """Return a batch with a mask like the collators'."""
    batch = torch.utils.data.default_collate(rows)
    return batch | {"attention_mask": KnownMask.of(batch["attention_mask"])}


def align(num_steps):
    """Distil layers of a BERT; return how often the CPU waited for the GPU."""
    fm = tiny_fm("bert")
    sub_fm, _ = compress(fm, retained_ratio=0.5, uncompressed_layers=(0,))
    batch = tiny_batch("bert", batch_size=8)
    rows = [{name: value[row] for name, value in batch.items()} for row in range(8)]
    public = PublicData(dataset=rows, collate=known_collate)
    config = LayerAlignConfig(num_steps=num_steps, batch_size=4)
    with pretended_cuda() as gpu:
        align_layers(fm, sub_fm, config, AlignmentContext(public=public, server=ServerConfig(), seed=0), layers=(1, 2))
    return gpu.syncs.total()


def train(family, num_epochs, *, clients=(0,), count=True, **settings):
    """Train clients in one place; return how often the CPU waited for the GPU while it trained them."""
    settings = {"shard_sizes": (8, 8, 7), "accelerator": "cuda", "num_epochs": num_epochs, **settings}
    package = tiny_package(family, **settings)
    if family in {"gemma2", "gpt2", "llama"}:
        model = attach_lora(tiny_lm(family), LoraConfig(rank=2), seed=0)
        package = tiny_package(family, model=model, **settings)
        package = replace(package, collate=LanguageCollator(package.collate))
    adapter = get_adapter(unpack_model(package.proxy))
    with pretended_cuda() as gpu:
        client = LocalClient(package)
        before = gpu.syncs.total()
        plan = RoundPlan(round_index=1, lr=1e-2, adapter=adapter, count_activations=count)
        client.fit_together(plan, clients)
    return gpu.syncs.total() - before


def test_a_step_of_a_distillation_waits_for_the_gpu_once_for_its_loss_whatever_the_number_of_layers():
    assert align(3) - align(2) == 1


@pytest.mark.parametrize("family", ["bert", "deberta-v2", "gemma2", "gpt2", "llama", "modernbert"])
def test_a_clients_step_never_waits_for_the_gpu(family):
    """Neither where transformers looks for padding nor where neurons are counted at real tokens."""
    assert train(family, 2) == train(family, 1)


HOW = {
    "nobody counts": {"count": False},
    "accumulated": {"accumulate": 2, "batch_size": 2},
    "mixed precision": {"precision": "bf16-mixed"},
    "three together, one of which ends earlier": {"clients": (0, 1, 2), "clients_per_batch": 3},
    "private, in parts": {"example_noise": ExampleNoise(clip=0.1, noise_multiplier=1.0, batch_size=3), "batch_size": 2},
    "together, accumulated": {"clients": (0, 1, 2), "clients_per_batch": 3, "accumulate": 2, "batch_size": 2},
}


@pytest.mark.parametrize("how", HOW.values(), ids=HOW)
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_clients_step_never_waits_for_the_gpu_however_it_trains(family, how):
    assert train(family, 2, **how) == train(family, 1, **how)


def compare(family, num_parts, num_layers=3):
    """Compare an FM with a sub-FM of it, some examples at a time; return how often the CPU waited for the GPU."""
    fm = (tiny_lm if family == "llama" else tiny_fm)(family, num_hidden_layers=num_layers)
    sub_fm, _ = compress(fm, retained_ratio=0.5)
    fm, sub_fm = (attach_lora(model, LoraConfig(rank=2), seed=0) for model in (fm, sub_fm))
    batch = tiny_batch(family, batch_size=2 * num_parts)
    labels = batch["input_ids"] if family == "llama" else torch.arange(2 * num_parts) % 3
    batch |= {"attention_mask": KnownMask.of(batch["attention_mask"]), "labels": labels}
    with pretended_cuda() as gpu:
        fm, sub_fm = fm.to("cuda"), sub_fm.to("cuda")  # which waits for each of their tensors
        before = gpu.syncs.total()
        measure_fidelity(fm, sub_fm, batch, server=ServerConfig(), batch_size=2)
    assert gpu.violations == []
    return gpu.syncs.total() - before


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_the_meter_waits_for_the_gpu_at_its_end_and_not_for_each_part_of_its_examples(family):
    assert compare(family, 3) == compare(family, 1)


def test_the_meter_fetches_its_numbers_at_once_and_not_tensor_by_tensor():
    assert compare("bert", 1, num_layers=5) == compare("bert", 1)


@pytest.mark.parametrize("scorer", ["activation", "greedy"])
def test_saliency_is_measured_where_the_gpu_is(scorer, tmp_path, monkeypatch):
    settings = [*tiny_text_run(tmp_path), *AUTO, f"method.scorer={scorer}", "cache.enabled=false"]
    config = load_config(None, [*settings, "align.layers.kind=none"])
    fm, data = load_fm_and_data(config, SilentProgress())
    places = []
    with pretended_cuda() as gpu:

        def spied(kind, seed, batches):
            def score(model, ffns):
                places.append((next(model.parameters()), next(iter(batches()))["input_ids"]))
                places[-1] = tuple(map(gpu.holds, places[-1]))
                return named_scorer(kind, seed, batches)(model, ffns)

            return score

        monkeypatch.setattr("fedpft.methods.proxy_tuning.named_scorer", spied)
        find_method("fedpft")(fm, public_data(data), config, SilentProgress()).build_proxy()
    assert places == [(True, True)]
    assert gpu.violations == []
