"""The Markdown pages as data: their code blocks, their tables, their links."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
README = REPOSITORY / "README.md"
DOCS = REPOSITORY / "docs"

_FENCE = re.compile(r"^```(\w*)(?: title=\"([^\"\n]+)\")?\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block of code."""

    language: str
    text: str
    line: int  # of the fence, from 1
    title: str = ""  # the file that the block is to be saved as

    @property
    def commands(self) -> list[str]:
        """The lines of a shell block, without comments; a line that ends in a backslash goes on."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [" ".join(command.split()) for line in lines if (command := line.partition(" #")[0].strip())]


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(match[1], match[3], text[: match.start()].count("\n") + 1, match[2] or "")
        for match in _FENCE.finditer(text)
    ]


def section(page: Path, heading: str) -> str:
    """The text under a heading such as "### sapp plan", up to the next one of its level or above."""
    text = page.read_text(encoding="utf-8")
    level = len(heading) - len(heading.lstrip("#"))
    _, found, rest = f"\n{text}".partition(f"\n{heading}\n")
    assert found, f"{page.name} has no heading '{heading}'"
    return re.split(rf"^#{{1,{level}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def table(text: str, first_column: str) -> list[list[str]]:
    """The rows, without the heading, of the table in `text` whose first column is called so; "\\|" is no border."""
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith(f"| {first_column} |"):
            break
    else:
        raise AssertionError(f"no table begins with a column '{first_column}'")
    next(lines)  # |---|---|
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return rows


def names(cell: str) -> set[str]:
    """What stands in backticks."""
    return set(re.findall(r"`([^`]+)`", cell))
