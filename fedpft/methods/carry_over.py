"""From the proxy's tuned adapter to the FM's: copied, or carried over by a distillation; the result of a run."""

import time
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from fedpft.align.adapter import align_adapter
from fedpft.align.public import AlignmentContext, PublicData
from fedpft.config import Config
from fedpft.methods.base import Method, Proxy
from fedpft.models.lora import AdaptedModel, get_adapter, set_adapter
from fedpft.seeding import derive_seed
from fedpft.trainer import Progress


@dataclass(frozen=True, kw_only=True)
class CarriedOver:
    """The FM with the adapter in it, and how it got there."""

    fm: AdaptedModel
    is_copy: bool
    """Whether the FM has the proxy's adapter as it is."""
    record: dict[str, Any] = field(default_factory=dict)
    """For the round's record; empty: the adapter was only copied."""


class CarryOver:
    """Adapter -> the FM with it, as `method.plug_in` says; what comes out depends on the adapter and the proxy alone.

    Args:
        method: has built its proxy.
        proxy: what it built.
        public: unlabelled data for the distillation.
        config: the run's.
        progress: hears about the distillation.

    """

    def __init__(self, method: Method, proxy: Proxy, public: PublicData, config: Config, progress: Progress) -> None:
        self._method, self._public, self._config, self._progress = method, public, config, progress
        self._distils = config.plugs_in_by == "distill" and not proxy.is_fm
        self._last: tuple[np.ndarray, np.ndarray, CarriedOver] | None = None

    def __call__(self, adapter: np.ndarray) -> CarriedOver:
        """Return the FM with this adapter; asked again for the same one, it takes it from memory."""
        fm = self._method.plug_in(adapter)
        if not self._distils:
            return CarriedOver(fm=fm, is_copy=True)
        if self._last is not None and np.array_equal(self._last[0], adapter):
            set_adapter(fm, self._last[1])
            return self._last[2]
        self._progress.stage("carry adapter over")
        start = time.perf_counter()
        context = AlignmentContext(
            public=self._public,
            server=self._config.server,
            seed=derive_seed(self._config.seed, "align_adapter"),
            on_step=self._progress.progress,
        )
        report = align_adapter(fm, self._method.proxy_with(adapter), self._config.align.adapter, context)
        record = {"plug_in": asdict(report) | {"accepted": report.accepted}}
        seconds = {"time/plug_in_seconds": time.perf_counter() - start}
        done = CarriedOver(fm=fm, is_copy=not report.accepted, record=record | seconds)
        self._last = adapter.copy(), get_adapter(fm), done
        return done
