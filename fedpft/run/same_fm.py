"""Whether the FM behind a path is still the one that a run began with."""

import warnings
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel

from fedpft.config import ConfigError
from fedpft.models.digest import fm_digest
from fedpft.models.origin import origin_of
from fedpft.storage.output import package_versions

_SHOWN_DIGITS = 12


def fm_record(fm: PreTrainedModel) -> dict[str, Any]:
    """Return what a run's record says of its FM: `fm_digest`, `fm_revision` of the hub's, `random_weights`."""
    origin = origin_of(fm)
    revision = {"fm_revision": origin.revision} if origin.revision else {}
    return {"fm_digest": fm_digest(fm), **revision, "random_weights": list(origin.random_weights)}


def check_same_fm(fm: PreTrainedModel, record: Mapping[str, Any], versions: Mapping[str, Any], path: str) -> None:
    """Compare a plain FM with a run's record.

    Another version of transformers may read the same files as a config with other fields: that is a warning.

    Args:
        fm: as it was loaded now.
        record: of :func:`fm_record`; an older one may lack its keys.
        versions: of packages, then.
        path: where the FM comes from.

    Raises:
        ConfigError: it is another FM.

    """
    found, expected = fm_digest(fm), record.get("fm_digest")
    if expected is None or found == expected:
        return
    changed = f"{path!r} with digest {found[:_SHOWN_DIGITS]}, the run began with {expected[:_SHOWN_DIGITS]}"
    before, now = versions.get("transformers"), package_versions()["transformers"]
    if before != now:
        warnings.warn(f"fm.path: {changed}, with transformers {before}, now {now}", stacklevel=2)
        return
    revision = record.get("fm_revision")
    hint = f" (fm.revision={revision})" if revision else ""
    raise ConfigError(f"fm.path: found {changed}, allowed: the FM of the run{hint}")
