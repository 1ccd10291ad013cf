from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fedpft.align.adapter import align_adapter
from fedpft.align.public import PublicData
from fedpft.config import (
    AdapterAlignConfig,
    AlignConfig,
    Config,
    MethodConfig,
    NeuronAlignConfig,
    ServerConfig,
    load_config,
)
from fedpft.methods import carry_over as module_under_test
from fedpft.methods.base import Proxy
from fedpft.methods.carry_over import CarryOver
from fedpft.models.lora import get_adapter
from fedpft.trainer import SilentProgress
from tests.fakes import FakeMethod
from tests.tiny import tiny_batch

pytestmark = pytest.mark.filterwarnings("ignore:Found .* eval mode", "ignore:Converting a tensor")


@pytest.fixture
def made(monkeypatch):
    """Return a function that makes a method and its carry-over, and the adapters that were distilled."""
    distilled = []

    def align(fm, *args, **kwargs):
        distilled.append(get_adapter(fm))
        return align_adapter(fm, *args, **kwargs)

    monkeypatch.setattr(module_under_test, "align_adapter", align)

    def make(plug_in="distill", is_fm=False, lr=1e-3, neurons="distill"):
        method, batch = FakeMethod(), tiny_batch("bert", batch_size=16)
        rows = [{name: value[row] for name, value in batch.items()} for row in range(16)]
        config = Config(
            method=MethodConfig(plug_in=plug_in),
            align=AlignConfig(
                adapter=AdapterAlignConfig(num_steps=2, batch_size=4, lr=lr), neurons=NeuronAlignConfig(kind=neurons)
            ),
            server=ServerConfig(accelerator="cpu"),
        )
        public = PublicData(dataset=rows, collate=torch.utils.data.default_collate)
        proxy = Proxy(model=method.sub_fm, watched_layers=(), is_fm=is_fm)
        carry_over = CarryOver(method, proxy, public, config, SilentProgress())
        return SimpleNamespace(method=method, carry_over=carry_over, distilled=distilled)

    return make


def tuned(method, seed=0):
    adapter = get_adapter(method.fm)
    return adapter + np.random.default_rng(seed).normal(0, 0.1, adapter.shape).astype(np.float32)


@pytest.mark.parametrize(
    "settings",
    [{"plug_in": "copy"}, {"is_fm": True}, {"plug_in": "auto"}, {"plug_in": "auto", "neurons": "closed_form"}],
)
def test_without_a_distillation_the_fm_has_the_proxys_adapter_and_nothing_is_told(made, settings):
    run = made(**settings)
    adapter = tuned(run.method)
    carried = run.carry_over(adapter)
    assert np.array_equal(get_adapter(carried.fm), adapter)
    assert (carried.is_copy, carried.record, run.distilled) == (True, {}, [])


def test_the_fms_adapter_starts_as_the_copied_one_and_the_proxy_keeps_its_own(made):
    run = made()
    adapter = tuned(run.method)
    carried = run.carry_over(adapter)
    assert np.array_equal(run.distilled, [adapter])
    assert np.array_equal(get_adapter(run.method.sub_fm), adapter)
    told = carried.record["plug_in"]
    assert told["accepted"] == (told["distilled_loss"] < told["copied_loss"]) == (not carried.is_copy)
    assert carried.is_copy == np.array_equal(get_adapter(carried.fm), adapter)
    assert carried.record["time/plug_in_seconds"] > 0


def test_the_last_one_is_remembered_and_no_order_of_calls_changes_a_bit(made):
    run = made()
    first, second = tuned(run.method), tuned(run.method, seed=1)
    expected = get_adapter(run.carry_over(first).fm)
    run.method.plug_in(second)  # an evaluation of the copied adapter
    assert np.array_equal(get_adapter(run.carry_over(first).fm), expected)
    assert len(run.distilled) == 1
    run.carry_over(second)
    assert np.array_equal(get_adapter(run.carry_over(first).fm), expected), "it depends on the adapter alone"
    assert len(run.distilled) == 3


def test_a_refused_adapter_is_a_copy(made):
    run = made(lr=1.0)
    adapter = tuned(run.method)
    carried = run.carry_over(adapter)
    assert carried.is_copy
    assert not carried.record["plug_in"]["accepted"]
    assert np.array_equal(get_adapter(carried.fm), adapter)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["align.neurons.kind=none"], "distill"),
        (["align.neurons.kind=closed_form"], "copy"),
        (["align.neurons.kind=none", "method.plug_in=copy"], "copy"),
        (["method.plug_in=distill"], "distill"),
        (["align.neurons.kind=none", "method.name=fedot"], "copy"),
        (["align.neurons.kind=none", "method.name=full"], "copy"),
    ],
)
def test_by_default_an_adapter_is_distilled_where_nothing_brings_the_sub_fm_near_to_the_fm_between_rounds(
    settings, expected
):
    assert load_config(None, settings).plugs_in_by == expected
