"""A run as a person likes to watch it: a live line in a terminal, plain lines elsewhere; always on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import suppress
from types import TracebackType

from rich.console import RenderableType
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from sapp_cli.cli.console import LiveLines, stderr
from sapp_cli.report.wording import metric_text, percent, rate_text, span_text
from sapp_cli.training.loop import StepRecord

PLAIN_LINES = 20  # of a whole run, besides those of phases and evaluations


class _TwoLines(Progress):
    """What a step came to, and below it the bar with the clocks."""

    def get_renderables(self) -> Iterable[RenderableType]:
        texts = (Text(task.description, no_wrap=True, overflow="ellipsis") for task in self.tasks)
        yield LiveLines(*texts, self.make_tasks_table(self.tasks))


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{rate_text(task.speed)} steps/s", "progress.data.speed")


class _Elapsed(TimeElapsedColumn):
    def render(self, task: Task) -> Text:
        return super().render(task).append(" elapsed")


class _Left(TimeRemainingColumn):
    def render(self, task: Task) -> Text:
        return super().render(task).append(" left")


class ProgressWatcher:
    """Says what happens. Use it as a context manager: leaving it restores the terminal."""

    def __init__(self, quiet: bool, verbose: bool) -> None:
        self._quiet = quiet
        self._verbose = verbose
        self._console = stderr()
        self._live = self._console.is_terminal and not quiet
        self._metrics = ""
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> ProgressWatcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop()

    def say(self, text: str) -> None:
        """One line."""
        if not self._quiet:
            with suppress(OSError):  # a terminal that goes away does not end the run here, but by its signal
                self._console.print(text)

    def detail(self, text: str) -> None:
        """One line, with --verbose."""
        if self._verbose:
            self.say(text)

    def step(self, record: StepRecord) -> None:
        """A finished step: moves the bar, or prints a line now and then, for new phases and for evaluations."""
        if self._quiet or (record.trial and not self._live):
            return
        if record.metrics:
            self._metrics = ", ".join(f"{name} {metric_text(value)}" for name, value in record.metrics.items())
        done, last = record.moment.step + 1, record.moment.step + 1 == record.steps
        every = max(1, record.steps // PLAIN_LINES)
        if self._live and (record.trial or not self._verbose):
            with suppress(OSError):
                self._draw(record)
        elif record.moment.begins or record.metrics or last or done % every == 0:
            left = record.seconds / done * (record.steps - done)
            metrics = f"  {self._metrics}" if record.metrics else ""
            self.say(
                f"step {done}/{record.steps}  {record.moment.name}  sparsity {percent(record.sparsity)}  "
                f"loss {metric_text(record.loss)}{metrics}  {rate_text(done / max(record.seconds, 1e-9))} steps/s  "
                f"{span_text(record.seconds)} elapsed  {span_text(left)} left"
            )
        if last:
            self._stop()

    def _draw(self, record: StepRecord) -> None:
        if self._progress is None:
            self._progress = _TwoLines(
                BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=5)),
                TextColumn("{task.completed}/{task.total}", table_column=Column(no_wrap=True)),
                _Rate(table_column=Column(no_wrap=True)),
                _Elapsed(table_column=Column(no_wrap=True)),
                _Left(table_column=Column(no_wrap=True)),
                console=self._console,
                transient=True,
                expand=True,
            )
            self._progress.start()
            self._task = self._progress.add_task("", total=record.steps)
        assert self._task is not None, "made with the progress"
        about = f"{record.trial} · " if record.trial else ""
        text = f"{about}{record.moment.name} · sparsity {percent(record.sparsity)} · loss {metric_text(record.loss)}"
        if record.metrics:
            self._progress.console.print(f"step {record.moment.step + 1}: {self._metrics}")
        self._progress.update(self._task, completed=record.moment.step + 1, description=text)

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def is_terminal() -> bool:
    """True if stdout is one."""
    return sys.stdout.isatty()
