"""Help texts as they were written: examples keep their lines."""

from __future__ import annotations

import inspect
import re

import typer


def keep_examples(app: typer.Typer) -> None:
    r"""Give all verbs the help their docstrings are meant to be: sentences flow, lines after a line `\b` stay lines.

    Click wants a control character for `\b`, which a docstring that is a raw text cannot hold.
    """
    for command in app.registered_commands:
        assert command.callback is not None  # a verb is registered with its function
        paragraphs = inspect.cleandoc(command.callback.__doc__ or "").split("\n\n")
        command.help = "\n\n".join(map(_laid_out, paragraphs))
        command.short_help = re.split(r"[:,.]", paragraphs[0])[0]
    for group in app.registered_groups:
        if group.typer_instance is not None:
            keep_examples(group.typer_instance)


def _laid_out(paragraph: str) -> str:
    mark, _, lines = paragraph.partition("\n")
    return f"\b\n{lines}" if mark == r"\b" else " ".join(paragraph.split())
