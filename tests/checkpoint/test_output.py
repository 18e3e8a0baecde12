"""The output folder: whole or not at all, and never in the place of something that is not sapp's."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from sapp_cli.checkpoint.output import (
    MANIFEST,
    MARKER,
    check_free_space,
    copy_companions,
    is_output,
    output_folder,
    sha256_file,
    write_json,
)
from sapp_cli.errors import CheckpointError, ResourceError, UsageError


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


def test_it_appears_when_the_block_ends(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "new" / "out"
    with output_folder(out, source) as staged:
        assert staged.parent == out.parent
        assert staged.name.startswith(".out.sapp-new-")
        write(staged, "a", "sub/b")
        assert not out.exists()
    assert content(out) == {"a": "a", "sub/b": "sub/b"}
    assert [entry.name for entry in out.parent.iterdir()] == ["out"]


def test_it_vanishes_when_the_block_raises(tmp_path: Path, source: Path) -> None:
    def interrupted() -> None:
        with output_folder(tmp_path / "out", source) as staged:
            write(staged, "a")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["source"]


def test_an_empty_folder_is_taken(tmp_path: Path, source: Path) -> None:
    (tmp_path / "out").mkdir()
    with output_folder(tmp_path / "out", source) as staged:
        write(staged, "a")
    assert content(tmp_path / "out") == {"a": "a"}


def an_output(folder: Path) -> Path:
    write(folder, "model.safetensors")
    write_json(folder / MANIFEST, {MARKER: "0.1"})
    return folder


def test_overwriting_an_output(tmp_path: Path, source: Path) -> None:
    out = an_output(tmp_path / "out")
    with output_folder(out, source, overwrite=True) as staged:
        write(staged, "a")
        assert (out / "model.safetensors").exists()
    assert content(out) == {"a": "a"}
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out", "source"]


def test_a_failed_overwrite_leaves_the_old_output(tmp_path: Path, source: Path) -> None:
    out = an_output(tmp_path / "out")
    before = content(out)

    def fails() -> None:
        with output_folder(out, source, overwrite=True) as staged:
            write(staged, "a")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert content(out) == before
    with pytest.raises(ResourceError), output_folder(out, source, overwrite=True) as staged:
        staged.rmdir()  # now the last step, the renaming, has nothing to put in place
    assert content(out) == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out", "source"]


def test_a_killed_run_leaves_the_old_output(tmp_path: Path, source: Path) -> None:
    out = an_output(tmp_path / "out")
    before = content(out)
    program = f"""
import os, signal
from pathlib import Path
from sapp_cli.checkpoint.output import output_folder
with output_folder(Path({str(out)!r}), Path({str(source)!r}), overwrite=True) as staged:
    (staged / "a").write_text("a")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9
    assert content(out) == before


def refusal(out: Path, checkpoint: Path, overwrite: bool = False) -> str:
    with pytest.raises(UsageError) as caught, output_folder(out, checkpoint, overwrite):
        pass
    return str(caught.value).removeprefix(f"{out.resolve()}: ")


def test_what_is_not_overwritten(tmp_path: Path, source: Path) -> None:
    other = write(tmp_path / "other", "thesis.tex")
    message = "exists already; give another folder with -o, or --overwrite to replace it"
    assert refusal(other, source) == refusal(an_output(tmp_path / "out"), source) == message
    message = f"--overwrite replaces only outputs of sapp, and this has no {MANIFEST} of sapp in it"
    assert refusal(other, source, overwrite=True) == message
    for text in ("{}", "[1]", "no json", '{"sapp": 1}'):
        (other / MANIFEST).write_text(text)
        assert not is_output(other)
        assert refusal(other, source, overwrite=True) == message
    assert refusal(other / "thesis.tex", source, overwrite=True) == "is a file; give a folder with -o"
    assert content(other)["thesis.tex"] == "thesis.tex"


def test_the_output_and_the_checkpoint_are_apart(tmp_path: Path, source: Path) -> None:
    an_output(source)
    (tmp_path / "link").symlink_to(source)
    for out in (source, tmp_path / "link", source / ".." / "source"):
        message = "the output is the checkpoint itself; give another folder with -o"
        assert refusal(out, source, overwrite=True) == message
    message = "the output lies inside the checkpoint's folder; give another folder with -o"
    assert refusal(source / "out", source) == refusal(tmp_path / "link" / "a" / "b", source) == message
    an_output(tmp_path)
    message = "the checkpoint lies inside the output's folder; give another folder with -o"
    assert refusal(tmp_path, source, overwrite=True) == message
    assert refusal(source, source / "config.json", overwrite=True) == message


def test_beside_a_checkpoint_that_is_one_file(tmp_path: Path, source: Path) -> None:
    with output_folder(source / "out", source / "config.json") as staged:
        write(staged, "a")
    assert content(source / "out") == {"a": "a"}


def test_an_output_below_a_file(tmp_path: Path, source: Path) -> None:
    write(tmp_path, "file")
    out = tmp_path / "file" / "deep" / "out"
    with pytest.raises(UsageError) as caught, output_folder(out, source):
        pass
    assert str(caught.value) == (
        f"{out}: {tmp_path / 'file'} is a file, so nothing can lie in it; give another folder with -o"
    )


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
