"""Getting tensors back from either layout."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import sapp_cli as sapp
from sapp_cli.checkpoint.output import copy_companions
from sapp_cli.checkpoint.source import open_checkpoint
from sapp_cli.inputs.models import load_model
from sapp_cli.outputs.weights import PrunedWeights
from sapp_cli.recipe.schema import ModelSection
from scripts.make_checkpoints import make_gpt2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_model_takes_its_weights_from_either_layout(tmp_path, dtype):
    make_gpt2(tmp_path / "gpt2", dtype)
    checkpoint = open_checkpoint(tmp_path / "gpt2")
    loaded = load_model(checkpoint, ModelSection())
    settings = {"method": "magnitude", "block_size": 8, "sparsity": 0.75, "min_blocks": 20, "embeddings": True}
    pruner = sapp.Pruner(loaded.model, settings, 40, loaded.stored_names)
    for step in range(40):
        pruner.step(step)
    weights = PrunedWeights(checkpoint, loaded, pruner.fold(), pruner.attached)
    out = tmp_path / "out"
    out.mkdir()
    copy_companions(tmp_path / "gpt2", out)
    weights.write_dense(out, None)
    weights.write_sparse(out / "sparse", None)
    expected = load_file(out / "model.safetensors")
    for path in (out, out / "sparse"):
        state = sapp.load_state_dict(path)
        assert {name: tensor.dtype for name, tensor in state.items()} == {n: t.dtype for n, t in expected.items()}
        assert all(torch.equal(state[name], expected[name]) for name in expected)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float64, torch.int64, torch.bool, torch.uint8])
def test_every_dtype_comes_back_as_it_was(tmp_path, dtype):
    tensor = torch.arange(12).reshape(3, 4).to(dtype)
    save_file({"a": tensor, "scalar": tensor[0, 1].clone()}, tmp_path / "x.safetensors")
    state = sapp.load_state_dict(tmp_path / "x.safetensors")
    for name, expected in {"a": tensor, "scalar": tensor[0, 1]}.items():
        assert state[name].dtype == dtype
        assert state[name].shape == expected.shape
        assert torch.equal(state[name].float(), expected.float())


def test_importing_the_package_does_not_import_torch():
    code = (
        "import sys, sapp_cli; sapp_cli.__version__; assert 'torch' not in sys.modules; "
        "sapp_cli.Pruner; assert 'torch' in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="module 'sapp_cli' has no attribute 'prone'"):
        sapp.prone  # noqa: B018
