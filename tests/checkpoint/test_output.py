"""What is in an output beside its weights: what is copied there, hashes, the space it needs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from sapp_cli.checkpoint.output import (
    MANIFEST,
    MARKER,
    check_free_space,
    copy_companions,
    sha256_file,
    write_json,
)
from sapp_cli.errors import CheckpointError, ResourceError


def write(folder: Path, *names: str) -> Path:
    """Files that contain their own names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def content(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "source", "config.json")


def an_output(folder: Path) -> Path:
    write(folder, "model.safetensors")
    write_json(folder / MANIFEST, {MARKER: "0.1"})
    return folder


def test_free_space(tmp_path: Path) -> None:
    check_free_space(tmp_path / "not" / "yet", 1)
    with pytest.raises(
        ResourceError, match=r"out: needs 1,000,000,000\.00 GB of disk, [\d.,]+ GB are free; free some space"
    ):
        check_free_space(tmp_path / "out", 10**18)


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc" * 10**6)
    assert sha256_file(tmp_path / "x") == hashlib.sha256(b"abc" * 10**6).hexdigest()
    with pytest.raises(CheckpointError, match="y: cannot be read: No such file or directory"):
        sha256_file(tmp_path / "y")


def test_companions(tmp_path: Path) -> None:
    source = write(
        tmp_path / "source",
        *(
            "config.json",
            "tokenizer.model",
            "vocab.txt",
            "modeling_x.py",
            "README.md",
            "1_Pooling/config.json",
            "a/b/c.txt",
        ),
        *(
            "model.safetensors",
            "model.safetensors.index.json",
            "pytorch_model.bin",
            "x.pt",
            "x.PTH",
            "flax_model.msgpack",
        ),
        *(
            "tf_model.h5",
            "x.gguf",
            "onnx/model.onnx",
            "checkpoint-5/optimizer.pt",
            ".git/config",
            ".cache/x",
            ".hidden",
        ),
        *("a/.hidden", "__pycache__/x.pyc", "2_Dense/model.safetensors", "2_Dense/config.json"),
    )
    (source / "modules.json").write_text(json.dumps([{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}]))
    out = tmp_path / "out"
    expected = [
        *("1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors", "README.source.md", "a/b/c.txt"),
        *("config.json", "modeling_x.py", "modules.json", "tokenizer.model", "vocab.txt"),
    ]
    assert sorted(copy_companions(source, out)) == expected
    assert sorted(content(out)) == expected
    assert content(out)["README.source.md"] == "README.md"
    assert content(out)["a/b/c.txt"] == "a/b/c.txt"


def test_companions_of_an_output_of_sapp(tmp_path: Path) -> None:
    source = an_output(
        write(
            tmp_path / "source",
            *("config.json", "README.md", "README.source.md", "sparsity.json", "sparsity.html", "recipe.yaml"),
            *("metrics.jsonl", "sparse/model.safetensors", "sparse/note.txt", "a/recipe.yaml"),
        )
    )
    assert copy_companions(source, tmp_path / "out") == ["README.source.md", "a/recipe.yaml", "config.json"]
    assert content(tmp_path / "out")["README.source.md"] == "README.source.md"


def test_companions_in_the_cache_of_the_hub(tmp_path: Path) -> None:
    blobs = write(tmp_path / "models--o--n" / "blobs", "1", "2")
    snapshot = tmp_path / "models--o--n" / "snapshots" / "abc"
    (snapshot / "sub").mkdir(parents=True)
    (snapshot / "config.json").symlink_to("../../blobs/1")
    (snapshot / "sub" / "x.json").symlink_to(blobs / "2")
    assert copy_companions(snapshot, tmp_path / "out") == ["config.json", "sub/x.json"]
    assert content(tmp_path / "out") == {"config.json": "1", "sub/x.json": "2"}
    assert not (tmp_path / "out" / "config.json").is_symlink()


def test_a_link_out_of_the_folder_is_not_copied(tmp_path: Path, source: Path) -> None:
    write(tmp_path, "secret")
    (source / "inside.json").symlink_to("config.json")
    (source / "dangling.json").symlink_to("nowhere")
    (source / "loop").symlink_to(source)
    assert copy_companions(source, tmp_path / "out") == ["config.json", "inside.json"]
    (source / "vocab.txt").symlink_to("../secret")
    with pytest.raises(CheckpointError) as caught:
        copy_companions(source, tmp_path / "out")
    target = (tmp_path / "secret").resolve()
    message = f"a symbolic link that leaves the folder, to {target}; put the file in its place"
    assert str(caught.value) == f"{source / 'vocab.txt'}: {message}"


@pytest.mark.parametrize("modules", ["[" * 10**5, "7", "{}", '[{"path": 3}, 4, {"path": "../.."}]', "\xff"])
def test_a_damaged_modules_json_changes_nothing(tmp_path: Path, source: Path, modules: str) -> None:
    (source / "modules.json").write_text(modules, encoding="latin-1")
    write(source, "sub/x.bin")
    assert copy_companions(source, tmp_path / "out") == ["config.json", "modules.json"]
