"""metrics.jsonl: one JSON object a line, for a logged step or an evaluation; whoever plots a run reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from sapp_cli.checkpoint.write import disk_errors
from sapp_cli.training.loop import StepRecord


class MetricsLog:
    """The open file; a context manager. Steps count from 1, step 0 is the dense checkpoint."""

    def __init__(self, path: Path, every: int, keep_bytes: int = 0) -> None:
        """`keep_bytes` of what is there stay: the lines of the steps that a resumed run has behind it."""
        self._path = path
        with disk_errors(path.parent):
            self._file = path.open(
                "ab", buffering=0
            )  # every line is there when its step is over, and none is left for closing
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

    def _write(self, line: Mapping[str, Any]) -> None:
        left = (json.dumps(line) + "\n").encode()
        with disk_errors(self._path.parent):
            while left:
                left = left[self._file.write(left) :]
