"""Several processes of one run: what they tell each other, who writes, and how an error of one ends them all.

Tensors travel as Accelerate has it, NCCL between GPUs, gloo between CPUs. The words exchanged here go through a gloo group of
their own: it can wait for hours while the main process writes, and it notices at once when a process is gone. With one
process every function here is a formality.
"""

from __future__ import annotations

import atexit
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed import distributed_c10d

from sapp_cli.errors import ResourceError, SappError, TrainingError

T = TypeVar("T")
PATIENCE = timedelta(days=7)  # of the others, while the main process writes and evaluates
LAST_WORDS = "sapp-last-words"

_groups: list[dist.ProcessGroup] = []  # the one for words, once `connect` has made it


class EndedElsewhere(SappError):
    """Another process of the run has failed and said why; this one ends in silence with the same exit code."""

    def __init__(self, exit_code: int) -> None:
        self.exit_code = exit_code
        super().__init__("")


def connect() -> None:
    """Make the group that the other functions use; all processes call it, as soon as they know of each other."""
    if not _groups and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        _groups.append(dist.new_group(backend="gloo", timeout=PATIENCE))


def is_main() -> bool:
    """True for the process that writes and speaks."""
    return not _groups or dist.get_rank() == 0


def gather(value: T) -> list[T]:
    """What every process gave, in the order of their ranks."""
    if not _groups:
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group=_groups[0])
    return values


def from_main(value: T) -> T:
    """What the main process gave."""
    if not _groups:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, group=_groups[0])
    return values[0]


def any_of(wishes: Iterable[bool]) -> list[bool]:
    """Of each wish, whether some process has it."""
    return [any(same) for same in zip(*gather(list(wishes)), strict=True)]


def meet() -> None:
    """Wait until every process is here."""
    gather(None)


def agree_on_masks(masks: Mapping[str, Tensor], where: str) -> None:
    """Raise TrainingError, with the layer, unless all processes hold the same masks {layer: keep}.

    To be called after the masks moved and before the next forward, where DDP copies the main process's over the others'.
    """
    if not _groups:
        return
    everyones = gather({name: _digest(keep) for name, keep in masks.items()})
    names = dict.fromkeys(name for digests in everyones for name in digests)  # a process may have left a layer dense
    differing = [name for name in names if len({digests.get(name) for digests in everyones}) > 1]
    if differing:
        more = f" and of {len(differing) - 1} more layers" if len(differing) > 1 else ""
        raise TrainingError(
            f"the processes disagree about the mask of '{differing[0]}'{more} {where}: their weights have come apart. "
            "Use cards of one kind, and --deterministic; with a custom objective, let nothing but gradients depend on the rank"
        )


def _digest(keep: Tensor) -> bytes:
    return hashlib.sha256(keep.cpu().contiguous().view(torch.uint8).numpy().tobytes()).digest()


@contextmanager
def joined() -> Iterator[None]:
    """Within it an error of one process ends them all with its exit code, and one of them says why.

    Whoever fails first leaves a note where the processes found each other, and goes; that tears the connections on which the
    others wait, and they find the note. Without one, a process was killed: ResourceError.
    """
    if not _groups:
        yield
        return
    try:
        yield
        meet()
        atexit.register(_leave)  # NCCL complains of those who go without a word
    except BaseException as error:
        first = _leave_note(error)
        if first is None:
            raise
        raise EndedElsewhere(first) from None


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _leave_note(error: BaseException) -> int | None:
    """None for the first process that fails, which is to speak; for the others the exit code of the first."""
    store = distributed_c10d._get_default_store()
    mine = json.dumps({"rank": dist.get_rank(), "exit_code": _exit_code(error)})
    lost = _connection_is_lost(error)
    note = ""
    with suppress(RuntimeError):  # the store went with the process that held it
        if lost:
            note = store.get(LAST_WORDS).decode() if store.check([LAST_WORDS]) else ""
        else:
            note = store.compare_set(LAST_WORDS, "", mine).decode()
    if note == mine or (not note and not lost):
        return None
    if not note:
        raise ResourceError(
            "another process of the run is gone without a word: killed, or out of memory; look at what it printed"
        ) from error
    return int(json.loads(note)["exit_code"])


def _exit_code(error: BaseException) -> int:
    if isinstance(error, SappError):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return 130
    return 1 if isinstance(error, Exception) else 143  # the program's own answer to SIGTERM is no Exception


def _connection_is_lost(error: BaseException) -> bool:
    """True for what torch raises where a process that is waited for is gone."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
