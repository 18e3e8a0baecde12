"""What a run is made from, as hashes: the files of its data, its teacher, and the code that its recipe names.

A run that is resumed has to start from the same. Names are relative, so a folder may move; contents decide:

    data.files.train/train.npz     SHA-256 of the file
    data.files.train/images        of a folder: SHA-256 over the names, sizes and contents of its files
    model.factory/net.py           the file of a factory, and every module beside it that it imports, directly or not
    model.factory/torchvision      code of an installed package: its version

Data of more than WHOLE_BYTES are sampled: every name and size counts, and evenly spaced pieces of the contents. What is not
compared byte by byte is listed in `Fingerprints.limits`.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from sapp_cli.checkpoint.locate import locate
from sapp_cli.checkpoint.output import sha256_file
from sapp_cli.checkpoint.source import Checkpoint
from sapp_cli.errors import DataError
from sapp_cli.inputs.code_files import code_files, installed_version
from sapp_cli.inputs.files import find_files
from sapp_cli.inputs.sources import factories_in_use, files_in_use
from sapp_cli.recipe.schema import Recipe

T = TypeVar("T")
WHOLE_BYTES = 8_000_000_000
"""Data of one setting up to this are hashed whole: reading and parsing them takes longer than that."""
SAMPLED_BYTES = 1_000_000_000
PIECE = 1 << 20


@dataclass(frozen=True)
class Fingerprints:
    """`values` {name: SHA-256, or what stands for it}; `limits`: a line for each thing that they do not tell."""

    values: Mapping[str, str]
    limits: tuple[str, ...] = ()

    def __or__(self, other: Fingerprints) -> Fingerprints:
        return Fingerprints({**self.values, **other.values}, (*self.limits, *other.limits))


NOT_DATA = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})
"""What file managers leave in folders."""
CONFIGURATION = re.compile(
    r".*(config|token|vocab|merges|spiece|sentencepiece|modules).*\.(json|txt|model)", re.IGNORECASE
)
"""Names of what lies beside a checkpoint's weights and decides what they compute, and how texts become tokens."""


class Beside(Generic[T]):
    """A function in a thread of its own, so that files are hashed while a model loads; the thread ends with the process."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._values: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._call, daemon=True)
        self._thread.start()

    def result(self) -> T:
        """What the function returned or raised; waits for it."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._values[0]

    def _call(self) -> None:
        try:
            self._values.append(self._function())
        except BaseException as error:
            self._error = error


def fingerprint_files(recipe: Recipe) -> Fingerprints:
    """Of the data's files and the teacher's. Raises SettingError, DataError or CheckpointError for what cannot be read."""
    found = Fingerprints({})
    for key, files in files_in_use(recipe).items():
        found |= _of_data(key, find_files(files, key))
    if recipe.objective.distill.teacher is not None:
        location = locate(recipe.objective.distill.teacher)
        found |= Fingerprints({f"objective.distill.teacher/{file.name}": sha256_file(file) for file in location.files})
    return found


def fingerprint_checkpoint(checkpoint: Checkpoint) -> Fingerprints:
    """Of its weights, and of configuration and tokenizer beside them, by their names. Raises CheckpointError."""
    values = checkpoint.hashes()
    if checkpoint.folder is not None:
        values |= {
            path.name: sha256_file(path)
            for path in sorted(checkpoint.folder.iterdir())
            if CONFIGURATION.fullmatch(path.name) and path.is_file()
        }
    return Fingerprints(values)


def fingerprint_code(recipe: Recipe) -> Fingerprints:
    """Of the callables that the recipe names; they have been imported."""
    values: dict[str, str] = {}
    limits: list[str] = []
    for key, factory in factories_in_use(recipe).items():
        package = factory.partition(":")[0].partition(".")[0]
        version = None if ".py:" in factory else installed_version(factory.partition(":")[0])
        if version is None:
            values |= {f"{key}/{name}": sha256_file(path) for name, path in code_files(factory).items()}
        else:
            values[f"{key}/{package}"] = version
            limits.append(f"{key}: {package} is compared by its version, {version}")
        if key == "data.factory":
            limits.append(
                f"{key}: the rows that {factory.rpartition('/')[2]} returns are not compared, only its code is"
            )
    return Fingerprints(values, tuple(limits))


def _of_data(key: str, paths: list[Path]) -> Fingerprints:
    """Of the files and folders of one setting, by their names below the folder that holds them all."""
    try:
        files = {path: _files_below(path) for path in paths}
        sizes = {file: file.stat().st_size for below in files.values() for file in below}
        total = sum(sizes.values())
        step = 1 if total <= WHOLE_BYTES else -(-total // SAMPLED_BYTES)
        home = Path(os.path.commonpath([path.absolute().parent for path in paths]))
        values = {}
        for path in paths:
            name = f"{key}/{path.absolute().relative_to(home).as_posix()}"
            values[name] = _of_folder(path, files[path], sizes, step) if path.is_dir() else _of_file(path, step)
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from error
    if step == 1:
        return Fingerprints(values)
    compared = f"all names and sizes, and evenly spaced pieces of the contents, 1 byte in {step:,}"
    return Fingerprints(values, (f"{key}: {total / 1e9:,.0f} GB are compared by {compared}",))


def _files_below(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.rglob("*") if file.is_file() and file.name not in NOT_DATA)


def _of_folder(folder: Path, files: list[Path], sizes: Mapping[Path, int], step: int) -> str:
    """A hash over names and sizes, and over every `step`-th file."""
    digest = hashlib.sha256()
    for number, file in enumerate(files):
        name = os.fsencode(file.relative_to(folder).as_posix())
        digest.update(b"%d %d %s" % (sizes[file], len(name), name))
        if number % step == 0:
            with file.open("rb") as opened:
                while piece := opened.read(PIECE):
                    digest.update(piece)
    return digest.hexdigest()


def _of_file(path: Path, step: int) -> str:
    """The file's SHA-256; with a `step` above 1 that of its size and of every `step`-th MiB, the last one among them."""
    if step == 1:
        return sha256_file(path)
    size = path.stat().st_size
    digest = hashlib.sha256(b"%d" % size)
    with path.open("rb") as file:
        for place in (*range(0, size, step * PIECE), max(0, size - PIECE)):
            file.seek(place)
            digest.update(file.read(PIECE))
    return f"sampled:{digest.hexdigest()}"
