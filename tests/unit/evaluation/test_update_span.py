"""What an update tells of its examples."""

import torch
from torch import nn

from fedpft.config import LoraConfig
from fedpft.evaluation.update_span import explained_share, span_of, span_scores, spans
from fedpft.models.lora import adapter_parameters, attach_lora
from tests.tiny import tiny_batch, tiny_fm


def test_inputs_that_a_step_of_sgd_saw_lie_in_its_span_and_others_do_not():
    generator = torch.Generator().manual_seed(0)
    A = nn.Parameter(torch.randn(8, 32, generator=generator))
    members, others = torch.randn(3, 32, generator=generator), torch.randn(500, 32, generator=generator)
    before = A.detach().clone()
    (members @ A.T).square().sum().backward()
    torch.optim.SGD([A], lr=0.1).step()
    basis = span_of(A.detach() - before)
    assert basis.shape == (3, 32)
    assert torch.allclose(explained_share(members, basis), torch.ones(3, dtype=torch.float64), atol=1e-4)
    assert abs(explained_share(others, basis).mean() - 3 / 32) < 0.02, "a random one has 3 of 32 directions"
    assert len(span_of(torch.zeros(8, 32))) == 0


def test_an_example_that_a_client_trained_on_has_a_higher_score_than_another_and_padding_none():
    model = attach_lora(tiny_fm("bert"), LoraConfig(rank=4), 0)
    parameters = adapter_parameters(model)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in parameters.items():
        if "lora_B" in name:
            parameter.data.normal_(generator=generator)
    before = {name: p.detach().clone() for name, p in parameters.items() if "lora_A." in name}
    own, other = (tiny_batch("bert", batch_size=1, seed=seed) for seed in (1, 2))
    model(**own, labels=torch.tensor([1])).loss.backward()
    torch.optim.SGD(parameters.values(), lr=1e-2).step()
    bases = spans(model, before)
    member, stranger = (span_scores(model, bases, batch) for batch in (own, other))
    assert member.shape == (1,)
    assert member > stranger + 0.05
    padded = {name: nn.functional.pad(tensor, (0, 3)) for name, tensor in own.items()}
    assert torch.allclose(span_scores(model, bases, padded), member, atol=1e-4)
    assert not spans(model, {name: parameters[name].detach() for name in before}), "nothing changed"
    assert all(not module._forward_pre_hooks for module in model.modules()), "no hook is left"
