"""Building the model of a checkpoint, and what is said when the two do not fit."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from sapp_cli.checkpoint.source import open_checkpoint
from sapp_cli.errors import CheckpointError, UsageError
from sapp_cli.inputs.models import load_model
from sapp_cli.recipe.schema import ModelSection
from scripts.make_checkpoints import make_bert, make_gpt2, make_llama, make_vit

FACTORY = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.first = nn.Linear(4, width)
        self.second = nn.Linear(width, 4)

def net(**kwargs):
    return Net(**kwargs)

def tied():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    return model

def nothing():
    return 7
"""


@pytest.fixture
def factory(tmp_path):
    path = tmp_path / "net.py"
    path.write_text(FACTORY)
    return f"{path}:net"


def state(width=8):
    torch.manual_seed(0)
    return {
        "first.weight": torch.randn(width, 4),
        "first.bias": torch.randn(width),
        "second.weight": torch.randn(4, width),
        "second.bias": torch.randn(4),
    }


def test_a_factory_gets_its_arguments_and_the_checkpoints_weights(tmp_path, factory):
    save_file({**state(6), "extra": torch.zeros(2)}, tmp_path / "net.safetensors")
    section = ModelSection(factory=factory, kwargs={"width": 6})
    loaded = load_model(open_checkpoint(tmp_path / "net.safetensors"), section)
    assert torch.equal(loaded.model.second.weight, state(6)["second.weight"])
    assert set(loaded.names) == set(state())  # 'extra' passes through
    assert not loaded.model.training


def test_half_precision_is_loaded_as_fp32_and_its_dtype_is_known(tmp_path, factory):
    half = {name: tensor.to(torch.bfloat16) for name, tensor in state().items()}
    save_file(half, tmp_path / "net.safetensors")
    loaded = load_model(open_checkpoint(tmp_path / "net.safetensors"), ModelSection(factory=factory))
    assert loaded.model.first.weight.dtype == torch.float32
    assert torch.equal(loaded.model.first.weight, half["first.weight"].float())
    assert loaded.dtypes["first.weight"] == torch.bfloat16


def test_a_state_dict_of_torch_with_a_tied_weight(tmp_path, factory):
    weight = torch.randn(4, 4)
    tensors = {"0.weight": weight, "0.bias": torch.zeros(4), "1.weight": weight, "1.bias": torch.ones(4)}
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "net.pt")
    loaded = load_model(open_checkpoint(tmp_path / "net.pt"), ModelSection(factory=factory.replace(":net", ":tied")))
    assert loaded.model[0].weight is loaded.model[1].weight
    assert loaded.names["1.weight"] == "1.weight"


def test_all_that_does_not_fit_is_told_at_once(tmp_path, factory):
    wrong = state()
    wrong["first.weight"] = torch.zeros(8, 5)
    del wrong["second.bias"]
    wrong["seconds.bias"] = torch.zeros(4)
    save_file(wrong, tmp_path / "net.safetensors")
    with pytest.raises(CheckpointError) as error:
        load_model(open_checkpoint(tmp_path / "net.safetensors"), ModelSection(factory=factory))
    assert str(error.value).splitlines() == [
        f"{tmp_path / 'net.safetensors'} does not fit the model of {factory}:",
        "  'first.weight' is (8, 5), the model wants (8, 4)",
        "  the checkpoint has no 'second.bias' (4,)",
        "  the model does not know: 'seconds.bias'",
    ]
    assert error.value.exit_code == 4


def test_nothing_says_how_to_build_the_model(tmp_path):
    save_file(state(), tmp_path / "net.safetensors")
    with pytest.raises(
        UsageError, match=r"Name a callable that returns it in the recipe: model\.factory: file\.py:fun"
    ):
        load_model(open_checkpoint(tmp_path / "net.safetensors"), ModelSection())


def test_a_factory_that_returns_no_module(tmp_path, factory):
    save_file(state(), tmp_path / "net.safetensors")
    with pytest.raises(
        UsageError, match=r"model\.factory: .*net\.py:nothing': returned a value of type int, not a torch\.nn\.Module"
    ):
        load_model(
            open_checkpoint(tmp_path / "net.safetensors"), ModelSection(factory=factory.replace(":net", ":nothing"))
        )


def test_a_library_that_renames_on_loading(tmp_path):
    """transformers names ViT's attention weights otherwise in memory than in files; equal zero biases must not mix."""
    make_vit(tmp_path / "vit")
    tensors = load_file(tmp_path / "vit" / "model.safetensors")
    tensors = {name: torch.zeros_like(tensor) if name.endswith("bias") else tensor for name, tensor in tensors.items()}
    save_file(tensors, tmp_path / "vit" / "model.safetensors", {"format": "pt"})
    loaded = load_model(open_checkpoint(tmp_path / "vit"), ModelSection())
    assert set(loaded.names) == set(tensors)
    renamed = {name: model_name for name, model_name in loaded.names.items() if name != model_name}
    assert renamed
    for name, model_name in renamed.items():
        assert name.rpartition(".")[2] == model_name.rpartition(".")[2]
        layer = [part for part in name.split(".") if part.isdecimal()]
        assert layer == [part for part in model_name.split(".") if part.isdecimal()], (name, model_name)


def test_a_checkpoint_without_the_prefix_of_its_class(tmp_path):
    make_gpt2(tmp_path / "gpt2")
    path = tmp_path / "gpt2" / "model.safetensors"
    bare = {name.removeprefix("transformer."): tensor for name, tensor in load_file(path).items()}
    save_file(bare, path, {"format": "pt"})
    loaded = load_model(open_checkpoint(tmp_path / "gpt2"), ModelSection())
    assert loaded.names["h.0.attn.c_attn.weight"] == "transformer.h.0.attn.c_attn.weight"
    assert loaded.stored_names["transformer.h.0.attn.c_attn.weight"] == "h.0.attn.c_attn.weight"
    assert loaded.added == ()


def test_weights_that_the_checkpoint_lacks_are_told(tmp_path):
    make_bert(tmp_path / "bert")
    path = tmp_path / "bert" / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(path).items() if not name.startswith("classifier")}
    save_file(tensors, path, {"format": "pt"})
    loaded = load_model(open_checkpoint(tmp_path / "bert"), ModelSection())
    assert loaded.added == ("classifier.bias", "classifier.weight")


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"model_type": "brandnew"}, 4, "model_type 'brandnew' is unknown to transformers"),
        ({"architectures": ["BertForEverything"]}, 4, "has no model class 'BertForEverything'"),
        ({"architectures": ["AutoModel"]}, 4, "has no model class 'AutoModel'"),
        ({"hidden_size": 48}, 4, "'bert.embeddings.LayerNorm.bias' is (96,), the model wants (48,)"),
        (
            {"model_type": "own", "auto_map": {"AutoModel": "modeling_own.Own"}},
            2,
            "asks to run Python code from the folder (auto_map), which sapp does not do",
        ),
    ],
)
def test_configurations_that_do_not_fit(tmp_path, changes, code, message):
    make_bert(tmp_path / "bert")
    edit_config(tmp_path / "bert", **changes)
    with pytest.raises((CheckpointError, UsageError)) as error:
        load_model(open_checkpoint(tmp_path / "bert"), ModelSection())
    assert message in str(error.value)
    assert error.value.exit_code == code


def test_a_config_of_another_model(tmp_path):
    make_bert(tmp_path / "bert")
    make_gpt2(tmp_path / "gpt2")
    (tmp_path / "bert" / "config.json").write_text((tmp_path / "gpt2" / "config.json").read_text())
    with pytest.raises(CheckpointError, match=r"none of its 41 tensors has a name that GPT2LMHeadModel knows"):
        load_model(open_checkpoint(tmp_path / "bert"), ModelSection())


def test_weights_that_are_not_finite(tmp_path, factory):
    broken = state()
    broken["first.weight"][0, 0] = float("nan")
    save_file(broken, tmp_path / "net.safetensors")
    with pytest.raises(CheckpointError, match=r"'first\.weight' holds values that are not finite"):
        load_model(open_checkpoint(tmp_path / "net.safetensors"), ModelSection(factory=factory))


def test_a_tied_configuration_with_two_matrices_in_the_file_gives_two(tmp_path):
    make_llama(tmp_path / "llama", tied=True)
    folder = tmp_path / "llama"
    file = next(file for file in folder.glob("*.safetensors") if "model.embed_tokens.weight" in load_file(file))
    tensors = load_file(file)
    head = torch.randn_like(tensors["model.embed_tokens.weight"])
    save_file({**tensors, "lm_head.weight": head}, file, {"format": "pt"})
    index = folder / "model.safetensors.index.json"
    if index.exists():
        about = json.loads(index.read_text())
        about["weight_map"]["lm_head.weight"] = file.name
        index.write_text(json.dumps(about))
    loaded = load_model(open_checkpoint(folder), ModelSection())
    assert torch.equal(loaded.model.lm_head.weight, head.float())
    assert torch.equal(loaded.model.model.embed_tokens.weight, tensors["model.embed_tokens.weight"].float())
    assert {"lm_head.weight", "model.embed_tokens.weight"} <= set(loaded.names)
