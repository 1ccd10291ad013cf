"""The clients of a round that wait for an actor, and how many of them it is given at a time."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from fedpft.federated.messages import ClientUpdate

BATCH_SECONDS = 0.25
"""How long the clients of a batch train together: many times what sending them out and back takes (a few ms)."""

SHORTEST_SECONDS = 0.03
"""A batch is not cut below this: waiting for another actor's last one costs no more than the messages of many."""

SHARES_PER_ACTOR = 2
"""A batch is at most the actor's share of what waits over this, so that the last batches are small and end together."""


@dataclass(eq=False)
class Job:
    """A client that waits for its training, or is in it; or several that train together."""

    client_ids: tuple[int, ...]
    num_examples: int
    """Of all of them."""
    attempts: int = 0
    """How often it was trained, or failed."""
    first_actor: int = 0
    """Actors with a lower number have seen it fail, or were there when it did."""
    is_suspect: bool = False
    """Was in a batch that failed, nobody knows by whose fault; from then on it is a batch of its own."""

    def apart(self, num_examples: Callable[[int], int]) -> list["Job"]:
        """Return each of the clients as one that is suspect; `num_examples` by client."""
        return [replace(self, client_ids=(c,), num_examples=num_examples(c), is_suspect=True) for c in self.client_ids]


class Pace:
    """How long clients train for each example, as measured so far; decides who trains where, never what comes out."""

    def __init__(self) -> None:
        self._examples = self._seconds = 0.0

    def forget(self) -> None:
        """Let all that was measured count half; once a round, since the first steps of a process are slow."""
        self._examples, self._seconds = self._examples / 2, self._seconds / 2

    def note(self, updates: Iterable[ClientUpdate]) -> None:
        """Learn from what clients report."""
        for update in updates:
            self._examples += update.num_examples
            self._seconds += update.metrics["seconds"]

    def examples_in(self, seconds: float) -> float:
        """Return how many examples an actor trains on in that time; 0 as long as nothing is known."""
        return seconds * self._examples / self._seconds if self._seconds else 0.0


class Waiting:
    """A queue of jobs, which gives out its first ones in batches of about the same work."""

    def __init__(self, jobs: Iterable[Job], pace: Pace) -> None:
        self._jobs, self._pace = deque(jobs), pace
        self._examples = sum(job.num_examples for job in self._jobs)

    def __len__(self) -> int:
        """How many wait."""
        return len(self._jobs)

    def take(self, *, actor: int, newest: int, num_actors: int) -> list[Job]:
        """Take the next batch for an actor; empty: nobody who waits may go there.

        Args:
            actor: its number.
            newest: the highest number of an actor. A client that failed waits for an actor started after that, or has
                the newest where no other could start.
            num_actors: how many share the work.

        """
        share = self._examples / (SHARES_PER_ACTOR * num_actors)
        most = min(self._pace.examples_in(BATCH_SECONDS), max(self._pace.examples_in(SHORTEST_SECONDS), share))
        batch: list[Job] = []
        others: list[Job] = []
        examples = 0
        while self._jobs:
            job = self._jobs.popleft()
            if min(job.first_actor, newest) > actor:
                others.append(job)
                continue
            if batch and (job.is_suspect or examples + job.num_examples > most):
                others.append(job)
                break
            batch.append(job)
            examples += job.num_examples
            if job.is_suspect:
                break
        self._jobs.extendleft(reversed(others))
        self._examples -= examples
        return batch

    def first(self, num_jobs: int) -> list[int]:
        """Return the clients of the jobs that are next, without taking them."""
        return [client_id for job in islice(self._jobs, num_jobs) for client_id in job.client_ids]

    def put_back(self, jobs: Sequence[Job]) -> None:
        """Let jobs be the next ones again."""
        self._jobs.extendleft(reversed(jobs))
        self._examples += sum(job.num_examples for job in jobs)
