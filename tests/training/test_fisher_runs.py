"""Runs that rank by gradients and spend one budget: interrupted, accumulated, over several processes, the same choice."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file

from sapp_cli.errors import Interrupted
from sapp_cli.pipeline.prune import prune
from sapp_cli.recipe.load import load_recipe
from tests.runs import Interrupting
from tests.training.crew import run_processes
from tests.training.test_distributed import assert_same, recipe, run

PRUNE = {"method": "gradual-magnitude", "score": "fisher", "allocation": "parameters"}
SGD = {"optimizer": {"name": "sgd", "lr": 0.1}}


def fisher_run(size, kind="network", **train):
    task = "classification" if kind == "network" else "masked-lm"
    return run(recipe(task, prune=PRUNE, data={"batch_size": size}, train=train, **SGD), kind)


@pytest.mark.parametrize(("kind", "train"), [("network", {}), ("tower", {"shard": True})])
def test_two_processes_choose_what_one_does(kind, train):
    ended = run_processes(2, run_keywords, 24, kind, train)
    assert [end.error for end in ended] == ["", ""], ended[0].said
    alone = fisher_run(48, kind)
    for end in ended:
        assert_same(end.value, alone)


def run_keywords(size, kind, train):
    return fisher_run(size, kind, **train)


def test_accumulated_batches_choose_what_one_large_batch_does():
    assert_same(fisher_run(16, accumulate=3), fisher_run(48))


def test_clipping_does_not_change_what_is_gathered():
    clipped = fisher_run(48, clip_norm=1e-6)  # nothing moves, so the order of the blocks is that of the first gradients
    free = fisher_run(48, clip_norm=1e-5)
    assert all(torch.equal(keep, free[2][name]) for name, keep in clipped[2].items())


# In the dense phase, and in the sparsification phase.
@pytest.mark.parametrize(("step", "allocation"), [(2, "parameters"), (15, "multiply-adds")])
def test_an_interrupted_run_ends_with_the_same_bytes(digits, tmp_path, step, allocation):
    sets = [
        *(
            "prune.method=sequential-attention",
            "prune.score=fisher",
            f"prune.allocation={allocation}",
            "train.steps=40",
        ),
        *("train.evaluate_every=null", "objective.distill.weight=0", "prune.phases={dense: 0.2, rounds: 1, "),
    ]
    sets = [*sets[:-1], sets[-1] + "last_round: 0.4, final_sparse: 0.4}"]
    settings = load_recipe(digits / "recipe.yaml", sets)
    prune(settings, digits / "dense.safetensors", tmp_path / "whole", Interrupting())
    with pytest.raises(Interrupted):
        prune(settings, digits / "dense.safetensors", tmp_path / "again", Interrupting(step))
    prune(settings, digits / "dense.safetensors", tmp_path / "again", Interrupting(), resume=True)
    first, second = (
        hashlib.sha256((tmp_path / out / "model.safetensors").read_bytes()).digest() for out in ("whole", "again")
    )
    assert first == second


def test_the_budget_is_that_of_uniform_targets(digits, tmp_path):
    """In parameters the blocks of both layers add up to those of the uniform run; each keeps its floor."""
    sets = ["prune.method=magnitude", "prune.score=fisher", "train.steps=20", "prune.allocation=parameters"]
    settings = load_recipe(digits / "recipe.yaml", [*sets, "prune.rules=[{match: output*, block_size: 2}]"])
    result = prune(settings, digits / "dense.safetensors", tmp_path / "out", Interrupting())
    layers = {layer.name: layer for layer in result.report.pruned}
    uniform = {"hidden1.weight": 512 - 461, "hidden2.weight": 4096 - 3687, "output.weight": 1280 - 1152}
    assert {name: layer.target for name, layer in layers.items()} == dict.fromkeys(uniform, 0.9)
    budget = 64 * uniform["hidden1.weight"] + 64 * uniform["hidden2.weight"] + 4 * uniform["output.weight"]
    spent = sum(layer.kept_blocks * layer.block[0] * layer.block[1] for layer in layers.values())
    assert budget - 4 < spent <= budget
    assert all(layers[name].kept_blocks >= -(-count // 5) for name, count in uniform.items())
    assert any(layers[name].kept_blocks != count for name, count in uniform.items())
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["block_costs"] == {
        "hidden1.weight": {"parameters": 64},
        "hidden2.weight": {"parameters": 64},
        "output.weight": {"parameters": 4},
    }
    assert set(load_file(tmp_path / "out" / "model.safetensors"))
