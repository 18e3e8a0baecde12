"""The cells of a comparison: one run of `sapp prune` each, with a folder, a record and a hash of its settings.

    DIR/cells/NAME/            what `prune` wrote
    DIR/cells/NAME.json        the record: hash of the settings, and how the run ended once it has
    DIR/cells/NAME.log         what `prune` said

A record of equal hashes stands for its cell: it is not run again. Other settings, another checkpoint or another version of sapp
are another hash; so are other data or other code, if they are there to be hashed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sapp_cli._version import __version__
from sapp_cli.checkpoint.damage import damaged, quoted
from sapp_cli.checkpoint.json_text import CONFIG_LIMIT, read_object
from sapp_cli.checkpoint.output import write_json
from sapp_cli.checkpoint.source import open_checkpoint
from sapp_cli.checkpoint.write import disk_errors
from sapp_cli.errors import SappError, TrainingError

if TYPE_CHECKING:
    from sapp_cli.recipe.load import LoadedRecipe
    from sapp_cli.recipe.schema import Recipe

CELLS_FOLDER = "cells"
DIVERGED = TrainingError.exit_code
OUTCOMES = (0, DIVERGED)
"""Exit codes that a second run would end with as well; after any other the cell is run again."""
NOT_THE_RESULT = ("save_minutes", "save_steps", "log_every", "trackers")
"""Keys of `train` that change nothing of what a run computes."""


@dataclass(frozen=True)
class Variant:
    """A row's method: its label in the table, and what its runs are given beside the recipe."""

    label: str
    method: str
    sets: tuple[str, ...] = ()  # KEY=VALUE


Place = tuple[str, str, float]
"""Label of the variant, block, sparsity: a row of the table."""


@dataclass(frozen=True)
class Cell:
    """One run."""

    variant: Variant
    block: str  # as `--block-size` takes it: 16, 16x32
    sparsity: float
    seed: int
    settings: str = ""  # hash of settings, checkpoint and version
    inputs: str = ""  # hash of data and code; empty if they cannot be read
    recipe: LoadedRecipe | None = field(default=None, compare=False, repr=False)  # None where it is only looked up
    rate: float | None = None  # that `--tune` found

    @property
    def place(self) -> Place:
        """The row of the table."""
        return self.variant.label, self.block, self.sparsity

    @property
    def name(self) -> str:
        return f"{self.variant.label}-block{self.block}-sparsity{self.sparsity!r}-seed{self.seed}"

    @property
    def options(self) -> list[str]:
        """Of `sapp prune`, beside those that all cells share."""
        own = {
            "--method": self.variant.method,
            "--block-size": self.block,
            "--sparsity": repr(self.sparsity),
            "--seed": str(self.seed),
        }
        sets = [part for assignment in (*self.variant.sets, *_rate_set(self.rate)) for part in ("--set", assignment)]
        return [part for option in own.items() for part in option] + sets


@dataclass(frozen=True)
class Record:
    """How a cell's last run stands: `exit_code` None while it has not ended."""

    settings: str
    inputs: str = ""
    exit_code: int | None = None
    error: str = ""  # the message, where it failed
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def read(cls, path: Path) -> Record:
        """The record in this file. Raises CheckpointError for everything else."""
        content = {"inputs": "", **read_object(path, "the record of a cell", CONFIG_LIMIT)}
        kinds = {"settings": str, "inputs": str, "exit_code": int | None, "error": str, "seconds": int | float}
        wrong = [key for key, kind in kinds.items() if not isinstance(content.get(key), kind)]
        if wrong:
            value = quoted(content.get(wrong[0], "nothing"))
            raise damaged(path, f"{wrong[0]}: {value} in the record of a cell; remove the file to run the cell again")
        return cls(**{key: content[key] for key in kinds})

    def is_of(self, cell: Cell) -> bool:
        """True if the cell has the same settings and, as far as both are known, the same data and code."""
        return self.settings == cell.settings and (not (self.inputs and cell.inputs) or self.inputs == cell.inputs)


@dataclass(frozen=True)
class Budget:
    """What all cells share."""

    checkpoint: Path
    recipe: str  # file, or name of a shipped one
    sets: tuple[str, ...] = ()
    flags: Mapping[str, tuple[str, Any]] = field(default_factory=dict)  # {recipe key: (flag, value)}

    @property
    def options(self) -> list[str]:
        """Of `sapp prune`."""
        sets = [part for assignment in self.sets for part in ("--set", assignment)]
        return [*sets, *(part for flag, value in self.flags.values() for part in (flag, str(value)))]


def plan_cells(
    budget: Budget,
    variants: Sequence[Variant],
    blocks: Sequence[str],
    sparsities: Sequence[float],
    seeds: Sequence[int],
    rates: Mapping[Place, float] = {},
) -> list[Cell]:
    """Every cell, seeds innermost, so that the first table of one seed is there early.

    `rates`: learning rates that were searched, in place of the recipe's.

    Raises RecipeError for settings that no run could have, CheckpointError where the checkpoint cannot be opened.
    """
    from sapp_cli.inputs.fingerprints import fingerprint_checkpoint
    from sapp_cli.recipe.load import Flag, load_recipe
    from sapp_cli.recipe.schema import comparable

    checkpoint = dict(fingerprint_checkpoint(open_checkpoint(budget.checkpoint)).values)
    inputs: dict[str, str] = {}  # {sections of a recipe that name files and code: hash}
    cells = []
    for seed, block, sparsity, variant in product(seeds, blocks, sparsities, variants):
        flags = {key: Flag(flag, value) for key, (flag, value) in budget.flags.items()}
        flags |= {
            "prune.method": Flag("--methods", variant.method),
            "prune.block_size": Flag("--block-size", block_value(block)),
            "prune.sparsity": Flag("--sparsity", sparsity),
            "train.seed": Flag("--seeds", seed),
        }
        rate = rates.get((variant.label, block, sparsity))
        recipe = load_recipe(budget.recipe, [*budget.sets, *variant.sets, *_rate_set(rate)], flags)
        settings = comparable(recipe.recipe)
        for key in NOT_THE_RESULT:
            settings["train"].pop(key)
        named = recipe.recipe.model_dump_json(include={"model", "data", "objective"})
        if named not in inputs:
            inputs[named] = _hash_of_inputs(recipe.recipe)
        cells.append(
            Cell(
                variant,
                block,
                sparsity,
                seed,
                _hash([__version__, checkpoint, settings]),
                inputs[named],
                recipe,
                rate,
            )
        )
    return cells


def _rate_set(rate: float | None) -> tuple[str, ...]:
    return () if rate is None else (f"optimizer.lr={rate!r}",)


def _hash_of_inputs(recipe: Recipe) -> str:
    """Of the files and the code that a recipe names; empty if they cannot be read, as of a comparison that was moved."""
    from sapp_cli.inputs.fingerprints import fingerprint_code, fingerprint_files
    from sapp_cli.inputs.sources import require_sources

    try:
        require_sources(recipe)
        return _hash(dict((fingerprint_files(recipe) | fingerprint_code(recipe)).values))
    except SappError:
        return ""


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def block_value(block: str) -> int | list[int]:
    """16 of "16", [16, 32] of "16x32"."""
    sides = [int(side) for side in block.split("x")]
    return sides[0] if len(sides) == 1 else sides


class Store:
    """The folder of a comparison."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def out(self, cell: Cell) -> Path:
        """OUT of the cell's run."""
        return self.folder / CELLS_FOLDER / cell.name

    def log(self, cell: Cell) -> Path:
        return self.folder / CELLS_FOLDER / f"{cell.name}.log"

    def record(self, cell: Cell) -> Record | None:
        """The cell's record; None where there is none, or one of other settings. Raises CheckpointError for a damaged one."""
        path = self._path(cell)
        if not path.is_file():
            return None
        record = Record.read(path)
        return record if record.is_of(cell) else None

    def note(self, cell: Cell, record: Record) -> None:
        """Write the cell's record. Raises ResourceError where the disk does not take it."""
        with disk_errors(self.folder):
            self._path(cell).parent.mkdir(parents=True, exist_ok=True)
            write_json(self._path(cell), record.as_json())

    def is_settled(self, cell: Cell) -> bool:
        """True where the cell need not be run."""
        record = self.record(cell)
        if record is None or record.exit_code not in OUTCOMES:
            return False
        return record.exit_code == DIVERGED or (self.out(cell) / "manifest.json").is_file()

    def _path(self, cell: Cell) -> Path:
        return self.folder / CELLS_FOLDER / f"{cell.name}.json"
