"""Where an FM's files come from: the hub, a folder, a Python package, or nowhere; and what is wrong with them."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from transformers.utils import (
    CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    cached_file,
    extract_commit_hash,
)

from fedpft.config import ConfigError, FMConfig
from fedpft.hub import hub_or_cache
from fedpft.models.checks import check_no_adapter

SCRATCH = "scratch://"
PACKAGE = "package://"


def resolve_path(path: str) -> str:
    """Turn `package://module/sub/folder` into that installed package's folder; return any other path as it is.

    Raises:
        ConfigError: the package is not installed or lacks the folder.

    """
    if not path.startswith(PACKAGE):
        return path
    module, _, folder = path.removeprefix(PACKAGE).partition("/")
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):  # of a name with dots: no parent; of a name that is none
        spec = None
    if spec is None or spec.origin is None:
        raise ConfigError(
            f"fm.path: found {path!r}, but no package {module!r} is installed (pip install fedpft[quickstart]?)"
        )
    resolved = Path(spec.origin).parent / folder
    if not resolved.is_dir():
        raise ConfigError(f"fm.path: found {path!r}, but {module!r} has no folder {folder!r}")
    return str(resolved)


def is_from_scratch(config: FMConfig) -> bool:
    """Whether the FM is an architecture without weights and files of its own."""
    return config.path.startswith(SCRATCH)


def check_revision(config: FMConfig) -> None:
    """Raise a ConfigError for a revision of an FM that is not the hub's."""
    if config.revision is not None and ("://" in config.path or Path(config.path).expanduser().is_dir()):
        raise ConfigError(
            f"fm.revision: found {config.revision!r}, allowed: null, because fm.path = {config.path!r} is no hub id"
        )


def from_pretrained(auto: Any, fm: FMConfig, **kwargs: Any) -> Any:
    """Open files of the FM with a class of transformers.

    Raises:
        ConfigError: they cannot be opened, or an adapter lies beside them.

    """
    with one_line(f"fm.path: found {fm.path!r}, allowed: a hub id, a folder or package://..."):
        path = resolve_path(fm.path)
        if fm.revision is not None:
            kwargs["revision"] = fm.revision
        with hub_or_cache(path, "model"):
            check_no_adapter(path, fm.revision)
            return auto.from_pretrained(path, **kwargs)


def has_weights_here(fm: FMConfig) -> bool:
    """Whether the FM's weights lie on this machine, in a folder or among what was had from the hub before."""
    names = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME)
    path = Path(resolve_path(fm.path)).expanduser()
    if path.is_dir():
        return any((path / name).exists() for name in names)
    found = (try_to_load_from_cache(fm.path, name, revision=fm.revision) for name in names)
    return any(isinstance(file, str) for file in found)


def loaded_commit(fm: FMConfig) -> str | None:
    """Return the commit of the hub's files that were just read; None: they are not the hub's."""
    path = resolve_path(fm.path)
    if "://" in path or Path(path).is_dir():
        return None
    with hub_or_cache(path, "model"):
        return extract_commit_hash(cached_file(path, CONFIG_NAME, revision=fm.revision), None)


@contextmanager
def one_line(message: str) -> Iterator[None]:
    """Turn whatever is raised in the block into a ConfigError of this message and the reason."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # transformers, its hub client, safetensors, pickle and json each have their own
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{message}; {type(error).__name__}: {reason}") from error
