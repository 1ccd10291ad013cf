"""The server's side of secure aggregation: a round's keys and shares, the sum of what arrives, and its unmasking.

The server adds up vectors that are noise to it. What it learns is their sum, and nothing at all if fewer clients than
the threshold are there at the end. See `fedpft.privacy.masking` for the protocol and `fedpft.federated.masking` for the
clients' side of it.
"""

import math
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np

from fedpft.config import Config, ConfigError
from fedpft.federated.messages import ClientFailure, ClientReport, Masking, MaskingAnswer, MaskingStep
from fedpft.federated.pool import ClientPool
from fedpft.models.activations import ActivationCounts
from fedpft.privacy.fixed_point import FixedPoint


@dataclass(frozen=True, kw_only=True)
class SecureAggregation:
    """What is the same in all rounds of a run."""

    threshold_ratio: float
    """A secret takes the shares of more than this part of a round's clients."""
    bound: float
    """Of a number of an update; of a round with a clip it is the clip."""
    most_weight: int = 1
    """Of a client, a bound that all may know; 1: all are equal."""

    @classmethod
    def of_run(cls, config: Config, sizes: np.ndarray) -> "SecureAggregation | None":
        """Return a run's; None: updates are sent in the clear.

        Args:
            config: the run's.
            sizes: (num_clients,) examples of each client.

        Raises:
            ConfigError: too few bits for the sum, or cryptography is not installed.

        """
        privacy, federated = config.privacy, config.federated
        if not privacy.secure_aggregation:
            return None
        if find_spec("cryptography") is None:
            found = "found a run that needs cryptography, which is not installed"
            raise ConfigError(f"privacy.secure_aggregation: {found}, allowed: false, or pip install 'fedpft[privacy]'")
        is_weighted = federated.aggregation == "weighted"
        most_weight = 2 ** math.ceil(math.log2(sizes.max())) if is_weighted else 1
        made = cls(
            threshold_ratio=privacy.secure_threshold,
            bound=privacy.clip if privacy.is_of_clients else privacy.secure_bound,
            most_weight=most_weight,
        )
        made.fixed_point(federated.num_clients)
        return made

    def threshold(self, num_clients: int) -> int:
        """Return how many of a round's clients it takes; a sum of one would be no sum."""
        return max(2, math.floor(self.threshold_ratio * num_clients) + 1)

    def fixed_point(self, num_clients: int, clip: float | None = None) -> FixedPoint:
        """Return how a round's updates become integers."""
        bound = self.bound if clip is None else clip
        return FixedPoint.of(bound=bound, most_weight=self.most_weight, num_parties=num_clients)

    def traffic(self, plain: Mapping[str, int], num_clients: int) -> dict[str, int]:
        """Return `exchange.traffic` of a run in which so many clients begin a round, given that without masks."""
        parts = client_bytes(num_clients, plain["bytes_up_per_client_round"] // 4 + 1)
        up, down = (sum(part[way] for part in parts.values()) for way in (0, 1))
        return {
            "bytes_up_per_client_round": up,
            "bytes_down_per_client_round": plain["bytes_down_per_client_round"] + down,
        }

    def summary(self, num_clients: int) -> dict[str, Any]:
        """Return what `result.json` says of it, of a round that so many clients begin."""
        threshold, resolution = self.threshold(num_clients), self.fixed_point(num_clients).resolution
        return {"clients": num_clients, "threshold": threshold, "resolution": resolution}

    def forecast(self, num_clients: int, size: int) -> dict[str, Any]:
        """Return what `plan` says of a round with so many clients whose updates have so many numbers."""
        from fedpft.privacy.masking import expand

        start = time.perf_counter()
        expand(bytes(32), size)
        return {
            **self.summary(num_clients),
            "bytes_per_client": {part: up + down for part, (up, down) in client_bytes(num_clients, size).items()},
            "mask_seconds_per_client": num_clients * (time.perf_counter() - start),
        }


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A round's sum without masks."""

    update: np.ndarray
    """(P,) float64, of the clients' weighted updates, of what the round tunes."""
    weight: int
    """Of all together."""
    num_short: int
    """Updates that were no longer than the clip; without one, 0."""
    counts: ActivationCounts | None


class SecureRound:
    """One round; made, it has agreed with the clients on masks.

    Args:
        settings: the run's.
        pool: plays the clients.
        round_index: from 1.
        clients: all who begin the round, also those who will be late.
        clip: to which clients scale their updates down; None: they do not.

    """

    def __init__(
        self,
        settings: SecureAggregation,
        pool: ClientPool,
        round_index: int,
        clients: Collection[int],
        clip: float | None = None,
    ) -> None:
        self._pool, self._round = pool, round_index
        self._threshold = settings.threshold(len(clients))
        self._fixed, self._clip = settings.fixed_point(len(clients), clip), clip
        self._is_weighted = settings.most_weight > 1
        self._seconds = dict[str, float]()
        self._total: np.ndarray | None = None
        self.failures: list[ClientFailure] = []
        """Clients without an answer to a step, the last attempt of each."""
        self.why_not: str | None = None
        """Why there is no sum, in one line."""
        self.opened: Opened | None = None
        self._keys = dict[int, bytes]()
        advertised = {c: a.sent[c] for c, a in self._ask("keys", MaskingStep(**self._about("keys")), clients).items()}
        if not self._suffices(advertised, "sent their keys"):
            return
        step = MaskingStep(**self._about("shares"), keys=advertised)
        self._sealed = {c: a.sent for c, a in self._ask("shares", step, advertised).items()}
        if self._suffices(self._sealed, "sent shares"):
            self._keys = {client_id: advertised[client_id] for client_id in self._sealed}

    @property
    def members(self) -> Collection[int]:
        """Those whose masks fit together; nobody, if they are too few."""
        return self._keys.keys()

    @property
    def masking(self) -> Masking:
        """What goes with the plan."""
        return Masking(keys=self._keys, fixed=self._fixed, is_weighted=self._is_weighted, clip=self._clip)

    def add(self, masked: np.ndarray) -> None:
        """Add a client's vector, (D,) uint64."""
        self._total = masked if self._total is None else self._total + masked

    def open(self, survivors: Collection[int], num_neurons: Sequence[int] | None) -> None:
        """Ask for shares and take the masks off the sum: then there is `opened`, or `why_not`.

        Args:
            survivors: whose vectors were added.
            num_neurons: of each watched FFN whose counts are part of the vectors; None: nobody counted.

        """
        if self.why_not is not None or not self._suffices(survivors, "sent masked updates"):
            return
        from fedpft.privacy.masking import unmask

        inbox = {holder: {c: sealed[holder] for c, sealed in self._sealed.items()} for holder in survivors}
        about = self._about("unmask")
        step = MaskingStep(**about, keys=self._keys, survivors=frozenset(survivors), inbox=inbox)
        revealed = {c: a.sent for c, a in self._ask("unmask", step, survivors).items()}
        if self._suffices(revealed, "gave shares"):
            start = time.perf_counter()
            assert self._total is not None, "survivors have sent something"
            total = unmask(self._total, self._keys, frozenset(survivors), revealed, self._threshold)
            self._seconds["unmask"] += time.perf_counter() - start
            self.opened = self._read(total, num_neurons)

    def record(self, record: Mapping[str, Any], reports: Iterable[ClientReport]) -> dict[str, Any]:
        """Return what the round's record has of it.

        Args:
            record: without it; its bytes have the masked vectors already.
            reports: of those whose vectors arrived.

        """
        known = len(self._sealed) if self.members else 0
        arrived = list(reports)
        masked = 0 if self._total is None else self._total.nbytes
        parts = client_bytes(known, masked // 8)
        asked = {"keys": known, "shares": known, "masked": len(arrived), "unmask": len(arrived)}
        besides = [(asked[part] * up, asked[part] * down) for part, (up, down) in parts.items() if part != "masked"]
        return {
            "comm/bytes_up": record["comm/bytes_up"] + sum(up for up, _ in besides),
            "comm/bytes_down": record["comm/bytes_down"] + sum(down for _, down in besides),
            **{f"comm/bytes_{part}": asked[part] * (up + down) for part, (up, down) in parts.items()},
            **{f"time/{step}_seconds": seconds for step, seconds in self._seconds.items()},
            "clients/mask_seconds": sum(report.metrics.get("mask_seconds", 0.0) for report in arrived),
            **({} if self.why_not is None else {"not_opened": self.why_not}),
        }

    def _about(self, step: Literal["keys", "shares", "unmask"]) -> dict[str, Any]:
        return {"step": step, "round_index": self._round, "threshold": self._threshold}

    def _ask(self, name: str, step: MaskingStep, clients: Iterable[int]) -> Mapping[int, MaskingAnswer]:
        start, answers = time.perf_counter(), dict[int, MaskingAnswer]()
        for outcome in self._pool.ask(step, sorted(clients)):
            if isinstance(outcome, ClientFailure):
                self.failures.append(outcome)
            else:
                answers[outcome.client_id] = outcome
        self._seconds[name] = time.perf_counter() - start
        return dict(sorted(answers.items()))

    def _suffices(self, clients: Collection[int], did: str) -> bool:
        if len(clients) < self._threshold:
            found = f"secure aggregation: {len(clients)} clients {did}"
            self.why_not = f"{found}, allowed: {self._threshold} or more (privacy.secure_threshold)"
        return self.why_not is None

    def _read(self, total: np.ndarray, num_neurons: Sequence[int] | None) -> Opened:
        sizes = [1, int(self._clip is not None), *(num_neurons or ()), len(num_neurons or ())]
        size = len(total) - sum(sizes)
        weight, short, *zeros, positions = np.split(total[size:].view(np.int64), np.cumsum(sizes)[:-1])
        return Opened(
            update=self._fixed.decode(total[:size]),
            weight=int(weight[0]),
            num_short=int(short.sum()),
            counts=None if num_neurons is None else ActivationCounts(zeros=tuple(zeros), positions=positions),
        )


def client_bytes(num_clients: int, size: int) -> dict[str, tuple[int, int]]:
    """Return the bytes up and down of a client by part, in a round of so many with vectors of so many numbers.

    `keys`: its own two, all others'; `shares`: for each and from each; `masked`: the vector, in place of the adapter;
    `unmask`: a share of each, and who has survived, 4 bytes an id.
    """
    from fedpft.privacy.masking import PUBLIC_BYTES, SEALED_BYTES
    from fedpft.privacy.secret_shares import SHARE_BYTES

    return {
        "keys": (PUBLIC_BYTES, num_clients * PUBLIC_BYTES),
        "shares": (num_clients * SEALED_BYTES, num_clients * SEALED_BYTES),
        "masked": (8 * size, 0),
        "unmask": (num_clients * SHARE_BYTES, 4 * num_clients),
    }
