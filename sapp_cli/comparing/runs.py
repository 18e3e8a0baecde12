"""Running the cells: `sapp prune` in a process of its own for each, several at a time."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sapp_cli.checkpoint.lock import locked
from sapp_cli.comparing.cells import OUTCOMES, Budget, Cell, Record, Store
from sapp_cli.comparing.results import chosen_metric
from sapp_cli.errors import DataError, SappError, UsageError
from sapp_cli.report.run import read_run
from sapp_cli.report.wording import metric_text, span_text
from sapp_cli.training.interruption import StopRequest
from sapp_cli.training.parent import PATIENCE, TIED

PAUSE = 0.1  # seconds between two looks at the running processes
LAST_LINES = 3  # of what a failed run said, for its record
FOR_ALL: Mapping[int | None, type[SappError]] = {error.exit_code: error for error in (UsageError, DataError)}
"""Errors that are known before a first step: checkpoint, data and machine are the same for all cells."""


class Watcher(Protocol):
    """Whoever looks on while cells run."""

    def say(self, text: str) -> None:
        """One line of what is going on."""

    def running(self, logs: Mapping[str, Path]) -> None:
        """{name of a running cell: its log}, told again and again."""


@dataclass(frozen=True)
class _Running:
    cell: Cell
    process: subprocess.Popen[bytes]
    began: float


def run_cells(
    cells: Sequence[Cell],
    budget: Budget,
    store: Store,
    jobs: int,
    watcher: Watcher,
    stop: StopRequest,
    metric: str | None = None,
) -> None:
    """Run every cell that is not settled, `jobs` at a time; the processor's threads are shared out among them.

    What fails is recorded and does not stop the others, but for what is wrong with all of them: UsageError, and DataError for
    a file that is missing or damaged. A cell that another process runs raises UsageError before any cell begins. Once `stop` is
    asked for, the running cells are told, and this returns when they have saved their states, from which they go on another
    time. `metric`: the one to say at the end of a cell, else its first.
    """
    places = {cell: f"{place}/{len(cells)}" for place, cell in enumerate(cells, 1)}
    pending = [cell for cell in cells if not store.is_settled(cell)]
    for cell in pending:
        with locked(store.out(cell)):
            pass
    settled = len(cells) - len(pending)
    if settled:
        watcher.say(f"{settled} of {len(cells)} cells are there already")
    threads = max(1, available_threads() // max(1, min(jobs, len(pending))))
    running: list[_Running] = []
    began, ran = time.monotonic(), 0
    try:
        while (pending or running) and stop.signal_number is None:
            while pending and len(running) < jobs:
                cell = pending.pop(0)
                watcher.say(f"cell {places[cell]}  {cell.name}  begins")
                running.append(_start(cell, budget, store, threads))
            watcher.running({entry.cell.name: store.log(entry.cell) for entry in running})
            time.sleep(PAUSE)
            for ended in [entry for entry in running if entry.process.poll() is not None]:
                running.remove(ended)
                record = _finish(ended, store)
                ran += 1
                said = [f"cell {places[ended.cell]}  {ended.cell.name}", _outcome(ended.cell, record, store, metric)]
                said.append(span_text(record.seconds))
                if pending or running:
                    left = (time.monotonic() - began) / ran * (len(pending) + len(running))
                    said.append(f"about {span_text(left)} left")
                watcher.say("  ".join(said))
                if record.exit_code in FOR_ALL:
                    raise FOR_ALL[record.exit_code](record.error)
    finally:
        watcher.running({})
        if running and stop.signal_number is not None:
            watcher.say("the running cells save their states")
        _end(running, store)


def _outcome(cell: Cell, record: Record, store: Store, metric: str | None) -> str:
    """Like "accuracy 0.9722 → 0.9694"; the error of a run that failed. Raises UsageError where it has no such metric."""
    if record.exit_code != 0:
        return f"exit code {record.exit_code}: {record.error}"
    run = read_run(store.out(cell))
    if run is None or not run.metrics:
        return "done"
    name, value = chosen_metric(run.metrics, metric)
    return f"{name} {metric_text(value.dense)} → {metric_text(value.pruned)}"


def available_threads() -> int:
    """What OMP_NUM_THREADS says, else the processors that this process may use."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start(cell: Cell, budget: Budget, store: Store, threads: int) -> _Running:
    # A state of these very settings is gone on from; one of others, or an older output, makes room.
    goes_on = store.record(cell) is not None and not store.out(cell).exists()
    store.note(cell, Record(cell.settings, cell.inputs))
    command = [sys.executable, "-m", "sapp_cli", "prune", str(budget.checkpoint), "--recipe", budget.recipe]
    command += ["--out", str(store.out(cell)), "--layout", "bsr", "--resume" if goes_on else "--overwrite"]
    with store.log(cell).open("wb") as log:
        process = subprocess.Popen(
            [*command, *budget.options, *cell.options],
            stdin=subprocess.PIPE,  # never written to: it ends with this process, and the cell with it
            stdout=subprocess.DEVNULL,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), TIED: "1"},
            start_new_session=True,  # Ctrl-C reaches this process alone, which hands it on once
        )
    return _Running(cell, process, time.monotonic())


def _finish(ended: _Running, store: Store) -> Record:
    _wait(ended.process)
    code = ended.process.returncode
    error = "" if code == 0 else last_words(store.log(ended.cell))
    record = Record(ended.cell.settings, ended.cell.inputs, code, error, round(time.monotonic() - ended.began, 3))
    store.note(ended.cell, record)
    return record


def last_words(log: Path) -> str:
    """The error that a run ended with, from its log."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return "\n".join(errors or lines[-LAST_LINES:])


def _end(running: Sequence[_Running], store: Store) -> None:
    """Have the runs save their states and end; those that came to their own end meanwhile are recorded."""
    for entry in running:
        entry.process.terminate()  # not SIGINT: what a shell starts in the background ignores that, and so do its children
    for entry in running:
        _wait(entry.process)
        if entry.process.returncode in OUTCOMES:
            _finish(entry, store)


def _wait(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdin is not None:
        process.stdin.close()
