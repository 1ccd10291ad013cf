"""All that the server does with an FM over two pretended GPUs: nothing mixes them, and the numbers are those of one."""

import pickle

import datasets
import numpy as np
import pytest
import torch

from fedpft.align.adapter import align_adapter
from fedpft.align.closed_form import refit_layers, refit_neurons
from fedpft.align.distill import align_emulator, align_layers, align_neurons
from fedpft.align.public import AlignmentContext, PublicData
from fedpft.align.public_counts import count_on_public
from fedpft.config import (
    AdapterAlignConfig,
    ConfigError,
    LayerAlignConfig,
    LoraConfig,
    NeuronAlignConfig,
    ServerConfig,
    load_config,
)
from fedpft.construct.block_influence import block_influence
from fedpft.construct.compress import compress
from fedpft.construct.layer_drop import choose_layers, drop_layers
from fedpft.construct.saliency import activation_scorer, greedy_scorer, named_scorer
from fedpft.evaluation.evaluate import evaluate
from fedpft.evaluation.example_losses import example_losses
from fedpft.evaluation.fidelity import measure_fidelity
from fedpft.evaluation.skill import shared_skill
from fedpft.federated.pool import SequentialPool
from fedpft.models.digest import backbone_digest
from fedpft.models.ffn import find_ffns
from fedpft.models.lora import attach_lora, get_adapter, set_adapter
from fedpft.models.spread import spread
from fedpft.run import pipeline
from fedpft.run.audit import audit
from fedpft.run.pipeline import run
from tests.integration.test_devices import AUTO
from tests.pretend_cuda import pretended_cuda
from tests.tiny import tiny_batch, tiny_causal_run, tiny_fm, tiny_lm, tiny_text_run

pytestmark = pytest.mark.filterwarnings("ignore")
SERVER, LORA = ServerConfig(), LoraConfig(rank=2, dropout=0.0)
MODELS = {"bert": tiny_fm, "llama": tiny_lm}
NO_DROPOUT = {"bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}, "llama": {}}
"""Each GPU draws a dropout of its own."""


class Work:
    """An FM where a test wants it, and what is done with it there; numbers come back to the CPU."""

    def __init__(self, family, places):
        self.family = family
        self.fm = MODELS[family](family, num_hidden_layers=4, **NO_DROPOUT[family])
        if places:
            spread(self.fm, [torch.device("cuda", place) for place in places], torch.device("cuda", 0))
        else:
            self.fm.to("cuda")
        batch = tiny_batch(family, batch_size=32, num_tokens=9)
        batch["labels"] = batch["input_ids"] if family == "llama" else torch.arange(32) % 3
        self.batch = batch
        rows = [{name: value[row] for name, value in batch.items()} for row in range(32)]
        self.public = PublicData(dataset=rows, collate=torch.utils.data.default_collate)
        self.context = AlignmentContext(public=self.public, server=SERVER, seed=0)

    def on_gpu(self):
        return [{name: value.to("cuda") for name, value in batch.items()} for batch in self.public.batches(32, 8, 0)]

    def sub_fm(self):
        return compress(self.fm, retained_ratio=0.5, uncompressed_layers=(0,))[0]

    def adapted(self):
        """Return FM and sub-FM with one adapter that is not zero."""
        proxy = attach_lora(self.sub_fm(), LORA, seed=0)
        fm = attach_lora(self.fm, LORA, seed=0)
        adapter = 0.1 * np.random.default_rng(0).standard_normal(len(get_adapter(fm))).astype(np.float32)
        for model in (fm, proxy):
            set_adapter(model, adapter)
        return fm, proxy

    def masks(self):
        return {layer: torch.arange(12) % 2 == 0 for layer in (1, 2, 3)}

    def scorers(self):
        ffns = find_ffns(self.fm)
        scorers = [activation_scorer(self.on_gpu()), greedy_scorer(self.on_gpu()), named_scorer("weight_norm", 0, list)]
        return [score.cpu() for scorer in scorers for score in scorer(self.fm, ffns)]

    def influence(self):
        return [torch.tensor(block_influence(self.fm, self.on_gpu()))]

    def closed_form(self):
        sub_fm, settings = self.sub_fm(), LayerAlignConfig(kind="closed_form", num_examples=32, batch_size=8)
        report = refit_layers(self.fm, sub_fm, settings, self.context, layers=(1, 2, 3))
        return [*cpu(sub_fm), torch.tensor([report.measured_before, report.measured_after])]

    def closed_form_of_neurons(self):
        (fm, proxy), settings = self.adapted(), NeuronAlignConfig(kind="closed_form", num_examples=32, batch_size=8)
        refit_neurons(fm, proxy, settings, self.context, neuron_masks=self.masks())
        return cpu(proxy)

    def distill(self):
        sub_fm = self.sub_fm()
        settings = LayerAlignConfig(num_steps=3, batch_size=8, lr=1e-2, product_weight=0.5, max_grad_norm=0.1)
        report = align_layers(self.fm, sub_fm, settings, self.context, layers=(1, 2, 3))
        return [*cpu(sub_fm), torch.tensor([report.measured_before, report.measured_after])]

    def distill_of_neurons(self):
        (fm, proxy), settings = self.adapted(), NeuronAlignConfig(num_steps=3, batch_size=8, lr=1e-2)
        align_neurons(fm, proxy, settings, self.context, neuron_masks=self.masks())
        return cpu(proxy)

    def distill_of_an_emulator(self):
        layers = choose_layers(4, adapter_layers=1, kept_layers=3)
        proxy, settings = drop_layers(self.fm, layers), LayerAlignConfig(num_steps=3, batch_size=8, lr=1e-2)
        align_emulator(self.fm, proxy, settings, self.context, layers=layers.emulator, target=layers.end_of_middle)
        return cpu(proxy)

    def distill_of_the_adapter(self):
        fm, proxy = self.adapted()
        settings = AdapterAlignConfig(num_steps=3, batch_size=8, lr=1e-2)
        report = align_adapter(fm, proxy, settings, self.context)
        return [torch.from_numpy(get_adapter(fm)), torch.tensor([report.copied_loss, report.distilled_loss])]

    def counts(self):
        _, proxy = self.adapted()
        counts = count_on_public(proxy, (1, 2, 3), self.public, server=SERVER, seed=0)
        return [torch.from_numpy(zeros) for zeros in counts.zeros]

    def fidelity(self):
        fm, proxy = self.adapted()
        found = measure_fidelity(fm, proxy, self.batch, server=SERVER, batch_size=16).record()
        return [torch.tensor([values for name, values in found.items() if name != "total"])]

    def evaluation(self):
        fm, proxy = self.adapted()
        rows = datasets.Dataset.from_list([{"row": row} for row in range(32)])

        def collate(chosen):
            return {name: value[[row["row"] for row in chosen]] for name, value in self.batch.items()}

        kind, metric = ("causal_lm", "perplexity") if self.family == "llama" else ("classification", "accuracy")
        how = {"batch_size": 8, "server": SERVER}
        values = [evaluate(model, rows, collate, metrics=[metric], **how)[metric] for model in (fm, proxy)]
        losses = example_losses(fm, rows, range(32), collate, kind=kind, **how)
        skill = shared_skill(fm, proxy, list(self.public.batches(32, 8, 0)), causal=kind == "causal_lm", server=SERVER)
        return [torch.tensor(values), torch.from_numpy(losses), torch.tensor([skill.agreement, skill.hidden])]

    def digest(self):
        return [torch.tensor(list(backbone_digest(self.fm).encode()))]


def cpu(model):
    return [tensor.detach().cpu() for tensor in model.state_dict().values()]


KINDS = [name for name in vars(Work) if name not in ("on_gpu", "sub_fm", "adapted", "masks") and name[0] != "_"]
AS_A_LANGUAGE_MODEL = [
    *(pytest.param(name, marks=pytest.mark.cluster) for name in ("closed_form", "distill", "counts")),
    *("fidelity", "evaluation", "digest"),
]
"""Where its causal mask, its rotary tables or its tokens' losses go other ways than a classifier's."""


@pytest.mark.parametrize("name", KINDS)
def test_what_the_server_does_on_two_gpus_gives_the_numbers_of_one(name):
    compare_with_one_gpu(name, "bert", (0, 0, 1, 1))


@pytest.mark.parametrize("name", AS_A_LANGUAGE_MODEL)
def test_what_it_does_with_a_language_model_does_too(name):
    compare_with_one_gpu(name, "llama", (0, 1, 1, 1))


def compare_with_one_gpu(name, family, layers):
    numbers = []
    for places in ((), layers):
        with pretended_cuda(2) as gpus:
            work = Work(family, places)
            numbers.append(getattr(work, name)())
            lies = {parameter.device.index for parameter in work.fm.parameters()}
        assert gpus.violations == []
        assert lies == ({0, 1} if places else {0}), "it was left where it lay"
    torch.testing.assert_close(numbers[1], numbers[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("places", [(), (0, 0, 1, 1)])
def test_products_of_weights_are_never_in_half_precision_wherever_layers_lie(places):
    """Autocast is switched off for the GPU's kind of device."""
    switched_off, settings = [], LayerAlignConfig(num_steps=1, batch_size=8, product_weight=0.5)
    with pretended_cuda(2), pytest.MonkeyPatch.context() as patch:

        class Recorded(torch.autocast):
            def __init__(self, device_type, *args, **kwargs):
                switched_off.extend([] if kwargs.get("enabled", True) else [device_type])
                super().__init__(device_type, *args, **kwargs)

        patch.setattr(torch, "autocast", Recorded)
        work = Work("bert", places)
        align_layers(work.fm, work.sub_fm(), settings, work.context, layers=(1, 2, 3))
    assert switched_off
    assert set(switched_off) == {"cuda"}


def whole_run(folder, make, settings, num_gpus):
    """Return the result of a run, and how much the GPUs pickled and refused."""
    folder.mkdir()
    config = load_config(None, [*make(folder), *AUTO, *settings, f"cache.dir={folder / 'cache'}"])
    with pretended_cuda(num_gpus) as gpus:
        result = run(config).result
    assert gpus.violations == []
    assert gpus.pickled == 0
    return result


RUNS = {
    "bert": (tiny_text_run, ["align.layers.kind=closed_form+distill", "method.scorer=greedy"]),
    "llama": (tiny_causal_run, ["align.layers.kind=closed_form", "align.neurons.kind=closed_form"]),
}
SPREAD = ["method.plug_in=distill", "align.adapter.num_steps=3", "fm.device_map=auto"]


@pytest.fixture(autouse=True)
def _send(monkeypatch):
    """Let packages travel."""

    def send(pool, package, broadcast=SequentialPool.broadcast):
        broadcast(pool, pickle.loads(pickle.dumps(package)))

    monkeypatch.setattr(SequentialPool, "broadcast", send)


def test_a_run_and_its_audit_with_an_fm_over_two_gpus_mix_none_and_send_nothing_of_them(tmp_path):
    make, settings = RUNS["bert"]
    whole_run(tmp_path / "run", make, [*settings, *SPREAD], 2)
    with pretended_cuda(2) as gpus:
        audit(tmp_path / "run" / "out", num_examples=8)
    assert gpus.violations == []


def test_an_fm_that_its_gpus_do_not_hold_is_refused_before_an_actor_starts(tmp_path, monkeypatch):
    config = load_config(None, [*tiny_text_run(tmp_path), *AUTO, "fm.device_map=auto"])
    monkeypatch.setattr(pipeline, "make_pool", lambda *_: pytest.fail("a pool was made"))
    line = r"^fm.device_map: found auto, for .* GB of weights on GPUs"
    with pretended_cuda(2, free=[1000, 1000]), pytest.raises(ConfigError, match=line):
        run(config)


@pytest.mark.cluster
@pytest.mark.parametrize("name", RUNS)
def test_a_run_with_an_fm_over_two_gpus_ends_like_one_on_one(name, tmp_path):
    make, settings = RUNS[name]
    one, two = (whole_run(tmp_path / str(num), make, [*settings, *SPREAD], num) for num in (1, 2))
    for name in ("untuned_fm", "fm", "sub_fm"):
        assert two[name] == pytest.approx(one[name], rel=1e-3, abs=0.03), "one example of 40 is 0.025"
    assert two["plug_in"]["distilled_loss"] == pytest.approx(one["plug_in"]["distilled_loss"], rel=1e-2)
    for when in ("before", "after"):
        hidden = [result["fidelity"][when]["hidden_error"] for result in (one, two)]
        assert hidden[1] == pytest.approx(hidden[0], rel=1e-2)
