"""Distillation shared by two processes, which stand for two GPUs: they differ in nothing but the device."""

import os
from dataclasses import replace
from types import SimpleNamespace

import bitsandbytes  # noqa: F401 - it looks for a GPU when it is imported, and one that is pretended has no library
import pytest
import torch

from fedpft.align import together
from fedpft.align.distill import align_layers
from fedpft.align.module import AlignmentModule
from fedpft.align.public import AlignmentContext, PublicData
from fedpft.config import ConfigError, LayerAlignConfig, ServerConfig
from fedpft.construct.compress import compress
from fedpft.models.ffn import find_ffns
from tests.pretend_cuda import pretended_cuda
from tests.tiny import tiny_batch, tiny_fm

CONFIG = LayerAlignConfig(num_steps=3, batch_size=4, lr=1e-2, warmup_ratio=0.0, product_weight=0.01)
SERVER = ServerConfig(accelerator="cpu")
LAYERS = (1, 2)


class Noting:
    """Collates, and remembers the batches."""

    def __init__(self):
        self.batches = []

    def __call__(self, rows):
        self.batches.append(torch.utils.data.default_collate(rows))
        return self.batches[-1]


def models():
    fm = tiny_fm("bert", hidden_dropout_prob=0.0)
    return fm, compress(fm, retained_ratio=0.5, uncompressed_layers=(0,))[0]


def align(fm, sub_fm, collate, *, server=SERVER, on_step=None):
    batch = tiny_batch("bert", batch_size=8)
    rows = [{name: value[row] for name, value in batch.items()} for row in range(8)]
    public = PublicData(dataset=rows, collate=collate)
    context = AlignmentContext(public=public, server=server, seed=3, on_step=on_step)
    return align_layers(fm, sub_fm, CONFIG, context, layers=LAYERS)


def by_hand(fm, sub_fm, batches):
    """The steps of two devices in one process: the mean of both shares' losses, clipped, AdamW; return the losses."""
    module = AlignmentModule(
        fm, sub_fm, layers=LAYERS, product_weight=CONFIG.product_weight, weight_decay=CONFIG.weight_decay, lr=CONFIG.lr,
        num_steps=CONFIG.num_steps,
    )  # fmt: skip
    module.setup("fit")
    made = module.configure_optimizers()
    losses = []
    for batch in batches:
        shares = [{name: value[rank::2] for name, value in batch.items()} for rank in range(2)]
        loss = torch.stack([module.loss(share).total for share in shares]).mean()
        made["optimizer"].zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.trained_parameters(), CONFIG.max_grad_norm)
        made["optimizer"].step()
        made["lr_scheduler"]["scheduler"].step()
        losses.append(loss.item())
    return losses


@pytest.mark.filterwarnings("ignore")
def test_two_devices_take_the_steps_of_their_shares_mean_and_bring_back_what_they_trained_alone(capfd):
    noting = Noting()
    align(*models(), noting)
    fm, expected = models()
    losses = by_hand(fm, expected, noting.batches[2:-2])  # the loss is measured on the first two, and again on the last

    fm, sub_fm = models()
    before = {name: tensor.clone() for name, tensor in [*fm.named_parameters(), *sub_fm.named_parameters()]}
    steps = []
    report = align(
        fm, sub_fm, torch.utils.data.default_collate, server=replace(SERVER, devices=2),
        on_step=lambda done, total, metrics: steps.append((done, total, metrics["loss"])),
    )  # fmt: skip
    assert [step[:2] for step in steps] == [(1, 3), (2, 3), (3, 3)]
    assert [step[2] for step in steps] == pytest.approx(losses, rel=1e-5)
    assert (report.first_loss, report.last_loss) == (steps[0][2], steps[-1][2])
    trained = {id(parameter) for layer in LAYERS for parameter in find_ffns(sub_fm)[layer].parameters()}
    for (name, found), wanted in zip(sub_fm.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=2e-6)
        assert torch.equal(found, before[name]) == (id(found) not in trained), name
    assert all(torch.equal(p, q) for p, q in zip(fm.parameters(), models()[0].parameters(), strict=True))
    assert "MASTER_PORT" not in os.environ
    assert capfd.readouterr() == ("", "")


def test_what_is_sent_to_several_processes_lies_on_the_cpu():
    seen = []
    with pretended_cuda(2) as gpu:
        module = torch.nn.Linear(2, 1).to("cuda")
        trainer = SimpleNamespace(
            num_devices=2,
            fit=lambda module, loader: seen.extend(gpu.holds(parameter) for parameter in module.parameters()),
            strategy=SimpleNamespace(launcher=None),
        )
        together.fit_together(trainer, module, [])
    assert seen == [False, False]


def test_shared_memory_that_does_not_hold_the_models_is_refused_before_a_process_starts(monkeypatch):
    monkeypatch.setattr(together.psutil, "disk_usage", lambda folder: SimpleNamespace(free=4096))
    fm, sub_fm = models()
    with pytest.raises(
        ConfigError, match=r"^server.devices: found 2, allowed: with 5.8e-05 GB free in /dev/shm, .* or 1$"
    ):
        align(fm, sub_fm, torch.utils.data.default_collate, server=replace(SERVER, devices=2))
