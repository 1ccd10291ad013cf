"""A federated tuning method of one's own: the sub-FM keeps every other layer's FFN whole, and is never re-aligned.

A method is a class with five functions (`fedpft.methods.base.Method`); the round loop, the clients, evaluation, files
and resuming are those of every other method. This one is a short sibling of FedPFT.
"""

import sys
from dataclasses import replace

import numpy as np

import fedpft
from fedpft.construct.compress import compress, restore_sub_fm, sub_fm_tensors
from fedpft.methods.base import FixedProxy, Proxy
from fedpft.methods.plugin import plug_in
from fedpft.models.ffn import find_ffns
from fedpft.models.lora import attach_lora, set_adapter
from fedpft.seeding import derive_seed


class EveryOtherLayer(FixedProxy):
    """Compress the FFNs of the odd layers only."""

    def __init__(self, fm, public, config, progress):
        """Keep what every method is given; public data are not read."""
        self._plain_fm, self._config, self._progress = fm, config, progress

    def build_proxy(self, saved=None):
        """Make the sub-FM, or restore it, and put the same fresh adapter on it and on the FM."""
        if saved is None:
            self._progress.stage("construct sub-FM")
            whole = range(0, len(find_ffns(self._plain_fm)), 2)
            ratio = self._config.method.retained_ratio
            sub_fm, self._map = compress(self._plain_fm, retained_ratio=ratio, uncompressed_layers=whole)
        else:
            sub_fm, self._map = restore_sub_fm(self._plain_fm, saved)
        seed = derive_seed(self._config.seed, "adapter")
        self._fm, self._sub_fm = (attach_lora(m, self._config.lora, seed) for m in (self._plain_fm, sub_fm))
        return Proxy(model=self._sub_fm, watched_layers=())

    def saved_proxy(self):
        """Return what tells the sub-FM from the FM, for checkpoints."""
        return sub_fm_tensors(self._sub_fm, self._map)

    def plug_in(self, adapter: np.ndarray):
        """Return the FM with the adapter in it."""
        return plug_in(self._fm, adapter)

    def proxy_with(self, adapter: np.ndarray):
        """Return the sub-FM with the adapter in it."""
        set_adapter(self._sub_fm, adapter)
        return self._sub_fm


def main(overrides: list[str], config_path: str | None = "experiments/configs/quickstart.yaml") -> fedpft.Result:
    """Run the quickstart with this method."""
    config = replace(fedpft.load_config(config_path, overrides), name="every_other_layer")
    return fedpft.run(config, method=EveryOtherLayer)


if __name__ == "__main__":
    print(main(sys.argv[1:]))
