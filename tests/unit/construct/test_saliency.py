import math

import pytest
import torch

from fedpft.construct import saliency as module_under_test
from fedpft.construct.compress import compress
from fedpft.construct.saliency import (
    activation_scorer,
    elimination_ranks,
    greedy_scorer,
    most_salient,
    random_scorer,
    weight_norm,
)
from fedpft.models.ffn import find_ffns
from tests.tiny import EVERY_ROW, tiny_batch, tiny_fm

GAINS = {
    "dinov2": lambda ffn: ffn.layer.layer_scale2.lambda1,
    **dict.fromkeys(["gemma2", "gemma3_text"], lambda ffn: 1 + ffn.layer.post_feedforward_layernorm.weight),
    "granite": lambda ffn: torch.full((16,), 0.5),
    "olmo2": lambda ffn: ffn.layer.post_feedforward_layernorm.weight,
}
"""What an FFN's output is multiplied with before it joins the residual stream."""


def scores(scorer, fm):
    return scorer(fm, find_ffns(fm))


@pytest.mark.parametrize("model_type", EVERY_ROW)
def test_weight_norm_is_the_norm_of_a_neurons_weights_without_biases(model_type):
    fm = tiny_fm(model_type)
    ffn = find_ffns(fm)[1]
    with torch.no_grad():
        for parameter, _ in ffn.neuron_axes():
            parameter.zero_() if parameter.ndim == 2 else parameter.fill_(100.0)
        ffn.up_weight[5, 2], ffn.up_weight[5, 3], ffn.down_weight[7, 5] = 2.0, -3.0, 6.0
        if ffn.gate_weight is not None:
            ffn.gate_weight[5, 0] = 4.0
    score = scores(weight_norm, fm)[1]
    assert score[5] == pytest.approx(math.sqrt(4 + 9 + 36 + (0 if ffn.gate is None else 16)))
    assert score.count_nonzero() == 1


def test_of_equal_scores_the_lower_index_wins():
    assert most_salient(torch.tensor([1.0, 2.0, 1.0, 2.0, 1.0]), 3).tolist() == [0, 1, 3]
    assert most_salient(torch.ones(1000), 400).tolist() == list(range(400))


@pytest.mark.parametrize("model_type", EVERY_ROW)
def test_activation_scores_equal_a_brute_force_computation_without_padding(model_type):
    fm, batch = tiny_fm(model_type), tiny_batch(model_type)
    found = scores(activation_scorer([batch]), fm)
    seen = [[] for _ in found]
    for row in range(4):
        one = {name: value[row : row + 1] for name, value in batch.items()}
        if "attention_mask" in one:
            length = int(one["attention_mask"].sum())
            one = {name: value[:, :length] for name, value in one.items()}
        hooks = [
            ffn.down.register_forward_pre_hook(lambda module, args, to=to: to.append(args[0].flatten(0, -2).double()))
            for ffn, to in zip(find_ffns(fm), seen, strict=True)
        ]
        with torch.no_grad():
            fm.base_model(**one)
        for hook in hooks:
            hook.remove()
    for ffn, activations, score in zip(find_ffns(fm), seen, found, strict=True):
        rms = torch.cat(activations).square().mean(dim=0).sqrt()
        gain = GAINS.get(model_type, lambda ffn: torch.ones(16))(ffn)
        expected = rms * (gain[:, None] * ffn.down_weight).double().norm(dim=0)
        torch.testing.assert_close(score, expected, rtol=1e-4, atol=1e-6)


def test_activation_scores_do_not_depend_on_how_the_data_is_split():
    fm, batch = tiny_fm("bert"), tiny_batch("bert")
    split = [{name: value[part] for name, value in batch.items()} for part in (slice(0, 1), slice(1, 4))]
    for whole, parts in zip(scores(activation_scorer([batch]), fm), scores(activation_scorer(split), fm), strict=True):
        torch.testing.assert_close(whole, parts, rtol=1e-5, atol=1e-7)


def test_activation_scorer_leaves_no_trace_in_the_model():
    fm = tiny_fm("bert").train()
    scores(activation_scorer([tiny_batch("bert")]), fm)
    assert all(module.training for module in fm.modules())
    assert not any(module._forward_pre_hooks for module in fm.modules())


def test_activation_scorer_reads_the_model_in_eval_mode():
    fm = tiny_fm("bert", hidden_dropout_prob=0.5)
    expected = scores(activation_scorer([tiny_batch("bert")]), fm)
    found = scores(activation_scorer([tiny_batch("bert")]), fm.train())
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_activation_scorer_without_data_says_so():
    fm = tiny_fm("bert")
    with pytest.raises(ValueError, match="at least one public batch"):
        scores(activation_scorer([]), fm)


def test_random_scores_depend_on_the_seed_alone():
    fm = tiny_fm("bert")
    first, second, other = (scores(random_scorer(seed), fm) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize("scorer", [random_scorer(0), activation_scorer([tiny_batch("bert")])])
def test_every_scorer_constructs_a_sub_fm(scorer):
    fm = tiny_fm("bert")
    expected = scores(scorer, fm)
    _, neuron_map = compress(fm, retained_ratio=0.5, scorer=scorer)
    for layer, kept in neuron_map.retained.items():
        assert set(kept.tolist()) == set(expected[layer].topk(12).indices.tolist())


def reconstruction_error(covariance, columns, kept):
    """Return the output energy that the best columns of the kept neurons leave unexplained."""
    cross = covariance[kept]
    best = torch.linalg.solve(covariance[kept][:, kept], cross @ columns)
    residual = columns.clone()
    residual[kept] -= best
    return float(torch.einsum("nh,nm,mh->", residual, covariance, residual))


def test_elimination_gives_up_the_neuron_whose_loss_costs_least_at_each_step():
    """Reference: try every removal and solve the least squares anew, step by step."""
    generator = torch.Generator().manual_seed(0)
    activations = torch.randn(200, 7, generator=generator, dtype=torch.float64)
    activations[:, 3] = activations[:, 0] + 0.1 * activations[:, 3]  # nearly a copy: cheap to lose one of the two
    covariance = activations.T @ activations / 200
    columns = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    alive, order = list(range(7)), []
    while len(alive) > 1:
        costs = {j: reconstruction_error(covariance, columns, [i for i in alive if i != j]) for j in alive}
        order.append(min(costs, key=costs.get))
        alive.remove(order[-1])
    found = elimination_ranks(covariance, columns)
    assert found.argsort().tolist()[:-1] == order
    assert order[0] in (0, 3)


@pytest.mark.parametrize("model_type", EVERY_ROW)
def test_greedy_gives_up_copies_first_whatever_their_saliency(model_type):
    fm = tiny_fm(model_type)
    with torch.no_grad():
        for ffn in find_ffns(fm):
            for parameter, axis in ffn.neuron_axes():
                for rows in parameter.movedim(axis, 0).split(24):
                    if parameter is ffn.down.weight:
                        rows[18:] *= 3  # strong in every saliency, and yet the copied neurons can take over
                    else:
                        rows[18:] = rows[:6]
    batches = [tiny_batch(model_type, batch_size=32, num_tokens=9, seed=seed) for seed in (1, 2)]
    for score in scores(greedy_scorer(batches), fm):
        first = set(score.argsort().tolist()[:6])
        assert len({neuron % 18 for neuron in first}) == 6
        assert all(neuron < 6 or neuron >= 18 for neuron in first)


@pytest.mark.parametrize("model_type", EVERY_ROW)
def test_greedy_goes_through_one_layer_at_a_time_and_ranks_as_in_whole_passes(model_type, monkeypatch):
    fm = tiny_fm(model_type)
    batches = [tiny_batch(model_type, num_tokens=9, seed=seed) for seed in (1, 2)]
    alive, made = [], []
    real = module_under_test.elimination_ranks
    moments = module_under_test._Moments
    monkeypatch.setattr(module_under_test, "_Moments", lambda ffn: made.append(ffn) or moments(ffn))
    monkeypatch.setattr(module_under_test, "elimination_ranks", lambda *a: alive.append(len(made)) or real(*a))
    found = scores(greedy_scorer(batches), fm)
    assert alive == [1, 2, 3]
    monkeypatch.setattr(module_under_test, "runs_layer_by_layer", lambda model: False)
    assert all(torch.equal(a, b) for a, b in zip(found, scores(greedy_scorer(batches), fm), strict=True))
    assert not any(module._forward_pre_hooks for module in fm.modules())


@pytest.mark.parametrize("make", [activation_scorer, greedy_scorer])
def test_a_scorer_without_a_token_is_refused(make):
    with pytest.raises(ValueError, match="at least one public batch with a real token"):
        scores(make([]), tiny_fm("bert"))
