"""The page that --help prints: usage, sentences, arguments, flags in groups, and the examples last, where a screen ends.

One line a flag where its text is short, and no frames: the longest page should fit into two screens of 24 lines and 80 columns.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator
from enum import Enum
from typing import Any

WIDEST = 100
INDENT = "  "
MOST_LEFT = 27  # columns; a longer flag has its text on the next line
OPTIONS = "Options"
COMMANDS = "Commands"
ARGUMENTS = "Arguments"


def print_page(command: Any, context: Any) -> None:
    """The page of a verb, or of a group of verbs, on stdout."""
    from rich.text import Text

    from sapp_cli.cli.console import stdout

    console = stdout()
    for line in page(command, context, min(shutil.get_terminal_size().columns, WIDEST)):
        console.print(Text(line, "bold" if line.endswith(":") and not line.startswith(" ") else ""), soft_wrap=True)


def page(command: Any, context: Any, width: int) -> Iterator[str]:
    """Its lines, of at most `width` characters."""
    yield from _wrapped(" ".join(command.get_usage(context).split()), width, INDENT)
    for paragraph in (command.help or "").split("\n\n"):
        yield from ("", *_wrapped(paragraph, width, "")) if paragraph else ()
    groups = {name: rows for name, rows in _groups(command, context).items() if rows}
    longest = max((len(left) for rows in groups.values() for left, _ in rows if len(left) <= MOST_LEFT), default=0)
    for name, rows in groups.items():
        yield ""
        yield f"{name}:"
        for left, right in rows:
            yield from _row(left, right, longest, width)
    if examples := [line for line in (command.epilog or "").splitlines() if line]:
        yield ""
        yield "Examples:"
        yield from (f"{INDENT}{line}" for line in examples)


def _row(left: str, right: str, room: int, width: int) -> Iterator[str]:
    indent = INDENT + " " * (room + len(INDENT))
    lines = textwrap.wrap(right, width - len(indent), break_on_hyphens=False) or [""]
    if len(left) > room:
        yield f"{INDENT}{left}"
        yield from (f"{indent}{line}" for line in lines)
    else:
        yield f"{INDENT}{left:<{room}}{INDENT}{lines[0]}".rstrip()
        yield from (f"{indent}{line}" for line in lines[1:])


def _wrapped(text: str, width: int, indent: str) -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent=indent, break_on_hyphens=False)


def _groups(command: Any, context: Any) -> dict[str, list[tuple[str, str]]]:
    """{heading: (what is typed, what it does)}: arguments, verbs, flags as their groups are named."""
    found: dict[str, list[tuple[str, str]]] = {ARGUMENTS: []}
    for name in getattr(command, "commands", {}):
        verb = command.get_command(context, name)
        heading = getattr(verb, "rich_help_panel", None) or COMMANDS
        found.setdefault(heading, []).append((name, verb.get_short_help_str(WIDEST).rstrip(".")))
    found[OPTIONS] = []
    for parameter in command.get_params(context):
        if getattr(parameter, "hidden", False):
            continue
        if parameter.param_type_name == "argument":
            found[ARGUMENTS].append((parameter.metavar, parameter.help or ""))
        else:
            heading = getattr(parameter, "rich_help_panel", None) or OPTIONS
            found.setdefault(heading, []).append((_flags(parameter), _meaning(parameter)))
    return found


def _flags(option: Any) -> str:
    """`-o, --out OUT`, `    --steps N`."""
    short = [name for name in option.opts if not name.startswith("--")]
    long = [name for name in (*option.opts, *option.secondary_opts) if name.startswith("--")]
    before = f"{short[0]}, " if short else "    "
    return f"{before}{' / '.join(long)} {option.metavar or ''}".rstrip()


def _meaning(option: Any) -> str:
    default = option.default.value if isinstance(option.default, Enum) else option.default
    shown = option.show_default if isinstance(option.show_default, str) else default
    says = option.show_default is not False and shown not in (None, False, ()) and not option.is_flag
    end = " Needed." if option.required else f" [{shown}]" if says else ""
    return f"{option.help or ''}{end}"
