"""The Markdown pages as data: their code blocks, their tables, their links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
README = REPOSITORY / "README.md"
DOCS = REPOSITORY / "docs"

PAGES = [README, *sorted(DOCS.glob("*.md"))]
PROGRAMS = (
    "sapp",
    "make",
    "python",
    "torchrun",
    "accelerate launch",
    "srun",
    "pip",
    "hf",
    "pytest",
    "pre-commit",
    "gh",
    ".ci/run",
)
"""What a command begins with, an environment and the folder of a program left out."""

_FENCE = re.compile(r"^```(\w*)(?: title=\"([^\"\n]+)\")?\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_CODE = re.compile(r"(?<!`)`([^`]+)`(?!`)")


@dataclass(frozen=True)
class Block:
    """A fenced block of code, or a command in a sentence."""

    language: str
    text: str
    line: int  # of the fence, from 1
    title: str = ""  # the file that the block is to be saved as

    @property
    def commands(self) -> list[str]:
        """The lines of a shell block, those behind a $ of a console, what a file for CI runs; without comments.

        A line that ends in a backslash goes on.
        """
        if self.language == "inline":
            return [self.text]
        if self.language == "yaml":
            lines = [
                line for text in _texts_under({"run", "entry"}, yaml.safe_load(self.text)) for line in text.splitlines()
            ]
        elif self.language == "console":
            lines = [line.removeprefix("$ ") for line in self.text.splitlines() if line.startswith("$ ")]
        elif self.language == "sh":
            lines = self.text.replace("\\\n", " ").splitlines()
        else:
            lines = []
        return [" ".join(command.split()) for line in lines if (command := re.split(r"(?:^|\s)#", line)[0].strip())]

    @property
    def output(self) -> str:
        """Of a console: what was printed."""
        return "".join(line for line in self.text.splitlines(keepends=True) if not line.startswith("$ "))


def _texts_under(keys: set[str], value: object) -> Iterator[str]:
    """The texts of these keys, however deep."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in keys and isinstance(inner, str):
                yield inner
            else:
                yield from _texts_under(keys, inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts_under(keys, inner)


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(match[1], match[3], text[: match.start()].count("\n") + 1, match[2] or "")
        for match in _FENCE.finditer(text)
    ]


def inline(page: Path) -> list[Block]:
    """The commands in the sentences of a page, as blocks of the language "inline"; bare names of programs and verbs too."""
    text = _FENCE.sub(lambda fence: "\n" * fence[0].count("\n"), page.read_text(encoding="utf-8"))
    found = ((" ".join(match[1].split()), text[: match.start()].count("\n") + 1) for match in _CODE.finditer(text))
    return [Block("inline", code, line) for code, line in found if is_command(code)]


def is_command(line: str) -> bool:
    """True if a program of ours or of a page's begins the line."""
    words = re.sub(r"^(?:\w+=\S* )*(?:\.venv/bin/)?", "", line)
    return any(words == program or words.startswith(f"{program} ") for program in PROGRAMS)


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
