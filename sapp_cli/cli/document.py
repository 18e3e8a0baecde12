"""The one JSON document that `--json` puts on stdout: what a verb found, or the error that it ended with."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

FLAG = "--json"
_printed: list[bool] = []  # whether this process has printed its document


def print_document(content: Any) -> None:
    """Print it."""
    from sapp_cli.checkpoint.json_text import json_text

    _printed.append(True)
    print(json_text(content))


def begin() -> None:
    """No document was printed yet."""
    _printed.clear()


def print_error(code: int, message: str, problems: Sequence[str], typed: Sequence[str]) -> None:
    """Print the error as a document, if `typed` asks for one and the verb has not printed its own.

    Of several processes only the first prints.
    """
    flags = typed[: typed.index("--")] if "--" in typed else typed
    if FLAG in flags and not _printed and os.environ.get("RANK", "0") == "0":
        print_document({"error": {"code": code, "message": message, "problems": list(problems)}})
