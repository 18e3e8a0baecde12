"""Models as ONNX files: in ONNX Runtime and OpenVINO they give what the model gives, for batches of other sizes too."""

import json
import subprocess
import sys
from contextlib import contextmanager
from functools import cache

import numpy as np
import onnx
import pytest
import torch
import transformers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, ResNetConfig, ResNetForImageClassification

from sapp_cli.errors import UsageError
from sapp_cli.portable import choice, export, graph
from sapp_cli.portable.export import export_onnx
from sapp_cli.portable.runtimes import Runtime
from sapp_cli.portable.signature import signature_of, signature_of_own
from sapp_cli.runtime import load as load_room
from sapp_cli.runtime.example_inputs import Given
from scripts.make_checkpoints import make_bert, make_gpt2, make_vit
from tests.runtime.test_load import prune


@contextmanager
def blocks_wherever_possible():
    """Layers this small would stay dense."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load_room, "LEAST_WEIGHTS", 0)
        patch.setattr(load_room, "LEAST_CONV_WEIGHTS", 0)
        patch.setattr(choice, "_pays", lambda candidate: True)
        patch.setattr(choice, "measure", lambda layers, runtime: [{"dense": 2.0, "blocks": 1.0} for _ in layers])
        yield


def make_llama(folder):
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=60,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def make_resnet(folder):
    torch.manual_seed(6)
    config = ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], num_labels=3)
    model = ResNetForImageClassification(config)
    model(torch.randn(4, 3, 64, 64))  # the running statistics are not those of a fresh layer
    model.save_pretrained(folder)


MAKERS = {"bert": make_bert, "vit": make_vit, "gpt2": make_gpt2, "llama": make_llama, "resnet": make_resnet}
AUTO = {
    "bert": "AutoModelForSequenceClassification",
    "vit": "AutoModelForImageClassification",
    "gpt2": "AutoModelForCausalLM",
    "llama": "AutoModelForCausalLM",
    "resnet": "AutoModelForImageClassification",
}


@pytest.fixture(scope="module", params=MAKERS)
def exported(request, tmp_path_factory):
    """(name, OUT, the file, what export_onnx returned)."""
    folder = tmp_path_factory.mktemp(request.param)
    MAKERS[request.param](folder / "source")
    with blocks_wherever_possible():
        out = prune(folder / "source", folder / "out", min_blocks=8)
        result = export_onnx(out, folder / "model.onnx", opset=20)
    return request.param, out, folder / "model.onnx", result


def model_of(name, out):
    return getattr(transformers, AUTO[name]).from_pretrained(out).eval()


def run(runtime, file, signature, given):
    names = [part.name for part in signature.inputs]
    return runtime.open(file, names)([given[name] for name in names])


def given_to(signature, batch, length, past):
    """Inputs of sizes that the file was not made with."""
    generator = np.random.default_rng(batch)
    sizes = {"batch": batch, "sequence": length, "past": past, "past_and_sequence": past + length}
    given = {}
    for part in signature.inputs:
        example = part.examples[0]
        shape = [sizes[part.axes[axis]] if axis in part.axes else size for axis, size in enumerate(example.shape)]
        if part.name == "attention_mask":
            given[part.name] = np.ones(shape, np.int64)
        elif part.name == "position_ids":
            given[part.name] = np.tile(np.arange(past, past + length), (batch, 1))
        elif example.is_floating_point():
            given[part.name] = generator.standard_normal(shape).astype(np.float32)
        else:
            given[part.name] = generator.integers(0, 2 if part.name == "token_type_ids" else 30, shape)
    return given


@pytest.mark.parametrize("runtime", list(Runtime))
def test_outputs_are_the_models(exported, runtime):
    name, out, file, result = exported
    model = model_of(name, out)
    given = given_to(result.signature, batch=5, length=13, past=0)
    wanted = {key: torch.from_numpy(x) for key, x in given.items() if not key.startswith("past_key_values")}
    with torch.no_grad():
        logits = model(**wanted).logits.numpy()
    found = run(runtime, file, result.signature, given)
    assert result.signature.outputs[0] == "logits"
    np.testing.assert_allclose(found[0], logits, atol=1e-4 * max(1, np.abs(logits).max()))


def test_only_standard_operators_and_blocks_in_them(exported):
    name, _, file, result = exported
    model = onnx.load(file)
    assert {node.domain for node in model.graph.node} == {""}
    assert [(part.domain, part.version) for part in model.opset_import] == [("", 20)]
    assert model.producer_name == "sapp"
    blocks = [form for form in result.forms if not form.is_dense]
    assert len(blocks) >= {"bert": 12, "vit": 8, "gpt2": 8, "llama": 14, "resnet": 3}[name]
    about = {part.key: part.value for part in model.metadata_props}
    assert json.loads(about["sapp_layers"]) == {form.name: form.as_json() for form in result.forms}
    sizes = {tuple(tensor.dims) for tensor in model.graph.initializer}
    part = next(iter(blocks)).module
    product = getattr(part, "product", part)
    assert all(tuple(group.weight.shape) in sizes for group in product.parts)  # no dense weight beside them
    assert result.difference <= 1e-4


def test_text_goes_on_from_the_cache(exported):
    """Half of a text, then the other half with the keys and values of the first, is the whole text."""
    name, out, file, result = exported
    if name not in ("gpt2", "llama"):
        assert not result.signature.caches
        return
    names = [part.name for part in result.signature.inputs]
    session = Runtime.ONNXRUNTIME.open(file, names)
    first = given_to(result.signature, batch=2, length=5, past=0)
    second = given_to(result.signature, batch=2, length=4, past=5)
    outputs = dict(zip(result.signature.outputs, session([first[name] for name in names]), strict=True))
    for name in names:
        if name.startswith("past_key_values"):
            second[name] = outputs[name.replace("past_key_values", "present")]
    found = session([second[name] for name in names])[0]
    whole = torch.from_numpy(np.concatenate([first["input_ids"], second["input_ids"]], 1))
    with torch.no_grad():
        wanted = model_of(exported[0], out)(input_ids=whole).logits[:, 5:].numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-4)


WITHOUT_US = """
import sys
for name in ("torch", "transformers", "sapp_cli", "safetensors"):
    sys.modules[name] = None
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
given = dict(np.load(sys.argv[2]))
np.save(sys.argv[3], session.run(["logits"], given)[0])
"""


def test_a_process_without_torch_and_sapp(exported, tmp_path):
    name, out, file, result = exported
    given = given_to(result.signature, batch=3, length=8, past=0)
    np.savez(tmp_path / "given.npz", **given)
    script = tmp_path / "script.py"
    script.write_text(WITHOUT_US)
    subprocess.run(
        [sys.executable, script, file, tmp_path / "given.npz", tmp_path / "logits.npy"], check=True, cwd=tmp_path
    )
    wanted = {key: torch.from_numpy(x) for key, x in given.items() if not key.startswith("past_key_values")}
    with torch.no_grad():
        logits = model_of(name, out)(**wanted).logits.numpy()
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), logits, atol=1e-4 * max(1, np.abs(logits).max()))


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    make_bert(folder / "source")
    with blocks_wherever_possible():
        return prune(folder / "source", folder / "out", min_blocks=8)


def test_weights_beside_the_file_and_replaced(bert, tmp_path, monkeypatch):
    """What lies beside belongs to the file: it goes when a smaller file takes its place."""
    file, weights = tmp_path / "model.onnx", tmp_path / "model.onnx.data"
    program = cache(lambda opset: graph.make_graph(signature_of(model_of("bert", bert)), opset))  # it takes a while
    monkeypatch.setattr(export, "make_graph", lambda signature, opset: program(18))
    most = graph.MOST_BYTES
    monkeypatch.setattr(graph, "MOST_BYTES", 1000)
    result = export_onnx(bert, file, opset=18)
    assert result.files == (file, weights)
    given = given_to(result.signature, batch=2, length=7, past=0)
    before = run(Runtime.ONNXRUNTIME, file, result.signature, given)[0]
    with pytest.raises(UsageError, match="exists already"):
        export_onnx(bert, file, opset=18)
    monkeypatch.setattr(graph, "MOST_BYTES", most)
    result = export_onnx(bert, file, opset=18, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    np.testing.assert_array_equal(run(Runtime.ONNXRUNTIME, file, result.signature, given)[0], before)


def test_measured_in_the_runtime(bert, tmp_path, monkeypatch):
    """Layers are measured with their own input; the measure alone says which form each has."""
    monkeypatch.setattr(load_room, "LEAST_WEIGHTS", 0)
    result = export_onnx(bert, tmp_path / "model.onnx", opset=20)
    assert result.runtime is Runtime.ONNXRUNTIME
    assert result.forms
    for form in result.forms:
        assert form.seconds is not None
        assert min(form.seconds.values()) > 0
        assert form.is_dense == (form.seconds["blocks"] >= choice.WORTHWHILE * form.seconds["dense"])
    assert result.as_json()["measured_in"].startswith("onnxruntime ")


def test_a_file_that_gives_something_else(exported, monkeypatch):
    """The check before the file takes its place: by a runtime, and by ONNX's own interpreter where none is installed."""
    _, _, file, result = exported
    signature = result.signature
    with torch.no_grad():
        right = [signature.module(*signature.example(number)) for number in signature.examples]
    wrong = [(first + 1e-3 * first.abs().max().clamp(min=1), *others) for first, *others in right]
    for runtime in (Runtime.ONNXRUNTIME, None):
        _, difference = export._check(file, signature, right, runtime)
        assert difference <= 1e-4
        with pytest.raises(AssertionError, match="differs from the model's by 1"):
            export._check(file, signature, wrong, runtime)


class Sorted(nn.Module):
    """A model of a user's, with an operator that ONNX does not have."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.inner = Inner()

    def forward(self, x):
        return self.inner(self.first(x))


class Inner(nn.Module):
    def forward(self, x):
        return torch.ops.aten.special_airy_ai(x)


def test_an_operator_that_onnx_does_not_have():
    examples = [Given(size, None, (torch.randn(size, 4),), {}) for size in (2, 3)]
    signature = signature_of_own(Sorted(), examples)
    assert [part.text for part in signature.inputs] == ["x float32 (batch, 4)"]
    with pytest.raises(
        UsageError, match=r"the operator aten\.special_airy_ai\S* of the layer 'inner' has no form in ONNX"
    ):
        graph.make_graph(signature, 20)


def test_a_model_that_cannot_be_recorded():
    class Branches(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    signature = signature_of_own(Branches(), [Given(size, None, (torch.ones(size, 4),), {}) for size in (2, 3)])
    with pytest.raises(UsageError, match=r"^Branches: torch\.export cannot record this model: "):
        graph.make_graph(signature, 20)


def test_a_model_that_gives_no_tensor():
    class Counts(nn.Module):
        def forward(self, x):
            return len(x)

    with pytest.raises(UsageError, match="the model returns a int with no tensor in it: nothing for a graph to give"):
        signature_of_own(Counts(), [Given(size, None, (torch.ones(size, 4),), {}) for size in (2, 3)])
