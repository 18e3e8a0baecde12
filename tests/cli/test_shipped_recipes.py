"""The shipped recipes, run small on real architectures and real files of every kind that they read."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits

from scripts import make_criteo, train_criteo
from scripts.make_checkpoints import make_bert, make_gpt2, make_llama, make_resnet, make_vit

SMALL = ("--steps", "12", "--block-size", "8", "--set", "prune.min_blocks=20", "--set", "data.batch_size=4")


@pytest.fixture(scope="module")
def sentences():
    """Plain sentences: the docstrings of this test's own libraries."""
    found = []
    for thing in (np, torch, json, load_digits):
        text = " ".join((thing.__doc__ or "").split())
        found += [part.strip() for part in text.split(". ") if 20 < len(part) < 200]
    return found


def prune(sapp, checkpoint, recipe, out, *more):
    ran = sapp("prune", checkpoint, "-r", recipe, "-o", out, "--json", *SMALL, *more)
    assert ran.code == 0, ran.err
    return ran.json


def test_text_classification_from_csv(sapp, tmp_path, sentences):
    make_bert(tmp_path / "bert")
    rows = [f'"{text.replace(chr(34), "")}",{len(text) % 3}' for text in sentences]
    (tmp_path / "train.csv").write_text("\n".join(["text,label", *rows]))
    (tmp_path / "dev.csv").write_text("\n".join(["text,label", *rows[:9]]))
    files = (
        "--set",
        f"data.files.train={tmp_path / 'train.csv'}",
        "--set",
        f"data.files.validation={tmp_path / 'dev.csv'}",
    )
    result = prune(sapp, tmp_path / "bert", "text-classification", tmp_path / "out", *files)
    assert set(result["metrics"]) == {"accuracy", "loss"}
    layers = json.loads((tmp_path / "out" / "sparsity.json").read_text())["layers"]
    pruned = [layer for layer in layers if layer["pruned"]]
    budgets = json.loads((tmp_path / "out" / "sparsity.json").read_text())["requested"]["budgets"]
    used = {name: budget["used"] / budget["limit"] for name, budget in budgets.items()}
    assert set(used) == {"parameters", "multiply_adds"}
    assert 0.98 <= max(used.values()) <= 1  # the pooler sees one token of each row: its blocks cost parameters alone
    assert len({layer["block_sparsity"] for layer in pruned}) > 3  # each layer has what its blocks are worth


@pytest.mark.parametrize("make", [make_gpt2, make_llama])
def test_causal_lm_from_text(sapp, tmp_path, sentences, make):
    make(tmp_path / "lm", torch.bfloat16)
    (tmp_path / "train.txt").write_text("\n".join(sentences))
    (tmp_path / "dev.txt").write_text("\n".join(sentences[:5]))
    files = (
        "--set",
        f"data.files.train={tmp_path / 'train.txt'}",
        "--set",
        f"data.files.validation={tmp_path / 'dev.txt'}",
    )
    length = ("--set", "data.max_length=32", "--precision", "bf16")
    result = prune(sapp, tmp_path / "lm", "causal-lm", tmp_path / "out", *files, *length)
    assert next(iter(result["metrics"])) == "perplexity"
    written = {
        name: t.dtype for path in (tmp_path / "out").glob("*.safetensors") for name, t in load_file(path).items()
    }
    assert set(written.values()) == {torch.bfloat16}


@pytest.mark.parametrize("make", [make_vit, make_resnet])
def test_image_classification_from_a_folder(sapp, tmp_path, make):
    make(tmp_path / "model")
    digits = load_digits()
    for index in range(24):
        folder = tmp_path / "images" / str(digits.target[index])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[index] * 15).astype(np.uint8)).resize((32, 32)).save(folder / f"{index}.png")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    names = {str(i): str(i) for i in range(len(config["id2label"]))}
    config["id2label"], config["label2id"] = names, {name: int(name) for name in names}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    if (tmp_path / "model" / "preprocessor_config.json").exists() and make is make_resnet:
        preprocessor = json.loads((tmp_path / "model" / "preprocessor_config.json").read_text())
        preprocessor["size"] = {"shortest_edge": 32}
        (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    settings = ("--set", f"data.files.train={tmp_path / 'images'}", "--set", "data.files.validation=null")
    result = prune(
        sapp, tmp_path / "model", "image-classification", tmp_path / "out", *settings, "--set", "data.workers=0"
    )
    assert set(result["metrics"]) == {"accuracy", "loss"}
    assert result["model"]["bytes_sparse"] < result["model"]["bytes_dense"]


def test_masked_lm_and_a_sparse_output_as_the_next_input(sapp, tmp_path, sentences):
    make_bert(tmp_path / "bert", head="ForMaskedLM")
    (tmp_path / "train.txt").write_text("\n".join(sentences))
    common = (
        *("--set", f"data.files.train={tmp_path / 'train.txt'}", "--set", "data.files.validation=null"),
        *("--set", "objective.task=masked-lm", "--set", "data.max_length=32"),
        *("--set", "prune.rules=[]"),
    )
    prune(sapp, tmp_path / "bert", "causal-lm", tmp_path / "first", *common, "--sparsity", "0.5", "--layout", "bsr")
    lock = ("--set", "prune.lock_zero_blocks=true")
    result = prune(sapp, tmp_path / "first", "causal-lm", tmp_path / "second", *common, *lock, "--sparsity", "0.75")
    first, second = (
        {layer["name"]: layer for layer in json.loads((tmp_path / out / "sparsity.json").read_text())["layers"]}
        for out in ("first", "second")
    )
    assert result["pruned_block_sparsity"] > 0.74
    assert all(second[name]["kept_blocks"] <= first[name]["kept_blocks"] for name in first if first[name]["pruned"])


def test_sentence_embedding(sapp, tmp_path, monkeypatch, sentences):
    make_bert(tmp_path / "bert", head="ForMaskedLM")
    config = json.loads((tmp_path / "bert" / "config.json").read_text())
    config["architectures"] = ["BertModel"]
    (tmp_path / "bert" / "config.json").write_text(json.dumps(config))
    (tmp_path / "train.txt").write_text("\n".join(sentences))
    (tmp_path / "dev.txt").write_text("\n".join(sentences[:6]))
    files = (
        "--set",
        f"data.files.train={tmp_path / 'train.txt'}",
        "--set",
        f"data.files.validation={tmp_path / 'dev.txt'}",
    )
    rules = ("--set", "prune.rules=[]")
    result = prune(sapp, tmp_path / "bert", "sentence-embedding", tmp_path / "out", *files, *rules)
    cosine = result["metrics"]["cosine"]
    assert cosine["dense"] == pytest.approx(1.0, abs=1e-5)
    assert 0 < cosine["pruned"] < 1
    again = sapp(
        "eval", tmp_path / "out", "-r", tmp_path / "out" / "recipe.yaml", "--teacher", tmp_path / "bert", "--json"
    )
    assert again.json["metrics"]["cosine"] == pytest.approx(cosine["pruned"], abs=1e-6)
    alone = sapp("eval", tmp_path / "out", "-r", tmp_path / "out" / "recipe.yaml")
    assert alone.code == 2
    assert "compares with a dense checkpoint; name it with --teacher" in alone.err


def test_a_state_dict_of_torch(sapp, digits, tmp_path):
    torch.save({"model": load_file(digits / "dense.safetensors"), "epoch": 1}, tmp_path / "net.pt")
    ran = sapp("prune", tmp_path / "net.pt", "-r", digits / "recipe.yaml", "-o", tmp_path / "out", "--steps", "12")
    assert ran.code == 0, ran.err
    assert set(load_file(tmp_path / "out" / "model.safetensors")) == set(load_file(digits / "dense.safetensors"))


def test_imagenet_resnet50_is_planned_without_its_data(sapp, tmp_path):
    make_resnet(tmp_path / "resnet", untrained=True)
    for block, target in (("32", 0.875), ("64", 0.743)):
        plan = sapp("plan", tmp_path / "resnet", "-r", "imagenet-resnet50", "--block-size", block, "--json").json
        assert round(plan["targets"]["prunable_sparsity"], 3) == target
        assert plan["schedule"]["steps"] is None
        assert len(plan["schedule"]["shares"]) == 21
        assert plan["layers"][-1]["name"] == "classifier.1.weight"
        assert plan["layers"][-1]["pruned"]
        assert "sparse phases compute densely: attention.pruned: literal" in plan["choices"]


def test_criteo_from_gzipped_logs(sapp, tmp_path):
    """The paper's timetable of ten rounds over two epochs of a small log, from an untrained network, to the same bytes."""
    make_criteo.main(["--out", str(tmp_path), "--rows", "2000", "--gzip"])
    train_criteo.main(["--out", str(tmp_path), "--buckets", "40"])
    settings = [
        *(f"data.files.train={tmp_path}/train.txt*", f"data.files.validation={tmp_path}/validation.txt.gz"),
        *("data.criteo={buckets: 40, shuffle_rows: 500}", "model.kwargs={buckets: 40}", "data.batch_size=30"),
        *("train.epochs=2", "optimizer.lr=3e-3"),
    ]
    sets = [part for setting in settings for part in ("--set", setting)]
    ran = sapp("prune", tmp_path / "untrained.safetensors", "-r", "criteo", "-o", tmp_path / "out", "--json", *sets)
    assert ran.code == 0, ran.err
    metrics = ran.json["metrics"]
    assert list(metrics) == ["logloss", "auc", "accuracy"]
    assert metrics["logloss"]["pruned"] < metrics["logloss"]["dense"]
    pruned = [layer for layer in ran.json["layers"] if layer["pruned"]]
    # ⌈400/10⌉ × ⌈390/10⌉ blocks of the first dense layer, and nothing else.
    assert [(layer["name"], layer["blocks"], layer["kept_blocks"]) for layer in pruned] == [
        ("layers.dense1.weight", 1560, 156)
    ]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["steps"], len(manifest["phases"])) == (120, 1 + 9 * 3 + 1 + 1)
