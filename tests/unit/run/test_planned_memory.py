"""What `plan` says that a run will hold, from shapes alone."""

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fedpft.align.closed_form import refit_layers
from fedpft.align.public import AlignmentContext, PublicData
from fedpft.attention_mask import KnownMask
from fedpft.config import ConfigError, LayerAlignConfig, ServerConfig, load_config
from fedpft.construct.compress import compress
from fedpft.construct.saliency import greedy_scorer
from fedpft.models.ffn import find_ffns
from fedpft.models.live_memory import live_memory
from fedpft.report.plan import memory_rows
from fedpft.run.planned_memory import Holding
from fedpft.run.planning import _way_of_data, plan
from tests.language_models import LLAMA_8B, QWEN_05B, weightless_run
from tests.tiny import TINY_CONFIGS, tiny_fm, tiny_text_run, tiny_vision_run

KB = 1024
CONFIGS = Path(__file__).parents[3] / "experiments" / "configs"


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def test_memory_lives_until_its_last_tensor_is_gone():
    with live_memory() as memory:
        first = meta(KB).exp()
        view, second = first[:2], first.exp()
        assert memory.live_bytes == 8 * KB
        del first, second
        assert memory.live_bytes == 4 * KB, "a view holds all of it"
        del view
    assert (memory.live_bytes, memory.peak_bytes) == (0, 8 * KB)


def test_the_skeleton_that_a_client_copies_counts_nothing_beside_the_copy():
    skeleton = nn.Linear(16, 16, bias=False).to("meta")
    with live_memory() as memory:
        own = copy.deepcopy(skeleton)
        assert memory.live_bytes == own.weight.nbytes
    assert memory.peak_bytes == own.weight.nbytes


def test_models_count_once_with_what_autograd_keeps_on_top():
    model = nn.Sequential(nn.Linear(16, 16, bias=False), nn.ReLU(), nn.Linear(16, 16, bias=False)).to("meta")
    model[2].weight = model[0].weight
    with live_memory(model) as memory:
        assert memory.live_bytes == 4 * 256
        model(torch.ones(64, 16).to("cpu")).sum().backward()
    inputs, hidden = 4 * 64 * 16, 4 * 64 * 16
    assert memory.peak_bytes >= 4 * 256 + inputs + hidden + 4 * 256


def test_what_depends_on_values_is_the_most_that_it_can_be():
    with live_memory():
        mask = meta(3, 5, dtype=torch.bool)
        assert len(mask.nonzero()) == 15
        assert meta(3, 5)[mask].shape == (15,)
        assert not bool(mask.all()), "there is padding"
        assert not bool(KnownMask.of(torch.ones(3, 5)).to("meta").all()), "also where the longest texts have none"
        assert torch.equal(meta(2), meta(2))
        assert meta(2, 2).numpy().shape == (2, 2)


@pytest.mark.parametrize(("device", "dtype"), [("cuda", torch.float32), ("cpu", torch.bfloat16)])
def test_autocast_is_that_of_the_device_in_question(device, dtype):
    layer = nn.Linear(4, 4).to("meta")
    with live_memory(layer, device=device), torch.autocast("cpu", torch.bfloat16):
        made = layer(meta(2, 4))
        assert made.dtype == torch.bfloat16
        assert torch.nn.functional.softmax(made, dim=-1).dtype == dtype


def test_attention_is_fused_and_keeps_no_matrix_of_tokens():
    query = meta(1, 2, 512, 8).requires_grad_()
    with live_memory() as memory:
        torch.nn.functional.scaled_dot_product_attention(query, query, query, is_causal=True).sum().backward()
    assert memory.peak_bytes < 4 * 2 * 512 * 512


def test_a_part_of_a_gpu_is_a_part_of_its_memory():
    whole = {"holder": "each actor", "kind": "GPU", "during": "train a client", "room_bytes": 24 * KB}
    assert Holding(num_bytes=10 * KB, **whole).fits
    assert not Holding(num_bytes=10 * KB, share=0.25, **whole).fits
    assert Holding(num_bytes=10 * KB, **(whole | {"room_bytes": None})).fits is None


def test_a_plan_says_which_of_its_parts_does_not_fit_where_without_any_weights(tmp_path):
    shape = {"model_type": "llama", **TINY_CONFIGS["llama"], "vocab_size": 4096}
    settings = [
        *weightless_run(tmp_path, shape, num_chunks=20),
        "fm.dtype=bfloat16", "fm.max_length=64", "public.chunk_length=16", "method.retained_ratio=0.5",
        "method.scorer=activation", "align.layers={kind: closed_form, num_examples: 16, batch_size: 4}",
        "align.neurons={kind: distill, interval: 1, batch_size: 4}", "server.precision=bf16-mixed",
        "federated={num_clients: 4, clients_per_round: 2, rounds: 2, gradient_checkpointing: true}",
        "pool={gpus_per_actor: 0.5, gpu_gigabytes: 24, precision: bf16-mixed}", "server.gpu_gigabytes=0.6",
    ]  # fmt: skip
    planned = plan(load_config(None, settings))
    held = {(part["holder"], part["kind"]): part for part in planned["memory"]}
    assert planned["actors"] == 2, "GPUs are described that are not here"
    assert held["server", "GPU"]["fits"] is False
    assert held["each actor", "GPU"]["fits"] is True
    assert held["each actor", "GPU"]["share"] == 0.5
    assert held["driver", "RAM"]["fits"] is None, "it is on a machine that is not here"
    (line,) = [note for note in planned["notes"] if "does not fit" in note]
    assert line.startswith("memory of server (GPU) does not fit: ")
    assert not [note for note in planned["notes"] if "not counted:" in note]
    assert any("its weights are not on this machine" in note for note in planned["notes"])
    shown = [(title, note.split("; ")[-1]) for title, _, note in memory_rows(planned["memory"])]
    assert ("server, GPU", "does not fit into 600.0 MB") in shown


@pytest.mark.parametrize(
    ("settings", "kind", "room", "fits"),
    [
        (["fm.device_map=auto", "server.num_gpus=4"], "4 GPUs", 3.0, True),
        (["fm.device_map=auto", "server.num_gpus=2", "server.gpu_gigabytes=0.3"], "2 GPUs", 0.6, False),
        (["fm.device_map=auto"], "several GPUs", None, None),
    ],
)
def test_a_plan_counts_the_gpus_of_a_spread_fm_together(tmp_path, settings, kind, room, fits):
    shape = {"model_type": "llama", **TINY_CONFIGS["llama"], "vocab_size": 4096}
    run = [
        *weightless_run(tmp_path, shape, num_chunks=20), "fm.max_length=64", "public.chunk_length=16",
        "federated={num_clients: 4, clients_per_round: 2, rounds: 1}", "pool={kind: ray, gpus_per_actor: 0}",
        "server.gpu_gigabytes=0.75", "align.layers.kind=none", *settings,
    ]  # fmt: skip
    planned = plan(load_config(None, run))
    (held,) = [part for part in planned["memory"] if part["holder"] == "server"]
    assert (held["kind"], held["fits"]) == (kind, fits)
    assert held["room_bytes"] == (None if room is None else pytest.approx(1e9 * room))
    refused = [note for note in planned["notes"] if note.startswith(f"memory of server ({kind}) does not fit")]
    assert len(refused) == (fits is False)
    asked = [note for note in planned["notes"] if note.startswith("fm.device_map = auto: server.num_gpus")]
    assert len(asked) == (fits is None)


def test_a_plan_of_a_method_of_ones_own_has_its_sizes_and_says_what_is_not_counted(tmp_path):
    method = "experiments.examples.own_method:EveryOtherLayer"
    planned = plan(load_config(None, [*tiny_text_run(tmp_path), f"method.name={method}"]))
    assert planned["num_params_sub_fm"] < planned["num_params_fm"]
    assert any(part["holder"] == "driver" for part in planned["memory"])
    said = f"memory: what method.name = {method} holds while it makes its proxy is not counted"
    assert said in planned["notes"]


def test_a_memory_of_a_gpu_is_above_zero():
    for key in ("server.gpu_gigabytes", "pool.gpu_gigabytes"):
        with pytest.raises(ConfigError, match=rf"{key}: found 0.0, allowed: null or a finite number > 0"):
            load_config(None, [f"{key}=0"])


@pytest.mark.cluster  # a minute: all layers of both
@pytest.mark.parametrize(("config", "shape"), [("instructions_llama8b", LLAMA_8B), ("instructions_qwen", QWEN_05B)])
def test_the_configs_of_language_models_fit_the_gpus_that_they_name(config, shape, tmp_path):
    planned = plan(load_config(CONFIGS / f"{config}.yaml", weightless_run(tmp_path, shape)))
    fits = {(part["holder"], part["kind"]): part["fits"] for part in planned["memory"]}
    assert fits["server", "GPU"]
    assert fits["each actor", "GPU"]
    assert not [note for note in planned["notes"] if "memory" in note]


@pytest.mark.parametrize("kind", ["closed_form", "greedy"])
def test_what_goes_layer_by_layer_holds_no_more_with_more_examples(kind):
    peaks = []
    for num_examples in (32, 128):
        rows = [{"input_ids": torch.ones(16, dtype=torch.long), "attention_mask": torch.ones(16)}] * num_examples
        public = PublicData(dataset=rows, collate=torch.utils.data.default_collate)
        fm = tiny_fm("bert")
        sub_fm = compress(fm, retained_ratio=0.5)[0].to("meta")
        fm = fm.to("meta")
        with live_memory(fm, sub_fm) as memory:
            if kind == "closed_form":
                config = LayerAlignConfig(kind=kind, num_examples=num_examples, batch_size=8)
                context = AlignmentContext(public=public, server=ServerConfig(accelerator="cpu"), seed=0)
                refit_layers(fm, sub_fm, config, context, layers=(0, 1, 2))
            else:
                batches = public.batches(num_examples, 8, seed=0)
                greedy_scorer({name: value.to("meta") for name, value in batch.items()} for batch in batches)(
                    fm, find_ffns(fm)
                )
        peaks.append(memory.peak_bytes)
    few, many = peaks
    tokens, hidden_state = 16 * (128 - 32), 4 * 16
    assert many - few <= tokens * hidden_state / 4, "where the real tokens are, far from a hidden state each"


@pytest.mark.parametrize(
    ("way", "rows_bytes", "says"),
    [
        ("shared", 10**6, "shared, as task.data says: every node maps them from its disk, none holds them (1.0 MB of"),
        ("broadcast", 10**6, "broadcast, as task.data says: every node holds them all, which is little (1.0 MB of"),
        (
            "broadcast",
            10**10,
            "broadcast, as task.data says: every node holds them all; task.data=shared would hold non",
        ),
    ],
)
def test_plan_says_which_way_the_rows_go_and_why(way, rows_bytes, says, tmp_path, monkeypatch):
    monkeypatch.setattr("fedpft.run.planning.psutil.virtual_memory", lambda: SimpleNamespace(total=16 * 10**9))
    config = load_config(None, [*tiny_text_run(tmp_path), f"task.data={way}"])
    rows = SimpleNamespace(data=SimpleNamespace(nbytes=rows_bytes))
    assert _way_of_data(config, SimpleNamespace(train=rows)).startswith(says)


def test_plan_says_that_the_memory_of_pre_training_is_not_counted(tmp_path):
    settings = tiny_vision_run(tmp_path)
    assert any(setting.startswith("fm.pretrain") for setting in settings)
    (said,) = [note for note in plan(load_config(None, settings))["notes"] if "not counted" in note]
    assert said.startswith("memory of 'pre-train FM' is not counted")
