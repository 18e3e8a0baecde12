"""What lies in the current folder when a command of the table runs: a sound small run, and one thing that is wrong.

Sound are net.safetensors, data/, digits.py and recipe.yaml, a network on digits; bert/, a text classifier of three
classes, with rows.jsonl, texts.txt and text.yaml; out/, an output of `sapp prune`, where the command begins with `out/`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from tests.checkpoint.files import entry, frame

Setup = Callable[[Path], object]
WORLDS: dict[str, Setup] = {}
"""Name of a case in table.txt -> what makes its folder wrong."""

F32 = {"a.weight": entry("F32", [2, 2], 0, 16)}
ABOUT = {"shape": [4, 4], "matrix": [4, 4], "block": [2, 2], "layout": "linear"}
TRIPLE = {
    "a.weight.bsr_values": entry("F32", [1, 2, 2], 0, 16),
    "a.weight.bsr_crow_indices": entry("I32", [3], 16, 28),
    "a.weight.bsr_col_indices": entry("I32", [1], 28, 32),
}


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


def arrays(name: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """A world with rows.npz, the training rows changed."""

    def write(folder: Path) -> None:
        np.savez(folder / "rows.npz", **change(dict(np.load(folder / "data/train.npz"))))

    world(name)(write)


def metadata(name: str, about: dict[str, str], tensors: dict[str, Any] = TRIPLE, data: bytes | None = None) -> None:
    """A world with a block-sparse file whose header says this."""
    sound = np.array([1, 1, 1, 1], np.float32).tobytes() + np.array([0, 1, 1, 0], np.int32).tobytes()
    put(name, "net.safetensors", frame({"__metadata__": about, **tensors}, sound if data is None else data))


def block_sparse(name: str, **changes: Any) -> None:
    """A world with a block-sparse file whose one weight is described so."""
    metadata(name, {"sapp_bsr_version": "1", "sapp_bsr": json.dumps({"a.weight": {**ABOUT, **changes}})})


def indices(name: str, crow: list[int], col: list[int]) -> None:
    """A world with a block-sparse file of these indices."""
    tensors = {
        "a.weight.bsr_values": entry("F32", [1, 2, 2], 0, 16),
        "a.weight.bsr_crow_indices": entry("I32", [len(crow)], 16, 16 + 4 * len(crow)),
        "a.weight.bsr_col_indices": entry("I32", [len(col)], 16 + 4 * len(crow), 16 + 4 * (len(crow) + len(col))),
    }
    data = np.ones(4, np.float32).tobytes() + np.array([*crow, *col], np.int32).tobytes()
    metadata(name, {"sapp_bsr_version": "1", "sapp_bsr": json.dumps({"a.weight": ABOUT})}, tensors, data)


# safetensors files
put("an empty file", "net.safetensors", b"")
put("text in place of weights", "net.safetensors", b"Not weights at all, but a sentence.")
put("a pointer of Git LFS", "net.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
put("a header beyond the file", "net.safetensors", frame(b"{}", length=5000))
put("a header of another kind", "net.safetensors", frame(b"[1, 2]"))
put("a header that is no JSON", "net.safetensors", frame(b'{"a": '))
put("a header that is no UTF-8", "net.safetensors", frame(b'{"\xff": 1}'))
put("a name twice in the header", "net.safetensors", frame(b'{"a": 1, "a": 2}'))
put("a lone surrogate in the header", "net.safetensors", frame(b'{"\\ud800": 1}'))
put("a deep header", "net.safetensors", frame(b'{"a":' * 200 + b"1" + b"}" * 200))
put("metadata of numbers", "net.safetensors", frame({"__metadata__": {"format": 1}}))
put("an entry without a dtype", "net.safetensors", frame({"a": {"shape": [1]}}))
put("packed weights", "net.safetensors", frame({"a": entry("F4", [2], 0, 1)}))
put("an unknown dtype", "net.safetensors", frame({"a": entry("F33", [2], 0, 8)}))
put("a negative axis", "net.safetensors", frame({"a": entry("F32", [-1], 0, 4)}))
put("offsets the wrong way round", "net.safetensors", frame({"a": entry("F32", [1], 4, 0)}, b"0000"))
put("a shape beyond any file", "net.safetensors", frame({"a": entry("F32", [2**40, 2**40], 0, 4)}))
put("a shape that does not fit its bytes", "net.safetensors", frame({"a": entry("F32", [3], 0, 4)}, b"0000"))
put("a truncated file", "net.safetensors", frame(F32, b"0000"))
put("bytes that belong to nothing", "net.safetensors", frame(F32, b"0" * 20))
put("tensors on top of each other", "net.safetensors", frame({**F32, "b": entry("F32", [1], 8, 12)}, b"0" * 16))
# block-sparse files
metadata("sapp_bsr without a version", {"sapp_bsr": "{}"})
metadata("a later version of the format", {"sapp_bsr_version": "2"})
metadata("a part that nobody names", {"sapp_bsr_version": "1", "sapp_bsr": "{}"})
metadata("a tie to a number", {"sapp_tied": '{"b": 1}'}, F32, b"0" * 16)
metadata("an alias that is stored", {"sapp_tied": '{"a.weight": "a.weight"}'}, F32, b"0" * 16)
metadata("an alias of nothing", {"sapp_tied": '{"b": "c"}'}, F32, b"0" * 16)
metadata("metadata that is a list", {"sapp_bsr_version": "1", "sapp_bsr": "[]"})
metadata("an entry of other keys", {"sapp_bsr_version": "1", "sapp_bsr": json.dumps({"a.weight": {"shape": [4, 4]}})})
metadata(
    "dense and block-sparse at once",
    {"sapp_bsr_version": "1", "sapp_bsr": json.dumps({"a.weight": ABOUT})},
    F32,
    b"0" * 16,
)
metadata(
    "a part that is missing",
    {"sapp_bsr_version": "1", "sapp_bsr": json.dumps({"b.weight": ABOUT})},
    {},
    b"",
)
block_sparse("an unknown layout", layout="diagonal")
block_sparse("a shape of three axes", shape=[1, 4, 4])
block_sparse("a block of no rows", block=[0, 2])
block_sparse("a matrix that is another", matrix=[4, 5])
block_sparse("a grid beyond the format", shape=[2**30, 2**30], matrix=[2**30, 2**30])
block_sparse("a grid of other blocks", shape=[8, 4], matrix=[8, 4])
indices("a block column out of range", [0, 1, 1], [2])
indices("block rows that fall", [0, 1, 0], [0])
indices("more columns than blocks", [0, 1, 1], [0, 0, 0, 0, 0])


# folders
@world("an empty folder")
def _(folder: Path) -> None:
    (folder / "model").mkdir()


put("an adapter's folder", "model/adapter_config.json", "{}")
put("an adapter's file", "adapter_model.safetensors", frame(F32, b"0" * 16))
put("weights of TensorFlow", "model/tf_model.h5", b"")
put("a GGUF file", "model.gguf", b"GGUF")
put("a file of another kind", "model.txt", b"")
put("an index that is none", "model.safetensors.index.json", "{}")
put("an index with a path", "model.safetensors.index.json", '{"weight_map": {"a": "../../x.safetensors"}}')
put("an index of pickles", "model.safetensors.index.json", '{"weight_map": {"a": "x.bin"}}')
put("an index without its shards", "model.safetensors.index.json", '{"weight_map": {"a": "x.safetensors"}}')
put("a shard that is missing", "model/model-00001-of-00002.safetensors", frame(F32, b"0" * 16))


@world("a tensor that is in no shard")
def _(folder: Path) -> None:
    (folder / "x.safetensors").write_bytes(frame(F32, b"0" * 16))
    index = {"weight_map": {"a.weight": "x.safetensors", "b.weight": "x.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@world("a tensor that the index forgot")
def _(folder: Path) -> None:
    (folder / "x.safetensors").write_bytes(frame({**F32, "b": entry("F32", [1], 16, 20)}, b"0" * 20))
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a.weight": "x.safetensors"}}')


@world("one file as two shards")
def _(folder: Path) -> None:
    (folder / "x.safetensors").write_bytes(frame(F32, b"0" * 16))
    os.link(folder / "x.safetensors", folder / "y.safetensors")
    index = {"weight_map": {"a.weight": "x.safetensors", "b": "y.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@world("a tensor in two shards")
def _(folder: Path) -> None:
    for number in (1, 2):
        path = folder / f"model/model-0000{number}-of-00002.safetensors"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(frame(F32, b"0" * 16))


@world("several indexes in a folder")
def _(folder: Path) -> None:
    (folder / "model").mkdir()
    for name in ("a", "b"):
        (folder / f"model/{name}.safetensors.index.json").write_text("{}")


@world("several state dicts in a folder")
def _(folder: Path) -> None:
    (folder / "model").mkdir()
    for name in ("a", "b"):
        torch.save({"a.weight": torch.ones(2, 2)}, folder / f"model/{name}.pt")


settings("a quantized checkpoint", "bert/config.json", quantization_config={"quant_method": "gptq"})
put("a configuration that is no JSON", "bert/config.json", "{")


# state dicts
class Unsafe:
    """Pickled by name: reading it would import this module."""


@world("a pickle that holds code")
def _(folder: Path) -> None:
    torch.save({"model": Unsafe()}, folder / "net.pt")


@world("a pickle that ends too early")
def _(folder: Path) -> None:
    torch.save({"a.weight": torch.ones(50, 50)}, folder / "net.pt")
    (folder / "net.pt").write_bytes((folder / "net.pt").read_bytes()[:5000])


put("a pickle that is none", "net.pt", b"not a pickle")


@world("a state dict of nothing")
def _(folder: Path) -> None:
    torch.save({"epoch": 3}, folder / "net.pt")


@world("a sparse tensor in a state dict")
def _(folder: Path) -> None:
    torch.save({"a": torch.ones(2, 2).to_sparse()}, folder / "net.pt")


@world("one number as a matrix")
def _(folder: Path) -> None:
    torch.save({"a": torch.ones(1).expand(1000, 1000)}, folder / "net.pt")


# checkpoints that are not of the model
def changed(name: str, change: Callable[[dict[str, Any]], dict[str, Any]], file: str = "net.safetensors") -> None:
    """A world with other tensors in the checkpoint."""

    def write(folder: Path) -> None:
        tensors = change(load_file(folder / file))
        (folder / file).unlink()
        save_file(tensors, folder / file)

    world(name)(write)


changed("a weight of another shape", lambda old: {**old, "hidden2.weight": np.ones((512, 100), np.float32)})
changed("a weight that is missing", lambda old: {key: old[key] for key in old if key != "hidden2.weight"})
changed("weights that are not finite", lambda old: {**old, "output.bias": np.full(10, np.nan, np.float32)})
settings("an unknown kind of model", "bert/config.json", model_type="berd")
settings("a model without a head", "bert/config.json", architectures=["BertModel"])
settings("a class that is not there", "bert/config.json", architectures=["BertForNothing"])
settings("a model with code of its own", "bert/config.json", auto_map={"AutoModel": "code.Model"}, model_type="mine")
changed(
    "names of another model", lambda old: {f"x{n}": v for n, v in enumerate(old.values())}, "bert/model.safetensors"
)

# recipes
put("an empty recipe", "recipe.yaml", "")
put("a recipe that is a list", "recipe.yaml", "- 1\n")
put("a recipe in Latin-1", "recipe.yaml", "# caf\xe9\ndata: {}\n".encode("latin-1"))
put("a recipe in UTF-16", "recipe.yaml", "data: {}\n".encode("utf-16"))
put("a recipe of two megabytes", "recipe.yaml", "#" * 2_000_000)
put("a tab in a recipe", "recipe.yaml", "data:\n\tbatch_size: 3\n")
put("a tag in a recipe", "recipe.yaml", "data: !!python/object:os.system {}\n")
put("aliases that explode", "recipe.yaml", "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{after}: &{after} [{', '.join(['*' + before] * 9)}]\n" for before, after in zip("abcdefg", "bcdefgh", strict=True)
))  # fmt: skip
put("an alias inside itself", "recipe.yaml", "data: &a {files: *a}\n")
put("a deep recipe", "recipe.yaml", "data: " + "[" * 100 + "]" * 100)
put("a pattern without quotes", "recipe.yaml", "prune:\n  rules:\n    - {match: *output, dense: true}\n")
put("two documents", "recipe.yaml", "data: {}\n---\ndata: {}\n")
put("a quote that is not closed", "recipe.yaml", 'data:\n  source: "tensors\n')
put("a bracket that is not closed", "recipe.yaml", "data: {source: tensors\n")
put("a control character", "recipe.yaml", b"data: \x07\n")
put("an impossible escape", "recipe.yaml", 'data: "\\UFFFFFFFF"\n')
put("half a character", "recipe.yaml", 'data: "\\ud800"\n')
put("a number of ten thousand digits", "recipe.yaml", f"train: {{steps: {'1' * 10_000}}}\n")
put("a number beyond all floats", "recipe.yaml", "train: {steps: 1e999}\n")
put("a colon too many", "recipe.yaml", "train: steps: 3\n")
put("everything at once", "recipe.yaml", """\
model: {factory: digits.py}
data: {source: tensors, batch_size: 0, file: {train: x}}
objective: {task: clasification}
optimizer: {lr: 3e-4x, learning_rate: 3e-4}
train: {steps: 10, epochs: 2, steps: 20}
prune: {sparsity: 90, block_size: [8], method: magnitud, rules: [{match: "*"}]}
""")  # fmt: skip
edit("a pattern that matches nothing", "recipe.yaml", "match: output.weight", "match: outptu.weight")
edit("a rule behind one that takes all", "recipe.yaml", "rules:\n", 'rules:\n    - {match: "zzz*", dense: true}\n')
edit("a factory that is not there", "recipe.yaml", "digits.py:mlp", "digits.py:mpl")
edit("a factory's file that is not there", "recipe.yaml", "digits.py:mlp", "digit.py:mlp")
edit("a factory's module that is not there", "recipe.yaml", "digits.py:mlp", "no_such_package.models:mlp")
edit("a factory that is a number", "recipe.yaml", "digits.py:mlp", "mine.py:number")
put("a factory that cannot be imported", "digits.py", "import torch\nraise RuntimeError('not today')\n")
put("a factory that returns no module", "digits.py", "def mlp():\n    return 3\n")
put("a factory that fails", "digits.py", "def mlp():\n    return 1 / 0\n")
_number = WORLDS["a factory that is a number"]


@world("a factory's value")
def _(folder: Path) -> None:
    _number(folder)
    (folder / "mine.py").write_text("number = 3\n")


del WORLDS["a factory that is a number"]


# rows
put("rows that are no archive", "rows.npz", b"not an archive")
arrays("no inputs", lambda rows: {"targets": rows["targets"]})
arrays("no targets", lambda rows: {"inputs": rows["inputs"]})
arrays("arrays of other lengths", lambda rows: {**rows, "targets": rows["targets"][:-1]})
arrays("an array that is one number", lambda rows: {**rows, "targets": np.float32(1)})
arrays("no rows", lambda rows: {key: value[:0] for key, value in rows.items()})
arrays("complex inputs", lambda rows: {**rows, "inputs": rows["inputs"].astype(np.complex64)})
arrays(
    "inputs that are not finite",
    lambda rows: {**rows, "inputs": np.where(rows["inputs"] > 0.9, np.nan, rows["inputs"])},
)
arrays("floating labels", lambda rows: {**rows, "targets": rows["targets"] + 0.5})
arrays("two labels a row", lambda rows: {**rows, "targets": np.stack([rows["targets"]] * 2, 1)})
arrays(
    "a label out of range",
    lambda rows: {**rows, "targets": np.where(np.arange(len(rows["targets"])) == 7, 10, rows["targets"])},
)
arrays("inputs of another width", lambda rows: {**rows, "inputs": rows["inputs"][:, :32]})
arrays(
    "inputs of another name",
    lambda rows: {"inputs": rows["inputs"], "weather": rows["inputs"], "targets": rows["targets"]},
)
arrays("labels that are no shares", lambda rows: rows)
arrays("masks without a tokenizer", lambda rows: rows)
put("rows that are lists", "mine.py", "def rows():\n    return {'train': [[1]], 'validation': [[1]]}\n")
put("rows of numbers", "mine.py", "def rows():\n    return {'train': [{'inputs': 1}], 'validation': [{'inputs': 1}]}\n")
put("no validation rows", "mine.py", "def rows():\n    return {'train': [1]}\n")
put("a part of another name", "mine.py", "def rows():\n    return {'train': [1], 'validation': [1], 'colate': 3}\n")
put("a dataset without a length", "mine.py", "def rows():\n    return {'train': iter([]), 'validation': [1]}\n")
put("a dataset without rows", "mine.py", "def rows():\n    return {'train': [], 'validation': [1]}\n")
put("a collate that is text", "mine.py", (
    "import torch\nROW = {'inputs': torch.ones(64), 'targets': torch.tensor(1)}\n"
    "def rows():\n    return {'train': [ROW], 'validation': [ROW], 'collate': 'stack'}\n"
))  # fmt: skip
put("a function of rows that fails", "mine.py", "def rows():\n    return open('nowhere.csv')\n")
put("a function of rows without its arguments", "mine.py", "def rows(folder):\n    return {}\n")
put("a dataset that fails", "mine.py", (
    "class Rows:\n    def __len__(self):\n        return 3\n"
    "    def __getitem__(self, index):\n        return self.rows[index]\n"
    "def rows():\n    return {'train': Rows(), 'validation': Rows()}\n"
))  # fmt: skip
put("a loss that fails", "mine.py", "def loss(model, batch):\n    return {'loss': model(batch['input']).sum()}\n")
put("a loss without a loss", "mine.py", "def loss(model, batch):\n    return {'los': model(batch['inputs']).sum()}\n")
put("a metric that is one number", "mine.py", (
    "def loss(model, batch):\n    return {'loss': model(batch['inputs']).sum(), 'metrics': {'accuracy': 1}}\n"
))  # fmt: skip
put("a metric that is missing", "mine.py", (
    "def loss(model, batch):\n    return {'loss': model(batch['inputs']).sum(), 'metrics': {'acuracy': (1, 2)}}\n"
))  # fmt: skip


# tables
def rows(name: str, *lines: str, file: str = "rows.jsonl") -> None:
    """A world with these rows of a table."""
    put(name, file, "".join(f"{line}\n" for line in lines))


rows("a row that is no JSON", '{"text": "a", "label": 1}', "{")
rows("an empty table")
rows("no column of texts", '{"txt": "a", "label": 1}')
rows("no column of labels", '{"text": "a", "lable": 1}')
rows("texts that are numbers", '{"text": 1, "label": 1}')
rows("a text that is missing", '{"text": "a", "label": 1}', '{"text": null, "label": 1}')
rows("a label beyond the head", '{"text": "a", "label": 1}', '{"text": "b", "label": 3}')
rows("a label that is a share", '{"text": "a", "label": 0.5}', '{"text": "b", "label": 1.0}')
rows("a table without a format", "a,b", file="rows.dat")
rows("images where texts are asked for", '{"text": "a", "label": 1}')
settings("a label that is no class", "bert/config.json", label2id={"bad": 0, "good": 1, "best": 2})
_labelled = WORLDS.pop("a label that is no class")


@world("a label that is no class")
def _(folder: Path) -> None:
    _labelled(folder)
    (folder / "rows.jsonl").write_text('{"text": "a", "label": "good"}\n{"text": "b", "label": "bset"}\n')


@world("no tokenizer")
def _(folder: Path) -> None:
    for path in (folder / "bert").glob("tokenizer*"):
        path.unlink()


settings("a configuration of another vocabulary", "bert/config.json", vocab_size=100)
put("a tokenizer that is damaged", "bert/tokenizer.json", "{}")


@world("an image folder without subfolders")
def _(folder: Path) -> None:
    (folder / "images").mkdir()
    (folder / "images/1.png").write_bytes(b"")


@world("an image folder without images")
def _(folder: Path) -> None:
    (folder / "images/cat").mkdir(parents=True)


put("an empty click log", "clicks.txt", "")
put("a click log of one line", "clicks.txt", "\t".join(["1"] + ["3"] * 13 + ["a"] * 26) + "\n")


@world("too few rows to hold some out")
def _(folder: Path) -> None:
    (folder / "rows.jsonl").write_text('{"text": "a", "label": 1}\n')
    text = (folder / "text.yaml").read_text()
    (folder / "text.yaml").write_text(text.replace(", validation: rows.jsonl", ""))


# places
put("an output below a file", "file", "mine")


@world("an output that is there")
def _(folder: Path) -> None:
    (folder / "mine").mkdir()
    (folder / "mine/model.safetensors").write_bytes(b"mine")


@world("a folder of somebody else's")
def _(folder: Path) -> None:
    WORLDS["an output that is there"](folder)


put("a state of another version", ".result.sapp-run/step-000000010/state.json", '{"version": 99}')
put("a recipe that is there", "mine.yaml", "mine")
put("a shipped recipe that is there", "digits.yaml", "mine")

# outputs that were changed
put("a report that is none", "out/sparsity.json", '{"version": 1}')
put("a report without names", "out/sparsity.json", '{"layers": [{}]}')
put("a report with a wrong value", "out/sparsity.json", '{"layers": [{"name": "hidden1.weight", "pruned": "yes"}]}')
put("a log that is none", "out/metrics.jsonl", "[]\n")
put("a log without steps", "out/metrics.jsonl", "{}\n")
settings("a metric without numbers", "out/manifest.json", metrics={"accuracy": {"dense": "good"}})
settings("a phase without a name", "out/manifest.json", phases=[{}])
settings("a phase without a count", "out/manifest.json", phases=[{"phase": "dense", "round": -1}])
settings("phases that are no list", "out/manifest.json", phases={})
settings("metrics that are no object", "out/manifest.json", metrics=[])
settings("a manifest of files elsewhere", "out/manifest.json", outputs={"../x.safetensors": "0"})
put("a bench.json that is none", "out/bench.json", "{}")


@world("weights that were changed after the run")
def _(folder: Path) -> None:
    path = folder / "out/model.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.unlink()
    path.write_bytes(data)


def lay_out(folder: Path, digits: Path, output: Path, bert: Path, *, with_output: bool, with_bert: bool) -> None:
    """The sound folder, before a world changes it."""
    for name in ("recipe.yaml", "digits.py"):
        shutil.copy(digits / name, folder / name)
    shutil.copytree(digits / "data", folder / "data")
    shutil.copy(digits / "dense.safetensors", folder / "net.safetensors")
    if with_output:
        shutil.copytree(output, folder / "out")
    if with_bert:
        shutil.copytree(bert, folder / "bert")
        lines = [json.dumps({"text": f"text number {number}", "label": number % 3}) for number in range(6)]
        (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
        (folder / "texts.txt").write_text("one text\nanother text\n" * 5)
        (folder / "text.yaml").write_text(
            "data: {files: {train: rows.jsonl, validation: rows.jsonl}, batch_size: 2}\n"
            "train: {steps: 20}\nprune: {block_size: 8, min_blocks: 20, rules: [{match: classifier*, dense: true}]}\n"
        )
