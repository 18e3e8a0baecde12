"""Models on the meta device, and folders that say themselves which model they are."""

import json
import logging

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import sapp_cli as sapp
from sapp_cli.errors import CheckpointError
from sapp_cli.runtime import load as load_room
from sapp_cli.runtime.linear import BlockSparseLinear
from scripts.make_checkpoints import make_bert, make_gpt2
from tests.runtime.test_load import from_pretrained, images, logits, prune
from tests.runtime.test_saving import make_resnet


def make_llama(folder, dtype):
    """Rotary embeddings: frequencies that no file holds. Input and output embeddings are one weight."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=261,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
    return folder


KINDS = {
    "bert": (make_bert, "AutoModelForSequenceClassification", logits),  # position ids that no file holds
    "gpt2": (make_gpt2, "AutoModelForCausalLM", logits),
    "llama": (make_llama, "AutoModelForCausalLM", logits),
    "resnet": (make_resnet, "AutoModelForImageClassification", images),  # batch norms with counters of integers
}


@pytest.fixture(autouse=True, scope="module")
def _small_layers_count():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load_room, "LEAST_WEIGHTS", 0)
        patch.setattr(load_room, "LEAST_CONV_WEIGHTS", 0)
        yield


@pytest.fixture(scope="module", params=KINDS)
def made(request, tmp_path_factory):
    """(OUT, the dense pruned model, a function for its outputs)."""
    make, auto_class, outputs = KINDS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    make(folder / "source", torch.float32)
    out = prune(folder / "source", folder / "out", min_blocks=4)
    return out, from_pretrained(auto_class, out), outputs


def on_meta(dense):
    with torch.device("meta"):
        return type(dense)(dense.config).eval()


def blocks_of(model):
    return [module for module in model.modules() if isinstance(module, BlockSparseLinear)]


def everything(model):
    """All parameters and buffers, those too that no state dict has."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def test_a_model_on_the_meta_device_gets_all_its_weights_and_buffers(made):
    out, dense, outputs = made
    for path in (out, out / "sparse"):
        model = sapp.load(on_meta(dense), path)
        assert blocks_of(model)
        assert not any(tensor.is_meta for tensor in everything(model).values())
        torch.testing.assert_close(outputs(model), outputs(dense), rtol=1e-4, atol=1e-5)
        theirs, ours = everything(dense), everything(model)
        for name in theirs.keys() & ours.keys():
            assert torch.equal(ours[name], theirs[name])
            assert ours[name].dtype == theirs[name].dtype
            assert ours[name].requires_grad == isinstance(
                ours[name], nn.Parameter
            )  # block-sparse layers hold no parameters
        shared = [name for name in ours if name in theirs and ours[name] is ours.get("model.embed_tokens.weight")]
        assert len(shared) in (0, 2)  # the output layer's weight is the embedding's


def test_a_folder_alone_gives_its_model(made):
    out, dense, outputs = made
    for path in (out, str(out), out / "sparse"):
        model = sapp.load(path)
        assert type(model) is type(dense)
        assert not model.training
        assert blocks_of(model)
        torch.testing.assert_close(outputs(model), outputs(dense), rtol=1e-4, atol=1e-5)


def test_a_folder_alone_keeps_the_dtype_and_the_settings_that_it_names(tmp_path):
    source = make_llama(tmp_path / "source", torch.bfloat16)
    settings = json.loads((source / "generation_config.json").read_text())
    (source / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": [7, 9], "top_k": 3}))
    out = prune(source, tmp_path / "out", min_blocks=4)
    model, theirs = sapp.load(out), everything(from_pretrained("AutoModelForCausalLM", out))
    ours = everything(model)
    assert model.dtype == torch.bfloat16
    assert (model.generation_config.eos_token_id, model.generation_config.top_k) == ([7, 9], 3)
    assert model.name_or_path == str(out)
    assert all(ours[name].dtype == theirs[name].dtype for name in theirs.keys() & ours.keys())


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)
        self.register_buffer("scale", torch.full((16,), 2.0), persistent=False)

    def forward(self, x):
        return self.second(self.first(x)) * self.scale


def test_buffers_that_nobody_can_compute_are_named_and_the_model_is_left_alone(tmp_path):
    save_file(Own().state_dict(), tmp_path / "own.safetensors")
    with torch.device("meta"):
        model = Own()
    with pytest.raises(CheckpointError) as refused:
        sapp.load(model, tmp_path / "own.safetensors")
    assert str(refused.value) == (
        f"{tmp_path}/own.safetensors has no scale, which this Own on the meta device has without values: expected values from "
        "its constructor; build the model without torch.device('meta')"
    )
    assert all(tensor.is_meta for tensor in everything(model).values())
    model.scale = torch.full((16,), 2.0)
    assert torch.equal(sapp.load(model, tmp_path / "own.safetensors").scale, torch.full((16,), 2.0))
    assert not any(tensor.is_meta for tensor in everything(model).values())


def test_a_head_that_is_missing_cannot_stay_as_it_is_on_the_meta_device(tmp_path):
    source = make_bert(tmp_path / "bert", torch.float32)
    from_pretrained("BertModel", source).save_pretrained(tmp_path / "bare")
    model = on_meta(from_pretrained("BertForSequenceClassification", source))
    with pytest.raises(CheckpointError) as refused:
        sapp.load(model, tmp_path / "bare")
    assert str(refused.value) == (
        f"{tmp_path}/bare has no classifier.weight, classifier.bias: expected all weights of a BertForSequenceClassification "
        "on the meta device; take the class that belongs to the checkpoint, or build the model on a CPU, where its head "
        "starts at random"
    )


def test_layers_that_stay_dense_are_told_in_one_line(tmp_path, caplog):
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.Linear(16, 16), "b": nn.Linear(16, 16), "c": nn.Conv1d(8, 8, 1, groups=2)})
    model["d"] = nn.Linear(16, 16)
    state = model.state_dict()
    state["b.weight"][:8] = 0
    save_file(state, tmp_path / "model.safetensors")
    layers = [{"name": f"{name}.weight", "block": [8, 4], "pruned": True} for name in model]
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "sparsity.json").write_text(json.dumps({"layers": layers}))
    with caplog.at_level(logging.WARNING, "sapp"):
        sapp.load(model, tmp_path)
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: 3 pruned layers stay dense: 'a' and 1 more (it keeps 8 of 8 blocks), 'c' (it is a convolution of 2 "
        "groups); sapp bench lists them"
    ]
