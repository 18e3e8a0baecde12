"""`sapp prune` of layers that nothing ranks: what it says, what it writes, and that --resume takes no second look."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from sapp_cli.errors import Interrupted
from sapp_cli.pipeline.prune import prune
from sapp_cli.recipe.load import load_recipe
from tests.runs import Interrupting, hashes

NETWORK = """
from torch import nn

class Net(nn.Module):
    # `h2` is frozen, and the loss does not read `aux`.
    def __init__(self):
        super().__init__()
        self.h1, self.h2, self.out, self.aux = nn.Linear(64, 128), nn.Linear(128, 128), nn.Linear(128, 4), nn.Linear(128, 256)
        self.h2.weight.requires_grad_(False)

    def forward(self, x):
        return self.out(self.h2(self.h1(x).relu()).relu())
"""
RECIPE = """
model: {factory: net.py:Net}
data: {source: tensors, files: {train: data.safetensors, validation: data.safetensors}, batch_size: 32}
train: {steps: 30}
prune: {block_size: 8, sparsity: 0.7, min_blocks: 16, rules: [{match: "out*", dense: true}]}
"""
WHY = "aux.weight (no gradient from the loss in the first 6 steps)"
OF_ACDC = WHY.replace("6", "2")  # its timetable has no longer start in a short run


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A folder with checkpoint, recipe and rows."""
    folder = tmp_path_factory.mktemp("unranked")
    (folder / "net.py").write_text(NETWORK)
    (folder / "recipe.yaml").write_text(RECIPE)
    scope: dict[str, object] = {}
    exec(NETWORK, scope)
    torch.manual_seed(0)
    save_file(scope["Net"]().state_dict(), folder / "net.safetensors")
    save_file({"inputs": torch.randn(200, 64), "targets": torch.arange(200) % 4}, folder / "data.safetensors")
    return folder


def arguments(job, verb, *more):
    return (verb, job / "net.safetensors", "-r", job / "recipe.yaml", *more)


@pytest.mark.parametrize("method", ["sequential-attention", "acdc"])
def test_neither_the_frozen_weight_nor_the_unread_head_is_touched(sapp, job, method):
    out = job / method
    ran = sapp(*arguments(job, "prune", "-o", out, "--method", method))
    assert ran.code == 0, ran.err
    why = OF_ACDC if method == "acdc" else WHY
    reason = why.removeprefix("aux.weight (").removesuffix(")")
    line = f"1 layer keeps all its blocks, because nothing ranks them: {why}"
    assert ran.err.splitlines().count(line) == 1
    assert f"kept whole   {why}\n" in ran.out
    assert "of the blocks of 1 pruned layer, " in ran.out
    source, dense = load_file(job / "net.safetensors"), load_file(out / "model.safetensors")
    for name in ("h2.weight", "aux.weight", "aux.bias"):
        assert torch.equal(dense[name].view(torch.int32), source[name].view(torch.int32)), name
    layers = {layer["name"]: layer for layer in json.loads((out / "sparsity.json").read_text())["layers"]}
    assert {name: (layer["pruned"], layer["reason"], layer["kept_blocks"]) for name, layer in layers.items()} == {
        "h1.weight": (True, "pruned", 38),  # ⌊0.3·128⌋, as if it were alone
        "h2.weight": (False, "frozen: requires_grad is False", 256),
        "out.weight": (False, "rule 'out*'", None),
        "aux.weight": (False, reason, 512),
    }
    assert layers["h2.weight"]["target"] is None and layers["aux.weight"]["target"] is None
    assert reason in (out / "sparsity.html").read_text()
    assert "of the blocks of 1 layers removed" in (out / "README.md").read_text()
    assert "aux.weight" not in json.loads((out / "manifest.json").read_text()).get("block_costs", {})
    assert sapp("check", out).code == 0


def test_plan_knows_frozen_weights(sapp, job):
    layers = {layer["name"]: layer for layer in sapp(*arguments(job, "plan", "--json")).json["layers"]}
    assert layers["h2.weight"]["reason"] == "frozen: requires_grad is False"
    assert (layers["h2.weight"]["pruned"], layers["h2.weight"]["target"]) == (False, None)


# Of 30 steps the first six are dense: before the first selection, between two, and in the sparse phase.
@pytest.mark.parametrize("step", [0, 8, 20])
def test_resume_gives_the_same_decision(sapp, job, tmp_path, step):
    recipe = load_recipe(job / "recipe.yaml", ["train.evaluate_every=null"])
    prune(recipe, job / "net.safetensors", tmp_path / "whole", Interrupting())
    with pytest.raises(Interrupted):
        prune(recipe, job / "net.safetensors", tmp_path / "again", Interrupting(step))
    state = next((tmp_path / ".again.sapp-run").glob("step-*/state.json"))
    decided = json.loads(state.read_text())["ranking"]["unranked"]
    assert decided == (None if step < 6 else {"aux.weight": "no gradient from the loss in the first 6 steps"})
    result = prune(recipe, job / "net.safetensors", tmp_path / "again", Interrupting(), resume=True)
    assert result.unranked == WHY
    assert hashes(tmp_path / "again") == hashes(tmp_path / "whole")
