"""The output folder: built beside its place, then renamed, so that OUT is there whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sapp_cli.checkpoint.damage import damaged
from sapp_cli.checkpoint.json_text import CONFIG_LIMIT, read_object
from sapp_cli.checkpoint.write import disk_errors, replacing, space_errors, sync_folder
from sapp_cli.errors import CheckpointError, ResourceError, UsageError

MANIFEST = "manifest.json"
MARKER = "sapp_version"
"""The key of manifest.json by which a folder is known as an output of sapp."""

WEIGHTS = frozenset(
    {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".npz"}  # PyTorch and NumPy
    | {".h5", ".msgpack", ".gguf", ".onnx", ".onnx_data", ".ot", ".tflite", ".mlmodel"}  # other frameworks
)
WRITTEN_BY_SAPP = frozenset(
    {MANIFEST, "sparsity.json", "sparsity.html", "recipe.yaml", "metrics.jsonl", "bench.json", "README.md"}
)


@contextmanager
def output_folder(out: Path, checkpoint: Path, overwrite: bool = False) -> Iterator[Path]:
    """An empty staging folder beside `out`; it becomes `out` when the block ends, and vanishes if the block raises.

    With `overwrite` an output of sapp that stands at `out` is moved aside, replaced and only then removed. Raises
    UsageError, before anything is written, where `out` exists, is no output of sapp, or overlaps with the checkpoint;
    ResourceError where the disk does not take it.
    """
    out = out.expanduser().resolve()
    check_output(out, checkpoint, overwrite)
    staged = out.with_name(f".{out.name}.sapp-new-{os.getpid()}")
    with disk_errors(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(staged, ignore_errors=True)  # of a process that had the same number and was killed
        staged.mkdir()
    try:
        with space_errors(out.parent):
            yield staged
        with disk_errors(out.parent):
            _replace(staged, out)
    finally:
        shutil.rmtree(staged, ignore_errors=True)  # nothing is left of it on success


def check_output(out: Path, checkpoint: Path, overwrite: bool) -> None:
    """Raise UsageError if `out` cannot become the output for this checkpoint; writes nothing."""
    check_place(out, checkpoint)
    out, source = out.expanduser().resolve(), checkpoint.expanduser().resolve()
    if source.is_relative_to(out):
        raise UsageError(f"{out}: the checkpoint lies inside the output's folder; give another folder with -o")
    with disk_errors(out.parent):
        if not out.exists() or (out.is_dir() and not any(out.iterdir())):
            return
    if not overwrite:
        raise UsageError(f"{out}: exists already; give another folder with -o, or --overwrite to replace it")
    if not is_output(out):
        raise UsageError(f"{out}: --overwrite replaces only outputs of sapp, and this has no {MANIFEST} of sapp in it")


def check_place(out: Path, checkpoint: Path) -> None:
    """Raise UsageError if no folder can be made at `out`, or only one inside the checkpoint; writes nothing."""
    for path in (out, checkpoint):
        _check_links(path)
    out, source = out.expanduser().resolve(), checkpoint.expanduser().resolve()
    if out == source:
        raise UsageError(f"{out}: the output is the checkpoint itself; give another folder with -o")
    if source.is_dir() and out.is_relative_to(source):
        raise UsageError(f"{out}: the output lies inside the checkpoint's folder; give another folder with -o")
    with disk_errors(out.parent):
        if out.is_file():
            raise UsageError(f"{out}: is a file; give a folder with -o")
        above = next((parent for parent in out.parents if parent.is_file()), None)
        if above is not None:
            raise UsageError(f"{out}: {above} is a file, so nothing can lie in it; give another folder with -o")


def _check_links(path: Path) -> None:
    """Raise UsageError where links lead round in a circle, which Path.resolve tells otherwise in every version of Python."""
    try:
        path.expanduser().stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UsageError(f"{path}: is a link that leads back to itself; give another path") from None
    except RuntimeError:
        raise UsageError(f"{path}: there is no user {path.parts[0]}; give the folder itself") from None


def is_output(folder: Path) -> bool:
    """True for a folder that sapp wrote: its manifest.json has the marker."""
    try:
        return MARKER in read_object(folder / MANIFEST, "the manifest", CONFIG_LIMIT)
    except CheckpointError:
        return False


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write one JSON file, whole or not at all."""
    with replacing(path) as write:
        write(json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n")


def check_free_space(folder: Path, needed: int) -> None:
    """Raise ResourceError if the disk of `folder`, or of the first that exists above it, lacks `needed` bytes."""
    folder = folder.expanduser().absolute()
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise ResourceError(
            f"{folder}: needs {_gigabytes(needed)} of disk, {_gigabytes(free)} are free; free some space"
        )


def sha256_file(path: Path) -> str:
    """The file's SHA-256 in hexadecimal digits. Raises CheckpointError if it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
    except OSError as error:
        raise damaged(path, f"cannot be read: {error.strerror}") from None
    return digest.hexdigest()


def copy_companions(source: Path, out: Path) -> list[str]:
    """Copy what makes a checkpoint usable beside its weights: configuration, tokenizer, code (never run), subfolders.

    Left out are weight files and their indexes, hidden files, and what an earlier run of sapp wrote there; README.md
    becomes README.source.md. Weights stay in subfolders that modules.json names, which are layers of the model that the
    checkpoint does not hold (sentence-transformers). Returns the relative paths of the copies. Raises CheckpointError
    for a symbolic link that leaves the folder: a copy would publish what it points to.
    """
    copied = []
    for relative in _companions(source):
        target = Path("README.source.md") if relative == Path("README.md") else relative
        _check_link(source, relative)
        with disk_errors(out):
            (out / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / relative, out / target)
        copied.append(target.as_posix())
    return copied


def check_companions(source: Path) -> None:
    """Raise CheckpointError for what `copy_companions` would not copy: told before the work, not after it."""
    for relative in _companions(source):
        _check_link(source, relative)


def _companions(source: Path) -> list[Path]:
    """What lies beside the weights and goes along, relative to the folder."""
    ours = is_output(source)
    modules = _module_folders(source)
    return [
        relative
        for relative in sorted(_files_below(source))
        if not (ours and (str(relative) in WRITTEN_BY_SAPP or relative.parts[0] == "sparse"))
        and not (_is_weight(relative) and relative.parts[0] not in modules)
    ]


def _replace(staged: Path, out: Path) -> None:
    """Put `staged` in the place of `out`. What stood there is removed last, and put back if anything fails."""
    if not out.exists():
        staged.rename(out)
    elif not any(out.iterdir()):
        out.rmdir()
        staged.rename(out)
    else:
        aside = out.with_name(f".{out.name}.sapp-old-{os.getpid()}")
        try:
            out.rename(aside)
            staged.rename(out)
        except BaseException:
            with suppress(OSError):
                if aside.exists() and not out.exists():
                    aside.rename(out)
            raise
        sync_folder(out.parent)
        shutil.rmtree(aside, ignore_errors=True)
    sync_folder(out.parent)


def _files_below(folder: Path, relative: Path = Path()) -> Iterator[Path]:
    """Every file that is not hidden nor in a hidden folder, relative to `folder`. Linked folders are not entered."""
    try:
        entries = list((folder / relative).iterdir())
    except OSError as error:
        raise damaged(folder / relative, f"cannot be read: {error.strerror}") from None
    for entry in entries:
        if entry.name.startswith(".") or entry.name == "__pycache__":
            continue
        if entry.is_dir() and not entry.is_symlink():
            yield from _files_below(folder, relative / entry.name)
        elif entry.is_file():  # neither pipes and devices nor links to nowhere
            yield relative / entry.name


def _is_weight(relative: Path) -> bool:
    return relative.suffix.lower() in WEIGHTS or relative.name.endswith(".index.json")


def _check_link(source: Path, relative: Path) -> None:
    """A link may lead into the folder, or from a snapshot of the hub's cache to the blobs beside it."""
    target, folder = (source / relative).resolve(), source.resolve()
    allowed = [folder, folder.parent.parent / "blobs"] if folder.parent.name == "snapshots" else [folder]
    if not any(target.is_relative_to(place) for place in allowed):
        raise damaged(
            source / relative, f"a symbolic link that leaves the folder, to {target}; put the file in its place"
        )


def _module_folders(source: Path) -> set[str]:
    """First parts of the paths in a sentence-transformers modules.json."""
    path = source / "modules.json"
    try:
        modules = json.loads(path.read_bytes()[:CONFIG_LIMIT]) if path.is_file() else []
        paths = [module.get("path") for module in modules if isinstance(module, dict)]
    except (OSError, ValueError, RecursionError, TypeError):
        return set()
    return {Path(place).parts[0] for place in paths if isinstance(place, str) and Path(place).parts}


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.2f} GB"
