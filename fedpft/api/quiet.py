"""What libraries say that a user cannot act on."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import datasets
from transformers.utils import logging as transformers_logging


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Hide the libraries' bars and their warnings about calls that are not the user's; then all is as before.

    As on the command line, FEDPFT_VERBOSE=1 shows them.
    """
    if os.environ.get("FEDPFT_VERBOSE"):
        yield
        return
    bars = datasets.utils.logging.is_progress_bar_enabled(), transformers_logging.is_progress_bar_enabled()
    verbosity = transformers_logging.get_verbosity()
    tells = logging.raiseExceptions
    logging.raiseExceptions = False  # as `fedpft.cli.environment` does
    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.")
            yield
    finally:
        logging.raiseExceptions = tells
        transformers_logging.set_verbosity(verbosity)
        if bars[0]:
            datasets.enable_progress_bars()
        if bars[1]:
            transformers_logging.enable_progress_bar()
