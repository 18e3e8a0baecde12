"""Checkpoints of wrapped models: read by the names inside, written under the names that they came with."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import sapp_cli
from sapp_cli.checkpoint.source import open_checkpoint
from sapp_cli.errors import CheckpointError
from sapp_cli.inputs.models import load_model
from sapp_cli.inputs.wrapped_names import unwrapped
from sapp_cli.outputs.weights import PrunedWeights
from sapp_cli.pruner import Pruner
from sapp_cli.recipe.schema import ModelSection
from scripts.make_checkpoints import make_bert, make_llama

NETWORK = """
from torch import nn

def net():
    return nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8))
"""


def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8))


@pytest.fixture
def factory(tmp_path):
    (tmp_path / "net.py").write_text(NETWORK)
    return f"{tmp_path / 'net.py'}:net"


def behind(wrapper, state):
    return {f"{wrapper}{name}": tensor.clone() for name, tensor in state.items()}


COMPILES = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")  # of its own parts, when it compiles
WRAPPERS = ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "net.", "model._orig_mod."]
WRAPPERS += ["_fsdp_wrapped_module.", "module.model."]


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_factory_gets_the_names_inside_and_the_output_has_those_of_the_source(tmp_path, factory, wrapper):
    state = behind(wrapper, make().state_dict())
    torch.save({"state_dict": state, "epoch": 1}, tmp_path / "net.pt")
    checkpoint = open_checkpoint(tmp_path / "net.pt")
    loaded = load_model(checkpoint, ModelSection(factory=factory))
    assert loaded.description == f"Sequential, 1,320 parameters, in the checkpoint behind '{wrapper}'"
    assert loaded.names == {f"{wrapper}{name}": name for name in make().state_dict()}
    settings = {"block_size": 8, "sparsity": 0.5, "min_blocks": 4}
    pruner = Pruner(loaded.model, settings, 12, loaded.stored_names)
    assert {layer.stored for layer in pruner.layers} == {f"{wrapper}0.weight", f"{wrapper}2.weight"}
    out = tmp_path / "out"
    out.mkdir()
    PrunedWeights(checkpoint, loaded, pruner.fold(), pruner.attached).write(out, "both", None)
    assert list(load_file(out / "model.safetensors")) == list(state)
    assert set(open_checkpoint(out / "sparse").dense_names()) == set(state)
    again = load_model(open_checkpoint(out / "sparse"), ModelSection(factory=factory)).model
    assert all(torch.equal(tensor, make().state_dict()[name]) for name, tensor in again.state_dict().items())


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod.", "model.", "model._orig_mod."])
@pytest.mark.parametrize("make_model", [make_bert, make_llama])
def test_a_folder_of_hugging_face(tmp_path, wrapper, make_model):
    make_model(tmp_path / "model")
    plain = load_model(open_checkpoint(tmp_path / "model"), ModelSection())
    files = sorted((tmp_path / "model").glob("*.safetensors"))
    for file in files:
        save_file(behind(wrapper, load_file(file)), file, {"format": "pt"})
    index = tmp_path / "model" / "model.safetensors.index.json"
    if index.exists():
        about = json.loads(index.read_text())
        about["weight_map"] = {f"{wrapper}{name}": file for name, file in about["weight_map"].items()}
        index.write_text(json.dumps(about))
    loaded = load_model(open_checkpoint(tmp_path / "model"), ModelSection())
    assert loaded.names == {f"{wrapper}{name}": known for name, known in plain.names.items()}
    assert loaded.added == ()
    for name, tensor in plain.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor), name
    again = sapp_cli.load(type(plain.model)(plain.model.config), tmp_path / "model")
    for name, tensor in plain.model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_names_of_the_model_itself_are_not_taken_for_a_wrapper():
    names = ["module.weight", "model.module.weight", "model.bias"]
    assert unwrapped(names, set(names).__contains__) == dict(zip(names, names, strict=True))
    wanted = {"part.module.weight", "bias"}  # a part that is called as DataParallel calls its own
    names = ["module.part.module.weight", "module.bias"]
    assert set(unwrapped(names, wanted.__contains__).values()) == wanted
    wanted = {"part.weight", "bias"}  # a part that is wrapped
    assert set(unwrapped(["part.module.weight", "bias"], wanted.__contains__).values()) == wanted


def test_two_names_never_become_one():
    found = unwrapped(["module.a", "a", "module.b", "module.c"], {"a", "b", "c"}.__contains__)
    assert found == {"module.a": "module.a", "a": "a", "module.b": "b", "module.c": "c"}


def test_the_average_of_a_model_has_a_counter_beside_it(tmp_path, factory):
    average = torch.optim.swa_utils.AveragedModel(make())
    torch.save(average.state_dict(), tmp_path / "net.pt")
    loaded = load_model(open_checkpoint(tmp_path / "net.pt"), ModelSection(factory=factory))
    assert set(loaded.names) == set(average.state_dict()) - {"n_averaged"}  # which passes through


def test_a_model_within_another_one_is_told(tmp_path, factory):
    save_file(behind("student.body.", make().state_dict()), tmp_path / "net.safetensors")
    with pytest.raises(CheckpointError) as error:
        load_model(open_checkpoint(tmp_path / "net.safetensors"), ModelSection(factory=factory))
    assert str(error.value).splitlines() == [
        f"{tmp_path / 'net.safetensors'} does not fit the model of {factory}:",
        "  its names begin with 'student.body.': it was saved from a model that holds this one; save the state dict of the "
        "model inside, or let the factory return the whole",
    ]


def blocked():
    """The network with half of the blocks of its first weight zero, large enough to be computed block-sparse."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 8))
    with torch.no_grad():
        model[0].weight.view(16, 16, 16, 16)[::2] = 0
    return model


@COMPILES
@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, lambda model: nn.DataParallel(torch.compile(model))])
@pytest.mark.parametrize("wrapper", ["", "module._orig_mod."])
def test_load_fills_a_wrapped_model_from_any_file(sapp, tmp_path, wrap, wrapper):
    model = blocked()
    save_file(behind(wrapper, model.state_dict()), tmp_path / "net.safetensors")
    ran = sapp("export", tmp_path / "net.safetensors", "-o", tmp_path / "out", "--layout", "bsr")
    assert ran.code == 0, ran.err
    other = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 8))
    filled = wrap(other)
    assert sapp_cli.load(filled, tmp_path / "out") is filled
    assert type(other[0]).__name__ == "BlockSparseLinear"
    x = torch.randn(3, 256)
    np.testing.assert_allclose(other(x).detach(), model(x).detach(), atol=1e-5)


@COMPILES
def test_load_fills_a_model_of_which_a_part_is_compiled(tmp_path):
    save_file(blocked().state_dict(), tmp_path / "net.safetensors")
    other = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 8))
    other[0] = torch.compile(other[0])
    sapp_cli.load(other, tmp_path / "net.safetensors")
    assert torch.equal(other[0].weight, blocked()[0].weight)
