"""Where a value came from, and what is wrong with it: the two halves of a line the user reads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path

from sapp_cli.recipe.names import KeyPath, dotted


class Layer(IntEnum):
    """What a recipe is merged from, above the defaults; later layers win."""

    RECIPE = 1
    SET = 2
    FLAG = 3


@dataclass(frozen=True)
class Origin:
    """Where a value came from: a line of the recipe's file, `--set`, or a flag."""

    layer: Layer
    name: str  # the file's path as the user gave it, or the flag
    line: int | None = None  # from 1

    def at(self, line: int) -> Origin:
        """The same origin at a line; flags have none."""
        return replace(self, line=line) if self.layer is Layer.RECIPE else self

    @property
    def rank(self) -> tuple[int, int]:
        """Sorts by layer, in the recipe by line."""
        return self.layer, self.line or 0

    @property
    def place(self) -> str:
        """`recipes/vit.yaml:12`, or `--set`: what editors and terminals make a link of."""
        return f"{self.name}:{self.line}" if self.line else self.name

    def __str__(self) -> str:
        """`vit.yaml:12`, or `--set`."""
        return f"{Path(self.name).name}:{self.line}" if self.line else self.name


@dataclass(frozen=True)
class Problem:
    """What is wrong with a key; without an origin until it is known who gave the key its value."""

    path: KeyPath
    text: str
    origin: Origin | None = None

    def __str__(self) -> str:
        """`recipes/vit.yaml:12: prune.sparsity: 90 is too large; …`."""
        place = self.origin.place if self.origin else ""
        return ": ".join(part for part in (place, dotted(self.path), self.text) if part)
