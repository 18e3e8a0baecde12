"""`--target-size` and `--target-speedup`, and budgets in measured time: on real checkpoints, with what they say."""

import json
import re

import pytest
import torch
from torch import nn

from sapp_cli.errors import Interrupted
from sapp_cli.grid import BlockGrid, MatrixLayout
from sapp_cli.layers import decide_layers
from sapp_cli.pipeline.prune import prune
from sapp_cli.planning import dearest_bytes
from sapp_cli.recipe.load import load_recipe
from sapp_cli.recipe.prune_section import PruneSection
from sapp_cli.report.sparsity import LayerFacts
from sapp_cli.runtime.layer_times import LayerTime, time_layers, time_model
from tests.runs import Interrupting


def plan(sapp, digits, *more):
    return sapp("plan", digits / "dense.safetensors", "-r", digits / "recipe.yaml", *more)


def file_bytes(folder):
    return sum(file.stat().st_size for file in (folder / "sparse").glob("*.safetensors"))


def test_entries_are_counted_where_their_bytes_are_dearest():
    def facts(name, block):
        layout = MatrixLayout("linear", (32, 32))
        return LayerFacts(name, (32, 32), 4, True, True, "", layout, BlockGrid((32, 32), block), 0.75)

    # 16 blocks of 4 entries and 4 blocks of 64: 320 entries. Each costs 4 + 4/4 bytes in the small blocks, and the row
    # pointers take 4·17 and 4·5 bytes: 1600 + 88. As planned, the large blocks alone would cost 1040 for 256 entries.
    kept = {"small": 16, "large": 4}
    assert dearest_bytes([facts("small", (2, 2)), facts("large", (8, 8))], kept) == 1688


def test_small_blocks_of_a_rule_never_make_more_than_the_plan_says(sapp, digits, tmp_path):
    mixed = (
        "--set",
        "prune.rules=[{match: 'hidden1*', block_size: 2}, {match: 'output*', dense: true}]",
        "--steps",
        "12",
    )
    files = (digits / "dense.safetensors", "-r", digits / "recipe.yaml", *mixed, "--sparsity", "0.8")
    planned = json.loads(sapp("plan", *files, "--json").out)["model"]["bytes_sparse"]
    ran = sapp("prune", *files, "-o", tmp_path / "out")
    assert ran.code == 0, ran.err
    report = json.loads((tmp_path / "out" / "sparsity.json").read_text())
    assert report["model"]["bytes_sparse"] <= planned


@pytest.mark.parametrize("allocation", ["uniform", "parameters"])
def test_the_file_is_as_small_as_asked_and_no_smaller(sapp, digits, tmp_path, allocation):
    """The sparsity is the least: the file of 1.5 % fewer blocks would be too large."""
    allocated = ("--set", f"prune.allocation={allocation}", "--set", "prune.method=magnitude", "--steps", "20")
    files = (digits / "dense.safetensors", "-r", digits / "recipe.yaml")
    ran = sapp("prune", *files, "-o", tmp_path / "out", "--target-size", "150kB", *allocated)
    assert ran.code == 0, ran.err
    found = re.search(r"^--target-size 150 kB: sparsity (\d\d\.\d) %, 150 kB expected$", ran.err, re.MULTILINE)
    assert found, ran.err
    assert file_bytes(tmp_path / "out") <= 150_000
    less = (float(found[1]) - 1.5) / 100
    sapp("prune", *files, "-o", tmp_path / "less", "--sparsity", f"{less:.4f}", *allocated)
    assert file_bytes(tmp_path / "less") > 150_000
    written = load_recipe(tmp_path / "out" / "recipe.yaml").recipe.prune.sparsity
    assert 100 * written == pytest.approx(float(found[1]), abs=0.06)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--target-size", "10kB"],
            "--target-size 10.0 kB: 27.9 kB are left at the greatest sparsity, most of them in layers that stay dense; see "
            "`sapp plan` for the reasons, then lower prune.min_blocks or prune.block_size, change prune.rules, or set "
            "prune.embeddings",
        ),
        (["--target-size", "2MB"], "--target-size 2.00 MB: the checkpoint has 1.21 MB, which is no more than that"),
        (
            ["--target-size", "100kB", "--set", "prune.allocation=multiply-adds"],
            "--target-size: with prune.allocation multiply-adds the size depends on which blocks win; take uniform or "
            "parameters",
        ),
        (
            ["--target-speedup", "2", "--set", "prune.allocation=parameters"],
            "--target-speedup: with prune.allocation parameters the time depends on which blocks win; take uniform or time",
        ),
    ],
)
def test_what_cannot_be_met(sapp, digits, options, message):
    ran = plan(sapp, digits, *options)
    assert (ran.code, ran.err) == (2, f"error: {message}\n")


def test_one_wish_at_a_time(sapp, digits):
    ran = plan(sapp, digits, "--target-size", "100kB", "--sparsity", "0.9")
    assert ran.code == 2
    assert "one of --sparsity, --target-size" in " ".join(ran.err.replace("│", " ").split())


def test_a_speed_up_is_solved_by_measuring(sapp, digits):
    ran = plan(sapp, digits, "--target-speedup", "1.02", "--json")
    assert ran.code == 0, ran.err
    assert re.match(
        r"--target-speedup 1\.02: sparsity .* %, \d+\.\d\d× expected for one example, dense .* [mµ]s here", ran.err
    )
    ran = plan(sapp, digits, "--target-speedup", "5000")
    assert ran.code == 2
    assert "even the greatest sparsity comes to" in ran.err
    assert "the 2 layers that can be computed block-sparse take" in ran.err


def test_times_between_the_measured_ones():
    time = LayerTime(10.0, (10, 20, 40), (2.0, 3.0, 5.0))
    assert [time.at(kept) for kept in (5, 10, 15, 40, 100)] == [2.0, 2.0, 2.5, 5.0, 5.0]
    assert time.block == pytest.approx(0.1)
    assert LayerTime(1.0, (10, 20), (2.0, 3.0)).at(15) == 1.0  # a dense layer is faster
    assert LayerTime(1.0, (10, 20), (3.0, 2.0)).block == 0.0


def test_what_is_timed_and_what_is_not():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256), nn.Linear(256, 16)).eval()
    layers = decide_layers(model, PruneSection(block_size=16, min_blocks=16))
    x = torch.randn(4, 256)
    times = time_layers(model, layers, lambda: model(x))
    assert list(times) == ["0.weight", "2.weight"]  # the last one is too small to gain
    assert times["0.weight"] == times["2.weight"]  # alike, so measured once
    assert all(seconds > 0 for seconds in (times["0.weight"].dense, *times["0.weight"].sparse))
    assert time_model(model, times, lambda: model(x)) >= 2 * times["0.weight"].dense


def test_an_interrupted_run_keeps_its_measurements_and_its_sparsity(sapp, digits, tmp_path):
    sets = ["prune.allocation=time", "prune.score=fisher", "prune.method=gradual-magnitude", "train.steps=40"]
    settings = load_recipe(digits / "recipe.yaml", [*sets, "prune.sparsity=0.93"])
    with pytest.raises(Interrupted):
        prune(settings, digits / "dense.safetensors", tmp_path / "out", Interrupting(5))
    state = json.loads(next((tmp_path / ".out.sapp-run").glob("step-*/state.json")).read_text())
    costs = state["costs"]["blocks"]
    assert set(costs) == {"hidden1.weight", "hidden2.weight"}
    given = [part for setting in sets for part in ("--set", setting)]
    files = (digits / "dense.safetensors", "-r", digits / "recipe.yaml", "-o", tmp_path / "out")
    ran = sapp("prune", *files, *given, "--target-speedup", "1.1", "--resume")
    assert ran.code == 0, ran.err
    assert "--target-speedup" not in ran.err  # it is not measured again
    assert "going on after step 6 of 40" in ran.err
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["block_costs"] == {name: {"picoseconds": cost} for name, cost in costs.items()}
    assert load_recipe(tmp_path / "out" / "recipe.yaml").recipe.prune.sparsity == 0.93


def test_a_plan_and_a_report_show_the_multiply_adds(sapp, digits, tmp_path):
    """Of the dense weights, and of the kept blocks: 51 and 409 of 64 entries, and the output layer's 5,120."""
    allocated = ("--set", "prune.allocation=multiply-adds")
    shown = plan(sapp, digits, *allocated).out
    assert "allocation multiply-adds: training moves blocks between layers; the blocks above are their budget" in shown
    assert "\nrule 'output.weight': matches 1 of 3 weights\n" in shown
    planned = plan(sapp, digits, "--json").json
    assert planned["rules"] == [{"pattern": "output.weight", "weights": 1, "taken": 0}]
    figures = {layer["name"]: (layer["multiply_adds"], layer["kept_multiply_adds"]) for layer in planned["layers"]}
    assert figures == {
        "hidden1.weight": (32_768, 51 * 64),
        "hidden2.weight": (262_144, 409 * 64),
        "output.weight": (5_120, 5_120),
    }
    assert planned["model"]["kept_multiply_adds"] == 51 * 64 + 409 * 64 + 5_120
    files = (digits / "dense.safetensors", "-r", digits / "recipe.yaml", "-o", tmp_path / "out")
    assert sapp("prune", *files, "--steps", "20", "--set", "prune.method=magnitude").code == 0
    reported = sapp("report", tmp_path / "out" / "sparse", "--json").json
    assert {layer["name"]: layer["kept_multiply_adds"] for layer in reported["layers"]} == {
        name: kept for name, (_, kept) in figures.items()
    }
    table = sapp("report", tmp_path / "out").out.splitlines()
    assert table[0].split()[-3:] == ["mult-adds", "share", "why"]
    assert table[2].split()[-5:] == ["26.2", "k", "75.7", "%", "pruned"]
    assert "| mult-adds | share |" in sapp("report", tmp_path / "out", "--markdown").out
