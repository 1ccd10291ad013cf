import copy

import numpy as np
import pytest
import torch

from fedpft.align.public import PublicData
from fedpft.config import Config, ConfigError, LoraConfig, MethodConfig
from fedpft.data.collate import rows
from fedpft.federated.aggregate import Aggregation
from fedpft.federated.client import LocalClient
from fedpft.federated.messages import RoundPlan
from fedpft.methods import METHODS
from fedpft.methods.full_model import FullModel
from fedpft.models.lora import attach_lora, get_adapter, set_adapter
from fedpft.seeding import derive_seed, numpy_rng
from fedpft.trainer import SilentProgress
from tests.tiny import ONE_FAMILY_PER_ROW, tiny_batch, tiny_fm, tiny_package

LORA = LoraConfig(rank=2, lora_alpha=4)


def method(model_type="bert", *, fm=None, lora=LORA):
    config = Config(seed=0, lora=lora, method=MethodConfig(name="full"))
    return FullModel(fm or tiny_fm(model_type), PublicData(dataset=[], collate=dict), config, SilentProgress())


def test_it_is_registered_under_its_name():
    assert METHODS["full"] is FullModel


@pytest.mark.parametrize("model_type", ONE_FAMILY_PER_ROW)
def test_the_proxy_is_the_fm_itself(model_type):
    fm = tiny_fm(model_type)
    own = list(fm.parameters())
    before = [parameter.detach().clone() for parameter in own]
    with torch.no_grad():
        plain = fm(**tiny_batch(model_type)).logits
    made = method(model_type, fm=fm)
    proxy = made.build_proxy()
    adapter = get_adapter(proxy.model)
    with torch.no_grad():
        assert torch.equal(made.plug_in(adapter)(**tiny_batch(model_type)).logits, plain)
    assert proxy.is_fm
    assert proxy.watched_layers == ()
    assert proxy.construction == {}
    assert made.plug_in(adapter + 1) is made.proxy_with(adapter + 1) is proxy.model
    assert proxy.model.base_model.model is fm
    assert get_adapter(proxy.model).tobytes() == (adapter + 1).tobytes()
    assert {id(parameter) for parameter in own} <= {id(parameter) for parameter in proxy.model.parameters()}
    assert all(torch.equal(now, then) for now, then in zip(own, before, strict=True))


def test_nothing_is_aligned_or_saved():
    made = method()
    proxy = made.build_proxy()
    assert not any(made.wants_counts(round_index, 10) for round_index in range(1, 11))
    assert made.saved_proxy() == {}
    restored = method().build_proxy({})
    assert get_adapter(restored.model).tobytes() == get_adapter(proxy.model).tobytes()


def test_a_target_that_the_fm_does_not_have_is_refused():
    with pytest.raises(ConfigError, match=r"^lora\.target_modules: found 'nowhere'"):
        method(lora=LoraConfig(target_modules=("nowhere",)))


def test_the_first_rounds_update_is_that_of_training_the_fm_by_hand():
    """Plain torch, from the FM: one epoch of AdamW on each client's shard, then the mean by data volume."""
    fm = tiny_fm("bert", num_labels=2)
    start = copy.deepcopy(fm)
    proxy = method(fm=fm).build_proxy()
    package = tiny_package(model=proxy.model, watched_layers=proxy.watched_layers)
    plan = RoundPlan(round_index=1, lr=1e-2, adapter=get_adapter(proxy.model), count_activations=False)
    clients = (1, 3)
    updates = [LocalClient(package).fit(plan, client_id) for client_id in clients]
    aggregation = Aggregation(plan, clients, dict.fromkeys(clients, 1), "weighted")
    for update in updates:
        aggregation.add(update)
    found, _ = aggregation.next_adapter()

    expected, sizes = [], []
    for client_id in clients:
        model = attach_lora(copy.deepcopy(start), LORA, derive_seed(0, "adapter"))
        set_adapter(model, plan.adapter)
        model.train()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.01)
        examples = rows(package.train, package.partition.shard(client_id))
        order = numpy_rng(0, "batches", 1, client_id).permutation(len(examples))
        torch.manual_seed(derive_seed(0, "local", 1, client_id))
        for first in range(0, len(order), 4):
            loss = model(**package.collate([examples[i] for i in order[first : first + 4]])).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
        expected.append(get_adapter(model))
        sizes.append(len(examples))
    mean = np.average(np.stack(expected).astype(np.float64), axis=0, weights=sizes)
    assert np.abs(mean - plan.adapter).max() > 1e-2
    assert found == pytest.approx(mean, abs=1e-6)
