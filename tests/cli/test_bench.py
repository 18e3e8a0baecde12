"""`sapp bench`: both forms measured on real inputs, and what it refuses."""

import pytest
import torch

from sapp_cli.checkpoint.source import open_checkpoint
from sapp_cli.cli.bench import time_text
from sapp_cli.inputs.models import load_model
from sapp_cli.recipe.schema import ModelSection
from sapp_cli.runtime import benchmark, example_inputs
from sapp_cli.runtime.bench_results import RandomMask, Settings
from sapp_cli.runtime.benchmark import bench
from scripts.make_checkpoints import make_bert, make_gpt2, make_vit

QUICK = ("--seconds", "0", "--sequence-length", "16")


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
        *QUICK,
        "--json",
    )
    assert ran.code == 0, ran.err
    result = ran.json
    assert (result["version"], result["checkpoint"]) == (1, str(bert))
    assert [model["batch_size"] for model in result["end_to_end"]] == [1, 3]
    assert result["end_to_end"][1]["inputs"]["input_ids"] == [3, 16]
    for model in result["end_to_end"]:
        assert 0 <= model["difference"] <= model["tolerance"] == 1e-4
        dense, sparse = model["dense"], model["block_sparse"]
        assert model["speedup"] == pytest.approx(dense["median"] / sparse["median"])
        assert sparse["throughput"] == pytest.approx(model["batch_size"] / sparse["median"])
    names = [name for layer in result["layers"] if layer["batch_size"] == 1 for name in layer["names"]]
    assert len(set(names)) == len(names) == result["replaced_layers"]
    query = next(layer for layer in result["layers"] if "bert.encoder.layer.0.attention.self.query" in layer["names"])
    assert (query["matrix"], query["block"], query["blocks"], query["kept_blocks"]) == ([96, 96], [8, 8], 144, 36)
    assert (query["batch_size"], query["rows"]) == (1, 16)
    assert query["reason"].startswith(f"{query['way']} for 5–16 rows: ")
    machine = result["machine"]
    assert machine["torch"] == torch.__version__
    assert machine["threads"] == torch.get_num_threads()
    model = load_model(open_checkpoint(bert), ModelSection()).model
    tensors = [*model.parameters(), *model.buffers()]
    assert result["weight_bytes"]["dense"] == sum(tensor.nbytes for tensor in tensors)
    assert result["weight_bytes"]["block_sparse"] > 0
    assert result["file_bytes"] == {"given": (bert / "model.safetensors").stat().st_size}


def test_the_table_says_what_was_measured(sapp, bert):
    ran = sapp("bench", bert, "--random-mask", "--block-size", "8x16", "--batch-size", "1", "--threads", "1", *QUICK)
    assert ran.code == 0, ran.err
    lines = ran.out.splitlines()
    assert "BertForSequenceClassification" in lines[0]
    assert "1 threads" in lines[1]
    assert lines[2] == "blocks left out at random: an estimate of speed; the outputs mean nothing"
    assert "speed-up" in lines[4]
    assert "192×96" in lines[5]
    assert "8×16" in lines[5]
    assert lines[-1].startswith("weights on disk: ")
    assert "layers block-sparse" in ran.err


def test_bfloat16(bert):
    settings = Settings((2,), 16, RandomMask((8, 8), 0.75), bf16=True, seconds=0)
    result = bench(bert, settings)
    assert result.models[0].tolerance == 5e-2
    assert result.models[0].difference <= 5e-2


def test_images(tmp_path):
    vit = make_vit(tmp_path / "vit", torch.float32)
    result = bench(vit, Settings((2,), random_mask=RandomMask((8, 8), 0.75), seconds=0))
    assert result.models[0].inputs == {"pixel_values": [2, 3, 32, 32]}


def test_gpt2_whose_weights_are_stored_in_by_out(tmp_path):
    gpt2 = make_gpt2(tmp_path / "gpt2", torch.float32)
    result = bench(gpt2, Settings((1,), 16, RandomMask((8, 8), 0.75), seconds=0))
    names = {name for layer in result.layers for name in layer.names}
    assert any(name.endswith("attn.c_attn") for name in names)
    assert len(names) == result.replaced


def test_outputs_that_differ_are_never_timed(bert, monkeypatch):
    monkeypatch.setitem(benchmark.TOLERANCES, torch.float32, -1.0)
    with pytest.raises(AssertionError, match="the dense and the block-sparse outputs differ by"):
        bench(bert, Settings((1,), 16, RandomMask((8, 8), 0.75), seconds=0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--batch-size", "1,0"), "'1,0' is no list of batch sizes; write 1,8"),
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
    from sapp_cli.errors import UsageError

    with pytest.raises(UsageError, match="what a Linear takes as input is not known"):
        example_inputs.example_inputs(torch.nn.Linear(1, 1), 1, 1)


@pytest.mark.parametrize(
    ("seconds", "text"), [(1.5, "1.50 s"), (0.0123, "12.3 ms"), (2.5e-4, "250 µs"), (4e-7, "0.40 µs")]
)
def test_times_have_three_digits(seconds, text):
    assert time_text(seconds) == text
