"""What the methods that build a sub-FM have in common: it is built once, checked, and reported."""

import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fedpft.align.public import AlignmentReport, PublicData
from fedpft.config import Config, ConfigError
from fedpft.construct.cache import BuiltSubFM, Construction, Restore, SubFMCache, construction_of
from fedpft.construct.compress import restore_sub_fm
from fedpft.construct.store import cache_dir
from fedpft.methods.ingredients import can_be_cached, sub_fm_ingredients
from fedpft.models.digest import backbone_digest
from fedpft.trainer import Progress


def construct_once(
    fm: PreTrainedModel,
    public: PublicData,
    config: Config,
    progress: Progress,
    build: Callable[[], BuiltSubFM],
    restore: Restore = restore_sub_fm,
) -> tuple[Construction, dict[str, Any]]:
    """Return the sub-FM, from the cache if another run built it, else built here, and what `result.json` says of it.

    Args:
        fm: the FM; not changed.
        public: unlabelled data that `build` may read.
        config: the run's.
        progress: hears about the look-up.
        build: constructs and aligns; all that it reads stands in `sub_fm_ingredients`.
        restore: makes the sub-FM from what `build` returns.

    """
    start, cache = time.perf_counter(), config.cache
    if cache.enabled and can_be_cached(public, config):
        progress.stage("look up sub-FM")
        sub_fms = SubFMCache(cache_dir(cache.dir), max_bytes=round(cache.max_gigabytes * 1e9))
        ingredients = sub_fm_ingredients(fm, public, config)
        made = sub_fms.get_or_build(fm, ingredients, build, progress.stage, restore)
    else:
        made = construction_of(fm, build(), restore)
    for kind, loss in made.report.get("align_measured", {}).items():  # also of one that another run built
        warn_if_useless(f"align.layers.kind = {kind}", loss["before"], loss["after"])
    seconds = time.perf_counter() - start
    digest = backbone_digest(made.sub_fm)
    summary = {"key": made.key, "digest": digest, "cached": made.cached, "seconds": seconds, **made.report}
    return made, summary


def built(tensors: Mapping[str, Tensor], reports: Mapping[str, AlignmentReport]) -> BuiltSubFM:
    """Return the sub-FM's tensors after these alignments, with the loss where they began and ended.

    Args:
        tensors: the sub-FM's.
        reports: of the alignments, in their order, by kind.

    Raises:
        ConfigError: settings that end in NaN.

    """
    require_finite(tensors, "align.layers")
    if not reports:
        return BuiltSubFM(tensors=tensors)
    in_order = list(reports.values())
    measured = {
        kind: {"before": report.measured_before, "after": report.measured_after} for kind, report in reports.items()
    }
    ends = {"align_loss_first": in_order[0].first_loss, "align_loss_last": in_order[-1].last_loss}
    return BuiltSubFM(tensors=tensors, report=ends | {"align_measured": measured})


def warn_if_useless(alignment: str, before: float, after: float) -> None:
    """Say so if an alignment's measured loss (see `AlignmentReport`) is not lower afterwards, or is NaN."""
    if not after < before:
        ends = f"{before:.4g} before, {after:.4g} after"
        where = "on the public examples on which it is measured"
        warnings.warn(f"{alignment} does not lower the loss {where}: {ends}", stacklevel=3)


def require_finite(tensors: Mapping[str, Tensor], section: str) -> None:
    """Raise a ConfigError if an alignment with this section's settings left NaN or infinite values."""
    wrong = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if wrong:
        found = f"settings after which {len(wrong)} of the sub-FM's tensors are NaN or infinite ({wrong[0]}, ...)"
        raise ConfigError(f"{section}: found {found}, allowed: such that the alignment converges; try a lower lr")
