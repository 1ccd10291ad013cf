import bitsandbytes  # noqa: F401 - it looks for a GPU when it is imported, and one that is pretended has no library
import pytest
import torch

from fedpft.models.flags import restored_flags
from tests.pretend_cuda import pretended_cuda
from tests.tiny import tiny_fm


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


def test_gradients_follow_a_model_that_was_moved_off_the_gpu():
    with pretended_cuda() as gpu:
        model = torch.nn.Linear(2, 1).to("cuda")
        model(torch.ones(1, 2, device="cuda")).sum().backward()
        with restored_flags(model):
            model.to("cpu")
        assert not gpu.holds(model.weight.grad)
    assert gpu.violations == []
    assert model.weight.grad.tolist() == [[1.0, 1.0]]


def test_a_decoder_keeps_no_keys_within_and_its_config_says_so_only_there():
    model = tiny_fm("mistral")
    with restored_flags(model):
        assert model.model(torch.ones(1, 3, dtype=torch.long)).past_key_values is None
    assert model.model(torch.ones(1, 3, dtype=torch.long)).past_key_values is not None
