import math

import datasets
import pytest
import torch
from torch.nn.functional import cross_entropy
from torchmetrics import Metric

from fedpft.config import LoraConfig, ServerConfig
from fedpft.data.collate import CausalCollator
from fedpft.evaluation.evaluate import evaluate
from fedpft.evaluation.fidelity import measure_fidelity
from fedpft.metrics import tokens
from fedpft.metrics.table import METRICS as METRICS_TABLE
from fedpft.metrics.table import MetricRow
from fedpft.metrics.tokens import num_targets
from fedpft.models.live_memory import live_memory
from fedpft.models.lora import adapter_parameters, attach_lora, get_adapter, set_adapter
from tests.pretend_cuda import pretended_cuda
from tests.tiny import tiny_lm

SERVER = ServerConfig(accelerator="cpu")
LENGTHS = [(1, 6), (5, 1), (2, 9), (3, 2), (1, 1), (4, 4), (7, 3)]
"""(tokens of the prompt, tokens of the response)."""
GENERATOR = torch.Generator().manual_seed(0)
ROWS = [
    {"input_ids": torch.randint(3, 40, (prompt + response,), generator=GENERATOR).tolist(), "prompt_length": prompt}
    for prompt, response in LENGTHS
]
DATASET = datasets.Dataset.from_list(ROWS)
METRICS = ("loss", "perplexity", "token_accuracy")


def model(model_type="llama", seed=0, noise=0.2):
    adapted = attach_lora(tiny_lm(model_type, seed=seed), LoraConfig(rank=2, dropout=0.1), seed=0)
    generator = torch.Generator().manual_seed(1)
    adapter = torch.from_numpy(get_adapter(adapted))
    set_adapter(adapted, (adapter + noise * torch.randn(adapter.shape, generator=generator)).numpy())
    return adapted


def one_by_one(of):
    """Yield each row's response tokens and the logits that tell of them, without padding."""
    for row in ROWS:
        start = row["prompt_length"]
        yield (
            of(input_ids=torch.tensor([row["input_ids"]])).logits[0, start - 1 : -1],
            torch.tensor(row["input_ids"][start:]),
        )


def scores(of, batch_size=3):
    return evaluate(of, DATASET, CausalCollator(2), metrics=METRICS, batch_size=batch_size, server=SERVER)


@torch.no_grad()
def test_metrics_weigh_every_response_token_alike():
    of = model().eval()
    logits, targets = map(torch.cat, zip(*one_by_one(of), strict=True))
    assert len(targets) == sum(response for _, response in LENGTHS)
    loss = float(cross_entropy(logits.double(), targets))
    right = float((logits.argmax(-1) == targets).double().mean())
    assert scores(of) == pytest.approx({"loss": loss, "perplexity": math.exp(loss), "token_accuracy": right}, abs=1e-5)
    means = [float(cross_entropy(*row)) for row in one_by_one(of)]
    assert abs(sum(means) / len(means) - loss) > 1e-2, "the mean of the rows' means is another number"


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "qwen2"])
def test_batch_size_and_padding_make_no_difference(model_type):
    of = model(model_type)
    expected = scores(of, batch_size=1)
    for batch_size in (2, 5, 7):
        assert scores(of, batch_size) == pytest.approx(expected, rel=1e-6, abs=2e-6), "to single precision"


def test_a_padding_token_that_ends_texts_changes_nothing():
    of = model()
    with_other_padding = evaluate(of, DATASET, CausalCollator(0), metrics=METRICS, batch_size=7, server=SERVER)
    assert with_other_padding == pytest.approx(scores(of, 7), rel=1e-6, abs=2e-6)


@pytest.mark.parametrize("batch_size", [None, 1, 2, 3])
def test_the_meters_gradients_are_those_of_the_mean_over_response_tokens_however_it_is_cut(batch_size):
    fm, proxy, read = model(seed=0), model(seed=1), []
    fm.get_output_embeddings().register_forward_hook(lambda module, args, output: read.append(args[0].shape[-2]))
    found = measure_fidelity(fm, proxy, CausalCollator(2)(ROWS), server=SERVER, batch_size=batch_size).total
    assert sum(read) == num_targets(CausalCollator(2)(ROWS)["labels"]), "of no other token there are logits"

    def gradient(of):
        loss = cross_entropy(*map(torch.cat, zip(*one_by_one(of.eval()), strict=True)))
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(adapter_parameters(of).values()))])

    ours, theirs = gradient(fm).double(), gradient(proxy).double()
    assert found.gradient_cosine == pytest.approx(float(ours @ theirs / (ours.norm() * theirs.norm())), abs=1e-4)
    assert found.gradient_norm_ratio == pytest.approx(float(theirs.norm() / ours.norm()), rel=1e-4)


def test_a_model_is_as_near_to_itself_as_can_be():
    found = measure_fidelity(model(), model(), CausalCollator(2)(ROWS), server=SERVER, batch_size=3)
    assert (found.total.hidden_error, found.total.gradient_norm_ratio) == (0, 1)
    assert found.total.gradient_cosine == pytest.approx(1)


class Texts(Metric):
    """A metric of others: it wants a batch's texts as a whole."""

    def __init__(self, shapes):
        super().__init__()
        self.shapes = shapes

    def update(self, logits, labels):
        self.shapes.append((logits.shape[:2], labels.shape))

    def compute(self):
        return torch.tensor(0.0)


def test_a_metric_of_ones_own_gets_whole_texts(monkeypatch):
    shapes = []
    monkeypatch.setitem(
        METRICS_TABLE, "texts", MetricRow(title="texts", kind="causal_lm", make=lambda n: Texts(shapes))
    )
    expected = scores(model())
    found = evaluate(model(), DATASET, CausalCollator(2), metrics=("loss", "texts"), batch_size=3, server=SERVER)
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    assert [logits[0] for logits, _ in shapes] == [3, 3, 1]
    assert all(logits == labels for logits, labels in shapes)


def test_an_evaluations_memory_does_not_grow_by_the_logits_of_more_texts(monkeypatch):
    monkeypatch.setattr(tokens, "CHUNK_NUMBERS", 16 * 4096)
    of = attach_lora(tiny_lm("llama", vocab_size=4096), LoraConfig(rank=2), seed=0).to("meta")
    texts = datasets.Dataset.from_list([{"input_ids": [3] * 32, "prompt_length": 1}] * 16)
    peaks = []
    for batch_size in (8, 16):
        with live_memory(of) as memory:
            evaluate(of, texts, CausalCollator(2), metrics=METRICS, batch_size=batch_size, server=SERVER)
        peaks.append(memory.peak_bytes)
    assert peaks[1] - peaks[0] < 4 * 32 * 4096, "one text's logits"


def test_an_evaluation_waits_for_a_gpu_once_a_batch():
    """For the places of targets."""
    waits = []
    for batch_size in (7, 4):
        of = model()
        with pretended_cuda() as gpu:
            server = ServerConfig(accelerator="cuda")
            evaluate(of, DATASET, CausalCollator(2), metrics=METRICS, batch_size=batch_size, server=server)
        assert gpu.violations == []
        waits.append(gpu.syncs.total())
    assert waits[1] - waits[0] == 1
