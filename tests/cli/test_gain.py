"""`sapp plan` without a recipe: what the model would gain. Latencies are not asserted, they differ with the machine."""

import jsonschema
import pytest
from safetensors.numpy import load_file

from sapp_cli.report.schema import sparsity_schema
from scripts.make_checkpoints import make_bert, make_gpt2, make_vit

EXAMPLE = {"gpt2": "128 tokens", "encoder": "128 tokens", "vit": "random pixels"}
BLOCK = {"gpt2": 16, "encoder": 8, "vit": 8}
MAKE = {
    "gpt2": make_gpt2,
    "encoder": lambda folder: make_bert(folder, head="Model"),
    "vit": make_vit,
}


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return make_bert(tmp_path_factory.mktemp("gain") / "bert")


@pytest.fixture
def bare(bert, tmp_path, monkeypatch):
    """The weights of that model alone; beside them a model.py that must not run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.safetensors").write_bytes((bert / "model.safetensors").read_bytes())
    for name in ("model.py", "objective.py"):
        (tmp_path / name).write_text("open('ran', 'w')\n")
    return tmp_path


@pytest.mark.parametrize("kind", EXAMPLE)
def test_a_folder_needs_no_recipe_and_no_data(sapp, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    MAKE[kind](tmp_path / "model")
    ran = sapp("plan", "model", "--json")
    assert ran.code == 0, ran.err
    jsonschema.validate(ran.json, sparsity_schema())
    latency = ran.json["expected_latency"]
    assert (latency["reason"], latency["example"]) == (None, EXAMPLE[kind])
    assert latency["dense"] > 0 and latency["speedup"] == latency["dense"] / latency["block_sparse"]
    assert [file.name for file in tmp_path.iterdir()] == ["model"]
    own, *others = ran.json["gains"]
    assert own["block"] == [BLOCK[kind]] * 2 and own["block"] not in [gain["block"] for gain in others]
    assert own["layers"] == sum(layer["pruned"] for layer in ran.json["layers"]) >= latency["layers"] > 0
    assert (own["bytes_dense"], own["bytes_sparse"]) == tuple(
        ran.json["model"][key] for key in ("bytes_dense", "bytes_sparse")
    )


def test_it_is_the_plan_of_the_recipe_that_init_writes(sapp, bert, tmp_path):
    recipe = tmp_path / "new.yaml"
    assert sapp("recipes", "init", bert, "-o", recipe).code == 0
    flags = ("--sparsity", "0.9", "--set", "prune.min_blocks=20", "--json")
    written, starter = sapp("plan", bert, "-r", recipe, *flags), sapp("plan", bert, "--no-time", *flags)
    first, second = written.json, starter.json
    del first["memory"], second["memory"]  # of the process
    assert second == first
    assert [gain["block"] for gain in second["gains"]] == [[8, 8], [16, 16]]


def test_the_closing_lines(sapp, bert):
    ran = sapp("plan", bert, "--block-size", "16", "--set", "prune.min_blocks=36", "--no-time")
    assert ran.err == (
        "no recipe given: using the one that `sapp recipes init` writes; to keep and change it: "
        f"sapp recipes init {bert} -o my-recipe.yaml\n"
    )
    heading, layers, size, smaller = ran.out.splitlines()[-4:]
    assert heading == "what you would gain, with 80.0 % of the blocks removed"
    # 9 of 96×96 (36 blocks), 4 of 96×192 (72); the output layer stays dense
    assert layers == "layers pruned     13 of 14, in 16×16 blocks"
    # removed: 9 × 29 and 4 × 58 blocks of 16·16 floats; added: indices of 4 bytes, one a kept block, one a row of blocks + 1
    dense = sum(tensor.nbytes for tensor in load_file(bert / "model.safetensors").values())
    indices = 4 * (9 * (7 + 7) + 2 * (14 + 7) + 2 * (14 + 13))
    sparse = dense - (9 * 29 + 4 * 58) * 1024 + indices
    assert size == (
        f"file size         {dense / 1e3:.0f} kB dense → at most {sparse / 1e3:.0f} kB block-sparse "
        f"({dense / sparse:.1f}× smaller)"
    )
    assert smaller.startswith("  with 8×8        at most ")
    assert smaller.endswith("; 13 layers pruned")


def test_the_latency_stands_at_the_end(sapp, bert):
    ran = sapp("plan", bert, "-q")
    latency, example, machine = ran.out.splitlines()[-3:]
    assert latency.startswith("expected latency  ") and latency.endswith("× as fast)")
    assert example.strip() == "one example (128 tokens), blocks left out at random"
    assert "torch" in machine
    assert ran.err == ""


def test_a_bare_file_is_judged_by_its_headers(sapp, bert, bare):
    """The same layers as the model has; its embeddings are known by their names."""
    ran, whole = sapp("plan", "net.safetensors", "--json"), sapp("plan", bert, "--no-time", "--json")
    assert ran.code == 0, ran.err
    jsonschema.validate(ran.json, sparsity_schema())
    assert ran.json["gains"] == whole.json["gains"]
    shown = {
        name: {layer["name"]: (layer["pruned"], layer["reason"], layer["bytes_sparse"]) for layer in found["layers"]}
        for name, found in (("bare", ran.json), ("whole", whole.json))
    }
    assert shown["bare"] == shown["whole"]
    text = sapp("plan", "net.safetensors").out
    assert text.splitlines()[-2:] == [
        "expected latency  not measured: this needs the model; write a function that returns it, and add",
        "                  --set model.factory=file.py:function, or model.factory in a recipe",
    ]
    assert "expected latency" not in sapp("plan", "net.safetensors", "--no-time").out
    assert not (bare / "ran").exists()


def test_recurrent_weights_of_a_bare_file_stay_dense(sapp, tmp_path):
    import torch
    from safetensors.torch import save_file
    from torch import nn

    network = nn.ModuleDict({"rnn": nn.LSTM(64, 128), "h": nn.Linear(128, 256), "conv": nn.Conv2d(32, 64, 3)})
    save_file(
        {name: tensor.to(torch.bfloat16) for name, tensor in network.state_dict().items()}, tmp_path / "n.safetensors"
    )
    layers = {layer["name"]: layer for layer in sapp("plan", tmp_path / "n.safetensors", "--json").json["layers"]}
    assert layers["rnn.weight_hh_l0"]["reason"] == "weights of LSTM, GRU and RNN are not supported"
    assert {name for name, layer in layers.items() if layer["pruned"]} == {"h.weight", "conv.weight"}
    assert (layers["conv.weight"]["layout"], layers["h.weight"]["layout"]) == ("conv", "linear")


def test_a_function_builds_the_model_of_a_bare_file(sapp, digits, tmp_path, monkeypatch):
    """Then all but the latency is known: what the model takes stands in no configuration."""
    factory = ("--set", f"model.factory={digits / 'digits.py'}:mlp")
    ran = sapp("plan", digits / "dense.safetensors", *factory, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["schedule"]["steps"] == 1000
    assert ran.json["expected_latency"]["reason"].startswith("what a ")
    assert ran.json["expected_latency"]["dense"] is None


def test_with_a_recipe_time_has_the_latency_too(sapp, digits):
    ran = sapp("plan", digits / "dense.safetensors", "-r", digits / "recipe.yaml", "--time", "--json")
    jsonschema.validate(ran.json, sparsity_schema())
    assert ran.json["expected_latency"]["example"] == "rows of the recipe's validation data"
    assert ran.json["time"]["total"] > 0


def test_a_target_without_a_recipe(sapp, bert):
    ran = sapp("plan", bert, "--target-size", "400kB", "--no-time", "--json")
    assert ran.code == 0, ran.err
    assert 350_000 < ran.json["gains"][0]["bytes_sparse"] <= 400_000


def test_the_recipe_is_printed_as_it_would_lie_in_the_current_folder(sapp, bare):
    printed = sapp("plan", "net.safetensors", "--print-config").out
    assert f"factory: {bare / 'model.py'}:build" in printed
