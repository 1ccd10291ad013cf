import pytest
import torch

from fedpft.align.losses import hidden_state_loss, weight_product, weight_product_loss


def test_hidden_state_loss_is_the_relative_squared_error():
    teacher = torch.tensor([[[3.0, 4.0]]])
    student = torch.tensor([[[3.0, 3.0]]])
    assert hidden_state_loss(teacher, student).item() == pytest.approx(1 / 25)
    assert hidden_state_loss(teacher, teacher).item() == 0
    assert hidden_state_loss(10 * teacher, 10 * student).item() == pytest.approx(1 / 25)


def test_padding_does_not_count():
    teacher, student = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
    real = [(0, 0), (0, 1), (0, 2), (1, 0)]
    t, s = (torch.stack([x[i] for i in real]) for x in (teacher, student))
    expected = (t - s).square().mean() / t.square().mean()
    torch.testing.assert_close(hidden_state_loss(teacher, student, mask), expected)
    teacher[mask == 0], student[mask == 0] = 1e9, -1e9
    torch.testing.assert_close(hidden_state_loss(teacher, student, mask), expected)


def test_weight_product_does_not_depend_on_the_number_of_neurons():
    up, down = torch.randn(6, 3), torch.randn(3, 6)
    silent_up, silent_down = torch.cat([up, torch.randn(2, 3)]), torch.cat([down, torch.zeros(3, 2)], dim=1)
    assert weight_product(up, down).shape == (3, 3)
    torch.testing.assert_close(weight_product(up, down), weight_product(silent_up, silent_down))


def test_weight_product_loss_is_relative_and_differentiable():
    teacher, student = torch.eye(2), torch.zeros(2, 2, requires_grad=True)
    loss = weight_product_loss(teacher, student)
    loss.backward()
    assert loss.item() == 1
    torch.testing.assert_close(student.grad, -torch.eye(2))
