"""Write the reference of all verbs and flags into docs/cli.md, from the command line itself.

    python scripts/make_cli_reference.py           # under the headings "### sapp VERB"
    python scripts/make_cli_reference.py --check   # exit code 1 if the page is not up to date

From the heading of a verb to the end of its table everything is made here; what stands below the table is written by hand
and stays.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import typer.main

from sapp_cli.cli.main import app
from scripts.reference_page import cell, write_page

PAGE = Path(__file__).resolve().parents[1] / "docs" / "cli.md"
NO_FLAGS = "No flags."


def verbs(command: Any = None, name: str = "sapp") -> Iterator[tuple[str, Any]]:
    """Every verb with its whole name, such as "sapp recipes ls"."""
    command = command or typer.main.get_command(app)
    if hasattr(command, "commands"):
        for inner, sub in command.commands.items():
            yield from verbs(sub, f"{name} {inner}")
    else:
        yield name, command


def examples(command: Any) -> list[str]:
    """The lines of a verb's help that are commands."""
    return [line for line in (command.epilog or "").splitlines() if line.startswith("sapp ")]


def section(name: str, command: Any) -> str:
    """Heading, sentences, examples, arguments and the table of flags."""
    parts = [f"### {name}", command.help or ""]
    if examples(command):
        parts.append("\n".join(["```sh", *examples(command), "```"]))
    context = typer.Context(command)
    kinds: dict[str, list[Any]] = {"argument": [], "option": []}
    for parameter in command.params:
        kinds[parameter.param_type_name].append(parameter)
    if kinds["argument"]:
        parts.append("\n".join(f"- `{argument.metavar}`: {argument.help}" for argument in kinds["argument"]))
    rows = [_row(option, context) for option in kinds["option"]]
    heading = ["| flag | value | meaning |", "|---|---|---|"]
    parts.append("\n".join([*heading, *rows]) if rows else NO_FLAGS)
    return "\n\n".join(parts)


def _row(option: Any, context: typer.Context) -> str:
    flags = ", ".join(f"`{flag}`" for flag in (*option.opts, *option.secondary_opts))
    words = "" if option.is_flag else option.display_type_rich(ctx=context).strip("<>")
    value = ", ".join(f"`{word}`" for word in words.split("|")) if words else ""
    default = option.default.value if isinstance(option.default, Enum) else option.default
    more = " Needed." if option.required else "" if default in (None, False, ()) else f" Default: `{default}`."
    return f"| {flags} | {value} | {cell(f'{option.help}{more}')} |"


def with_reference(page: str) -> str:
    """The page with the part of each verb made anew; SystemExit where a verb has no heading."""
    for name, command in verbs():
        made = section(name, command)
        # Up to the end of its table, but never beyond the next heading.
        part = re.compile(
            rf"^### {name}\n(?:(?!###? ).*\n)*?(?:{re.escape(NO_FLAGS)}$|(?:\|.*(?:\n|\Z))+(?<!\n\n))", re.MULTILINE
        )
        found = part.search(page)
        if not found:
            raise SystemExit(f"{PAGE} lacks the heading '### {name}' with a table or '{NO_FLAGS}' below it")
        end = "\n" if found[0].endswith("\n") else ""
        page = f"{page[: found.start()]}{made}{end}{page[found.end() :]}"
    return page


def main(command_line: Sequence[str] | None = None) -> int:
    return write_page(PAGE, with_reference, Path(__file__), __doc__, command_line)


if __name__ == "__main__":
    raise SystemExit(main())
