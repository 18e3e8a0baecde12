"""Short runs: the default against the simple methods in 20 to 600 steps at three rates, a table in docs/results-evidence.md.

    python scripts/evidence_short.py                                      all of it: hours on two cores
    python scripts/evidence_short.py --study digits-mlp --steps 20,40     a part

Checkpoints, recipes and settings are those of the studies in scripts/evidence.yaml. Each cell is one of `sapp compare`, so
what is finished is not run again, and the table has all that is finished.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
from collections.abc import Iterator, Sequence
from datetime import date
from math import sqrt
from typing import Any

from sapp_cli.runtime.machine import this_machine
from scripts.evidence import FOLDER, PAGE, REPOSITORY, Study, prepare, run, studies

CELLS = {"digits-mlp": ("16", "0.9"), "sentence-encoder": ("16", "0.8"), "language-model": ("16", "0.8")}
"""{study: block size, sparsity}."""
STEPS = (20, 40, 80, 200, 600)
RATES = ("1e-4", "5e-4", "2e-3")
SEEDS = "3,4,5"
METHODS = "default=sequential-attention,gradual-magnitude,magnitude"
TITLE = "## Short runs"


def out_of(name: str, steps: int, rate: str) -> str:
    return f"{FOLDER}/short/{name}/{steps}-{rate}"


def command(study: Study, steps: int, rate: str) -> list[str]:
    """`sapp compare` of one study, number of steps and rate: three methods, three seeds."""
    block, sparsity = CELLS[study.name]
    options = {
        "--methods": METHODS,
        "--block-size": block,
        "--sparsity": sparsity,
        "--seeds": SEEDS,
        "--steps": str(steps),
    }
    sets = [part for assignment in (*study.set, f"optimizer.lr={rate}") for part in ("--set", assignment)]
    given = [part for option in options.items() for part in option]
    return [
        "sapp",
        "compare",
        study.checkpoint,
        "-r",
        study.recipe,
        "-o",
        out_of(study.name, steps, rate),
        *given,
        *sets,
    ]


def is_behind(default: dict[str, Any], other: dict[str, Any], higher_is_better: bool) -> bool:
    """True if the default is worse than the other method by more than the pooled standard deviation of their seeds."""
    lead = (default["mean"] - other["mean"]) * (1 if higher_is_better else -1)
    return bool(lead < -sqrt((default["std"] ** 2 + other["std"] ** 2) / 2))


def line(name: str, steps: int, rate: str, table: dict[str, Any]) -> str:
    """One row of the page."""
    rows = {row["method"]: row for row in table["rows"]}
    cells = [
        "failed" if row["mean"] is None else f"{row['mean']:.4g} ± {row['std']:.2g}"
        for row in (rows["default"], rows["gradual-magnitude"], rows["magnitude"])
    ]
    default, *others = rows["default"], rows["gradual-magnitude"], rows["magnitude"]
    known = [other for other in others if other["mean"] is not None]
    behind = default["mean"] is None or any(is_behind(default, other, table["higher_is_better"]) for other in known)
    dense = f"{table['dense']['value']:.4g}"
    return f"| {name} | {table['metric']} | {dense} | {steps} | {rate} | {' | '.join(cells)} | {'yes' if behind else 'no'} |"


def lines() -> Iterator[str]:
    """The rows of all finished cells."""
    for name in CELLS:
        for steps in STEPS:
            for rate in RATES:
                file = REPOSITORY / out_of(name, steps, rate) / "comparison.json"
                if file.is_file():
                    yield line(name, steps, rate, json.loads(file.read_text(encoding="utf-8")))


def section() -> str:
    """The part of the page: one table, and the command that makes it."""
    head = (
        "| study | metric | dense | steps | rate | default | gradual-magnitude | magnitude | default behind |\n"
        + "|---" * 9
        + "|"
    )
    machine = this_machine().text.rpartition(",")[0]
    words = (
        f"Mean ± standard deviation of seeds {SEEDS}. Behind: worse than one of the others by more than the pooled standard "
        f"deviation of both. Made by `python scripts/evidence_short.py`; {machine}, {date.today()}."
    )
    return "\n".join([TITLE, "", head, *lines(), "", words, ""])


def with_section(page: str, new: str) -> str:
    """The page with this section in the place of the old one, or at its end."""
    before, found, after = page.partition(f"{TITLE}\n")
    if not found:
        return page.rstrip("\n") + "\n\n" + new
    _, later, rest = after.partition("\n## ")
    return before + new + (f"\n## {rest}" if later else "")


def main(command_line: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", action="append", choices=tuple(CELLS), help="these studies only; repeatable")
    parser.add_argument("--steps", default=",".join(map(str, STEPS)), help="steps, of %(default)s")
    parser.add_argument("--rates", default=",".join(RATES), help="rates, of %(default)s")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time (default: %(default)s)")
    parser.add_argument("--print", action="store_true", dest="only_print", help="print the commands and run nothing")
    arguments = parser.parse_args(command_line)
    known = studies()
    for steps in map(int, arguments.steps.split(",")):  # the short ones of all studies first
        for name in arguments.study or CELLS:
            for rate in arguments.rates.split(","):
                if arguments.only_print:
                    print(shlex.join(command(known[name], steps, rate)))
                    continue
                prepare(known[name])
                run(command(known[name], steps, rate), "--jobs", str(arguments.jobs))
    if not arguments.only_print:
        PAGE.write_text(with_section(PAGE.read_text(encoding="utf-8"), section()), encoding="utf-8")
        print(f"wrote {PAGE.relative_to(REPOSITORY)}")


if __name__ == "__main__":
    main()
