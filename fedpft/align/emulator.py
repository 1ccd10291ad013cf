"""Distillation of FedOT's emulator, as a LightningModule."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from fedpft.align.distillation import Distillation
from fedpft.align.losses import hidden_state_loss
from fedpft.models.ffn import find_ffns


class EmulatorModule(Distillation):
    """Trains whole layers of the student so that the last of them gives the hidden state of a layer of the teacher.

    The student runs end to end, from its embeddings through its first layers into the emulator. Dropout is active in
    the emulator's layers alone.

    Args:
        teacher, student: the FM and its proxy of fewer layers, both without an adapter.
        layers: the emulator's, in the student, ascending.
        target: the teacher's layer whose output the last of them shall give.
        settings: `lr, num_steps, num_warmup_steps, weight_decay`, see :class:`Distillation`.

    """

    def __init__(
        self, teacher: nn.Module, student: nn.Module, *, layers: Sequence[int], target: int, **settings: Any
    ) -> None:
        super().__init__(teacher, student, **settings)
        ffns = find_ffns(student)
        self._layers = [ffns[layer].layer for layer in layers]
        self._target = find_ffns(teacher)[target].layer

    def trained_parameters(self) -> list[nn.Parameter]:
        """Return all of the emulator's."""
        return [parameter for layer in self._layers for parameter in layer.parameters()]

    def active_modules(self) -> list[nn.Module]:
        """Return the emulator's layers, for their dropout."""
        return self._layers

    def training_step(self, batch: Mapping[str, Tensor], batch_index: int) -> Tensor:
        """Return `|H_fm - H_proxy|^2 / |H_fm|^2` over real tokens of one unlabelled batch."""
        [(target, found)] = self.hidden_states(batch, [self._target], self._layers[-1:])
        return hidden_state_loss(target, found)
