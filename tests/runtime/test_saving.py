"""A model that computes with blocks, in the hands of libraries that have their own idea of saving."""

import copy
import pickle
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification

import sapp_cli as sapp
from sapp_cli.runtime import load as load_room
from sapp_cli.runtime.conv import BlockSparseConv
from sapp_cli.runtime.linear import BlockSparseLinear
from scripts.make_checkpoints import make_bert, make_gpt2
from tests.runtime.test_load import from_pretrained, logits, made_anew, prune
from tests.runtime.weights import sparse_weight

BLOCK = (8, 8)


@pytest.fixture(autouse=True, scope="module")
def _small_layers_count():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load_room, "LEAST_WEIGHTS", 0)
        patch.setattr(load_room, "LEAST_CONV_WEIGHTS", 0)
        yield


def images(model):
    with torch.inference_mode():
        return model(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))).logits


def make_resnet(folder, dtype):
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=16, hidden_sizes=[32, 64], depths=[1, 1], num_labels=10)
    ResNetForImageClassification(config).to(dtype).save_pretrained(folder)
    return folder


KINDS = {
    "bert": (make_bert, "AutoModelForSequenceClassification", logits),
    "gpt2": (make_gpt2, "AutoModelForCausalLM", logits),  # whose weights are stored in × out, and one is tied
    "bert-mlm": (partial(make_bert, head="ForMaskedLM"), "AutoModelForMaskedLM", logits),  # tied to the embedding
    "resnet": (make_resnet, "AutoModelForImageClassification", images),
}


@pytest.fixture(scope="module", params=KINDS)
def made(request, tmp_path_factory):
    """(OUT, the dense pruned model, a function for its outputs, the name of the class)."""
    make, auto_class, outputs = KINDS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    make(folder / "source", torch.float32)
    out = prune(folder / "source", folder / "out", min_blocks=4)
    return out, from_pretrained(auto_class, out), outputs, auto_class


def sparse_layers(model):
    return [module for module in model.modules() if isinstance(module, BlockSparseLinear | BlockSparseConv)]


def test_what_save_pretrained_writes_is_the_dense_file_again(made, tmp_path):
    out, dense, outputs, auto_class = made
    model = sapp.load(made_anew(dense), out)
    assert sparse_layers(model)
    model.save_pretrained(tmp_path / "again")
    ours, theirs = load_file(tmp_path / "again" / "model.safetensors"), load_file(out / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    again = from_pretrained(auto_class, tmp_path / "again")
    assert torch.equal(outputs(again), outputs(dense))
    loaded = sapp.load(made_anew(dense), tmp_path / "again")
    assert torch.equal(outputs(loaded), outputs(dense))


def test_a_state_dict_goes_from_sparse_to_dense_and_back(made, tmp_path):
    out, dense, outputs, _ = made
    model = sapp.load(made_anew(dense), out)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt")
    plain = made_anew(dense)
    plain.load_state_dict(state)  # all names there, none too many
    assert torch.equal(outputs(plain), outputs(dense))
    # Into block-sparse layers that hold something else.
    other = sapp.load(made_anew(dense), out)
    for layer in sparse_layers(other):
        if isinstance(layer, BlockSparseLinear):
            layer.values.zero_()
    for given in (state, dense.state_dict()):
        other.load_state_dict(given)
        torch.testing.assert_close(outputs(other), outputs(dense), rtol=1e-4, atol=1e-5)
    assert len(sparse_layers(other)) == len(sparse_layers(model))
    # A model that computes with blocks already is loaded again.
    for layer in sparse_layers(other):
        if isinstance(layer, BlockSparseLinear):
            layer.values.zero_()
    sapp.load(other, out)
    torch.testing.assert_close(outputs(other), outputs(dense), rtol=1e-4, atol=1e-5)


def test_blocks_are_kept_where_they_are_asked_for(made):
    out, dense, outputs, _ = made
    model = sapp.load(made_anew(dense), out, keep_blocks=True)
    state = model.state_dict()
    layers = len([layer for layer in sparse_layers(model) if isinstance(layer, BlockSparseLinear)])
    assert len([name for name in state if name.endswith(".values")]) == layers
    assert sum(tensor.nbytes for tensor in state.values()) < sum(
        tensor.nbytes for tensor in dense.state_dict().values()
    )
    other = sapp.load(made_anew(dense), out)
    for layer in sparse_layers(other):
        if isinstance(layer, BlockSparseLinear):
            layer.values.zero_()
    other.load_state_dict(state)
    torch.testing.assert_close(outputs(other), outputs(dense), rtol=1e-4, atol=1e-5)


def test_whole_models_are_copied_and_pickled(made, tmp_path):
    out, dense, outputs, _ = made
    model = sapp.load(made_anew(dense), out, "torch")
    expected = outputs(model)
    torch.save(model, tmp_path / "model.pt")
    for one in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(tmp_path / "model.pt", weights_only=False),
    ):
        assert torch.equal(outputs(one), expected)
        assert one.state_dict().keys() == model.state_dict().keys()


def layer():
    return BlockSparseLinear.from_weight(sparse_weight((16, 24), BLOCK, 0.5), torch.ones(16), BLOCK)


def test_another_pattern_of_zeros_is_taken_and_another_shape_is_not():
    model = nn.Sequential(layer(), BlockSparseConv.from_dense(nn.Conv2d(8, 16, 3), BLOCK))
    dense = nn.Sequential(nn.Linear(24, 16), nn.Conv2d(8, 16, 3)).requires_grad_(False)
    model.load_state_dict(dense.state_dict())
    x, image = torch.randn(2, 24), torch.randn(1, 8, 5, 5)
    torch.testing.assert_close(model[0](x), dense[0](x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model[1](image), dense[1](image), rtol=1e-4, atol=1e-5)
    assert len(model[0].col) == 6
    smaller = nn.Sequential(nn.Linear(20, 16), nn.Conv2d(8, 16, 1)).state_dict()
    with pytest.raises(RuntimeError) as refused:
        model.load_state_dict(smaller)
    assert str(refused.value) == (
        "Error(s) in loading state_dict for Sequential:\n"
        "\tsize mismatch for 0.weight: copying a param with shape (16, 20) from checkpoint, "
        "the shape in current model is (16, 24).\n"
        "\tsize mismatch for 1.weight: copying a param with shape (16, 8, 1, 1) from checkpoint, "
        "the shape in current model is (16, 8, 3, 3)."
    )


def test_what_a_state_lacks_and_has_too_much_is_named_as_of_the_dense_layer():
    model = nn.Sequential(layer(), BlockSparseConv.from_dense(nn.Conv2d(8, 16, 3), BLOCK))
    found = model.load_state_dict({"0.bias": torch.zeros(16), "2.weight": torch.zeros(1)}, strict=False)
    assert found.missing_keys == ["0.weight", "1.weight", "1.bias"]
    assert found.unexpected_keys == ["2.weight"]
    assert not model[0].bias.any()
    both = {**model[0].state_dict(), **model[0].state_dict(keep_vars=True)}
    assert model[0].load_state_dict(both, strict=False).unexpected_keys == ["weight"]
