"""What goes wrong beside the command: files that change meanwhile, little memory, training that fails, other processes."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from safetensors.numpy import load_file, save_file

from sapp_cli.comparing.cells import Budget, Cell, Record, Store, Variant, plan_cells
from sapp_cli.errors import Interrupted
from sapp_cli.pipeline.prune import prune
from sapp_cli.recipe.load import load_recipe
from tests.cli.mistakes.setups import put, world
from tests.cli.mistakes.worlds.recipes import NET
from tests.runs import Interrupting

# memory and disk


@world("a PyTorch file larger than memory")
def _(folder: Path) -> None:
    with torch.serialization.skip_data():  # a hole in the file: no byte of it is on the disk
        torch.save({"net.weight": torch.empty(1 << 29).view(1 << 14, 1 << 15)}, folder / "net.pt")


@world("a tensor that fits into memory once, not twice")
def _(folder: Path) -> None:
    with torch.serialization.skip_data():
        torch.save({"net.weight": torch.empty(1 << 29).view(1 << 14, 1 << 15).t()}, folder / "net.pt")


def _hollow(name: str, shape: tuple[int, int]) -> None:
    """A world with wide.safetensors, a weight of this shape that is a hole in the file."""

    @world(name)
    def _(folder: Path) -> None:
        size = 4 * shape[0] * shape[1]
        header = json.dumps({"net.weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}).encode()
        with (folder / "wide.safetensors").open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + size)


_hollow("a row larger than memory", (1, 1 << 34))
_hollow("more weights than the disk has room for", (1 << 20, 1 << 20))
for _name in ("a network that takes more than the memory", "a network that takes more than the memory to measure"):
    put(_name, "digits.py", NET.replace("AXES", " + inputs.new_ones(1 << 45)[:10]"))

_CUT = NET.replace("AXES", "").replace("self.output(self.hidden2", "self.output(0 * self.hidden2")
for _name in ("layers that the loss does not reach", "layers that the loss does not reach, ranked by norm"):
    put(_name, "digits.py", _CUT)

# packages, files that change meanwhile


@world("a PyTorch file without torch")
def _(folder: Path) -> None:
    torch.save({"net.weight": torch.ones(2, 2)}, folder / "net.pt")


@world("a checkpoint that is cut while the run goes on")
def _(folder: Path) -> None:
    """By the network itself. What the network does not know is read at the end only, when the output is written."""
    tensors = load_file(folder / "net.safetensors")
    (folder / "net.safetensors").unlink()
    save_file({**tensors, "unknown": np.ones(9, np.float32)}, folder / "net.safetensors")
    cut = "import os\n        os.truncate('net.safetensors', 5000)\n        return self.output"
    (folder / "digits.py").write_text(NET.replace("AXES", "").replace("return self.output", cut))


def while_training(folder: Path, action: str) -> None:
    """The network does this in a step of training. Its checkpoint net.pt has a tensor that it does not know."""
    tensors = {name: torch.from_numpy(array) for name, array in load_file(folder / "net.safetensors").items()}
    torch.save({**tensors, "unknown": torch.arange(2e5)}, folder / "net.pt")
    torch.save({**tensors, "unknown": torch.arange(2e5) + 1}, folder / "other.pt")
    code = f"import os, shutil\n        if self.training:\n            {action}\n        return self.output"
    (folder / "digits.py").write_text(NET.replace("AXES", "").replace("return self.output", code))


@world("a state dict that is cut while the run goes on")
def _(folder: Path) -> None:
    while_training(folder, "os.truncate('net.pt', 70_000)")


@world("a checkpoint that is replaced while the run goes on")
def _(folder: Path) -> None:
    while_training(folder, "shutil.copy('other.pt', 'b.pt'), os.replace('b.pt', 'net.pt')")


@world("click logs that are cut while they are read")
def _(folder: Path) -> None:
    row = "\t".join(["1"] + ["3"] * 13 + ["a"] * 26) + "\n"
    (folder / "clicks.txt").write_text(row * 70_000)
    (folder / "digits.py").write_text(
        "import os\nfrom torch import nn\n\n"
        "class Clicks(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.hidden1, self.hidden2 = nn.Linear(64, 512), nn.Linear(512, 512)\n"
        "        self.output = nn.Linear(512, 10)\n\n"
        "    def forward(self, numbers, categories):\n"
        "        os.truncate('clicks.txt', 1000)\n"
        "        return self.output(self.hidden2(self.hidden1(numbers.new_ones(len(numbers), 64))))[:, 0]\n\n"
        "def mlp():\n    return Clicks()\n"
    )


@world("Parquet that is not UTF-8")
def _(folder: Path) -> None:
    texts = pyarrow.array([b"caf\xe9", b"tea"]).cast(pyarrow.binary()).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"text": texts, "label": [0, 1]}), folder / "rows.parquet")


# models
put(
    "a look ahead that is killed",
    "digits.py",
    "import os\nimport signal\n\ndef mlp():\n    os.kill(os.getpid(), signal.SIGKILL)\n",
)
put(
    "a network that returns whole numbers",
    "digits.py",
    "import torch\n"
    + NET.replace("AXES", ")").replace(
        "return self.output",
        "return (torch.Tensor.int if torch.is_inference_mode_enabled() else torch.Tensor.float)(self.output",
    ),
)
put(
    "a network that asks more in training",
    "digits.py",
    NET.replace("AXES", "").replace(
        "return self.output",
        "if self.training:\n            raise ValueError('spans are longer than the sound')\n        return self.output",
    ),
)
put(
    "a network with a layer that has no shape yet",
    "digits.py",
    "from torch import nn\n\ndef mlp():\n    return nn.Sequential(nn.LazyLinear(512), nn.Linear(512, 10))\n",
)
put(
    "a network whose weight an unknown operator takes",
    "digits.py",
    NET.replace("AXES", "")
    .replace(
        "return self.output",
        "nn.functional.bilinear(torch.ones(1, 64), torch.ones(1, 64), self.hidden1.weight.view(8, 64, 64))\n"
        "        return self.output",
    )
    .replace("from torch import nn", "import torch\nfrom torch import nn"),
)
put(
    "a network that fails at a later step",
    "digits.py",
    NET.replace("AXES", "").replace(
        "return self.output",
        "self.calls = getattr(self, 'calls', 0) + self.training\n"
        "        if self.calls > 4:\n            raise ValueError('too late')\n        return self.output",
    ),
)
put(
    "a network that keeps weights in another form",
    "digits.py",
    NET.replace("AXES", "")
    .replace(
        "import nn",
        "import nn\n\ndef twice(module, state, *_):\n    state['hidden2.weight'] = 2 * state['hidden2.weight']",
    )
    .replace("return Net()", "net = Net()\n    net.register_load_state_dict_pre_hook(twice)\n    return net"),
)


@world("a teacher of another width")
def _(folder: Path) -> None:
    """Both without a head: what they give is a row of numbers for each token."""
    from transformers import BertConfig, BertModel

    settings = json.loads((folder / "bert/config.json").read_text())
    for name, width in (("bert", 96), ("teacher", 48)):
        config = BertConfig(**{**settings, "hidden_size": width, "architectures": None})
        made = folder / f"new-{name}"
        BertModel(config).save_pretrained(made)
        (folder / name).mkdir(exist_ok=True)
        for file in ("config.json", "model.safetensors"):
            (folder / name / file).unlink(missing_ok=True)
            shutil.copy(made / file, folder / name / file)
        shutil.rmtree(made)


# links
@world("a link to nowhere")
def _(folder: Path) -> None:
    (folder / "link.safetensors").symlink_to("net-2.safetensors")


@world("a folder of links to nowhere")
def _(folder: Path) -> None:
    """As a cache has it that was moved without what it points to."""
    (folder / "models").mkdir()
    (folder / "models/model.safetensors").symlink_to("../blobs/1234")


# training
@world("weights that outgrow their dtype")
def _(folder: Path) -> None:
    tensors = {name: tensor.astype(np.float16) for name, tensor in load_file(folder / "net.safetensors").items()}
    (folder / "net.safetensors").unlink()
    save_file(tensors, folder / "net.safetensors")


# several processes
@world("one row for two processes")
def _(folder: Path) -> None:
    rows = dict(np.load(folder / "data/train.npz"))
    np.savez(folder / "data/train.npz", **{name: values[:1] for name, values in rows.items()})


LOSS = """
import os, signal
import torch
from torch.nn import functional as F

def loss(model, batch):
    output = model(batch["inputs"])
    if torch.is_grad_enabled() and os.environ["RANK"] == "1":
        {}
    return {{"loss": F.cross_entropy(output, batch["targets"]), "metrics": {{}}}}
"""
put(
    "a loss that moves the weights",
    "own.py",
    LOSS.format("[parameter.data.normal_() for parameter in model.parameters()]"),
)
put("a process that is killed", "own.py", LOSS.format("os.kill(os.getpid(), signal.SIGKILL)"))


# outputs, states and comparisons that were changed
@world("a run state that lacks a tensor")
def _(folder: Path) -> None:
    """An interrupted run, all as it was but for one tensor."""
    recipe = load_recipe(folder / "recipe.yaml", ["train.steps=12", "train.evaluate_every=null"])
    with suppress(Interrupted):
        prune(recipe, Path("net.safetensors"), Path("result"), Interrupting(4))
    (path,) = (folder / ".result.sapp-run").glob("step-*/*.safetensors")
    tensors = load_file(path)
    del tensors["model.output.bias"]
    save_file(tensors, path)


@world("a report whose layout cannot be")
def _(folder: Path) -> None:
    path = folder / "out/sparsity.json"
    report = json.loads(path.read_text())
    report["layers"].append({**report["layers"][0], "name": "output.bias"})
    path.write_text(json.dumps(report))


put("a card that is no text", "out/README.md", b"\xff\xfe\x00")
put("a page that is no text", "out/sparsity.html", b"\xff\xfe\x00")


def _cell(folder: Path) -> tuple[Store, Cell]:
    """out/ as the one cell of a comparison out/many."""
    budget = Budget(Path("net.safetensors"), "recipe.yaml")
    (cell,) = plan_cells(budget, [Variant("magnitude", "magnitude")], ["8"], [0.9], [0])
    store = Store(folder / "out/many")
    store.note(cell, Record(cell.settings, cell.inputs, 0))
    shutil.copytree(folder / "out", store.out(cell), ignore=shutil.ignore_patterns("many"))
    return store, cell


@world("a metric that no cell has")
def _(folder: Path) -> None:
    _cell(folder)


@world("a cell whose report has no totals")
def _(folder: Path) -> None:
    store, cell = _cell(folder)
    (store.out(cell) / "sparsity.json").write_text("{}")


@world("a record of a cell with a wrong value")
def _(folder: Path) -> None:
    _, cell = _cell(folder)
    path = folder / f"out/many/cells/{cell.name}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "exit_code": "0"}))


@world("a record of a cell that was cut")
def _(folder: Path) -> None:
    _, cell = _cell(folder)
    (folder / f"out/many/cells/{cell.name}.json").write_text("{")
