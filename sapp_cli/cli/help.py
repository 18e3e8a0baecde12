"""Help texts as they were written: examples keep their lines, flags show no type."""

from __future__ import annotations

import inspect
import re
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from sapp_cli.cli.help_page import print_page


class Verb(TyperCommand):
    """A command whose flags take no value, and say none."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _without_type(super().get_params(ctx))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        print_page(self, ctx)


class Verbs(TyperGroup):
    """The same of a group of commands."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _without_type(super().get_params(ctx))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        print_page(self, ctx)


def _without_type(parameters: list[Any]) -> list[Any]:
    for parameter in parameters:
        if getattr(parameter, "is_flag", False) and parameter.metavar is None:
            parameter.metavar = ""
    return parameters


def keep_examples(app: typer.Typer) -> None:
    """Give all verbs the help their docstrings are meant to be: sentences flow, and the examples stand at the end.

    Examples are the lines after a backspace on a line by itself, click's sign for lines that stay. In the list of verbs stands
    the first clause.
    """
    app.info.cls = Verbs
    for command in app.registered_commands:
        assert command.callback is not None  # a verb is registered with its function
        paragraphs = inspect.cleandoc(command.callback.__doc__ or "").split("\n\n")
        command.help = "\n\n".join(" ".join(text.split()) for text in paragraphs if not text.startswith("\b"))
        examples = [line for text in paragraphs if text.startswith("\b") for line in text.splitlines()[1:]]
        command.epilog = "\n\n".join(examples)  # a paragraph each, as typer wants them
        command.short_help = re.split(r"[:;.]", " ".join(paragraphs[0].split()))[0]
        command.cls = Verb
    for group in app.registered_groups:
        if group.typer_instance is not None:
            keep_examples(group.typer_instance)
