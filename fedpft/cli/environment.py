"""What the libraries find around them: quiet, and with folders that they can write."""

import logging
import os
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path

from fedpft.storage.own_folder import own_folder

CACHES = {
    "FEDPFT_CACHE": "fedpft",
    "HF_DATASETS_CACHE": "huggingface/datasets",
    "HF_MODULES_CACHE": "huggingface/modules",
    "HF_XET_CACHE": "huggingface/xet",
    "MPLCONFIGDIR": "matplotlib",
    "WANDB_CACHE_DIR": "wandb",
    "WANDB_CONFIG_DIR": "wandb/config",
}
"""Variables of what libraries write and can make again -> folder in a cache. Not the hub's: models may lie there."""


def hush_libraries() -> None:
    """Keep the libraries' loading bars and advice off the screen; FEDPFT_VERBOSE=1 shows them."""
    if os.environ.get("FEDPFT_VERBOSE"):
        return
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # else ten lines of tries before the one that says what to do
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("torch").setLevel(logging.ERROR)
    logging.raiseExceptions = False  # a library's log on a full disk: a traceback for every line
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.")  # raised by peft's own calls


def settle_caches() -> None:
    """Where the home folder takes no files, let caches be in a folder of temporary files, and say so; before imports.

    A container's user may have no home at all, a cluster's a home that its nodes cannot write.
    """
    home = os.path.expanduser("~")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path(home, ".cache"))
    has_home = Path(home).is_absolute() and Path(home).is_dir()
    if has_home and _can_write(cache):
        return
    try:
        folder = own_folder() / "cache"
    except OSError:  # whoever needs one will say so
        return
    for name, place in CACHES.items():
        os.environ.setdefault(name, str(folder / place))
    if not has_home:
        os.environ["HOME"] = str(folder.parent)
    found = f"{cache} takes no files" if has_home else "there is no home folder"
    warnings.warn(f"{found}: caches are in {folder}; HOME or XDG_CACHE_HOME says where else", stacklevel=2)


def _can_write(folder: Path) -> bool:
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryDirectory(dir=folder).cleanup()
        return True
    return False
