"""The errors a user can meet; every one knows the exit code it ends the program with.

    SappError                 base of all; never raised itself
    ├── UsageError        2   the command line, or something known before the first step that cannot work
    │   ├── SettingError  2   a setting that does not fit the model or the data; knows its key
    │   └── RecipeError   2   the recipe: all its problems at once, with file and line
    ├── GateError         3   a gate of `sapp check` was not met
    ├── CheckpointError   4   a checkpoint is missing, damaged or unsafe
    ├── DataError         4   a data file is missing, damaged or does not fit the model
    │   └── SourceError   4   what a setting names is missing or of another kind; knows its key
    ├── ResourceError     5   out of memory or disk
    ├── TrainingError     6   training went wrong: diverged, or pruning disconnected a layer
    └── Interrupted     130   stopped by SIGINT (130) or SIGTERM (143) after a run state was saved

A mistake of the user raises one of these, with a text that says where and what to change. An impossible state of ours
is an `assert` with a reason, and ends as exit code 1 with a traceback.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class SappError(Exception):
    """An error the user can act on. `str(error)` is the whole message, `exit_code` ends the program."""

    exit_code = 1

    def __reduce__(self) -> tuple[Any, ...]:
        """As it stands, whatever it was made from: so it comes out of another process."""
        return _as_it_was, (type(self), self.args), self.__dict__


class UsageError(SappError):
    """The command line is wrong, or something known before the first step cannot work."""

    exit_code = 2


class SettingError(UsageError):
    """Settings that do not fit the model or the data: `problems` holds (dotted key, what is wrong and what to do)."""

    def __init__(self, problems: Sequence[tuple[str, str]]) -> None:
        self.problems = tuple(problems)
        super().__init__(_listed(self.problems))


class RecipeError(UsageError):
    """A recipe is wrong: `problems` holds every one found, each a line `file:line: key: what, and what to do`."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class GateError(SappError):
    """A gate of `sapp check` was not met."""

    exit_code = 3


class CheckpointError(SappError):
    """A checkpoint is missing, damaged, unsafe or does not fit the model."""

    exit_code = 4


class DataError(SappError):
    """A data file is missing, damaged or does not fit the model."""

    exit_code = 4


class SourceError(DataError):
    """Files and functions that settings name for the data: `problems` holds (dotted key, what is wrong and what to do)."""

    def __init__(self, problems: Sequence[tuple[str, str]]) -> None:
        self.problems = tuple(problems)
        super().__init__(_listed(self.problems))


class ResourceError(SappError):
    """Memory or disk ran out, or would."""

    exit_code = 5


class TrainingError(SappError):
    """Training diverged, or pruning disconnected a layer."""

    exit_code = 6


class Interrupted(SappError):
    """Stopped by a signal after the run state was saved; the exit code is 128 + the signal's number."""

    def __init__(self, message: str, signal_number: int) -> None:
        self.exit_code = 128 + signal_number
        super().__init__(message)


def _listed(problems: Sequence[tuple[str, str]]) -> str:
    return "\n".join(f"{key}: {text}" for key, text in problems)


def _as_it_was(kind: type[SappError], arguments: tuple[Any, ...]) -> SappError:
    error = kind.__new__(kind)
    error.args = arguments
    return error
