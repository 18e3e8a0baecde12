"""What training did not change leaves as the bytes it came with, under every name it came with."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

from sapp_cli.checkpoint.source import open_checkpoint
from sapp_cli.checkpoint.write import TensorOut, write_safetensors
from sapp_cli.inputs.models import load_model
from sapp_cli.outputs.weights import PrunedWeights
from sapp_cli.pruner import Pruner
from sapp_cli.recipe.schema import ModelSection

NETWORK = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.h = nn.Linear(32, 32)
        self.frozen = nn.Linear(32, 4).requires_grad_(False)
        self.norm = nn.BatchNorm1d(32)
        self.register_buffer("mean", torch.zeros(3, dtype=torch.float64))
        self.register_buffer("mask", torch.zeros(2, 2))
        self.register_buffer("freqs", torch.zeros(2, dtype=torch.complex64))
        self.register_buffer("brief", torch.zeros(2, dtype=torch.bfloat16))
        self.register_buffer("known", torch.zeros(2, dtype=torch.bool))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("code", torch.zeros(2, dtype=torch.uint16))

    def forward(self, x):
        return self.frozen(self.norm(self.h(x)).relu())
"""


@pytest.fixture
def written(tmp_path):
    """(tensors of the source, tensors of the output) of a run that trains h and norm."""
    (tmp_path / "net.py").write_text(NETWORK)
    scope: dict[str, type[nn.Module]] = {}
    exec(NETWORK, scope)
    torch.manual_seed(0)
    state = scope["Net"]().state_dict()
    state["frozen.weight"] = torch.randn(4, 32, dtype=torch.float64)
    state["norm.running_var"] = torch.full((32,), 1 / 3, dtype=torch.float64)  # training changes it
    state["mean"] = torch.tensor([1 / 3, torch.inf, torch.nan], dtype=torch.float64)
    state["mask"] = torch.tensor([[0, -torch.inf], [-0.0, 1]])
    state["freqs"] = torch.tensor([1j, 0.1 - 0.2j])
    state["brief"] = torch.tensor([1 / 3, torch.nan], dtype=torch.bfloat16)
    state["code"] = torch.tensor([65535, 3], dtype=torch.uint16)
    torch.save(state, tmp_path / "net.pt")
    checkpoint = open_checkpoint(tmp_path / "net.pt")
    loaded = load_model(checkpoint, ModelSection(factory=f"{tmp_path / 'net.py'}:Net"))
    rules = [{"match": "frozen.*", "dense": True}]
    pruner = Pruner(loaded.model, {"block_size": 8, "sparsity": 0.5, "min_blocks": 2, "rules": rules}, 12)
    trained = [parameter for parameter in loaded.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    loaded.model.train()
    for step in range(12):
        pruner.step(step, optimizer)
        optimizer.zero_grad()
        loaded.model(torch.randn(16, 32)).square().mean().backward()
        optimizer.step()
    (tmp_path / "out").mkdir()
    PrunedWeights(checkpoint, loaded, pruner.fold(), pruner.attached).write(tmp_path / "out", "both", None)
    source = {name: checkpoint.array(name) for name in checkpoint.dense_names()}
    return source, open_checkpoint(tmp_path / "out"), open_checkpoint(tmp_path / "out" / "sparse")


def test_what_training_did_not_change_keeps_its_bytes(written):
    source, dense, sparse = written
    changed = {"h.weight", "h.bias", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"}
    changed.add("norm.num_batches_tracked")
    for output in (dense, sparse):
        assert set(output.dense_names()) == set(source)
        for name, before in source.items():
            after = output.dense_array(name)
            assert (after.dtype, after.shape) == (before.dtype, before.shape), name
            assert (after.tobytes() == before.tobytes()) == (name not in changed), name
    assert dense.dtype("norm.running_var") == "F64"
    assert dense.array("norm.num_batches_tracked") == 12
    assert dense.array("mean")[0] == 1 / 3  # not 0.3333333432674408


def test_a_dtype_that_torch_does_not_compute_with_passes_through(tmp_path):
    (tmp_path / "net.py").write_text("from torch import nn\n\ndef net():\n    return nn.Sequential(nn.Linear(8, 8))\n")
    arrays = {"0.weight": ("F32", np.ones((8, 8), np.float32)), "0.bias": ("F32", np.ones(8, np.float32))}
    arrays["table"] = ("C64", np.array([1j, np.nan], np.complex64))
    arrays["scale"] = ("F8_E8M0", np.arange(4, dtype=np.uint8))
    write_safetensors(
        tmp_path / "net.safetensors",
        [TensorOut(name, dtype, array.shape, lambda array=array: array) for name, (dtype, array) in arrays.items()],
    )
    checkpoint = open_checkpoint(tmp_path / "net.safetensors")
    loaded = load_model(checkpoint, ModelSection(factory=f"{tmp_path / 'net.py'}:net"))
    pruner = Pruner(loaded.model, {"block_size": 2, "sparsity": 0.5, "min_blocks": 2}, 12)
    (tmp_path / "out").mkdir()
    PrunedWeights(checkpoint, loaded, pruner.fold(), pruner.attached).write(tmp_path / "out", "dense", None)
    written = open_checkpoint(tmp_path / "out")
    for name, (dtype, array) in arrays.items():
        assert written.dtype(name) == dtype
        assert written.array(name).tobytes() == array.tobytes()


def test_an_export_keeps_both_names_of_a_tied_weight(sapp, tmp_path):
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    model[1].weight = model[0].weight
    torch.save(model.state_dict(), tmp_path / "tied.pt")
    ran = sapp("export", tmp_path / "tied.pt", "-o", tmp_path / "x", "--layout", "dense")
    assert ran.code == 0, ran.err
    found = load_file(tmp_path / "x" / "model.safetensors")
    again = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    again.load_state_dict({name: torch.from_numpy(array) for name, array in found.items()})  # all names are there
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
