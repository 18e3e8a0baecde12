"""`sapp bench`: both forms measured on real inputs, and what it refuses."""

import io
import json

import numpy as np
import pytest
import torch
from rich.console import Console
from transformers import ResNetConfig, ResNetForImageClassification

from sapp_cli.checkpoint.source import open_checkpoint
from sapp_cli.cli.bench_table import print_result
from sapp_cli.errors import UsageError
from sapp_cli.inputs.models import load_model
from sapp_cli.pipeline.evaluate import bench_inputs
from sapp_cli.recipe.load import load_recipe
from sapp_cli.recipe.prune_section import PruneSection
from sapp_cli.recipe.schema import ModelSection
from sapp_cli.runtime import bench_forms, example_inputs, load
from sapp_cli.runtime.bench_results import RandomMask, Settings
from sapp_cli.runtime.benchmark import bench
from sapp_cli.runtime.conv_choice import CONV_WAYS
from sapp_cli.runtime.heap import keep_freed_memory
from scripts.make_checkpoints import make_bert, make_gpt2, make_vit

QUICK = ("--seconds", "0", "--sequence-length", "16")


@pytest.fixture(autouse=True)
def small_layers_count(monkeypatch):
    monkeypatch.setattr(load, "LEAST_WEIGHTS", 0)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return make_bert(tmp_path_factory.mktemp("bench") / "bert", torch.float32)


def test_an_estimate_with_a_random_mask(sapp, bert):
    ran = sapp(
        "bench",
        bert,
        "--random-mask",
        "--block-size",
        "8",
        "--sparsity",
        "0.75",
        "--batch-size",
        "1,3",
        "--sequence-length",
        "16,24",
        "--seconds",
        "0",
        "--json",
    )
    assert ran.code == 0, ran.err
    result = ran.json
    assert (result["version"], result["checkpoint"]) == (1, str(bert))
    cases = [(model["batch_size"], model["sequence_length"]) for model in result["end_to_end"]]
    assert cases == [(1, 16), (1, 24), (3, 16), (3, 24)]
    assert result["end_to_end"][2]["inputs"]["input_ids"] == [3, 16]
    assert result["inputs"] == "random token ids"
    for model in result["end_to_end"]:
        assert 0 <= model["difference"] <= model["tolerance"] == 1e-4
        dense, sparse = model["dense"], model["block_sparse"]
        assert model["speedup"] == pytest.approx(dense["median"] / sparse["median"])
        assert sparse["throughput"] == pytest.approx(model["batch_size"] / sparse["median"])
    first = [layer for layer in result["layers"] if (layer["batch_size"], layer["sequence_length"]) == (1, 16)]
    names = [name for layer in first for name in layer["names"]]
    assert len(set(names)) == len(names) == result["replaced_layers"]
    query = next(layer for layer in result["layers"] if "bert.encoder.layer.0.attention.self.query" in layer["names"])
    assert (query["matrix"], query["block"], query["blocks"], query["kept_blocks"]) == ([96, 96], [8, 8], 144, 36)
    assert (query["kind"], query["batch_size"], query["rows"]) == ("linear", 1, 16)
    assert query["reason"].startswith(f"{query['way']} for 5–16 rows: ")
    machine = result["machine"]
    assert machine["torch"] == torch.__version__
    assert machine["threads"] == torch.get_num_threads()
    assert machine["keeps_freed_memory"] == (", freed memory kept, " in machine["text"]) == keep_freed_memory()
    model = load_model(open_checkpoint(bert), ModelSection()).model
    tensors = [*model.parameters(), *model.buffers()]
    assert result["weight_bytes"]["dense"] == sum(tensor.nbytes for tensor in tensors)
    assert result["weight_bytes"]["block_sparse"] > 0
    assert result["file_bytes"] == {"given": (bert / "model.safetensors").stat().st_size}


def test_the_table_says_what_was_measured(sapp, bert):
    ran = sapp("bench", bert, "--random-mask", "--block-size", "8x16", "--batch-size", "1", "--threads", "1", *QUICK)
    assert ran.code == 0, ran.err
    lines = ran.out.splitlines()
    assert lines[0].startswith("BertForSequenceClassification, ")
    assert " 1 thread, kernels for " in lines[1]
    assert lines[2] == "fp32, random token ids; medians ± half the interquartile range"
    assert lines[3] == "blocks left out at random: an estimate of speed; the outputs mean nothing"
    heads = next(line for line in lines if "speed-up" in line)
    shown = "batch 1, 16 tokens weight block kept rows dense ± block-sparse ± speed-up way"
    assert heads.split() == shown.split()
    layer = next(line for line in lines if "192×96" in line).split()
    assert layer[1:7] == ["×2", "192×96", "8×16", "9.7", "%", "16"]  # 14 of 144 blocks
    total = next(line for line in lines if line.startswith("whole model"))
    assert total.rstrip().endswith("×")
    assert lines[-1].startswith("weights on disk: ")
    assert "layers block-sparse" in ran.err


@pytest.mark.parametrize("width", [80, 60, 200])
def test_the_table_fits_the_terminal(bert, width):
    result = bench(bert, Settings((1,), (16,), RandomMask((8, 8), 0.75), seconds=0))
    console = Console(width=width, record=True, file=io.StringIO())
    print_result(console, result)
    rows = [line for line in console.export_text().splitlines() if "×" in line]
    assert max(map(len, rows)) <= width
    assert " ×8 " in rows[0]  # query, key, value, output of two layers
    assert (" 96×96 " in rows[0]) == (width > 60)
    assert ("± " in rows[0]) == (width == 200)


def test_layers_that_stay_dense_are_named_with_the_reason(sapp, bert, monkeypatch):
    ran = sapp("bench", bert, "--random-mask", "--block-size", "8", "--sparsity", "0.25", "--batch-size", "1", *QUICK)
    assert ran.code == 2
    assert "nothing to compare" in ran.err  # of all layers more than 70 % of the blocks are kept
    monkeypatch.setattr(load, "LEAST_WEIGHTS", 10_000)
    result = bench(bert, Settings((1,), (16,), RandomMask((8, 8), 0.9), seconds=0))
    assert len(result.kept_dense) == 9
    console = Console(width=160, record=True, file=io.StringIO())
    print_result(console, result)
    line = "dense all the same: bert.encoder.layer.0.attention.self.query and 8 more: it has 9,216 weights only\n"
    assert line in console.export_text()


def test_bfloat16(bert):
    settings = Settings((2,), (16,), RandomMask((8, 8), 0.75), bf16=True, seconds=0)
    result = bench(bert, settings)
    assert result.models[0].tolerance == 5e-2
    assert result.models[0].difference <= 5e-2


def test_images(tmp_path):
    vit = make_vit(tmp_path / "vit", torch.float32)
    result = bench(vit, Settings((2,), random_mask=RandomMask((8, 8), 0.75), seconds=0))
    assert result.models[0].inputs == {"pixel_values": [2, 3, 32, 32]}


def test_gpt2_whose_weights_are_stored_in_by_out(tmp_path):
    gpt2 = make_gpt2(tmp_path / "gpt2", torch.float32)
    result = bench(gpt2, Settings((1,), (16,), RandomMask((8, 8), 0.75), seconds=0))
    names = {name for layer in result.layers for name in layer.names}
    assert any(name.endswith("attn.c_attn") for name in names)
    assert len(names) == result.replaced


def test_outputs_that_differ_are_never_timed(bert, monkeypatch):
    monkeypatch.setitem(bench_forms.TOLERANCES, torch.float32, -1.0)
    with pytest.raises(AssertionError, match="the dense and the block-sparse outputs differ by"):
        bench(bert, Settings((1,), (16,), RandomMask((8, 8), 0.75), seconds=0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--batch-size", "1,0"), "'1,0' is no list of batch sizes; write 1,8"),
        (("--sequence-length", "x"), "'x' is no list of lengths; write 64,512"),
        (("--set", "a=1"), "it changes a recipe; name one with -r"),
        (("-r", "digits", "--sequence-length", "64"), "the recipe's data have lengths of their own"),
        (("--random-mask", "--save"), "says nothing about the checkpoint's own weights; leave one of them out"),
        (("--save",), "--save puts the result into an output of sapp, and this is none; take --json instead"),
        (("--device", "cuda"), "--device cuda: torch sees no GPU here; take --device cpu"),
        (("--sparsity", "0.9"), "they go with --random-mask"),
        (("--random-mask", "--sparsity", "1"), "1 is no share between 0 and 1"),
        (("--random-mask", "--block-size", "big"), "'big' is no block; write 16, or 16x32"),
        (
            ("--random-mask", "--block-size", "4", "--sequence-length", "100000"),
            "--sequence-length 100000: this model takes",
        ),
        (("--random-mask", "--block-size", "48"), "larger than its 3×96 matrix; take a smaller --block-size"),
        ((), "so there is nothing to compare; give an output of `sapp prune`, or estimate with --random-mask"),
    ],
)
def test_what_cannot_work_is_refused(sapp, bert, arguments, message):
    ran = sapp("bench", bert, *arguments)
    assert ran.code == 2
    assert message in " ".join(ran.err.replace("│", " ").split())
    assert ran.out == ""


def test_a_model_of_unknown_inputs_is_refused():
    with pytest.raises(UsageError, match=r"what a Linear takes as input is not known: .* give a recipe"):
        example_inputs.example_inputs(torch.nn.Linear(1, 1), 1, 1)


def test_a_model_of_a_recipe_is_measured_with_its_data(sapp, digits):
    """No Hugging Face folder: the recipe's factory builds the model, its validation rows are what it gets."""
    ran = sapp(
        *("bench", digits / "dense.safetensors", "-r", digits / "recipe.yaml", "--random-mask", "--json"),
        *("--batch-size", "1,500", "--seconds", "0"),
    )
    assert ran.code == 0, ran.err
    result = ran.json
    assert result["inputs"] == "rows of the recipe's validation data"
    assert [model["inputs"] for model in result["end_to_end"]] == [{"0": [1, 64]}, {"0": [500, 64]}]
    assert [model["sequence_length"] for model in result["end_to_end"]] == [None, None]
    # Block size, sparsity and rules are the recipe's: hidden1 and hidden2 in blocks of 8×8, output stays dense.
    assert {(name, *layer["block"], layer["kept_blocks"]) for layer in result["layers"] for name in layer["names"]} == {
        ("hidden1", 8, 8, 51),
        ("hidden2", 8, 8, 409),
    }


def test_rows_come_evenly_spaced_and_again_where_there_are_few(digits):
    recipe = load_recipe(str(digits / "recipe.yaml"), [], {})
    _, inputs = bench_inputs(recipe, digits / "dense.safetensors", (3, 500))
    few, many = (given.positional[0] for given in inputs.given(None))
    rows = torch.from_numpy(np.load(digits / "data" / "validation.npz")["inputs"])
    assert torch.equal(few, rows[[0, len(rows) // 3, 2 * len(rows) // 3]])
    assert len(many) == 500 > len(rows)
    assert torch.equal(many[-1], rows[-1])


def test_convolutions_have_rows_of_their_own(tmp_path):
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=16, hidden_sizes=[32, 64], depths=[1, 2], num_labels=10)
    ResNetForImageClassification(config).save_pretrained(tmp_path / "resnet")
    section = PruneSection(min_blocks=4)
    settings = Settings((2,), random_mask=RandomMask((8, 8), 0.75), seconds=0)
    result = bench(tmp_path / "resnet", settings, section=section)
    layers = {name: layer for layer in result.layers for name in layer.names}
    assert len(layers) == result.replaced
    layer = layers["resnet.encoder.stages.1.layers.1.layer.1.convolution"]
    assert (layer.kind, layer.matrix, layer.rows) == ("conv", (16, 9 * 16), 2 * 28 * 28)
    assert layer.way in CONV_WAYS
    (model,) = result.models
    assert set(model.memory_formats) == {"dense", "block_sparse"}
    assert set(model.memory_formats.values()) <= {"contiguous", "channels-last"}
    total = sum(tensor.nbytes for tensor in ResNetForImageClassification(config).state_dict().values())
    assert result.weight_bytes["dense"] == total
    assert json.dumps(result.as_json())


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (torch.ones(2), 1),
        ({"ids": torch.zeros(2, dtype=torch.int64), "logits": torch.full((2,), 3.0)}, 3),
        (([torch.full((1,), 4.0)], torch.ones(1)), 4),
    ],
    ids=["tensor", "mapping", "nested"],
)
def test_the_first_floating_tensor_is_compared(output, expected):
    assert bench_forms.main_output(output)[0] == expected


def test_an_output_without_floating_tensors_is_refused():
    with pytest.raises(UsageError, match="the model returns a tuple with no floating tensor in it"):
        bench_forms.main_output((torch.zeros(1, dtype=torch.int64), None))
