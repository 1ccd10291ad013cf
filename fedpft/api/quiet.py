"""What libraries say that a user cannot act on."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import datasets


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Hide the bars of `datasets`, one for every small step, and warnings about peft's own calls; then as before."""
    shown = datasets.utils.logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.")
            yield
    finally:
        if shown:
            datasets.enable_progress_bars()
