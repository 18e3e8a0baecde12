"""What lies in the current folder when a command of the table runs: a sound small run, and one thing that is wrong.

Sound are net.safetensors, data/, digits.py and recipe.yaml, a network on digits; bert/, a text classifier of three
classes, with rows.jsonl, texts.txt and text.yaml, or the same with another head (MODELS); out/, an output of `sapp prune`,
where the command begins with `out/`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file, save_file

Setup = Callable[[Path], object]
WORLDS: dict[str, Setup] = {}
"""Name of a case in table/ -> what makes its folder wrong."""


def world(name: str) -> Callable[[Setup], Setup]:
    def keep(setup: Setup) -> Setup:
        assert name not in WORLDS, name
        WORLDS[name] = setup
        return setup

    return keep


def put(name: str, file: str, content: bytes | str) -> None:
    """A world in which one file has this content."""
    data = content if isinstance(content, bytes) else content.encode()

    def write(folder: Path) -> None:
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(data)

    world(name)(write)


def edit(name: str, file: str, old: str, new: str) -> None:
    """A world in which a text is another in one file."""

    def write(folder: Path) -> None:
        text = (folder / file).read_text(encoding="utf-8")
        assert old in text, (file, old)
        (folder / file).write_text(text.replace(old, new), encoding="utf-8")

    world(name)(write)


def settings(name: str, file: str, **changes: Any) -> None:
    """A world in which keys of a JSON file are others; None takes a key away."""

    def write(folder: Path) -> None:
        about = json.loads((folder / file).read_text(encoding="utf-8"))
        kept = {key: value for key, value in {**about, **changes}.items() if value is not None}
        (folder / file).write_text(json.dumps(kept), encoding="utf-8")

    world(name)(write)


def changed(name: str, change: Callable[[dict[str, Any]], dict[str, Any]], file: str = "net.safetensors") -> None:
    """A world with other tensors in the checkpoint."""

    def write(folder: Path) -> None:
        tensors = change(load_file(folder / file))
        (folder / file).unlink()
        save_file(tensors, folder / file)

    world(name)(write)


def lay_out(folder: Path, digits: Path, models: Mapping[str, Path], output: Path | None) -> None:
    """The sound folder, before a world changes it."""
    for name in ("recipe.yaml", "digits.py"):
        shutil.copy(digits / name, folder / name)
    shutil.copytree(digits / "data", folder / "data")
    shutil.copy(digits / "dense.safetensors", folder / "net.safetensors")
    if output:
        shutil.copytree(output, folder / "out")
    for name, model in models.items():
        shutil.copytree(model, folder / name)
    if models:
        lines = [json.dumps({"text": f"text number {number}", "label": number % 3}) for number in range(6)]
        (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
        (folder / "texts.txt").write_text("one text\nanother text\n" * 5)
        (folder / "text.yaml").write_text(
            "data: {files: {train: rows.jsonl, validation: rows.jsonl}, batch_size: 2}\n"
            "train: {steps: 20}\nprune: {block_size: 8, min_blocks: 20, rules: [{match: classifier*, dense: true}]}\n"
        )
