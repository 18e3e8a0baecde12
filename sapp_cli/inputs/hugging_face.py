"""transformers, imported where it is used: offline, quiet, and with a helpful word where it is not installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sapp_cli.errors import UsageError


@contextmanager
def offline_transformers() -> Iterator[Any]:
    """The transformers package; within it nothing is fetched from a hub, logged or drawn.

    Raises UsageError if it is not installed.
    """
    try:
        import transformers
        from huggingface_hub import constants
    except ImportError as error:
        raise UsageError(
            f"this needs transformers, which cannot be imported ({error}): pip install 'sapp-cli[hf]'"
        ) from error
    was_offline, verbosity = constants.HF_HUB_OFFLINE, transformers.logging.get_verbosity()
    bars = transformers.utils.logging.is_progress_bar_enabled()
    constants.HF_HUB_OFFLINE = True
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    transformers.utils.logging.disable_progress_bar()
    try:
        yield transformers
    finally:
        constants.HF_HUB_OFFLINE = was_offline
        transformers.logging.set_verbosity(verbosity)
        if bars:
            transformers.utils.logging.enable_progress_bar()
