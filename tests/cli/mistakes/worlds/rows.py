"""Rows: arrays, tables, functions of the user's, logs, images."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.cli.mistakes.setups import WORLDS, put, settings, world


def arrays(name: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """A world with rows.npz, the training rows changed."""

    def write(folder: Path) -> None:
        np.savez(folder / "rows.npz", **change(dict(np.load(folder / "data/train.npz"))))

    world(name)(write)


# arrays
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
put("a search without validation rows", "mine.py", "def rows():\n    return {'train': [1]}\n")
put("a part of another name", "mine.py", "def rows():\n    return {'train': [1], 'validation': [1], 'colate': 3}\n")
put("a dataset without a length", "mine.py", "def rows():\n    return {'train': iter([]), 'validation': [1]}\n")
put("a dataset without rows", "mine.py", "def rows():\n    return {'train': [], 'validation': [1]}\n")
put("a collate that is text", "mine.py", (
    "import torch\nROW = {'inputs': torch.ones(64), 'targets': torch.tensor(1)}\n"
    "def rows():\n    return {'train': [ROW], 'validation': [ROW], 'collate': 'stack'}\n"
))  # fmt: skip
COLLATES = (
    "import torch\nROW = {'inputs': torch.ones(64), 'targets': torch.tensor(1)}\n"
    "def rows():\n    return {'train': [ROW] * 2, 'validation': [ROW], 'collate': collate}\n"
)
put("a collate that fails", "mine.py", COLLATES + "def collate(rows):\n    return {'inputs': rows['inputs']}\n")
put("a collate that returns a list", "mine.py", COLLATES + "def collate(rows):\n    return rows\n")
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


GOOD, BAD = '{"text": "a", "label": "good"}', '{"text": "b", "label": "bad"}'


def of_classes(name: str, *lines: str, **config: Any) -> None:
    """A world with these rows, and these keys of config.json."""
    settings(name, "bert/config.json", **config)
    configure = WORLDS.pop(name)

    @world(name)
    def _(folder: Path) -> None:
        configure(folder)
        (folder / "rows.jsonl").write_text("".join(line + "\n" for line in lines))


NAMED = {"label2id": {"bad": 0, "good": 1, "best": 2}, "id2label": {"0": "bad", "1": "good", "2": "best"}}
of_classes("names that the model has not", GOOD, BAD)
of_classes("names in data.labels, but for one", GOOD, BAD, '{"text": "c", "label": "best"}')
of_classes("labels of another number than the model's", GOOD, **NAMED)
of_classes("label2id and id2label at odds", GOOD, label2id={"a": 0, "b": 1, "c": 2}, id2label=NAMED["id2label"])
of_classes("num_labels and id2label at odds", GOOD, num_labels=5)
of_classes("several labels for a classifier of one", '{"text": "a", "label": [1, 0, 1]}')
of_classes("rows of two and of three labels", '{"text": "a", "label": [1, 0, 1]}', '{"text": "b", "label": [1, 0]}')
of_classes("a label among several that is no class", '{"text": "a", "label": ["a", "d"]}')


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


# tables as people have them
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
put("a table with a header alone", "rows.csv", "text,label\n")
put("a table in Latin-1", "rows.csv", "text,label\ngood,1\ncaf\xe9,2\n".encode("latin-1"))
put("a table in UTF-16", "rows.csv", "text,label\ngood,1\n".encode("utf-16"))
put(
    "JSON lines in Latin-1",
    "rows.jsonl",
    '{"text": "a", "label": 1}\n{"text": "caf\xe9", "label": 1}\n'.encode("latin-1"),
)
put("texts in Latin-1", "texts.txt", "one\ncaf\xe9\n".encode("latin-1"))
put("a table with semicolons", "rows.csv", "text;label\ngood;1\n")
put("a table without a header", "rows.csv", "good,1\nbad,2\n")
put("labels as decimals", "rows.csv", "text,label\ngood,1.0\nbad,2.0\n")
put("a label that is missing", "rows.csv", "text,label\ngood,1\nbad,\n")
put(
    "a table that Git LFS has not fetched",
    "rows.csv",
    "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
)
put("names of more classes than the head has", "rows.csv", "text,label\na,no\nb,yes\nc,maybe\nd,never\n")
rows("a share beyond one", '{"text": "a", "label": 0.5}', '{"text": "b", "label": 2}')
rows("a number that is text", '{"text": "a", "label": "0.5"}', '{"text": "b", "label": "high"}')
rows("no images in a column", '{"text": "a", "label": 1}')

# arrays as people have them
arrays("labels as texts", lambda rows: {**rows, "targets": rows["targets"].astype(str)})
arrays("labels from one on", lambda rows: {**rows, "targets": rows["targets"] + 1})
arrays("labels one-hot", lambda rows: {**rows, "targets": np.eye(10)[rows["targets"]]})
arrays("images in bytes", lambda rows: {**rows, "inputs": (rows["inputs"] * 16).astype(np.uint8)})
arrays("arrays called x and y", lambda rows: {"x": rows["inputs"], "y": rows["targets"]})
arrays("validation rows of another width", lambda rows: {**rows, "inputs": rows["inputs"][:, :32]})
arrays("validation rows with another array", lambda rows: {**rows, "weight": rows["targets"]})
arrays("labels of two classes", lambda rows: {**rows, "targets": rows["targets"] % 2})
arrays("one row", lambda rows: {key: value[:1] for key, value in rows.items()})


@world("arrays of Python objects")
def _(folder: Path) -> None:
    ragged = np.array([[1], [1, 2]], dtype=object)
    np.savez(folder / "rows.npz", inputs=ragged, targets=np.array([1, 2]))


# functions that fail later on
LATE = """
import torch

class Rows:
    def __len__(self):
        return 100

    def __getitem__(self, index):
        if index == 77:
            ROW
        return {"inputs": torch.ones(64), "targets": torch.tensor(1)}

def rows():
    return {"train": Rows(), "validation": torch.utils.data.Subset(Rows(), range(8))}
"""
put("a row that fails in training", "mine.py", LATE.replace("ROW", "raise OSError('no scan 77')"))
put("a row that fails in a worker", "mine.py", LATE.replace("ROW", "raise OSError('no scan 77')"))
put("a row that is none", "mine.py", LATE.replace("ROW", "return None"))
put("rows without targets", "mine.py", LATE.replace("ROW", "pass").replace(', "targets": torch.tensor(1)', ""))
put("a loss that fails in training", "mine.py", (
    "calls = 0\n\ndef loss(model, batch):\n    global calls\n    calls += 1\n    if calls > 30:\n"
    "        raise ValueError('too many')\n    return {'loss': model(batch['inputs']).square().mean()}\n"
))  # fmt: skip
put(
    "a loss without a gradient",
    "mine.py",
    "def loss(model, batch):\n    return {'loss': model(batch['inputs']).sum().detach()}\n",
)
put("a loss without its arguments", "mine.py", "def loss(model):\n    return {}\n")
put(
    "a loss with a count in words",
    "mine.py",
    "def loss(model, batch):\n    return {'loss': model(batch['inputs']).sum(), 'count': 'all'}\n",
)

# language models
settings("a tokenizer without a mask", "masked/tokenizer_config.json", mask_token=None)
settings("a tokenizer without an end", "gpt/tokenizer_config.json", eos_token=None, sep_token=None)
put("texts of nothing", "texts.txt", "\n")


# images
def images(name: str, **preprocessor: Any) -> None:
    """A world with one image a class, and this preprocessor beside the model."""

    def write(folder: Path) -> None:
        for label in ("cat", "dog"):
            (folder / f"images/{label}").mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(folder / f"images/{label}/1.png")
        if preprocessor:
            (folder / "bert/preprocessor_config.json").write_text(json.dumps(preprocessor))

    world(name)(write)


SOUND = {"size": {"height": 4, "width": 4}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
images("images of no known size")
images("images where tokens are masked")
images("a preprocessor of another kind", **SOUND, do_pad=True)
images("images of any shape", **{**SOUND, "size": {"shortest_edge": 4}})
images("a size in other words", **{**SOUND, "size": {"longest_edge": 4}})
images("a preprocessor without a mean", size={"height": 4, "width": 4})
images("images for a model of texts", **SOUND)
images("an image that is none", **SOUND)
_images = WORLDS.pop("an image that is none")


@world("an image that is none")
def _(folder: Path) -> None:
    _images(folder)
    for path in folder.glob("images/*/1.png"):
        path.write_bytes(b"no image")


# logs
put("a click log that ends too early", "clicks.gz", gzip.compress(b"1\n" * 10_000)[:40])


@world("a tokenizer of another model")
def _(folder: Path) -> None:
    path = folder / "bert/tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][0], "id": 300, "content": "number"})
    path.write_text(json.dumps(tokenizer))
