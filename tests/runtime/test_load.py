"""`sapp.load`: the dense model's outputs from block-sparse layers, in models of several kinds."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import sapp_cli as sapp
from sapp_cli.checkpoint.output import copy_companions
from sapp_cli.checkpoint.source import open_checkpoint
from sapp_cli.errors import CheckpointError
from sapp_cli.inputs.hugging_face import offline_transformers
from sapp_cli.inputs.models import load_model
from sapp_cli.outputs.weights import PrunedWeights
from sapp_cli.recipe.schema import ModelSection
from sapp_cli.runtime import load as load_room
from sapp_cli.runtime.linear import BlockSparseLinear
from scripts.make_checkpoints import make_bert, make_gpt2

KINDS = {"bert": (make_bert, "AutoModelForSequenceClassification"), "gpt2": (make_gpt2, "AutoModelForCausalLM")}


@pytest.fixture(autouse=True)
def _small_layers_count(monkeypatch):
    monkeypatch.setattr(load_room, "LEAST_WEIGHTS", 0)


@pytest.fixture(scope="module", params=KINDS)
def output(request, tmp_path_factory):
    """(OUT of a magnitude-pruned model with its dense and block-sparse file, a function that builds the model)."""
    make, auto_class = KINDS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    make(folder / "source", torch.float32)
    checkpoint = open_checkpoint(folder / "source")
    loaded = load_model(checkpoint, ModelSection())
    settings = {"method": "magnitude", "block_size": 8, "sparsity": 0.75, "min_blocks": 20}
    pruner = sapp.Pruner(loaded.model, settings, 40, loaded.stored_names)
    for step in range(40):
        pruner.step(step)
    out = folder / "out"
    out.mkdir()
    copy_companions(folder / "source", out)
    weights = PrunedWeights(checkpoint, loaded, pruner.fold(), pruner.attached)
    weights.write_dense(out, None)
    weights.write_sparse(out / "sparse", None)
    (out / "manifest.json").write_text("{}")

    def build(path=folder / "source"):
        with offline_transformers() as transformers:
            return getattr(transformers, auto_class).from_pretrained(path, local_files_only=True).eval()

    return out, build


def logits(model):
    ids = torch.randint(5, 200, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return model(input_ids=ids).logits


def sparse_layers(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, BlockSparseLinear)}


@pytest.mark.parametrize("way", ["kernel", None])
def test_a_pruned_transformer_computes_what_the_dense_one_does(output, way):
    out, build = output
    expected = logits(build(out))
    model = build()
    assert not torch.allclose(logits(model), expected, atol=1e-3)  # the unpruned weights
    assert sapp.load(model, out, way) is model
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)
    stored = open_checkpoint(out / "sparse").block_sparse
    assert len(sparse_layers(model)) == len([name for name in stored if "embed" not in name])
    dense = load_file(out / "model.safetensors")
    for name, layer in sparse_layers(model).items():
        known = next(known for known in stored if known.endswith(f"{name}.weight"))
        is_transposed = stored[known].layout.kind == "transposed"  # GPT-2's Conv1D, stored in × out
        assert torch.equal(layer.weight, dense[known].t() if is_transposed else dense[known])


def test_the_sparse_folder_alone_and_the_dense_file_alone_give_the_same(output, tmp_path):
    out, build = output
    expected = logits(sapp.load(build(), out, "kernel"))
    assert torch.equal(logits(sapp.load(build(), out / "sparse", "kernel")), expected)
    dense_only = tmp_path / "dense"
    dense_only.mkdir()
    copy_companions(out, dense_only)
    (dense_only / "model.safetensors").write_bytes((out / "model.safetensors").read_bytes())
    plain = sapp.load(build(), dense_only)
    assert not sparse_layers(plain)  # nothing says what the blocks are
    torch.testing.assert_close(logits(plain), expected, rtol=1e-4, atol=1e-5)
    layers = [
        {"name": name, "block": entry.grid.block, "pruned": True}
        for name, entry in open_checkpoint(out / "sparse").block_sparse.items()
    ]
    (dense_only / "sparsity.json").write_text(json.dumps({"layers": layers}))
    assert torch.equal(logits(sapp.load(build(), dense_only, "kernel")), expected)
    (dense_only / "sparsity.json").write_text('{"layers": 1}')
    with pytest.raises(CheckpointError, match=r"sparsity\.json: is no report of sapp"):
        sapp.load(build(), dense_only)


def test_the_models_dtype_stays(output):
    out, build = output
    model = sapp.load(build().to(torch.bfloat16), out)
    assert {tensor.dtype for tensor in model.state_dict().values() if tensor.is_floating_point()} == {torch.bfloat16}
    assert logits(model).dtype == torch.bfloat16


def test_a_model_that_does_not_fit_is_left_alone(tmp_path):
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(
        {"0.weight": torch.zeros(3, 5), "0.bias": torch.zeros(3), "2.weight": torch.zeros(1)},
        tmp_path / "x.safetensors",
    )
    with pytest.raises(CheckpointError) as refused:
        sapp.load(model, tmp_path / "x.safetensors")
    assert str(refused.value) == (
        f"{tmp_path}/x.safetensors does not fit this Sequential:\n"
        "  '0.weight' is (3, 5), the model wants (3, 4)\n"
        "  the checkpoint has no '1.weight'\n"
        "  the checkpoint has no '1.bias'"
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Scaled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def test_layers_that_are_not_what_they_seem_stay_dense(tmp_path, monkeypatch):
    """A tied weight, a derived class, a fused encoder layer, and one with too many blocks; one other is replaced."""
    shared = nn.Linear(16, 16)
    model = nn.ModuleDict({"a": shared, "b": nn.Linear(16, 16), "scaled": Scaled(16, 16), "full": nn.Linear(16, 16)})
    model["b"].weight = shared.weight
    model["plain"] = nn.Linear(16, 16)
    model["encoder"] = nn.TransformerEncoderLayer(16, 2, 16)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name in ("a", "b", "scaled", "plain", "encoder.linear1"):
        state[f"{name}.weight"][:8] = 0
    save_file(state, tmp_path / "model.safetensors")
    layers = [{"name": name, "block": [8, 8], "pruned": True} for name, tensor in state.items() if tensor.dim() == 2]
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "sparsity.json").write_text(json.dumps({"layers": layers}))
    sapp.load(model, tmp_path)
    assert list(sparse_layers(model)) == ["plain"]
    assert torch.equal(model["plain"].weight, state["plain.weight"])
    assert torch.equal(model["plain"].bias, state["plain.bias"])
