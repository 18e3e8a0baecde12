"""Which files of an output are sapp's: its manifest lists each with size and SHA-256, so that nothing else is replaced.

    "files": {"README.md": {"bytes": 3210, "sha256": "…"}, …}

Outputs of earlier versions have no such list. Of them, the names that sapp gives, the weights with the hashes of the manifest
and unchanged copies of the source's files count as sapp's.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from sapp_cli.checkpoint.damage import damaged, quoted
from sapp_cli.checkpoint.json_text import CONFIG_LIMIT, read_object
from sapp_cli.checkpoint.output import (
    MANIFEST,
    WRITTEN_BY_SAPP,
    companion_copies,
    is_output,
    sha256_file,
    write_json,
)
from sapp_cli.checkpoint.write import sync_folder
from sapp_cli.errors import UsageError

FILES = "files"
MOST_NAMED = 10


@dataclass(frozen=True)
class FileRecord:
    """What a file was when sapp wrote it; None for what is not recorded of it."""

    sha256: str | None = None
    bytes: int | None = None

    @classmethod
    def of(cls, path: Path, sha256: str | None = None) -> FileRecord:
        """Of the file as it is; `sha256` if that is known already. Raises CheckpointError if it cannot be read."""
        return cls(sha256 or _hash(path), path.stat().st_size)

    def matches(self, path: Path) -> bool:
        """True if the file is as it was. Raises CheckpointError if it cannot be read."""
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or self.bytes not in (None, status.st_size):
            return False
        return self.sha256 is None or _hash(path) == self.sha256

    def as_json(self) -> dict[str, Any]:
        return {"bytes": self.bytes, "sha256": self.sha256}


def record_files(folder: Path) -> None:
    """List every file of the folder in its manifest, and make them all survive a power failure.

    Weights are not hashed a second time: the manifest has their hashes. Raises CheckpointError for what cannot be read.
    """
    manifest = read_object(folder / MANIFEST, "the manifest", CONFIG_LIMIT)
    known = manifest.get("outputs", {})
    records = {}
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            sync_folder(path)
            continue
        _sync_file(path)
        name = _key(path.relative_to(folder).as_posix())
        if name != MANIFEST:
            records[name] = FileRecord.of(path, known.get(name)).as_json()
    write_json(folder / MANIFEST, {**manifest, FILES: records})
    sync_folder(folder)


@contextmanager
def recorded_anew(folder: Path, names: Iterable[str]) -> Iterator[None]:
    """Within it these files of an output may be written; those that were sapp's are recorded as they are afterwards.

    A file that somebody else has changed since stays recorded as it was. Outputs of earlier versions stay without a list.
    """
    records = _listed(folder)
    ours = [name for name in names if records is not None and _is_ours(folder, name, records)]
    yield
    written = {name: FileRecord.of(folder / name).as_json() for name in ours if (folder / name).is_file()}
    if written:
        manifest = read_object(folder / MANIFEST, "the manifest", CONFIG_LIMIT)
        write_json(folder / MANIFEST, {**manifest, FILES: {**manifest[FILES], **written}})


def is_recorded(path: Path) -> bool:
    """True if the file lies in an output, at its top, and is as sapp wrote it."""
    if not is_output(path.parent):
        return False
    records = _listed(path.parent)
    if records is None:
        return path.name in WRITTEN_BY_SAPP
    return path.name in records and records[path.name].matches(path)


def check_ownership(out: Path, source: Path) -> None:
    """Raise UsageError, with the names, if the output holds what sapp did not write, or what was changed since.

    `source`: the folder whose files may have been copied into an output of an earlier version. Reads all of the output.
    """
    records = _listed(out)
    records = _of_earlier_version(out, source) if records is None else {**records, MANIFEST: FileRecord()}
    foreign: list[str] = []
    changed: list[str] = []
    for name in _entries(out, records):
        (changed if _key(name) in records else foreign).append(name)
    parts = []
    if foreign:
        parts.append(f"{_names(foreign)} (not written by sapp)")
    if changed:
        parts.append(f"{_names(changed)} (changed since sapp wrote {'them' if len(changed) > 1 else 'it'})")
    if parts:
        raise UsageError(
            f"{out}: --overwrite would remove {' and '.join(parts)}; move that elsewhere, or give another folder with -o"
        )


def _entries(out: Path, records: Mapping[str, FileRecord], prefix: str = "") -> Iterator[str]:
    """What lies in the output and is not as recorded; a folder with nothing recorded in it counts as one, with a slash."""
    try:
        with os.scandir(out / prefix) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise damaged(out / prefix, f"cannot be read: {error.strerror}") from None
    for entry in entries:
        name = f"{prefix}{entry.name}"
        if entry.is_dir(follow_symlinks=False):
            if any(recorded.startswith(f"{_key(name)}/") for recorded in records):
                yield from _entries(out, records, f"{name}/")
            else:
                yield f"{name}/"
        elif _key(name) not in records or not records[_key(name)].matches(out / name):
            yield name


def _listed(folder: Path) -> dict[str, FileRecord] | None:
    """{path below the folder: its record}; None for an output without a list. Raises CheckpointError for a damaged list."""
    path = folder / MANIFEST
    if not is_output(folder):
        return None
    files = read_object(path, "the manifest", CONFIG_LIMIT).get(FILES)
    if files is None:
        return None
    if not isinstance(files, dict) or not all(_is_record(record) for record in files.values()):
        raise damaged(path, f"'{FILES}' does not give size and hash of every file")
    return {name: FileRecord(record["sha256"], record["bytes"]) for name, record in files.items()}


def _of_earlier_version(out: Path, source: Path) -> dict[str, FileRecord]:
    outputs = read_object(out / MANIFEST, "the manifest", CONFIG_LIMIT).get("outputs")
    records = {name: FileRecord() for name in WRITTEN_BY_SAPP}
    if (source / "config.json").is_file():  # else nothing was copied
        copies = companion_copies(source)
        records |= {_key(name): FileRecord.of(copy) for name, copy in copies.items() if (out / name).is_file()}
    if isinstance(outputs, dict):
        records |= {name: FileRecord(str(digest)) for name, digest in outputs.items()}
    return records


def _key(name: str) -> str:
    """The name as the list has it: a byte that is not UTF-8 as an escape, for JSON has no letter for it."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _is_ours(folder: Path, name: str, records: Mapping[str, FileRecord]) -> bool:
    if not os.path.lexists(folder / name):
        return name in WRITTEN_BY_SAPP
    return name in records and records[name].matches(folder / name)


def _is_record(record: Any) -> bool:
    return isinstance(record, dict) and isinstance(record.get("sha256"), str) and type(record.get("bytes")) is int


def _hash(path: Path) -> str:
    """SHA-256; of a file that did not change since the last time, not read again."""
    try:
        status = path.stat()
    except OSError as error:
        raise damaged(path, f"cannot be read: {error.strerror}") from None
    return _hash_of(path, (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))


@lru_cache(maxsize=4096)
def _hash_of(path: Path, _identity: tuple[int, ...]) -> str:
    return sha256_file(path)


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _names(names: list[str]) -> str:
    shown = [name if name.isprintable() else quoted(name) for name in names[:MOST_NAMED]]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more:,} more" if more else "")
