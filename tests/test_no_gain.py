"""Layers that are not faster block-sparse: the rule by hand, and what plan, allocation and report make of it."""

import json
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from torch import nn

from sapp_cli.core.budgets import within_budgets
from sapp_cli.costs import count_layers, multiply_adds_of_blocks, picoseconds_of_blocks
from sapp_cli.grid import BlockGrid
from sapp_cli.layers import decide_layers
from sapp_cli.layers.no_gain import run_of, why_no_gain
from sapp_cli.pruner.decisions import block_costs
from sapp_cli.recipe.prune_section import PruneSection
from sapp_cli.runtime.layer_times import LayerTime

MARK = "block-sparse is not faster here"


@pytest.mark.parametrize(
    ("block", "kept", "gains"),
    [
        # of 960 columns and rows: r/12 of the blocks
        ((1, 16), Fraction(1, 10), False),
        ((1, 16), Fraction(1, 12), True),
        ((2, 16), Fraction(1, 5), False),
        ((2, 16), Fraction(1, 10), True),
        ((4, 1), Fraction(1, 10), True),
        ((4, 1), Fraction(1, 2), False),
        ((8, 8), Fraction(1, 2), True),
        ((16, 1), Fraction(9, 10), True),
    ],
)
def test_low_blocks_gain_only_where_few_are_kept(block, kept, gains):
    grid = BlockGrid((960, 960), block)
    why = why_no_gain(grid, int(kept * grid.count), None)
    assert (why is None) == gains
    if not gains:
        rows = {1: "1 row gain only where at most 8.3 %", 2: "2 rows gain only where at most 16.7 %"}
        assert why == f"blocks of {rows.get(block[0], '4 rows gain only where at most 33.3 %')} are kept"


@pytest.mark.parametrize(
    ("conv", "run", "block", "why"),
    [
        (nn.Conv2d(1, 64, 3), 3, 8, "its windows are copied in runs of 3 values, for 64 outputs only"),
        (nn.Conv2d(1, 64, (9, 1)), 1, 3, "its windows are copied in runs of 1 value, for 64 outputs only"),
        (nn.Conv2d(3, 64, 3, dilation=2), 3, 9, "its windows are copied in runs of 3 values, for 64 outputs only"),
        (nn.Conv2d(1, 128, 3), 3, 8, None),  # more to multiply for each copy
        (nn.Conv2d(1, 64, 3), 3, 3, None),  # a block is a run
        (nn.Conv2d(3, 64, 3), 9, 16, None),
        (nn.Conv2d(64, 64, 1), 64, 16, None),
        (nn.Conv1d(1, 64, 512, stride=4), 512, 16, None),  # the whole window lies together
        (
            nn.Conv1d(1, 64, 512, stride=4, dilation=3),
            1,
            16,
            "its windows are copied in runs of 1 value, for 64 outputs only",
        ),
    ],
)
def test_convolutions_whose_windows_are_copied_value_by_value(conv, run, block, why):
    assert run_of(conv) == run
    grid = BlockGrid((conv.out_channels, conv.weight[0].numel()), (16, block))
    assert why_no_gain(grid, 1, run) == why


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 48, bias=False), nn.Linear(48, 24, bias=False))


SETTINGS = PruneSection.model_validate(
    {
        "block_size": [8, 8],
        "sparsity": 0.75,
        "min_blocks": 1,
        "floor": 0,
        "rules": [{"match": "0.*", "block_size": [1, 16]}],  # 96 blocks of 1×16; the other has 18 of 8×8
    }
)


def test_its_multiply_adds_are_no_part_of_the_budget():
    network = model()
    layers = decide_layers(network, SETTINGS)
    assert [layer.no_gain is None for layer in layers] == [False, True]
    assert layers[0].reason == f"rule '0.*'; {MARK}: blocks of 1 row gain only where at most 8.3 % are kept"
    work = count_layers(network, layers, lambda: network(torch.ones(1, 32)))
    costs = multiply_adds_of_blocks(layers, work)
    assert costs == {"0.weight": 0, "1.weight": 64}
    # The first layer's scores are far above: with multiply-adds of its own it would take those of the second as well.
    both = block_costs(layers, SETTINGS, costs)
    counts = {layer.name: layer.kept_count for layer in layers}
    assert counts == {"0.weight": 24, "1.weight": 4}  # 96 − ⌈72⌉, 18 − ⌈13.5⌉
    scores = {"0.weight": torch.rand(48, 2) + 9, "1.weight": torch.rand(3, 6)}
    kept = within_budgets(scores, counts, both, {"0.weight": 1, "1.weight": 1})
    numbers = {name: int(keep.sum()) for name, keep in kept.items()}
    # Parameters alone limit it: 24·16 + 4·64 = 640 = 36·16 + 1·64.
    assert numbers == {"0.weight": 36, "1.weight": 1}
    # And the second layer never takes more multiply-adds than its own.
    turned = {"0.weight": scores["0.weight"] - 9, "1.weight": scores["1.weight"] + 9}
    kept = within_budgets(turned, counts, both, {"0.weight": 1, "1.weight": 1})
    assert {name: int(keep.sum()) for name, keep in kept.items()} == {"0.weight": 24, "1.weight": 4}


def test_an_embedding_multiplies_nothing_and_is_not_marked():
    section = PruneSection(block_size=(1, 16), min_blocks=1, sparsity=0.5, embeddings=True)
    (layer,) = decide_layers(nn.Sequential(nn.Embedding(40, 32)), section)
    assert layer.pruned
    assert layer.no_gain is None


def test_with_times_a_layer_that_was_not_faster_costs_nothing():
    layers = [replace(layer, name=name) for layer, name in zip(decide_layers(model(), SETTINGS), "ab", strict=True)]
    faster = LayerTime(dense=9e-6, kept=(1, 100), sparse=(1e-6, 1e-6 + 99e-9))  # 1 ns a block
    slower = replace(faster, dense=0.5e-6)
    assert picoseconds_of_blocks(layers, {"a": slower, "b": faster}) == {"a": 0, "b": 1000}


def test_plan_report_and_the_end_of_a_run_say_so(sapp, digits, tmp_path):
    out = tmp_path / "out"
    low = ("--block-size", "1x16", "--sparsity", "0.8", "--steps", "12", "--set", "prune.min_blocks=1")
    command = (digits / "dense.safetensors", "-r", digits / "recipe.yaml", *low)
    ran = sapp("prune", *command, "-o", out)
    assert ran.code == 0, ran.err
    note = (
        "2 pruned layers are not faster block-sparse: hidden1.weight and 1 more; pruning makes the file smaller, the "
        "multiply-adds stay those of the dense weight"
    )
    said = {"plan": sapp("plan", *command).out, "report": sapp("report", out).out, "prune": ran.out}
    for verb, text in said.items():
        assert note in " ".join(text.split()), verb
    assert MARK in said["plan"]
    assert (
        "allocation balanced: no pruned layer is faster block-sparse, so parameters are the only budget" in said["plan"]
    )
    planned, recorded = sapp("plan", *command, "--json").json, json.loads((out / "sparsity.json").read_text())
    for document in (planned, recorded, sapp("report", out, "--json").json):
        hidden = document["layers"][0]
        assert hidden["no_gain"] == "blocks of 1 row gain only where at most 8.3 % are kept"
        assert hidden["kept_multiply_adds"] == hidden["multiply_adds"] == 64 * 512
        assert document["model"]["bytes_sparse"] < 0.4 * document["model"]["bytes_dense"]
        assert "no_gain" not in document["layers"][-1]  # the output layer is not pruned
        assert list(document["requested"]["budgets"]) == ["parameters"]
        assert document["model"]["kept_multiply_adds"] == document["model"]["multiply_adds"]
