"""Write click logs in the format of Criteo's data, with a structure of known strength in them; the real ones are licensed.

    python scripts/make_criteo.py --out runs/criteo --rows 400000

writes OUT/train.txt and OUT/validation.txt (its last tenth): lines of label, 13 counts and 26 categories of 8 hexadecimal
digits with tabs between them, nothing where a value is missing. `--gzip` writes .txt.gz. The same bytes for the same seed.

What is in them, as in the real ones: a quarter of the labels is 1; categories follow a power law, from 3 to a million values a
column; counts are heavy-tailed, related to each other and to the label; values are missing, and that they are tells something.
The label is drawn from the logistic function of effects of single values, of pairs of columns that mean nothing alone, and of
counts that matter only with some category. `--print-bound` says what a model that knew the effects would reach.
"""

from __future__ import annotations

import argparse
import gzip
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

NUMBERS, CATEGORIES = 13, 26
# fmt: off
SIZES = np.array([
    1460, 580, 1_000_000, 250_000, 305, 24, 12_500, 633, 3, 93_000, 5600, 830_000, 3190, 27, 15_000, 550_000, 10, 5650, 2170,
    4, 700_000, 18, 15, 290_000, 105, 140_000,
])
# fmt: on
"""Values of each categorical column, about as many as the real ones have."""
MISSING = np.array([0.45, 0, 0.21, 0.22, 0.03, 0.22, 0.04, 0, 0.04, 0.45, 0.04, 0.77, 0.22])
MISSING_CATEGORIES = np.where(np.isin(np.arange(CATEGORIES), [2, 3, 11, 15, 18, 19, 20, 23, 24, 25]), 0.03, 0.0)
MISSING_CATEGORIES[[18, 19, 21, 24, 25]] = (0.44, 0.44, 0.76, 0.44, 0.44)
PAIRS = ((0, 8), (1, 5), (4, 13), (6, 16), (7, 22), (10, 17), (14, 19), (18, 22))
POSITIVES = 0.256
PIECE = 50_000  # rows made at a time


@dataclass(frozen=True)
class Structure:
    """The effects that the labels are drawn from; drawn once, by a seed of their own."""

    seed: int

    def single(self, column: int, values: np.ndarray) -> np.ndarray:
        """Effect of each value: a fixed normal number for every (column, value), seen without a table."""
        return _normal(self.seed, column, values)

    def logits(self, numbers: np.ndarray, categories: np.ndarray, missing: np.ndarray) -> np.ndarray:
        """(n, 13) counts, (n, 26) values, (n, 13) missing -> (n,)."""
        single = sum(0.15 * self.single(column, categories[:, column]) for column in range(CATEGORIES))
        pairs = sum(
            0.35 * self.single(100 + index, categories[:, a] % 50 * 64 + categories[:, b] % 50)
            for index, (a, b) in enumerate(PAIRS)
        )
        known = np.where(missing, 0.0, np.log1p(np.maximum(numbers, 0)))
        slopes = _normal(self.seed, 200, np.arange(NUMBERS)) * 0.18
        sign = np.where(self.single(300, categories[:, 8]) > 0, 1, -1)  # the third count means opposite things
        counts = (known - 1.5) @ slopes + 0.35 * sign * (known[:, 2] - 1.5) + 0.5 * missing[:, 0] - 0.4 * missing[:, 11]
        return single + pairs + counts


def make_rows(
    rows: int, seed: int, offset: float, structure: Structure
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """(labels, counts, missing counts, categories with −1 for missing, probabilities), a piece at a time."""
    for number, first in enumerate(range(0, rows, PIECE)):
        generator = np.random.default_rng([seed, number])
        count = min(PIECE, rows - first)
        shared = generator.normal(size=(count, 1))  # how active somebody is: all counts know
        numbers = (
            np.floor(np.exp(1.4 + 0.7 * shared + 1.1 * generator.normal(size=(count, NUMBERS)))).astype(np.int64) - 1
        )
        numbers[:, 1] -= 2  # the one column that has negative values
        numbers[:, [i for i in range(NUMBERS) if i != 1]] = np.maximum(
            numbers[:, [i for i in range(NUMBERS) if i != 1]], 0
        )
        missing = generator.random((count, NUMBERS)) < MISSING
        # Value v of a column of size s with a density that falls as 1/v: v = s^u for a uniform u.
        categories = np.floor(SIZES ** generator.random((count, CATEGORIES))).astype(np.int64) - 1
        logits = structure.logits(numbers, categories, missing) + offset
        probabilities = 1 / (1 + np.exp(-logits))
        labels = (generator.random(count) < probabilities).astype(np.int64)
        hidden = generator.random((count, CATEGORIES)) < MISSING_CATEGORIES
        yield labels, numbers, missing, np.where(hidden, -1, categories), probabilities


def calibrated(structure: Structure, seed: int) -> float:
    """The constant term with which a share of POSITIVES of the labels is 1."""
    *_, chances = next(make_rows(PIECE, seed + 1, 0.0, structure))
    logits = np.log(chances / (1 - chances))
    low, high = -10.0, 10.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if (1 / (1 + np.exp(-logits - middle))).mean() < POSITIVES else (low, middle)
    return low


def lines_of(labels: np.ndarray, numbers: np.ndarray, missing: np.ndarray, categories: np.ndarray) -> str:
    codes = _mixed(7 + np.arange(CATEGORIES, dtype=np.uint64), categories.astype(np.uint64)) & np.uint64(0xFFFFFFFF)
    rows = []
    for label, row, gone, code, value in zip(
        labels.tolist(), numbers.tolist(), missing.tolist(), codes.tolist(), categories.tolist(), strict=True
    ):
        counts = ["" if lost else str(number) for number, lost in zip(row, gone, strict=True)]
        words = ["" if number < 0 else f"{word:08x}" for word, number in zip(code, value, strict=True)]
        rows.append("\t".join((str(label), *counts, *words)))
    return "\n".join(rows) + "\n"


def _mixed(column: np.ndarray | int, values: np.ndarray) -> np.ndarray:
    """64 bits of each value that look random (splitmix64)."""
    with np.errstate(over="ignore"):
        x = values.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.asarray(column, np.uint64) * np.uint64(
            0xD1B54A32D192ED03
        )
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def _normal(seed: int, column: int, values: np.ndarray) -> np.ndarray:
    """About normal numbers, one for each value: the sum of four uniform ones out of its 64 bits."""
    bits = _mixed(1000 * (seed + 1) + column, values)
    parts = sum(((bits >> np.uint64(16 * i)) & np.uint64(0xFFFF)).astype(np.float64) for i in range(4))
    return (parts / 65536 - 2) * np.sqrt(3)


def main(command_line: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/criteo"), help="folder to write to (default: %(default)s)"
    )
    parser.add_argument("--rows", type=int, default=400_000, help="lines in all (default: %(default)s)")
    parser.add_argument(
        "--validation-share", type=float, default=0.1, help="of the lines, the last (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gzip", action="store_true", help="write .txt.gz")
    parser.add_argument("--print-bound", action="store_true", help="print the log loss of the true probabilities")
    arguments = parser.parse_args(command_line)

    structure = Structure(arguments.seed)
    offset = calibrated(structure, arguments.seed)
    arguments.out.mkdir(parents=True, exist_ok=True)
    last = int(arguments.rows * arguments.validation_share)
    losses = []
    for name, rows, seed in (
        ("train", arguments.rows - last, arguments.seed),
        ("validation", last, arguments.seed + 10**6),
    ):
        path = arguments.out / f"{name}.txt{'.gz' if arguments.gzip else ''}"
        positives = 0
        with path.open("wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) if arguments.gzip else raw as file:
            for labels, numbers, missing, categories, chances in make_rows(rows, seed, offset, structure):
                file.write(lines_of(labels, numbers, missing, categories).encode())
                positives += int(labels.sum())
                losses.append(-np.log(np.where(labels == 1, chances, 1 - chances)))
        print(
            f"{path}: {rows:,} lines, {positives / max(1, rows):.1%} of them clicks, {path.stat().st_size / 1e6:.1f} MB"
        )
    if arguments.print_bound:
        print(f"log loss of the true probabilities: {np.concatenate(losses).mean():.4f}")


if __name__ == "__main__":
    main()
