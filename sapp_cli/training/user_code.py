"""Errors of the user's own code (model, loss, metrics) as one line, wherever a run calls it.

An error belongs to the user if the last line of Python that ran, torch's aside, is theirs, or is one of the few lines of sapp
that call a model or a loss. All others are faults of sapp, and keep their traceback.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

import sapp_cli
from sapp_cli.errors import SappError, SettingError, TrainingError, UsageError
from sapp_cli.inputs.rows import Batch, describe_batch
from sapp_cli.training.sharding import is_sharded

if TYPE_CHECKING:  # objectives are checked by what stands here
    from sapp_cli.training.objectives.objective import Objective

TORCH = Path(torch.__file__).parent
SAPP = Path(sapp_cli.__file__).parent
LIBRARIES = "site-packages"
CALLERS = ("training/objectives", "training/loop.py", "training/evaluation.py", "training/user_code.py")
"""Places in sapp that call a model, a loss or a backward pass of the user's, or look at what came back."""
COMPILER = ("torch._dynamo", "torch._inductor")
LONGEST_SEARCH = 1024
"""Rows of a batch that are tried one by one; more would take minutes."""


class UserCode:
    """What guards the calls of a user's model and objective, batch by batch.

    `rows_of` gives the numbers of a batch's rows in their data; None if that is not known. `kind`: the error to raise, a
    UsageError before the first step.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        rows_of: Callable[[int], Sequence[int]] | None = None,
        kind: type[SappError] = TrainingError,
    ) -> None:
        self._model = model
        self._objective = objective
        self._rows_of = rows_of
        self._kind = kind
        self._batch: Batch | None = None
        self._number = self._first = 0

    def looks_at(self, index: int, batch: Batch) -> None:
        """Remember the batch that is computed next, the `index`-th within `at`."""
        self._number, self._batch = self._first + index, batch

    @contextmanager
    def at(self, doing: str, first: int = 0, kind: type[SappError] | None = None) -> Iterator[None]:
        """One line in place of what the user's code raises within it; it begins with `doing`, such as the step and its phase.

        `first`: the number of the first batch. `kind` stands in for that of all calls. The state of the run stays, so
        `--resume` continues once the code is mended.
        """
        self._first, self._batch, kind = first, None, kind or self._kind
        try:
            yield
        except SettingError as error:  # a loss that returned something else than before
            if issubclass(kind, UsageError):
                raise
            raise kind(f"{doing}: {error}") from error
        except Exception as error:
            if not is_of_user(error):
                raise
            raise kind(f"{doing}: {describe(error)}{self._of_the_batch(error)}") from error

    def _of_the_batch(self, error: Exception) -> str:
        if self._batch is None:
            return ""
        return f"{self._row(error, self._batch)}; the batch holds {describe_batch(self._batch)}"

    def _row(self, error: Exception, batch: Batch) -> str:
        """`; row 40 of the data raises it by itself`, or "" if no row does, or each."""
        sizes = {value.shape[0] if value.dim() else 0 for value in batch.values()}
        if len(sizes) != 1 or not 1 < (size := sizes.pop()) <= LONGEST_SEARCH or is_sharded(self._model):
            return ""
        rows = None if self._rows_of is None else self._rows_of(self._number)
        self._model.eval()  # batch norm in training takes no single row; the run is over in any case
        guilty, innocent = None, False
        for index in range(size):
            if not self._raises(type(error), {key: value[index : index + 1] for key, value in batch.items()}):
                innocent = True
            elif guilty is None:
                guilty = index
            if innocent and guilty is not None:
                where = f"row {guilty} of the batch" if rows is None else f"row {rows[guilty]} of the data"
                return f"; {where} raises it by itself"
        return ""

    def _raises(self, kind: type[Exception], row: Batch) -> bool:
        try:
            self._objective.evaluate(self._model, row, self._model if self._objective.needs_teacher else None)
        except kind:
            return True
        except Exception:
            return False  # a batch of one row is another matter
        return False


def is_of_user(error: Exception) -> bool:
    """True if the user's code, or what torch made of its tensors, raised the error."""
    if isinstance(error, (SappError, MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error):
        return False
    if type(error).__module__.startswith(COMPILER):
        return False  # told by whoever asked for compilation
    frames = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    if any(frame.is_relative_to(TORCH / "distributed") for frame in frames[-4:]):
        return False  # another process is gone
    last = next((frame for frame in reversed(frames) if not frame.is_relative_to(TORCH)), None)
    if last is None or not last.is_relative_to(SAPP):
        return True
    return last.relative_to(SAPP).as_posix().startswith(CALLERS)


def describe(error: Exception) -> str:
    """`IndexError: index out of range in self (models.py:57)`: the first line of the error, and the user's last line."""
    text = (str(error).strip().splitlines() or [""])[0]
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if LIBRARIES not in frame.filename and not Path(frame.filename).is_relative_to(SAPP)
    ]
    place = f" ({Path(own[-1].filename).name}:{own[-1].lineno})" if own else ""
    return f"{type(error).__name__}{': ' if text else ''}{text}{place}"
