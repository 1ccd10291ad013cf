"""What a client trains: the proxy's adapter, as a LightningModule."""

from collections.abc import Mapping, Sequence

import lightning as L
from torch import Tensor, nn

from fedpft.models.target_logits import batch_loss


class LocalTuningModule(L.LightningModule):
    """Supervised tuning of a proxy's adapter on labelled data.

    Args:
        proxy: a model with an adapter that returns `.loss` when the batch has `labels`; or a language model.

    """

    def __init__(self, proxy: nn.Module) -> None:
        super().__init__()
        self.proxy = proxy

    def training_step(
        self, batch: Mapping[str, Tensor], batch_index: int, targets: Sequence[Tensor] | None = None
    ) -> Tensor:
        """Return the mean loss of a labelled batch; within `Together`, (K,), that of each client's.

        Args:
            batch: inputs, and `labels`, (B,), or where tokens are predicted (B, T).
            batch_index: not read.
            targets: of tokens, where those of each client's part are; None: they are looked for in the labels of the
                only one, for which a GPU has to be waited for.

        """
        return batch_loss(self.proxy, batch, targets)
