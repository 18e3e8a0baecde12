"""The datasets package on local files only: offline and quiet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import datasets
import datasets.config
from huggingface_hub import constants


@contextmanager
def offline_datasets() -> Iterator[None]:
    """HF_HUB_OFFLINE and HF_DATASETS_OFFLINE for a while; the libraries read the variables only once, when imported.

    Errors of the library are raised again by ours with file and column, so its own log lines are held back too.
    """
    flags = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    bars, verbosity = datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = flags
        datasets.logging.set_verbosity(verbosity)
        if not bars:
            datasets.enable_progress_bars()
