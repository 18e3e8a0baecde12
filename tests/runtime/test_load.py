"""`sapp.load`: the dense model's outputs from block-sparse layers, in models of several kinds."""

import json
from functools import partial

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import NomicBertConfig, NomicBertModel, ResNetConfig, ResNetForImageClassification

import sapp_cli as sapp
from sapp_cli.checkpoint.export import export_checkpoint
from sapp_cli.checkpoint.output import copy_companions
from sapp_cli.checkpoint.source import open_checkpoint
from sapp_cli.errors import CheckpointError
from sapp_cli.grid import BlockGrid, MatrixLayout
from sapp_cli.inputs.hugging_face import offline_transformers
from sapp_cli.inputs.models import load_model
from sapp_cli.outputs.weights import PrunedWeights
from sapp_cli.recipe.schema import ModelSection
from sapp_cli.runtime import load as load_room
from sapp_cli.runtime.conv import BlockSparseConv
from sapp_cli.runtime.linear import BlockSparseLinear
from sapp_cli.runtime.load import load_and_explain
from scripts.make_checkpoints import make_bert, make_gpt2, make_vit

AUTO = {
    "bert": (make_bert, "AutoModelForSequenceClassification"),
    "gpt2": (make_gpt2, "AutoModelForCausalLM"),
    "bert-mlm": (partial(make_bert, head="ForMaskedLM"), "AutoModelForMaskedLM"),  # output layer tied to the embedding
}


@pytest.fixture(autouse=True)
def _small_layers_count(monkeypatch):
    monkeypatch.setattr(load_room, "LEAST_WEIGHTS", 0)
    monkeypatch.setattr(load_room, "LEAST_CONV_WEIGHTS", 0)


def prune(source, out, min_blocks=20):
    """OUT of the source's model, pruned by magnitude in blocks of 8×8: dense and block-sparse files."""
    checkpoint = open_checkpoint(source)
    loaded = load_model(checkpoint, ModelSection())
    settings = {"method": "magnitude", "block_size": 8, "sparsity": 0.75, "min_blocks": min_blocks}
    pruner = sapp.Pruner(loaded.model, settings, 40, loaded.stored_names)
    for step in range(40):
        pruner.step(step)
    out.mkdir()
    copy_companions(source, out)
    weights = PrunedWeights(checkpoint, loaded, pruner.fold(), pruner.attached)
    weights.write_dense(out, None)
    weights.write_sparse(out / "sparse", None)
    (out / "manifest.json").write_text("{}")
    return out


def from_pretrained(auto_class, path):
    """What anybody gets from the folder."""
    with offline_transformers() as transformers:
        return getattr(transformers, auto_class).from_pretrained(path, local_files_only=True).eval()


def made_anew(model, seed=1):
    """A model of the same class with other weights."""
    torch.manual_seed(seed)
    return type(model)(model.config).eval()


@pytest.fixture(scope="module", params=AUTO)
def output(request, tmp_path_factory):
    """(OUT of a pruned model, a function that builds the model)."""
    make, auto_class = AUTO[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    make(folder / "source", torch.float32)
    out = prune(folder / "source", folder / "out")
    return out, lambda path=folder / "source": from_pretrained(auto_class, path)


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


def images(model):
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = model(x)
        return found[0]


def test_a_vision_transformer_whose_names_change_on_loading(tmp_path):
    """transformers 5 calls the layers of a ViT otherwise than checkpoints do; its patches come from a convolution."""
    source = make_vit(tmp_path / "vit", torch.float32)
    out = prune(source, tmp_path / "out")
    dense = from_pretrained("ViTForImageClassification", out)
    stored = open_checkpoint(out / "sparse")
    assert not set(stored.block_sparse) <= set(dense.state_dict())
    for path in (out, out / "sparse"):
        model = sapp.load(made_anew(dense), path, "kernel")
        torch.testing.assert_close(images(model), images(dense), rtol=1e-4, atol=1e-5)
        replaced = [*sparse_layers(model), *conv_layers(model)]
        assert len([name for name in replaced if not name.endswith(".matrix")]) == len(stored.block_sparse)
        assert len(conv_layers(model)) == 1


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    """(Dense model, OUT) of a small ResNet: 1×1 and 3×3 convolutions, with strides."""
    folder = tmp_path_factory.mktemp("resnet")
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=16, hidden_sizes=[32, 64], depths=[1, 2], num_labels=10)
    ResNetForImageClassification(config).save_pretrained(folder / "source")
    out = prune(folder / "source", folder / "out", min_blocks=4)
    return from_pretrained("ResNetForImageClassification", out), out


def conv_layers(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, BlockSparseConv)}


@pytest.mark.parametrize("way", ["kernel", "torch", None])
def test_the_convolutions_of_a_resnet(resnet, way):
    dense, out = resnet
    model = sapp.load(made_anew(dense), out, way)
    torch.testing.assert_close(images(model), images(dense), rtol=1e-4, atol=1e-5)
    layers = conv_layers(model)
    pruned = [
        name for name, entry in open_checkpoint(out / "sparse").block_sparse.items() if entry.layout.kind == "conv"
    ]
    assert sorted(f"{name}.weight" for name in layers) == sorted(pruned)
    assert {layer.kernel_size for layer in layers.values()} == {(1, 1), (3, 3), (7, 7)}
    assert {layer.stride for layer in layers.values()} == {(1, 1), (2, 2)}
    for name, layer in layers.items():
        assert torch.equal(layer.weight, dense.get_submodule(name).weight)


def test_dtype_and_compilation_of_a_convolutional_model(resnet):
    dense, out = resnet
    model = sapp.load(made_anew(dense).to(torch.bfloat16), out, "kernel")
    x = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        expected = dense(x).logits
        torch.testing.assert_close(
            model(x.bfloat16()).logits.float(), expected, rtol=0.1, atol=0.1 * expected.abs().max().item()
        )
        compiled = torch.compile(sapp.load(made_anew(dense), out, "kernel"), backend="aot_eager")
        torch.testing.assert_close(compiled(x).logits, expected, rtol=1e-4, atol=1e-5)


def test_a_convolution_of_groups_stays_dense(tmp_path):
    model = nn.ModuleDict({"one": nn.Conv1d(8, 16, 3), "two": nn.Conv1d(8, 16, 3, groups=2)})
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name in ("one", "two"):
        state[f"{name}.weight"][:8] = 0
    save_file(state, tmp_path / "model.safetensors")
    layers = [{"name": f"{name}.weight", "block": [8, 4], "pruned": True} for name in model]
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "sparsity.json").write_text(json.dumps({"layers": layers}))
    assert load_and_explain(model, tmp_path) == {"two": "it is a convolution of 2 groups"}
    assert list(conv_layers(model)) == ["one"]
    assert torch.equal(model["two"].weight, state["two.weight"])
    x = torch.randn(1, 8, 5)
    torch.testing.assert_close(model["one"](x), nn.functional.conv1d(x, state["one.weight"], state["one.bias"]))


def test_gamma_and_beta_of_old_checkpoints(tmp_path):
    source = make_bert(tmp_path / "bert", torch.float32)
    out = prune(source, tmp_path / "out")
    expected = logits(from_pretrained("BertForSequenceClassification", out))
    for file in (out / "model.safetensors", out / "sparse" / "model.safetensors"):
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata()
        state = {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
            for name, tensor in load_file(file).items()
        }
        assert any(name.endswith("gamma") for name in state)
        save_file(state, file, metadata)
    model = sapp.load(made_anew(from_pretrained("BertForSequenceClassification", source)), out, "kernel")
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)


def test_a_bare_model_from_a_checkpoint_with_a_head_and_the_reverse(tmp_path):
    source = make_bert(tmp_path / "bert", torch.float32)
    out = prune(source, tmp_path / "out")
    ids = torch.arange(5, 21)[None]
    with torch.inference_mode():
        expected = from_pretrained("BertModel", out)(ids).last_hidden_state
        bare = sapp.load(made_anew(from_pretrained("BertModel", source)), out, "kernel")
        torch.testing.assert_close(bare(ids).last_hidden_state, expected, rtol=1e-4, atol=1e-5)
    # An output of the bare model, whose names have no prefix.
    from_pretrained("BertModel", source).save_pretrained(tmp_path / "bare")
    again = prune(tmp_path / "bare", tmp_path / "bare-out")
    with_head = made_anew(from_pretrained("BertForSequenceClassification", source))
    head = with_head.classifier.weight.clone()
    stays = r"has no classifier\.weight, classifier\.bias: what the BertForSequenceClassification has there stays"
    with pytest.warns(UserWarning, match=stays):
        sapp.load(with_head, again / "sparse", "kernel")
    assert torch.equal(with_head.classifier.weight, head)
    with torch.inference_mode():
        torch.testing.assert_close(
            with_head.bert(ids).last_hidden_state,
            from_pretrained("BertModel", again)(ids).last_hidden_state,
            rtol=1e-4,
            atol=1e-5,
        )


def test_weights_that_the_library_takes_apart(tmp_path):
    """Checkpoints of NomicBERT have query, key and value in one weight, the model has three: these stay dense, and right."""
    torch.manual_seed(0)
    config = NomicBertConfig(
        vocab_size=261, hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=96
    )
    NomicBertModel(config).save_pretrained(tmp_path / "source")
    packed = next(name for name in load_file(tmp_path / "source" / "model.safetensors") if name.endswith("Wqkv.weight"))
    checkpoint = open_checkpoint(tmp_path / "source")
    state = load_file(tmp_path / "source" / "model.safetensors")
    pruned = [name for name, tensor in state.items() if tensor.dim() == 2 and "embeddings" not in name]
    assert len(pruned) > 1
    for name in pruned:
        state[name][: len(state[name]) // 2] = 0
    save_file(state, tmp_path / "source" / "model.safetensors", {"format": "pt"})
    checkpoint = open_checkpoint(tmp_path / "source")
    grids = {}
    for name in pruned:
        layout = MatrixLayout("linear", tuple(state[name].shape))
        grids[name] = layout, BlockGrid(layout.matrix, (8, 8))
    (tmp_path / "out").mkdir()
    copy_companions(tmp_path / "source", tmp_path / "out")
    export_checkpoint(checkpoint, tmp_path / "out", "bsr", grids.get, None)
    dense = from_pretrained("NomicBertModel", tmp_path / "source")
    model = sapp.load(made_anew(dense), tmp_path / "out" / "sparse", "kernel")
    ids = torch.arange(5, 21)[None]
    with torch.inference_mode():
        torch.testing.assert_close(model(ids)[0], dense(ids)[0], rtol=1e-4, atol=1e-5)
    assert len(sparse_layers(model)) == len(pruned) - 1
    assert packed not in model.state_dict()
