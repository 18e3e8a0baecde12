"""Real processes for tests: each calls one function and hands back what it returns or raises.

They are forked from a server that has imported torch already, and find each other through a file: no port, no network but
loopback.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import sys
import tempfile
import traceback
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import forkserver

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["torch", "torch._dynamo", "accelerate", "sapp_cli.pipeline.prune", "sapp_cli.cli.main", __name__]
)
SECONDS = 90


class ReadyForks:
    """FORKS for whoever starts processes with signals blocked: the server runs before that, and blocks none for others."""

    Pipe = staticmethod(FORKS.Pipe)

    @staticmethod
    def Process(**about):  # noqa: N802 - as multiprocessing has it
        forkserver.ensure_running()
        return FORKS.Process(**about)


@dataclass(frozen=True)
class Ended:
    """How one process ended."""

    value: object = None  # what the function returned
    error: str = ""  # or the text of what it raised
    code: int = 0  # and the exit code that goes with it
    said: str = ""  # what it printed


def run_processes(count, function, *arguments) -> list[Ended]:
    """`function(*arguments)` in `count` processes of one group, by rank; a process that vanished has its signal as code."""
    with tempfile.TemporaryDirectory() as folder:
        pairs = [FORKS.Pipe(duplex=False) for _ in range(count)]
        crew = [
            FORKS.Process(target=_enter, args=(rank, count, folder, ours, function, arguments))
            for rank, (_, ours) in enumerate(pairs)
        ]
        for process, (_, ours) in zip(crew, pairs, strict=True):
            process.start()
            ours.close()
        ended = [_hear(process, theirs) for process, (theirs, _) in zip(crew, pairs, strict=True)]
        for process in crew:
            process.join(SECONDS)
            process.kill()
        return ended


def _hear(process, pipe) -> Ended:
    if not pipe.poll(SECONDS):
        process.kill()
        return Ended(error=f"still busy after {SECONDS} s", code=-9)
    try:
        return pickle.loads(pipe.recv_bytes())  # not recv(): tensors would be shared, not copied
    except EOFError:
        process.join(SECONDS)
        return Ended(error="vanished", code=process.exitcode)


def _enter(rank, count, folder, pipe, function, arguments) -> None:
    import torch
    from torch import distributed

    torch.set_num_threads(1)
    os.environ.update(OMP_NUM_THREADS="1", RANK=str(rank), WORLD_SIZE=str(count), LOCAL_RANK=str(rank))
    os.environ.update(LOCAL_WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    sys.stdout = sys.stderr = said = io.StringIO()
    store = distributed.FileStore(f"{folder}/store", count)
    limit = timedelta(seconds=SECONDS)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=limit)
    try:
        value = function(*arguments)
        ended = Ended(value, said=said.getvalue())
    except BaseException as error:
        if not isinstance(error, SystemExit):
            traceback.print_exc()
        code = error.code if isinstance(error, SystemExit) else getattr(error, "exit_code", 1)
        ended = Ended(error=f"{type(error).__name__}: {error}", code=code or 0, said=said.getvalue())
    pipe.send_bytes(pickle.dumps(ended))
    # What hangs on the group (a gloo thread, a peer's broken connection) is not to speak after the test.
    os._exit(0)
