"""Folders as sapp writes them, of small text files."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from sapp_cli.checkpoint.output import MANIFEST, MARKER
from sapp_cli.checkpoint.output_folder import output_folder


def write(folder: Path, *names: str) -> Path:
    """Files that contain their own names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(os.fsencode(name))
    return folder


def content(folder: Path) -> dict[str, str]:
    """{path: text} of all files but the manifest."""
    return {
        path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }


def fill(staged: Path, *names: str) -> None:
    """What a verb writes into an output."""
    write(staged, *names)
    (staged / MANIFEST).write_text(json.dumps({MARKER: "0.1", "outputs": {}}), encoding="utf-8")


def an_output(out: Path, source: Path, *names: str, overwrite: bool = False) -> Path:
    """An output with these files."""
    with output_folder(out, source, overwrite) as staged:
        fill(staged, *names)
    return out


def an_earlier_output(out: Path, *names: str) -> Path:
    """One of a version that did not list its files yet: the manifest has the hash of model.safetensors alone."""
    write(out, "model.safetensors", *names)
    outputs = {"model.safetensors": hashlib.sha256(b"model.safetensors").hexdigest()}
    (out / MANIFEST).write_text(json.dumps({"version": 1, MARKER: "0.1", "outputs": outputs}), encoding="utf-8")
    return out
