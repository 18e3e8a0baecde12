"""Help texts as they were written: examples keep their lines."""

from __future__ import annotations

import inspect
import re

import typer


def keep_examples(app: typer.Typer) -> None:
    """Give all verbs the help their docstrings are meant to be: sentences flow, the lines after a backspace stay lines.

    The backspace on a line by itself is click's sign for that. In the list of verbs stands the first clause.
    """
    for command in app.registered_commands:
        assert command.callback is not None  # a verb is registered with its function
        paragraphs = inspect.cleandoc(command.callback.__doc__ or "").split("\n\n")
        command.help = "\n\n".join(text if text.startswith("\b") else " ".join(text.split()) for text in paragraphs)
        command.short_help = re.split(r"[:,.]", paragraphs[0])[0]
    for group in app.registered_groups:
        if group.typer_instance is not None:
            keep_examples(group.typer_instance)
