"""Recipes that cannot be read, or say what cannot be, and callables that fail."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from tests.cli.mistakes.setups import WORLDS, changed, edit, put, world

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

put("a factory that wants an argument", "digits.py", "def mlp(width):\n    return width\n")
put(
    "a factory that reads the command line",
    "digits.py",
    "raise SystemExit('usage: digits.py DATA')\n",
)
put("Ctrl-C while the model is built", "digits.py", "def mlp():\n    raise KeyboardInterrupt\n")
put("a SIGTERM while the model is built", "digits.py", (
    "import os\nimport signal\nimport time\n\n"
    "def mlp():\n    os.kill(os.getpid(), signal.SIGTERM)\n    time.sleep(60)\n"
))  # fmt: skip
put("a factory without its package", "digits.py", "import tim\n")
put("a factory of another network", "digits.py", (
    "from torch import nn\n\ndef mlp():\n    return nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 10))\n"
))  # fmt: skip
edit("several names that are not there", "recipe.yaml", "train: data/train.npz", "train: data/trian.npz")
_several = WORLDS["several names that are not there"]


@world("a teacher that is not there")
def _(folder: Path) -> None:
    text = (folder / "recipe.yaml").read_text().replace("weight: 0.5", "weight: 0.5, teacher: techer.safetensors")
    (folder / "recipe.yaml").write_text(text)


edit(
    "a validation file that is not there", "recipe.yaml", "validation: data/validation.npz", "validation: data/dev.npz"
)


NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden1, self.hidden2, self.output = nn.Linear(64, 512), nn.Linear(512, 512), nn.Linear(512, 10)

    def forward(self, inputs, output_hidden_states=False):
        return self.output(self.hidden2(self.hidden1(inputs)))AXES

def mlp():
    return Net()
"""
put("logits of three axes", "digits.py", NET.replace("AXES", "[:, None]"))
_FROZEN = NET.replace("AXES", "").replace("return Net()", "return Net().requires_grad_(False)")
for _name in ("frozen weights", "frozen weights in a run", "a random mask of frozen weights"):
    put(_name, "digits.py", _FROZEN)
changed(
    "weights of zeros without a dense start", lambda tensors: {name: 0 * tensor for name, tensor in tensors.items()}
)
put("hidden states that nobody returns", "digits.py", NET.replace("AXES", ""))


def teacher(name: str, rows: int = 3, width: int = 96, **about: Any) -> None:
    """A world with a teacher beside bert/, its head of so many classes; `about` goes into its config.json."""

    def write(folder: Path) -> None:
        shutil.copytree(folder / "bert", folder / "teacher")
        tensors = load_file(folder / "bert/model.safetensors")
        if "num_hidden_layers" in about:
            tensors = {name: tensor for name, tensor in tensors.items() if ".layer.1." not in name}
        tensors |= {
            "classifier.weight": np.ones((rows, width), np.float32),
            "classifier.bias": np.ones(rows, np.float32),
        }
        if about.get("num_hidden_layers") == 1:
            tensors = {name: value for name, value in tensors.items() if ".layer.1." not in name}
        (folder / "teacher/model.safetensors").unlink()
        save_file(tensors, folder / "teacher/model.safetensors")
        path = folder / "teacher/config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **about}))

    world(name)(write)


teacher("a teacher of other classes", 4, id2label={str(number): f"LABEL_{number}" for number in range(4)})
teacher("a teacher of another depth", num_hidden_layers=1)
