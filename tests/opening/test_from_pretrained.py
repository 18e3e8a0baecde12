"""transformers opens OUT/sparse: block-sparse layers, the dense model's outputs, and folders that it saves again."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertModel,
    Trainer,
    TrainingArguments,
    pipeline,
)
from transformers.utils import hub

import sapp_cli as sapp
from sapp_cli.checkpoint.source import open_checkpoint
from sapp_cli.errors import CheckpointError
from sapp_cli.exporting import export
from sapp_cli.runtime import load as load_room
from scripts.make_checkpoints import make_bert, make_gpt2, make_vit
from tests.opening.folders import make_output, sparse_layers

IDS = torch.randint(5, 200, (2, 16), generator=torch.Generator().manual_seed(0))
PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True, scope="module")
def _small_layers_count():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load_room, "LEAST_WEIGHTS", 0)
        patch.setattr(load_room, "LEAST_CONV_WEIGHTS", 0)
        yield


KINDS = {
    "bert": (make_bert, AutoModelForSequenceClassification, {"input_ids": IDS}),
    "gpt2": (make_gpt2, AutoModelForCausalLM, {"input_ids": IDS}),  # Conv1D; its output layer is tied
    "vit": (make_vit, AutoModelForImageClassification, {"pixel_values": PIXELS}),  # begins with a convolution
}


@pytest.fixture(scope="module", params=KINDS)
def made(request, tmp_path_factory):
    """(OUT, the Auto class, what the model is called with)."""
    make, auto_class, inputs = KINDS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    make(folder / "source", torch.float32)
    return (
        make_output(auto_class.from_pretrained(folder / "source"), folder / "source", folder / "out"),
        auto_class,
        inputs,
    )


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    make_bert(folder / "source", torch.float32)
    model = AutoModelForSequenceClassification.from_pretrained(folder / "source")
    return make_output(model, folder / "source", folder / "out")


def outputs(model, inputs):
    with torch.inference_mode():
        return model(**inputs)[0]


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_model_computes_with_blocks(made):
    out, auto_class, inputs = made
    dense, (model, info) = (
        auto_class.from_pretrained(out),
        auto_class.from_pretrained(out / "sparse", output_loading_info=True),
    )
    assert not any(info.values())  # nothing missing, nothing unexpected, no other shapes
    stored = open_checkpoint(out / "sparse").block_sparse.values()
    assert len(sparse_layers(model)) == len(stored)
    assert sum(layer.grid.count for layer in sparse_layers(model).values()) == sum(entry.grid.count for entry in stored)
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())
    assert sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers())) < sum(
        tensor.nbytes for tensor in dense.parameters()
    )
    close(outputs(model, inputs), outputs(dense, inputs))


def test_what_save_pretrained_writes_is_opened_again(made, tmp_path):
    out, auto_class, inputs = made
    model = auto_class.from_pretrained(out / "sparse")
    model.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["quantization_config"] == {
        "quant_method": "sapp"
    }
    ours, theirs = open_checkpoint(tmp_path / "again"), open_checkpoint(out / "sparse")
    assert ours.block_sparse.keys() == theirs.block_sparse.keys()
    for name in theirs.block_sparse:
        assert ours.dense_array(name).tobytes() == theirs.dense_array(name).tobytes()
    again = auto_class.from_pretrained(tmp_path / "again")
    assert sparse_layers(again).keys() == sparse_layers(model).keys()
    close(outputs(again, inputs), outputs(model, inputs))
    close(outputs(sapp.load(tmp_path / "again"), inputs), outputs(model, inputs))


def test_push_to_hub_would_upload_that_folder(bert, tmp_path, monkeypatch):
    """Only the two calls that speak to the hub are replaced."""
    uploaded: dict[str, bytes] = {}

    class Hub:
        def create_repo(self, repo_id, **_):
            return types.SimpleNamespace(repo_id=repo_id)

        def create_commit(self, *, operations, **_):
            uploaded.update({one.path_in_repo: Path(one.path_or_fileobj).read_bytes() for one in operations})

    monkeypatch.setattr(hub, "hf_api", Hub)
    monkeypatch.setattr(hub, "create_and_tag_model_card", lambda *_, **__: ModelCard("---\ntags: []\n---\n"))
    AutoModelForSequenceClassification.from_pretrained(bert / "sparse").push_to_hub("me/mine")
    for name, content in uploaded.items():
        (tmp_path / name).write_bytes(content)
    assert uploaded.keys() == {"README.md", "config.json", "model.safetensors"}
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert sparse_layers(model)


def test_sapp_load_takes_the_folder_alone(made):
    out, auto_class, inputs = made
    expected = outputs(auto_class.from_pretrained(out), inputs)
    for path in (out, out / "sparse"):
        model = sapp.load(path)
        assert sparse_layers(model)
        close(outputs(model, inputs), expected)


def test_the_readers_see_no_markers(made, tmp_path):
    out, _, _ = made
    with safe_open(out / "sparse" / "model.safetensors", "np") as file:
        markers = [name for name in file.keys() if 0 in file.get_slice(name).get_shape()]  # noqa: SIM118
    sparse, dense = open_checkpoint(out / "sparse" / "model.safetensors"), open_checkpoint(out / "model.safetensors")
    assert set(markers) == set(sparse.block_sparse)
    assert set(sparse.dense_names()) | set(sparse.tied) == set(dense.dense_names()) | set(dense.tied)
    assert sparse.bytes < dense.bytes
    export(out / "sparse", tmp_path / "dense", "dense")
    assert (tmp_path / "dense" / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    assert "quantization_config" not in json.loads((tmp_path / "dense" / "config.json").read_text())


def test_a_folder_that_was_moved_is_a_checkpoint_of_its_own(bert, tmp_path):
    moved = tmp_path / "published"
    moved.mkdir()
    for file in (bert / "sparse").iterdir():
        (moved / file.name).write_bytes(file.read_bytes())
    close(outputs(sapp.load(moved), {"input_ids": IDS}), outputs(sapp.load(bert), {"input_ids": IDS}))
    export(moved, tmp_path / "dense", "dense")
    model, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "dense", output_loading_info=True)
    assert not any(info.values())
    assert not hasattr(model.config, "quantization_config")


def test_the_bare_model_and_back(bert, tmp_path):
    whole = AutoModelForSequenceClassification.from_pretrained(bert / "sparse")
    bare = AutoModel.from_pretrained(bert / "sparse")
    with torch.inference_mode():
        close(bare(IDS)[0], whole.bert(IDS)[0])
    bare.save_pretrained(tmp_path / "bare")
    again, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "bare", output_loading_info=True)
    assert info["missing_keys"] == {"classifier.weight", "classifier.bias"}
    with torch.inference_mode():
        close(again.bert(IDS)[0], whole.bert(IDS)[0])


def test_other_labels_start_anew(bert):
    model = AutoModelForSequenceClassification.from_pretrained(
        bert / "sparse", num_labels=7, ignore_mismatched_sizes=True
    )
    assert model.classifier.weight.shape == (7, 96)
    assert sparse_layers(model)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModelForSequenceClassification.from_pretrained(bert / "sparse", num_labels=7)


def test_a_pruned_weight_of_another_shape_is_an_error(bert):
    with pytest.raises(CheckpointError, match=r"intermediate.dense.weight' is \(192, 96\), the model wants \(64, 96\)"):
        AutoModel.from_pretrained(bert / "sparse", intermediate_size=64, ignore_mismatched_sizes=True)


def test_dtypes(bert):
    model = AutoModelForSequenceClassification.from_pretrained(bert / "sparse", dtype=torch.bfloat16)
    assert {layer.values.dtype for layer in sparse_layers(model).values()} == {torch.bfloat16}
    dense = AutoModelForSequenceClassification.from_pretrained(bert, dtype=torch.bfloat16)
    torch.testing.assert_close(
        outputs(model, {"input_ids": IDS}), outputs(dense, {"input_ids": IDS}), rtol=0.05, atol=0.05
    )


def test_tied_weights_stay_dense_and_tied(tmp_path):
    make_bert(tmp_path / "source", torch.float32, head="ForMaskedLM")
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "source")
    model.bert.embeddings.word_embeddings.weight.data[:, 8:].zero_()
    out = make_output(model, tmp_path / "source", tmp_path / "out")
    assert "bert.embeddings.word_embeddings.weight" in open_checkpoint(out / "sparse").block_sparse
    found = AutoModelForMaskedLM.from_pretrained(out / "sparse")
    assert found.cls.predictions.decoder.weight is found.bert.embeddings.word_embeddings.weight
    close(outputs(found, {"input_ids": IDS}), outputs(AutoModelForMaskedLM.from_pretrained(out), {"input_ids": IDS}))


def test_what_is_small_stays_dense_and_is_named(bert, caplog, monkeypatch):
    monkeypatch.setattr(load_room, "LEAST_WEIGHTS", 1 << 14)
    with caplog.at_level("WARNING", "sapp"):
        model = AutoModelForSequenceClassification.from_pretrained(bert / "sparse")
    assert "9 pruned layers stay dense" in caplog.text
    close(
        outputs(model, {"input_ids": IDS}),
        outputs(AutoModelForSequenceClassification.from_pretrained(bert), {"input_ids": IDS}),
    )


def test_shards(tmp_path):
    make_bert(tmp_path / "source", torch.float32)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "source")
    out = make_output(model, tmp_path / "source", tmp_path / "out", max_shard_bytes=300_000)
    assert len(list((out / "sparse").glob("*.safetensors"))) > 1
    found = AutoModelForSequenceClassification.from_pretrained(out / "sparse")
    close(
        outputs(found, {"input_ids": IDS}),
        outputs(AutoModelForSequenceClassification.from_pretrained(out), {"input_ids": IDS}),
    )


def test_a_pipeline(bert):
    ours, theirs = (pipeline("text-classification", model=str(path)) for path in (bert / "sparse", bert))
    assert sparse_layers(ours.model)
    ours, theirs = ours("a text"), theirs("a text")
    assert ours[0]["label"] == theirs[0]["label"]
    assert ours[0]["score"] == pytest.approx(theirs[0]["score"], rel=1e-4)


def test_the_trainer_evaluates(bert, tmp_path):
    rows = [{"input_ids": ids, "labels": 0} for ids in IDS]
    losses = []
    for path in (bert / "sparse", bert):
        model = AutoModelForSequenceClassification.from_pretrained(path)
        arguments = TrainingArguments(str(tmp_path / "run"), report_to=[], use_cpu=True, disable_tqdm=True)
        losses.append(Trainer(model, arguments, eval_dataset=rows).evaluate()["eval_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_state_dict_alone_is_refused(bert):
    config = AutoConfig.from_pretrained(bert / "sparse")
    with pytest.raises(ValueError, match="read from their files, not from a state_dict"):
        BertModel.from_pretrained(None, config=config, state_dict={"a": torch.ones(1)})


def test_weights_without_a_marker_are_refused(bert, tmp_path):
    from safetensors.torch import load_file, save_file

    old = tmp_path / "old"
    old.mkdir()
    (old / "config.json").write_bytes((bert / "sparse" / "config.json").read_bytes())
    state = {name: one for name, one in load_file(bert / "sparse" / "model.safetensors").items() if one.numel()}
    about = open_checkpoint(bert / "sparse").metadata("bert.pooler.dense.weight")
    save_file(state, old / "model.safetensors", {**about, "sapp_bsr_version": "1"})
    with pytest.raises(CheckpointError, match="has no marker, expected one"):
        AutoModel.from_pretrained(old)
    assert sparse_layers(sapp.load(old))


WITHOUT = """
import sys


class Hidden:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "sapp_cli":
            raise ImportError("sapp is not installed here")


sys.meta_path.insert(0, Hidden())
from transformers import AutoModel, AutoModelForSequenceClassification
for auto in (AutoModel, AutoModelForSequenceClassification):
    try:
        auto.from_pretrained(sys.argv[1])
    except RuntimeError as error:
        print("raised:", error)
assert "sapp_cli" not in sys.modules
"""


def test_without_sapp_nothing_is_filled_with_random_numbers(bert, tmp_path):
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(bert / "sparse")],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        timeout=600,
    )
    assert ran.stdout.count("raised:") == 2
    assert "ignore_mismatched_sizes" in ran.stdout


WITH = """
import sys
import sapp_cli
assert not {"torch", "transformers", "numpy"} & set(sys.modules)
if sys.argv[2] == "late":
    del sys.modules["sapp_cli"], sys.modules["sapp_cli.opening.import_hook"]
    sys.meta_path.pop(0)
    import transformers.quantizers.auto
    assert "sapp" not in transformers.quantizers.auto.AUTO_QUANTIZER_MAPPING
    import sapp_cli
    assert "sapp" in transformers.quantizers.auto.AUTO_QUANTIZER_MAPPING
from transformers import AutoModel
model = AutoModel.from_pretrained(sys.argv[1])
print(sorted({type(one).__name__ for one in model.modules() if "Sparse" in type(one).__name__}))
"""


@pytest.mark.parametrize("order", ["first", "late"])
def test_either_may_be_imported_first(bert, order):
    ran = subprocess.run(
        [sys.executable, "-c", WITH, str(bert / "sparse"), order],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "['BlockSparseLinear']\n"
