import os
import signal
import time

import pytest

from fedpft.align.distill import align_layers
from fedpft.align.public import AlignmentContext, PublicData
from fedpft.config import LayerAlignConfig, ServerConfig
from fedpft.construct.compress import compress
from fedpft.interrupt import Interrupted, held_back, interruptible, kept_handlers, unmasked
from tests.tiny import tiny_batch, tiny_fm

pytestmark = pytest.mark.usefixtures("heeded_signals")
SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_within_an_alignment_ends_it_at_once(number, code):
    batch = tiny_batch("bert", batch_size=4)
    rows = [{name: value[row] for name, value in batch.items()} for row in range(4)]
    fm = tiny_fm("bert")
    sub_fm, neurons = compress(fm, retained_ratio=0.5)
    steps = []

    def on_step(done, total, metrics):
        steps.append(done)
        if done == 2:
            os.kill(os.getpid(), number)

    public = PublicData(dataset=rows, collate=lambda items: {"input_ids": batch["input_ids"]})
    context = AlignmentContext(public=public, server=ServerConfig(accelerator="cpu"), seed=0, on_step=on_step)
    config = LayerAlignConfig(num_steps=50, batch_size=2)
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as caught, interruptible():
        align_layers(fm, sub_fm, config, context, layers=neurons.compressed_layers)
    assert caught.value.exit_code == code
    assert steps == [1, 2]
    assert signal.getsignal(number) is before


def test_what_is_to_be_ignored_is_ignored_as_nohup_says_of_a_closing_terminal():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible(), held_back() as check:
            os.kill(os.getpid(), signal.SIGHUP)
            check()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_second_signal_finds_the_systems_own_handler():
    with interruptible():
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)
        assert [signal.getsignal(number) for number, _ in SIGNALS] == [signal.SIG_DFL] * 3


def test_a_library_that_installs_its_own_handlers_does_not_keep_them():
    before = signal.getsignal(signal.SIGTERM)
    with kept_handlers():
        signal.signal(signal.SIGTERM, lambda number, frame: None)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_that_is_held_back_is_raised_when_asked_for_and_the_handlers_come_back():
    before = [signal.getsignal(number) for number, _ in SIGNALS]
    with interruptible(), held_back() as check:
        check()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        with pytest.raises(Interrupted) as stop:
            check()
    assert stop.value.exit_code == 143
    assert [signal.getsignal(number) for number, _ in SIGNALS] == before


def test_an_interrupt_that_a_library_masked_is_raised_itself_and_no_other_error_is_touched():
    interrupted, other = Interrupted(signal.SIGINT), SystemError("of its own")
    with pytest.raises(Interrupted) as caught, unmasked():
        raise SystemError("returned a result with an exception set") from interrupted
    assert caught.value is interrupted
    with pytest.raises(SystemError) as kept, unmasked():
        raise other
    assert kept.value is other
