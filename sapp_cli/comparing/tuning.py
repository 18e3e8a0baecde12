"""`sapp compare --tune`: the learning rate of each row of the table, searched alike by `sapp tune` in a process of its own.

    DIR/tuning/NAME.json       the hashes of a search's settings and data, and what it found
    DIR/tuning/NAME.log        what it said

A search of equal hashes is not made again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

from sapp_cli.checkpoint.damage import damaged
from sapp_cli.checkpoint.json_text import CONFIG_LIMIT, read_object
from sapp_cli.checkpoint.output import write_json
from sapp_cli.checkpoint.write import disk_errors
from sapp_cli.comparing.cells import Budget, Cell, Place
from sapp_cli.comparing.runs import Watcher, last_words
from sapp_cli.errors import SappError
from sapp_cli.training.parent import PATIENCE, TIED

TUNING_FOLDER = "tuning"
FIRST_SEED = 1000


class _SearchFailed(SappError):
    """A search ended with an error; ends with its exit code."""

    def __init__(self, cell: Cell, code: int, error: str) -> None:
        self.exit_code = code
        super().__init__(f"{cell.name}: no learning rate was found: {error}")


def seed_of_searches(seeds: Sequence[int]) -> int:
    """A seed that no cell has: rates are not chosen by luck of the seeds that are compared."""
    return next(seed for seed in count(FIRST_SEED) if seed not in seeds)


def find_rates(searches: Sequence[Cell], budget: Budget, folder: Path, watcher: Watcher) -> dict[Place, float]:
    """{row: its rate}, one search after the other, each with all threads.

    `searches`: a cell for each row, with the seed of the searches and `optimizer.lr: auto`. Raises the error of the first
    search that finds none.
    """
    rates = {}
    for number, cell in enumerate(searches, 1):
        path = folder / TUNING_FOLDER / f"{cell.name}.json"
        found = _kept(path, cell)
        if found is None:
            watcher.say(f"search {number}/{len(searches)}  {cell.name}  begins")
            found = _search(path, cell, budget)
        rate = found.get("learning_rate")
        if not isinstance(rate, float):
            raise damaged(path, "holds no learning rate; remove the file to search again")
        watcher.say(f"search {number}/{len(searches)}  {cell.name}  optimizer.lr {rate:g}")
        rates[cell.place] = rate
    return rates


def _kept(path: Path, cell: Cell) -> dict[str, Any] | None:
    """What the search found another time with the same settings and, as far as both are known, the same data."""
    if not path.is_file():
        return None
    content = read_object(path, "the record of a search", CONFIG_LIMIT)
    same = content.get("settings") == cell.settings and content.get("inputs") in ("", cell.inputs)
    found = content.get("search")
    return found if same and isinstance(found, dict) else None


def _search(path: Path, cell: Cell, budget: Budget) -> dict[str, Any]:
    log = path.with_suffix(".log")
    with disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "sapp_cli", "tune", str(budget.checkpoint), "--recipe", budget.recipe, "--json"]
    with log.open("wb") as said:
        process = subprocess.Popen(
            [*command, *budget.options, *cell.options],
            stdin=subprocess.PIPE,  # never written to: it ends with this process, and the search with it
            stdout=subprocess.PIPE,
            stderr=said,
            env={**os.environ, TIED: "1"},
            start_new_session=True,
        )
    try:
        assert process.stdout is not None, "a pipe"
        output = process.stdout.read()
        code = process.wait()
    except BaseException:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        raise
    finally:
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
    if code != 0:
        raise _SearchFailed(cell, code, last_words(log))
    found: dict[str, Any] = json.loads(output)
    write_json(path, {"settings": cell.settings, "inputs": cell.inputs, "search": found})
    return found
