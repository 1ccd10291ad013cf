import pytest
import torch

from fedpft.models.flags import restored_flags


def test_modes_trainability_and_gradients_come_back_even_after_an_error():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(), torch.nn.Linear(2, 1))
    model[1].eval()
    model[0].weight.requires_grad_(False)
    model[2].bias.grad = gradient = torch.ones(1)

    def fail_halfway():
        with restored_flags(model):
            model.eval().requires_grad_(True)
            model(torch.ones(1, 2)).sum().backward()
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        fail_halfway()
    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert [parameter.requires_grad for parameter in model.parameters()] == [False, True, True, True]
    assert [parameter.grad for parameter in model.parameters()] == [None, None, None, gradient]
    assert gradient == torch.ones(1)
