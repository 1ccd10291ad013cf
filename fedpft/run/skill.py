"""How much of the untuned FM's skill its sub-FM has (CPL), on a run's own public data."""

from typing import Any

from fedpft.align.public import PublicData
from fedpft.config import Config
from fedpft.data.datamodule import FederatedData
from fedpft.evaluation.skill import SharedSkill, shared_skill
from fedpft.seeding import derive_seed

NUM_PUBLIC, PUBLIC_BATCH = 256, 16
"""Public examples on which an audit compares, and of a batch."""

FEWER_PUBLIC = 64
"""On which a run does: enough for shares, too few for a linear map of hidden states."""


def skill_of(
    fm: Any, sub_fm: Any, public: PublicData, data: FederatedData, config: Config, *, probes: bool
) -> SharedSkill:
    """Compare the untuned FM with its sub-FM; neither changes, and nothing else draws what is drawn here.

    Args:
        fm: without an adapter, or with one that is new and changes nothing.
        sub_fm: the same of the sub-FM.
        public: examples that no client owns.
        data: the run's, for the kind of task.
        config: the run's.
        probes: as in an audit, with more examples and the linear map.

    """
    number = NUM_PUBLIC if probes else FEWER_PUBLIC
    batches = list(public.batches(number, PUBLIC_BATCH, derive_seed(config.server_seed, "skill")))
    causal = data.kind == "causal_lm"
    return shared_skill(fm, sub_fm, batches, causal=causal, server=config.server, probes=probes)
