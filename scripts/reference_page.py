"""What the scripts share that make a part of a page from the code: their command line, and cells of tables."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path


def write_page(
    page: Path,
    with_reference: Callable[[str], str],
    script: Path,
    about: str | None,
    command_line: Sequence[str] | None,
) -> int:
    """Make the part of the page anew, or with `--check` see whether it would change; the exit code of the script."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing")
    arguments = parser.parse_args(command_line)
    old = page.read_text(encoding="utf-8")
    new = with_reference(old)
    if arguments.check:
        print(f"{page.name} is {'up to date' if new == old else 'out of date: run ' + script.name}")
        return int(new != old)
    page.write_text(new, encoding="utf-8")
    return 0


def cell(text: str) -> str:
    """A text as a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")
