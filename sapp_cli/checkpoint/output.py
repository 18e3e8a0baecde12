"""An output of sapp: how it is known, the JSON and the hashes in it, and what is copied into it from beside the weights."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sapp_cli.checkpoint.damage import damaged
from sapp_cli.checkpoint.json_text import CONFIG_LIMIT, json_text, read_object
from sapp_cli.checkpoint.quantization_entry import has_entry, without_entry
from sapp_cli.checkpoint.write import disk_errors, replacing
from sapp_cli.errors import CheckpointError, ResourceError

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


def is_output(folder: Path) -> bool:
    """True for a folder with a manifest.json of sapp. Other files in it may be anybody's (ownership.py)."""
    try:
        return isinstance(read_object(folder / MANIFEST, "the manifest", CONFIG_LIMIT).get(MARKER), str)
    except CheckpointError:
        return False


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write one JSON file, whole or not at all."""
    with replacing(path) as write:
        write(json_text(content).encode() + b"\n")


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
    checkpoint does not hold (sentence-transformers). A config.json loses what it says of block-sparse weights beside it, for
    the copy may stand beside dense ones. Returns the relative paths of the copies. Raises CheckpointError
    for a symbolic link that leaves the folder: a copy would publish what it points to.
    """
    copied = []
    for relative in _companions(source):
        target = _name_in_output(relative)
        _check_link(source, relative)
        with disk_errors(out):
            (out / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / relative, out / target)
            if target == Path("config.json"):
                _forget_blocks(out / target)
        copied.append(target.as_posix())
    return copied


def _forget_blocks(path: Path) -> None:
    """Take our entry out of a config.json that was copied from a `sparse` folder; all others keep their bytes."""
    try:
        config = read_object(path, "the configuration", CONFIG_LIMIT, unique=False)
    except CheckpointError:  # whoever reads it says what is wrong with it
        return
    if has_entry(config):
        write_json(path, without_entry(config))


def companion_bytes(source: Path) -> int:
    """Of the files that `copy_companions` would copy."""
    return sum((source / relative).stat().st_size for relative in _companions(source))


def check_companions(source: Path) -> None:
    """Raise CheckpointError for what `copy_companions` would not copy: told before the work, not after it."""
    for relative in _companions(source):
        _check_link(source, relative)


def companion_copies(source: Path) -> dict[str, Path]:
    """{path below OUT: the file in the source that `copy_companions` copies there}."""
    return {_name_in_output(relative).as_posix(): source / relative for relative in _companions(source)}


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


def _name_in_output(companion: Path) -> Path:
    """Our README.md is the card; the source's becomes README.source.md."""
    return Path("README.source.md") if companion == Path("README.md") else companion


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
