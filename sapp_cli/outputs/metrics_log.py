"""metrics.jsonl: one JSON object a line, for a logged step or an evaluation; whoever plots a run reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from sapp_cli.checkpoint.write import disk_errors
from sapp_cli.training.loop import StepRecord

LONGEST = 1 << 24
"""Bytes of a record, more than any has."""


class MetricsLog:
    """The open file; a context manager. Steps count from 1, step 0 is the dense checkpoint.

    `lost_from`: the first step whose record was to be kept and is not there, None if all are.
    """

    def __init__(self, path: Path, every: int, keep_bytes: int = 0) -> None:
        """`keep_bytes` of what is there stay: the lines of the steps that a resumed run has behind it.

        After a power failure the file may be shorter, or hold something else: then its whole records before that stay.
        """
        self._path = path
        self.lost_from: int | None = None
        with disk_errors(path.parent):
            # Without a buffer every line is there when its step is over, and none is left for closing.
            self._file = path.open("a+b", buffering=0)
            if keep_bytes:
                keep_bytes = self._keep(keep_bytes)
            self._file.truncate(keep_bytes)
        self._every = every

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def step(self, record: StepRecord) -> None:
        """A finished step, if it is one of those that are logged."""
        if record.is_logged(self._every):
            self._write(record.as_json())

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """An evaluation on all validation rows: of the dense checkpoint, or of the files written in the end."""
        self._write({"step": step, "metrics": dict(metrics)})

    def _keep(self, expected: int) -> int:
        """Bytes of the whole records at the start of the file, `expected` if nothing is wrong with it; sets `lost_from`."""
        kept, last = 0, -1
        with self._path.open("rb") as file:
            while kept < expected and (line := file.readline(min(expected - kept, LONGEST))).endswith(b"\n"):
                step = _step_of(line)
                if step is None:
                    break
                kept, last = kept + len(line), step
        if kept < expected:
            self.lost_from = last + 1
        return kept

    def _write(self, line: Mapping[str, Any]) -> None:
        left = (json.dumps(line) + "\n").encode()
        with disk_errors(self._path.parent):
            while left:
                left = left[self._file.write(left) :]


def _step_of(line: bytes) -> int | None:
    """The step of a record; None for a line that is not one."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, RecursionError, TypeError, KeyError):
        return None
    return step if type(step) is int else None
