"""Checkpoints that are damaged, unsafe, of another kind, or not of the model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from tests.checkpoint.files import entry, frame
from tests.cli.mistakes.setups import changed, put, settings, world

F32 = {"a.weight": entry("F32", [2, 2], 0, 16)}
ABOUT = {"shape": [4, 4], "matrix": [4, 4], "block": [2, 2], "layout": "linear"}
TRIPLE = {
    "a.weight.bsr_values": entry("F32", [1, 2, 2], 0, 16),
    "a.weight.bsr_crow_indices": entry("I32", [3], 16, 28),
    "a.weight.bsr_col_indices": entry("I32", [1], 28, 32),
}


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
metadata("a later version of the format", {"sapp_bsr_version": "3"})
metadata("a weight that no file has", {"sapp_bsr_version": "2", "sapp_bsr": json.dumps({"b.weight": ABOUT})}, {}, b"")
metadata(
    "a marker of two weights",
    {"sapp_bsr_version": "2", "sapp_bsr": json.dumps({"a.weight": ABOUT, "b.weight": ABOUT})},
    {
        **TRIPLE,
        "b.weight.bsr_values": entry("F32", [1, 2, 2], 32, 48),
        "b.weight.bsr_crow_indices": entry("I32", [3], 48, 60),
        "b.weight.bsr_col_indices": entry("I32", [1], 60, 64),
        **{f"{name}.weight": entry("F32", [4, 0, 1], 64, 64) for name in "ab"},
    },
    2 * (np.ones(4, np.float32).tobytes() + np.array([0, 1, 1, 0], np.int32).tobytes()),
)
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
changed("a weight of another shape", lambda old: {**old, "hidden2.weight": np.ones((512, 100), np.float32)})
changed("a weight that is missing", lambda old: {key: old[key] for key in old if key != "hidden2.weight"})
changed("weights that are not finite", lambda old: {**old, "output.bias": np.full(10, np.nan, np.float32)})
settings("an unknown kind of model", "bert/config.json", model_type="berd")
settings("a model without a head", "bert/config.json", architectures=["BertModel"])
settings("a model without a head, and no word of it", "bare/config.json", architectures=None)
settings("a class that is not there", "bert/config.json", architectures=["BertForNothing"])
settings("a class that is something else of the library", "bert/config.json", architectures=["pipeline"])
settings("a class that is an object", "bert/config.json", architectures={"a": 1})
settings("a count that is a fraction", "bert/config.json", num_attention_heads=4.5)
settings("ten million layers", "bert/config.json", num_hidden_layers=10_000_000)
settings("more layers than the weights have", "bert/config.json", num_hidden_layers=4)
settings("fewer layers than the weights have", "bert/config.json", num_hidden_layers=1)
settings("a width that no weight has", "bert/config.json", hidden_size=4_000_000_000)
settings("more classes than memory holds", "bert/config.json", num_labels=1_000_000_000, id2label=None, label2id=None)
settings("positions for a whole library", "bert/config.json", max_position_embeddings=10**11)
settings("a model with code of its own", "bert/config.json", auto_map={"AutoModel": "code.Model"}, model_type="mine")
changed(
    "names of another model", lambda old: {f"x{n}": v for n, v in enumerate(old.values())}, "bert/model.safetensors"
)


# what newcomers give in place of a checkpoint
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"

put("a pickle that Git LFS has not fetched", "net.pt", POINTER)
put("a configuration that Git LFS has not fetched", "bert/config.json", POINTER)
put("a tokenizer that Git LFS has not fetched", "bert/tokenizer.json", POINTER)
put("a page in place of weights", "net.safetensors", "<!DOCTYPE html><html><head></head></html>")


def _counters(folder: Path) -> None:
    torch.save({"epoch": 3, "best_acc1": torch.tensor(71.5)}, folder / "net.ckpt")


for case in ("a training checkpoint without its model", "the same, of a check", "the same, to be exported"):
    world(case)(_counters)
world("the same, for a recipe")(_counters)
put("a checkpoint of no tensors", "net.safetensors", frame({}))


@world("a mask of other values")
def _(folder: Path) -> None:
    torch.save({"h.weight_orig": torch.ones(2, 2), "h.weight_mask": torch.full((2, 2), 0.5)}, folder / "net.pt")


@world("a TorchScript archive")
def _(folder: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(folder / "net.pt")


@world("an archive of torch.export")
def _(folder: Path) -> None:
    torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),)), folder / "net.pt2")


@world("an archive of NumPy")
def _(folder: Path) -> None:
    np.savez(folder / "net.npz", a=np.ones((2, 2)))
    (folder / "net.npz").rename(folder / "net.pt")


put("an ONNX file", "net.bin", b"\x08\x08\x12\x07pytorch\x1a\x052.6.0:")


@world("a state dict that is called safetensors")
def _(folder: Path) -> None:
    torch.save({"a.weight": torch.ones(2, 2)}, folder / "net.safetensors")


put("safetensors that are called a state dict", "net.bin", frame(F32, b"0" * 16))
put("a checkpoint of DeepSpeed", "model/zero_to_fp32.py", "")
put("a distributed checkpoint", "model/__0_0.distcp", b"")
put("a folder of checkpoints", "model/checkpoint-500/model.safetensors", frame(F32, b"0" * 16))
put("a checkpoint's optimizer alone", "model/optimizer.pt", b"")
changed("names of a wrapper", lambda old: {f"student.{name}": value for name, value in old.items()})
changed("a checkpoint of another network", lambda old: {name: old[name] for name in ("output.weight", "output.bias")})
settings("a configuration that the library refuses", "bert/config.json", num_attention_heads=5)


@world("a whole model in a pickle")
def _(folder: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), folder / "net.pt")


@world("a configuration that is missing")
def _(folder: Path) -> None:
    (folder / "bert/config.json").unlink()


# what few will ever see
put("a configuration without an end", "bert/config.json", '{"a":' + "[" * 100_000)
put("a configuration of endless digits", "bert/config.json", '{"a": ' + "1" * 5000 + "}")
put("a configuration of a hundred books", "bert/config.json", b" " * 16_000_001)
changed("complex numbers", lambda old: {**old, "output.weight": old["output.weight"].astype(np.complex64)})


@world("a pipe in place of weights")
def _(folder: Path) -> None:
    os.mkfifo(folder / "pipe.safetensors")


@world("a pipe in place of a state dict")
def _(folder: Path) -> None:
    os.mkfifo(folder / "pipe.pt")


@world("a pipe in place of an index")
def _(folder: Path) -> None:
    os.mkfifo(folder / "pipe.safetensors.index.json")


@world("a dtype of torch alone")
def _(folder: Path) -> None:
    torch.save({"a": torch.ones(2, 2, dtype=torch.complex128)}, folder / "net.pt")


@world("a link out of the checkpoint")
def _(folder: Path) -> None:
    (folder / "secret.txt").write_text("mine")
    (folder / "bert/notes.txt").symlink_to("../secret.txt")


def parts(name: str, tensors: dict[str, Any], *, shape: tuple[int, int] = (4, 4), data: bytes) -> None:
    """A world with a block-sparse file of these tensors."""
    about = {**ABOUT, "shape": list(shape), "matrix": list(shape)}
    metadata(name, {"sapp_bsr_version": "1", "sapp_bsr": json.dumps({"a.weight": about})}, tensors, data)


ONES, FIRST = np.ones(4, np.float32).tobytes(), np.array([0, 1, 1, 0], np.int32).tobytes()
parts(
    "blocks of complex numbers",
    {
        "a.weight.bsr_values": entry("C64", [1, 2, 2], 0, 32),
        "a.weight.bsr_crow_indices": entry("I32", [3], 32, 44),
        "a.weight.bsr_col_indices": entry("I32", [1], 44, 48),
    },
    data=ONES + ONES + FIRST,
)
parts(
    "wide indices",
    {
        "a.weight.bsr_values": entry("F32", [1, 2, 2], 0, 16),
        "a.weight.bsr_crow_indices": entry("I64", [3], 16, 40),
        "a.weight.bsr_col_indices": entry("I64", [1], 40, 48),
    },
    data=ONES + np.array([0, 1, 1, 0], np.int64).tobytes(),
)
parts(
    "values of another shape",
    {**TRIPLE, "a.weight.bsr_values": entry("F32", [1, 4, 1], 0, 16)},
    data=ONES + FIRST,
)
parts("padding that is not zero", TRIPLE, shape=(3, 4), data=ONES + np.array([0, 0, 1, 0], np.int32).tobytes())


@world("a weight in two shards")
def _(folder: Path) -> None:
    (folder / "model").mkdir()
    sparse = {"sapp_bsr_version": "1", "sapp_bsr": json.dumps({"a.weight": ABOUT})}
    (folder / "model/model-00001-of-00002.safetensors").write_bytes(frame(F32, b"0" * 16))
    (folder / "model/model-00002-of-00002.safetensors").write_bytes(
        frame({"__metadata__": sparse, **TRIPLE}, ONES + FIRST)
    )


@world("a large model, and names of another")
def _(folder: Path) -> None:
    tensors = load_file(folder / "bert" / "model.safetensors")
    (folder / "bert" / "model.safetensors").unlink()
    save_file({f"x{number}": value for number, value in enumerate(tensors.values())}, folder / "bert/model.safetensors")
    config = json.loads((folder / "bert" / "config.json").read_text())
    (folder / "bert" / "config.json").write_text(json.dumps({**config, "vocab_size": 10**6}))


@world("a head that is not in the file")
@world("a head that is not in the file, and is to teach")
def _(folder: Path) -> None:
    tensors = load_file(folder / "bert" / "model.safetensors")
    (folder / "bert" / "model.safetensors").unlink()
    kept = {name: value for name, value in tensors.items() if not name.startswith("classifier")}
    save_file(kept, folder / "bert" / "model.safetensors")


settings("several labels, and a task of one", "bert/config.json", problem_type="multi_label_classification")
settings("a place of its own for padding", "bare/config.json", model_type="roberta", architectures=["RobertaModel"])
put("modules that are not JSON", "bare/modules.json", "[")
put("modules that are an object", "bare/modules.json", '{"type": "Pooling"}')
MODULES = json.dumps([{"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}])


def pooling(name: str, **modes: bool) -> None:
    """A world in which a sentence-transformers folder pools like this."""

    @world(name)
    def _(folder: Path) -> None:
        (folder / "bare" / "1_Pooling").mkdir()
        (folder / "bare" / "1_Pooling" / "config.json").write_text(json.dumps(modes))
        (folder / "bare" / "modules.json").write_text(MODULES)


pooling("a pooling that the recipe contradicts", pooling_mode_cls_token=True)
pooling("two poolings at once", pooling_mode_cls_token=True, pooling_mode_max_tokens=True)
