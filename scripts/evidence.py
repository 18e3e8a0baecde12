"""Compare the methods on the studies of scripts/evidence.yaml, each run a process of its own, and write the tables down.

    python scripts/evidence.py --tune digits-mlp      the rate of each method, by `sapp tune` on seeds of its own
    python scripts/evidence.py                        the core part: the final runs, docs/results-evidence.md
    python scripts/evidence.py --part long

What is finished is not run again: the same command goes on where it stopped. Every table stands with its command.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from multiprocessing.pool import ThreadPool
from pathlib import Path

import yaml

from sapp_cli.cli.options import MethodName
from sapp_cli.runtime.machine import this_machine

REPOSITORY = Path(__file__).resolve().parents[1]
STUDIES = Path(__file__).with_suffix(".yaml")
FOLDER = "runs/evidence"
PAGE = REPOSITORY / "docs" / "results-evidence.md"
PARTS = ("core", "long")


@dataclass(frozen=True)
class Tuning:
    """How the rates were chosen: on one cell, with seeds that the final runs do not use."""

    block: str
    sparsity: str
    seeds: str
    rates: list[float] = field(default_factory=list)
    """As `--rates` of `sapp tune` takes them; none: its own grid."""
    steps: int | None = None
    """Of the run whose rate is searched; None: as many as the final runs have, fewer where these take long."""


@dataclass(frozen=True)
class Study:
    """One checkpoint, one recipe, one number of steps; several methods, or variants of one."""

    name: str
    title: str
    part: str
    checkpoint: str
    recipe: str
    steps: int
    blocks: str
    sparsities: str
    seeds: str
    tune: Tuning | None = None
    """None: the rate is another study's, as `set` or the recipe has it."""
    rates: dict[str, float] = field(default_factory=dict)
    """{method or label: optimizer.lr}, frozen after tuning; one that is not in it has the recipe's."""
    methods: list[str] = field(default_factory=list)
    """As `--methods` takes them, LABEL=NAME for variants; none: all methods."""
    method_set: list[str] = field(default_factory=list)
    """As `--method-set` takes them: LABEL:KEY=VALUE."""
    prepare: list[str] = field(default_factory=list)
    set: list[str] = field(default_factory=list)
    remark: str = ""
    """What a reader of the table should know, written when it was there."""

    def __post_init__(self) -> None:
        shared = set(self.seeds.split(",")) & set(self.tune.seeds.split(",") if self.tune else ())
        assert not shared, f"{self.name}: seeds {sorted(shared)} were looked at while tuning"
        labels = {entry.partition("=")[0] for entry in self.methods} or {method.value for method in MethodName}
        unknown = sorted(set(self.rates) - labels)
        assert not unknown, f"{self.name}: no methods: {unknown}"

    def command(self, out: str, blocks: str, sparsities: str, seeds: str, *extra: str) -> list[str]:
        sets = [part for assignment in self.set for part in ("--set", assignment)]
        options = [
            "--block-size",
            blocks,
            "--sparsity",
            sparsities,
            "--seeds",
            seeds,
            "--steps",
            str(self.steps),
        ]
        if self.methods:
            options += ["--methods", ",".join(self.methods)]
        own = [part for assignment in self.method_set for part in ("--method-set", assignment)]
        return ["sapp", "compare", self.checkpoint, "-r", self.recipe, "-o", out, *options, *sets, *own, *extra]

    @property
    def final(self) -> list[str]:
        rates = [part for name, rate in self.rates.items() for part in ("--method-set", f"{name}:optimizer.lr={rate}")]
        return self.command(f"{FOLDER}/{self.name}/final", self.blocks, self.sparsities, self.seeds, *rates)

    @property
    def labels(self) -> dict[str, str]:
        """{label: method}."""
        parts = (entry.rpartition("=") for entry in self.methods or [method.value for method in MethodName])
        return {label or method: method for label, _, method in parts}

    def search(self, tune: Tuning, label: str, seed: str) -> list[str]:
        """The `sapp tune` of one method, with one seed."""
        own = [entry.partition(":")[2] for entry in self.method_set if entry.partition(":")[0] == label]
        sets = [part for assignment in (*self.set, *own) for part in ("--set", assignment)]
        steps = str(tune.steps or self.steps)
        options = ["--method", self.labels[label], "--block-size", tune.block, "--sparsity", tune.sparsity]
        options += ["--seed", seed, "--steps", steps]
        if tune.rates:
            options += ["--rates", ",".join(f"{float(rate):g}" for rate in tune.rates)]
        return ["sapp", "tune", self.checkpoint, "-r", self.recipe, *options, *sets]


def studies(file: Path = STUDIES) -> dict[str, Study]:
    found = yaml.safe_load(file.read_text(encoding="utf-8"))
    return {
        name: Study(
            name=name,
            tune=Tuning(**entry["tune"]) if "tune" in entry else None,
            rates={label: float(rate) for label, rate in entry.get("rates", {}).items()},
            **{key: value for key, value in entry.items() if key not in ("tune", "rates")},
        )
        for name, entry in found.items()
    }


def run(command: Sequence[str], *extra: str) -> None:
    """As in a terminal at the repository's root, with this Python's sapp."""
    print("$", shlex.join(command), flush=True)
    start = {"sapp": [sys.executable, "-m", "sapp_cli"], "python": [sys.executable]}[command[0]]
    subprocess.run([*start, *command[1:], *extra], cwd=REPOSITORY, check=True)


def prepare(study: Study) -> None:
    if not (REPOSITORY / study.checkpoint).exists():
        for command in study.prepare:
            run(shlex.split(command))


def tune(study: Study, jobs: int) -> dict[str, float]:
    """{method: the rate that `sapp tune` finds}; of several seeds the lower median. Every method gets the same search."""
    assert study.tune is not None, f"{study.name} has nothing to tune"
    prepare(study)
    seeds = study.tune.seeds.rstrip(",").split(",")
    searches = [study.search(study.tune, label, seed) for label in study.labels for seed in seeds]
    with ThreadPool(jobs) as pool:
        rates = iter(pool.map(found_rate, searches))
    found = {label: sorted(next(rates) for _ in seeds) for label in study.labels}
    for label, each in found.items():
        print(f"{label:24}", "  ".join(f"{rate:g}" for rate in each))
    return {label: each[(len(each) - 1) // 2] for label, each in found.items()}


def found_rate(command: Sequence[str]) -> float:
    """The rate that this search finds."""
    print("$", shlex.join(command), flush=True)
    start = [sys.executable, "-m", "sapp_cli", *command[1:], "--json"]
    ran = subprocess.run(start, cwd=REPOSITORY, check=True, stdout=subprocess.PIPE)
    return float(json.loads(ran.stdout)["learning_rate"])


def chosen(study: Study) -> str:
    """Which rates, and how they were found."""
    if study.tune is None:
        return ""
    rates = ", ".join(f"{name} {rate:g}" for name, rate in study.rates.items()) or "the recipe's for all"
    trials = ", ".join(f"{float(rate):g}" for rate in study.tune.rates) or "the grid of `sapp tune`"
    cell = f"{study.tune.sparsity} in blocks of {study.tune.block}, seeds {study.tune.seeds.rstrip(',')}"
    steps = f", {study.tune.steps} steps" if study.tune.steps else ""
    return f"Rates: {rates}; chosen from {trials} on {cell}{steps}."


def effort(study: Study) -> str:
    """How many runs, and how long they took one after the other."""
    records = (REPOSITORY / FOLDER / study.name / "final" / "cells").glob("*.json")
    seconds = [json.loads(file.read_text(encoding="utf-8"))["seconds"] for file in records]
    return f"{len(seconds)} runs, {sum(seconds) / 60:.0f} minutes one after the other, with one thread each."


def page(found: Sequence[Study]) -> str:
    """The tables of all studies that have been run, each with the command that makes it."""
    sections = []
    for study in found:
        file = REPOSITORY / FOLDER / study.name / "final" / "comparison.md"
        if not file.is_file():
            continue
        command = f"```sh\n{shlex.join(study.final)}\n```"
        table = file.read_text(encoding="utf-8").strip()
        parts = [f"## {study.title}", table, chosen(study), effort(study), study.remark, command]
        sections.append("\n\n".join(part for part in parts if part) + "\n")
    machine = this_machine().text.rpartition(",")[0]
    made = f"Made by `make evidence`; {machine}, {date.today()}. Rates were tuned with `python scripts/evidence.py --tune`."
    head = f"# Evidence\n\n{made}\n"
    return "\n".join([head, *sections])


def main(command_line: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, default="core")
    parser.add_argument("--only", action="append", metavar="STUDY", help="these studies only; repeatable")
    parser.add_argument("--tune", action="append", metavar="STUDY", help="choose the rates of a study; repeatable")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time (default: %(default)s)")
    arguments = parser.parse_args(command_line)
    known = studies()
    for name in arguments.tune or ():
        print(f"{name}: rates: {json.dumps(tune(known[name], arguments.jobs))}")
    if arguments.tune:
        return
    for name in arguments.only or [name for name, study in known.items() if study.part == arguments.part]:
        prepare(known[name])
        run(known[name].final, "--jobs", str(arguments.jobs))
    short = PAGE.read_text(encoding="utf-8").partition("## Short runs\n") if PAGE.is_file() else ("", "", "")
    PAGE.write_text(page(list(known.values())) + "".join(("\n", *short[1:]) if short[1] else ()), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(REPOSITORY)}")


if __name__ == "__main__":
    main()
