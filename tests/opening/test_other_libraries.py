"""sentence-transformers opens OUT/sparse; PEFT trains an adapter beside its blocks; a hook that fails harms nobody."""

from __future__ import annotations

import importlib
import sys
import types

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoModelForSequenceClassification

from sapp_cli.exporting import export
from sapp_cli.opening import import_hook
from sapp_cli.opening.registration import register_quantizer
from sapp_cli.runtime import load as load_room
from scripts.make_checkpoints import make_bert
from tests.opening.folders import BLOCK, make_output, prune_blocks, sparse_layers

THEIR_OWN = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
"""PEFT asks transformers for something that it wants to be rid of."""
IDS = torch.randint(5, 200, (2, 16), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True, scope="module")
def _small_layers_count():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load_room, "LEAST_WEIGHTS", 0)
        yield


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    make_bert(folder / "source", torch.float32)
    model = AutoModelForSequenceClassification.from_pretrained(folder / "source")
    return make_output(model, folder / "source", folder / "out")


def test_sentence_transformers_opens_the_folder(tmp_path):
    make_bert(tmp_path / "bert", torch.float32, head="Model")
    source = SentenceTransformer(str(tmp_path / "bert"), device="cpu")  # with mean pooling, as for any bare model
    prune_blocks(source[0].auto_model)
    source.save(str(tmp_path / "source"))
    export(tmp_path / "source", tmp_path / "out", "both", BLOCK)
    assert (tmp_path / "out" / "sparse" / "modules.json").is_file()
    model = SentenceTransformer(str(tmp_path / "out" / "sparse"), device="cpu")
    assert sparse_layers(model[0].auto_model)
    texts = ["one text", "another, longer text"]
    found, expected = (one.encode(texts, convert_to_tensor=True) for one in (model, source))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert "SentenceTransformer" in (tmp_path / "out" / "sparse" / "README.md").read_text()


@THEIR_OWN
def test_lora_trains_beside_the_blocks(out, tmp_path):
    base = AutoModelForSequenceClassification.from_pretrained(out / "sparse")
    before = {name: layer.weight for name, layer in sparse_layers(base).items()}
    with torch.no_grad():
        first = base(IDS).logits
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["query", "value"], task_type="SEQ_CLS"))
    with torch.no_grad():
        torch.testing.assert_close(
            model.eval()(IDS).logits, first, rtol=1e-4, atol=1e-5
        )  # B of an adapter starts at zero
    adapters = [parameter for name, parameter in model.named_parameters() if "lora_" in name]
    assert len(adapters) == 8
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], 0.5)
    losses = []
    for _ in range(6):
        loss = model(IDS, labels=torch.tensor([0, 1])).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    layers = sparse_layers(model)
    assert all(torch.equal(next(w for n, w in before.items() if n in name), one.weight) for name, one in layers.items())
    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(
        AutoModelForSequenceClassification.from_pretrained(out / "sparse"), tmp_path / "adapter"
    )
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-5)
    with pytest.raises(NotImplementedError, match="load the dense folder and merge the adapter there"):
        model.merge_and_unload()


@THEIR_OWN
def test_an_adapter_fits_the_dense_folder_too(out, tmp_path):
    model = get_peft_model(AutoModel.from_pretrained(out / "sparse"), LoraConfig(r=2, target_modules=["dense"]))
    model.save_pretrained(tmp_path / "adapter")
    dense = PeftModel.from_pretrained(AutoModel.from_pretrained(out), tmp_path / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(dense(IDS)[0], model.eval()(IDS)[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(dense.merge_and_unload()(IDS)[0], model(IDS)[0], rtol=1e-3, atol=1e-4)


def test_registering_twice_changes_nothing():
    auto = sys.modules["transformers.quantizers.auto"]
    known = auto.AUTO_QUANTIZER_MAPPING["sapp"]
    register_quantizer(auto)
    assert auto.AUTO_QUANTIZER_MAPPING["sapp"] is known
    import_hook.install()
    assert len([one for one in sys.meta_path if type(one).__name__ == "_Finder"]) == 1


@pytest.fixture
def module_to_register(tmp_path, monkeypatch):
    """The name of a module that the hook waits for."""
    name = "one_that_sapp_waits_for"
    (tmp_path / f"{name}.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    sys.modules.pop(name, None)


def test_the_hook_runs_after_the_module_and_at_each_import(module_to_register, monkeypatch):
    seen: list[types.ModuleType] = []
    monkeypatch.setitem(import_hook.ON_IMPORT, module_to_register, seen.append)
    first = importlib.import_module(module_to_register)
    assert seen == [first]
    assert first.value == 1
    assert importlib.import_module(module_to_register) is first
    assert len(seen) == 1
    importlib.reload(first)
    assert len(seen) == 2
    assert type(first.__loader__).__name__ == "SourceFileLoader"


def test_a_hook_that_fails_keeps_nobody_from_importing(module_to_register, monkeypatch):
    def fail(module):
        raise AttributeError("there is no such function in this version")

    monkeypatch.setitem(import_hook.ON_IMPORT, module_to_register, fail)
    with pytest.warns(RuntimeWarning, match="sapp cannot register with .*: there is no such function in this version"):
        assert importlib.import_module(module_to_register).value == 1
