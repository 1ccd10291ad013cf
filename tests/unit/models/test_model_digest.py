import pytest
import torch

from fedpft.models.digest import model_digest
from fedpft.models.ffn import find_backbone
from tests.tiny import ONE_FAMILY_PER_ROW, auto_model, tiny_fm


def one_ulp(model):
    """Move one number of the model's last weight to its neighbour."""
    parameter = list(model.parameters())[-1]
    with torch.no_grad():
        parameter.view(-1)[-1] = torch.nextafter(parameter.view(-1)[-1], torch.tensor(torch.inf))


@pytest.mark.parametrize("model_type", ONE_FAMILY_PER_ROW)
def test_equal_models_have_equal_digests_wherever_they_come_from(model_type, tmp_path):
    fm = tiny_fm(model_type)
    digests = {model_digest(fm), model_digest(tiny_fm(model_type))}
    for name in ("here", "there"):
        fm.save_pretrained(tmp_path / name)
        digests.add(model_digest(auto_model(model_type).from_pretrained(tmp_path / name)))
    assert len(digests) == 1


@pytest.mark.parametrize("model_type", ONE_FAMILY_PER_ROW)
def test_one_ulp_in_one_weight_is_another_digest(model_type):
    fm = find_backbone(tiny_fm(model_type))
    before = model_digest(fm)
    one_ulp(fm)
    assert model_digest(fm) != before


def test_a_number_that_moves_and_a_sign_of_zero_are_seen():
    fm = tiny_fm("bert")
    weight = next(fm.parameters())
    found = set()
    with torch.no_grad():
        for values in ((0.0, 1.0), (1.0, 0.0), (-0.0, 1.0)):
            weight.view(-1)[:2] = torch.tensor(values)
            found.add(model_digest(fm))
    assert len(found) == 3


def test_dtype_names_and_shapes_count():
    bert = tiny_fm("bert")
    digests = {model_digest(bert), model_digest(bert.bfloat16()), model_digest(tiny_fm("bert", num_labels=2))}
    assert len(digests) == 3


@pytest.mark.parametrize("field", ["hidden_act", "hidden_dropout_prob", "layer_norm_eps", "pad_token_id"])
def test_what_the_architecture_computes_counts(field):
    fm = tiny_fm("bert")
    before = model_digest(fm)
    setattr(fm.config, field, {"hidden_act": "relu", "pad_token_id": 3}.get(field, 0.5))
    assert model_digest(fm) != before


@pytest.mark.parametrize("model_type", ONE_FAMILY_PER_ROW)
def test_head_and_label_names_are_not_the_backbones(model_type):
    two, three = (tiny_fm(model_type, num_labels=number) for number in (2, 3))
    find_backbone(three).load_state_dict(find_backbone(two).state_dict())
    assert model_digest(find_backbone(two)) == model_digest(find_backbone(three))


def test_the_digest_does_not_depend_on_the_layout_in_memory():
    fm = tiny_fm("bert")
    before = model_digest(fm)
    weight = next(fm.parameters())
    weight.data = weight.data.T.contiguous().T
    assert not weight.is_contiguous()
    assert model_digest(fm) == before
