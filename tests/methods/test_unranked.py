"""Layers whose blocks nothing ranks: frozen, not reached by the loss, dead, NaN, constant. They keep all their blocks."""

import copy
import json
from dataclasses import asdict

import pytest
import torch
from torch import nn

from sapp_cli.core.ranking import block_entries, why_unranked
from sapp_cli.errors import SettingError, TrainingError
from sapp_cli.grid import BlockGrid
from sapp_cli.layers import decide_layers
from sapp_cli.pruner import Pruner, Ranking
from sapp_cli.recipe.prune_section import PruneSection

METHODS = ["sequential-attention", "acdc", "powerprop", "magnitude", "gradual-magnitude"]
STEPS = 20
FROZEN = "frozen: requires_grad is False"
NO_GRADIENT = "no gradient from the loss in the first 2 steps"
TWO_ROUNDS = {"dense": 0.1, "rounds": 2, "last_round": 0.3, "final_sparse": 0.3}


class Network(nn.Module):
    """`used` feeds `other`, whose kind is one of those below; `head` is read by the loss."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.used, self.other, self.head = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 4)
        weight = self.other.weight
        if kind == "frozen":
            weight.requires_grad_(False)
        with torch.no_grad():
            if kind == "dead":
                self.other.bias.fill_(-1e3)
            elif kind == "nan":
                weight[3, 3] = torch.nan
            elif kind == "zero":
                weight.zero_()
            elif kind == "constant":
                weight.copy_(0.5 * weight.sign())

    def forward(self, x):
        x = self.used(x).relu()
        if self.kind in ("unused", "nan", "zero", "constant"):
            return self.head(x)
        return self.head(x + self.other(x).relu())


REASONS = {"frozen": FROZEN, "unused": NO_GRADIENT, "dead": NO_GRADIENT, "nan": NO_GRADIENT}


def settings(method, **more):
    return {"method": method, "block_size": 4, "sparsity": 0.5, "min_blocks": 1, **more}


def trained(model, pruner, steps=range(STEPS), optimizer=None, shown=True):
    """`steps` of AdamW on rows that are always the same; the optimizer shows the pruner the gradients."""
    x = torch.randn(32, 16, generator=torch.Generator().manual_seed(1))
    target = torch.arange(32) % 4
    optimizer = optimizer or torch.optim.AdamW(pruner.parameter_groups(lr=1e-2, weight_decay=0.0))
    for step in steps:
        pruner.step(step, optimizer if shown else None)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), target).backward()
        optimizer.step()
    return optimizer


@pytest.fixture(params=METHODS)
def method(request):
    return request.param


@pytest.mark.parametrize("score", ["fisher", "norm"])
@pytest.mark.parametrize("kind", REASONS)
def test_it_keeps_every_block_and_every_bit(kind, method, score):
    model = Network(kind)
    source = copy.deepcopy(model.state_dict())
    said = []
    phases = {"dense": 0.1, "rounds": 1, "last_round": 0.3, "final_sparse": 0.6}
    asked = settings(method, score=score, allocation="uniform", phases=phases)
    pruner = Pruner(model, asked, STEPS, notice=said.append)
    trained(model, pruner)
    state = pruner.fold()
    found = {layer.name: layer for layer in pruner.layers}
    assert (found["other.weight"].pruned, found["other.weight"].reason) == (False, REASONS[kind])
    assert found["other.weight"].sparsity is None
    if method == "powerprop" and kind != "frozen":  # ‖θ‖·θ rounds, and has no number for a block with a NaN
        torch.testing.assert_close(state["other.weight"][4:], source["other.weight"][4:])
    else:
        assert torch.equal(state["other.weight"].view(torch.int32), source["other.weight"].view(torch.int32))
    # 8 of 16 blocks, and 2 of 4.
    assert {name: int(keep.sum()) for name, keep in pruner.masks.items()} == {"used.weight": 8, "head.weight": 2}
    assert pruner.sparsity == 0.5
    line = f"1 layer keeps all its blocks, because nothing ranks them: other.weight ({REASONS[kind]})"
    assert said == ([] if kind == "frozen" else [line])  # that was known when the layers were decided


def test_it_leaves_the_budget_on_both_sides(method):
    """As many blocks as if it were not there: half of 16 + 4, and the same ones."""
    kept = []
    for kind, rules in (("unused", []), ("unused", [{"match": "other", "dense": True}]), ("frozen", [])):
        model = Network("unused")
        model.other.weight.requires_grad_(kind != "frozen")
        pruner = Pruner(
            model, settings(method, score="fisher", rules=rules, allocation="parameters"), STEPS, notice=lambda _: None
        )
        trained(model, pruner)
        assert pruner.costs == {"used.weight": (16,), "head.weight": (16,)}
        kept.append({name: keep.tolist() for name, keep in pruner.masks.items()})
    assert sum(sum(map(sum, keep)) for keep in kept[0].values()) == 10
    assert kept[0] == kept[1] == kept[2]


@pytest.mark.parametrize(
    ("kind", "why"), [("zero", "its values are all zero"), ("constant", "its scores are all equal")]
)
def test_without_a_dense_start_norms_decide_at_once(kind, why, method):
    """No gradient was seen yet, so a layer that the loss does not reach is ranked by norm like any other."""
    model = Network(kind)
    asked = settings(method, phases={"dense": 0, "rounds": 1, "last_round": 0.4, "final_sparse": 0.6})
    pruner = Pruner(model, asked, STEPS, notice=lambda _: None)
    trained(model, pruner)
    assert {layer.name: layer.reason for layer in pruner.layers}["other.weight"] == why
    assert set(pruner.masks) == {"used.weight", "head.weight"}


def test_a_constant_weight_with_ragged_edges_is_not_ranked_by_its_edges(method):
    """Its edge blocks have smaller norms for their size alone: 18 × 21 in blocks of 4 × 4."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"even": nn.Linear(21, 18), "other": nn.Linear(16, 16)})
    with torch.no_grad():
        model["even"].weight.copy_(0.1 * model["even"].weight.sign())
    asked = settings(method, phases={"dense": 0, "rounds": 1, "last_round": 0.4, "final_sparse": 0.6})
    pruner = Pruner(model, asked, STEPS, notice=lambda _: None)
    for step in range(STEPS):
        pruner.step(step)
    assert pruner.unranked == {"even.weight": "its scores differ by the size of the blocks alone"}
    assert {name: int(keep.sum()) for name, keep in pruner.masks.items()} == {"other.weight": 8}


def test_equal_attention_leaves_the_ranking_to_the_norms():
    model = nn.Linear(8, 4, bias=False)
    with torch.no_grad():
        model.weight[:, :4], model.weight[:, 4:] = 1.0, 2.0
    phases = {"dense": 0, "rounds": 1, "last_round": 0.1, "final_sparse": 0.9}
    asked = settings("sequential-attention", score="attention", phases=phases)
    pruner = Pruner(model, asked, 40)
    for step in range(4):
        pruner.step(step)  # nothing is trained: L stays 0
    assert pruner.masks["weight"].tolist() == [[False, True]]
    with torch.no_grad():
        pruner.attached["weight"].masked.logits[0, 0] = 0.1
    scores = pruner.method.scores(pruner.attached["weight"].matrix, pruner.attached["weight"].masked.state)
    assert scores[0, 0] > scores[0, 1]  # as soon as A says something, A alone


def test_a_layer_of_one_block_has_nothing_to_rank(method):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 8))
    pruner = Pruner(model, settings(method, score="norm"), STEPS)
    for step in range(STEPS):
        pruner.step(step)
    assert pruner.unranked == {}
    assert {name: int(keep.sum()) for name, keep in pruner.masks.items()} == {"0.weight": 1, "1.weight": 1}


def test_gradients_that_nobody_showed_are_no_evidence():
    """With score norm and no optimizer at hand nothing is known of them."""
    model = Network("unused")
    pruner = Pruner(model, settings("magnitude"), STEPS)
    trained(model, pruner, shown=False)
    assert pruner.unranked == {}
    assert int(pruner.masks["other.weight"].sum()) == 8


def test_the_order_of_its_blocks_changes_nothing(method):
    """Block rows and columns of a layer without a ranking in another order: the others' masks and weights stay."""
    folded = []
    for order in (torch.arange(16), torch.arange(16).flip(0)):
        model = Network("unused")
        with torch.no_grad():
            model.other.weight.copy_(model.other.weight[order][:, order])
        pruner = Pruner(model, settings(method, score="fisher"), STEPS, notice=lambda _: None)
        trained(model, pruner)
        folded.append(dict(pruner.fold()))
    assert all(torch.equal(folded[0][name], folded[1][name]) for name in folded[0] if name != "other.weight")
    torch.testing.assert_close(folded[0]["other.weight"].flip(0, 1), folded[1]["other.weight"], rtol=1e-6, atol=0)


def test_a_dead_layer_keeps_what_its_mask_made_of_it():
    """Its A has moved before it died: the weight stays what the layer computed with."""
    model = Network("")
    phases = {"dense": 0.5, "rounds": 1, "last_round": 0.2, "final_sparse": 0.3}
    pruner = Pruner(model, settings("sequential-attention", phases=phases), STEPS, notice=lambda _: None)
    layer = pruner.attached["other.weight"]
    with torch.no_grad():
        layer.masked.logits.normal_(generator=torch.Generator().manual_seed(0))
        before = model.other.weight.clone()
        layer.theta[0, 0] = torch.nan  # no score is finite, and nothing else is done to it
        pruner.ranking.reached = list(pruner.attached)
        for name, its in pruner.attached.items():
            pruner.fisher.of(name).copy_(torch.rand(its.masked.grid.size) / (name != "other.weight"))
    pruner.step(10)
    assert pruner.unranked == {"other.weight": "its scores are not finite"}
    assert torch.equal(model.other.weight.flatten()[1:], before.flatten()[1:])


def test_a_weight_that_is_frozen_on_the_way_stays_as_it_is():
    """Its logits may have moved in the meantime: they scale it no longer."""
    model = Network("")
    pruner = Pruner(model, settings("sequential-attention"), STEPS, notice=lambda _: None)
    layer = pruner.attached["other.weight"]
    with torch.no_grad():
        layer.masked.logits.normal_(generator=torch.Generator().manual_seed(0))
    layer.theta.requires_grad_(False)
    before = layer.theta.clone()
    trained(model, pruner)
    assert pruner.unranked == {"other.weight": FROZEN}
    assert torch.equal(pruner.fold()["other.weight"], before)
    assert torch.equal(model.other.weight, before)


def test_a_rule_that_asks_for_a_frozen_weight_is_named():
    asked = settings("magnitude", rules=[{"match": "other", "sparsity": 0.9}])
    layers = {layer.name: layer.reason for layer in decide_layers(Network("frozen"), PruneSection(**asked))}
    assert layers["other.weight"] == f"{FROZEN}; rule 'other' has no effect"
    model = Network("unused")
    pruner = Pruner(model, asked, STEPS, notice=lambda _: None)
    trained(model, pruner)
    assert {layer.name: layer.reason for layer in pruner.layers}["other.weight"] == (
        "no gradient from the loss in the first step; rule 'other' has no effect"
    )


def test_what_plan_can_know_of_constant_weights():
    reasons = {}
    for dense in (0.05, 0):
        phases = {"dense": dense, "rounds": 1, "last_round": 0.35 - dense, "final_sparse": 0.65}
        asked = PruneSection(**settings("magnitude", phases=phases))
        for kind in ("zero", "constant"):
            model = Network(kind)
            if kind == "constant":
                model.other.weight.data.fill_(0.1)
            reasons[kind, dense] = {layer.name: layer for layer in decide_layers(model, asked)}["other.weight"].reason
    slow = "block-sparse is not faster here: blocks of 4 rows gain only where at most 33.3 % are kept"
    assert reasons == {
        ("zero", 0.05): f"pruned; {slow}; its values are all zero so far: stays dense unless training changes them",
        (
            "constant",
            0.05,
        ): f"pruned; {slow}; its values are all equal so far: stays dense unless training changes them",
        ("zero", 0): "its values are all zero",
        ("constant", 0): "its values are all equal",
    }


def test_zero_blocks_that_are_locked_stay_locked(method):
    """The layer is pruned by its locked blocks, and loses no other."""
    model = Network("unused")
    with torch.no_grad():
        model.other.weight[:8, :4] = 0  # two of sixteen blocks
    pruner = Pruner(model, settings(method, lock_zero_blocks=True, phases=TWO_ROUNDS), STEPS, notice=lambda _: None)
    trained(model, pruner)
    assert int(pruner.masks["other.weight"].sum()) == 14
    layer = {layer.name: layer for layer in pruner.layers}["other.weight"]
    assert (layer.pruned, layer.sparsity) == (True, None)
    assert layer.reason == f"only its zero blocks are removed: {pruner.unranked['other.weight']}"


def test_all_of_them_end_the_run():
    model = Network("")
    for layer in (model.used, model.other, model.head):
        layer.weight.requires_grad_(False)
    with pytest.raises(
        SettingError, match=r"all pruned weights are frozen .*: used.weight, other.weight, head.weight; "
    ):
        Pruner(model, settings("magnitude"), STEPS)

    model = Network("")
    pruner = Pruner(model, settings("sequential-attention"), STEPS)
    pruner.step(0)
    pruner.observe(0)  # no backward pass came before
    with pytest.raises(TrainingError, match=r"used.weight, other.weight, head.weight .no gradient from the loss in"):
        pruner.step(8)

    model = nn.Sequential(nn.Linear(8, 8))
    model[0].weight.data.copy_(model[0].weight.sign())
    phases = {"dense": 0, "rounds": 1, "last_round": 0.4, "final_sparse": 0.6}
    pruner = Pruner(model, settings("gradual-magnitude", phases=phases, allocation="parameters"), STEPS)
    with pytest.raises(SettingError, match=r"no layer is left to prune: 0.weight .its scores are all equal"):
        pruner.step(0)


@pytest.mark.parametrize("end", [1, 2, 8, 15])  # before the first selection, and after it
def test_a_run_that_goes_on_takes_no_second_look(end, method):
    first = 14 if method in ("magnitude", "powerprop") else 2  # they prune once
    decided = {"other.weight": f"no gradient from the loss in the first {first} steps"}
    folded = []
    for stop in (None, end):
        model = Network("unused")
        asked = settings(method, score="fisher", phases=TWO_ROUNDS)
        pruner = Pruner(model, asked, STEPS, notice=lambda _: None)
        optimizer = trained(model, pruner, range(stop or STEPS))
        if stop is not None:
            pruner.hold()
            saved = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
            parts = (
                {name: part.clone() for name, part in of.items()}
                for of in (pruner.masks, pruner.support, pruner.fisher.blocks)
            )
            parts = (*parts, Ranking(**json.loads(json.dumps(asdict(pruner.ranking)))))
            model = Network("unused")
            pruner = Pruner(model, asked, STEPS, notice=lambda _: None)
            optimizer = torch.optim.AdamW(pruner.parameter_groups(lr=1e-2, weight_decay=0.0))
            model.load_state_dict(saved[0])
            optimizer.load_state_dict(saved[1])
            pruner.restore(stop, *parts)
            with torch.no_grad():
                if stop > first:  # what would change the decision, were there a second look
                    assert pruner.unranked == decided
                    pruner.ranking.reached.append("other.weight")
            trained(model, pruner, range(stop, STEPS), optimizer)
        assert pruner.unranked == decided
        folded.append(dict(pruner.fold()))
    assert all(torch.equal(folded[0][name], folded[1][name]) for name in folded[0])


def test_a_python_warning_says_it_in_a_loop_of_ones_own():
    model = Network("unused")
    pruner = Pruner(model, settings("magnitude"), STEPS)
    with pytest.warns(UserWarning, match=r"^1 layer keeps all its blocks, because nothing ranks them: other.weight "):
        trained(model, pruner)


class TestWhyUnranked:
    GRID = BlockGrid((9, 10), (4, 4))  # 3 × 3 blocks; 1 row, and 2 columns, at the edges

    def why(self, scores, blocks=None):
        blocks = torch.ones(3, 3, dtype=torch.bool) if blocks is None else blocks
        return why_unranked(torch.as_tensor(scores, dtype=torch.float32), blocks, self.GRID)

    def test_entries_of_ragged_blocks(self):
        assert block_entries(self.GRID).tolist() == [[16, 16, 8], [16, 16, 8], [4, 4, 2]]

    def test_constant_weights_differ_by_the_size_of_their_blocks_alone(self):
        for value in (0.1, 1 / 3, 7.77):
            norms = value * block_entries(self.GRID).sqrt()
            assert self.why(norms) == "its scores differ by the size of the blocks alone"
            norms[1, 1] *= 1.001
            assert self.why(norms) is None

    def test_equal_zero_and_not_finite(self):
        assert self.why(torch.zeros(3, 3)) == "its scores are all zero"
        assert self.why(torch.full((3, 3), 0.1)) == "its scores are all equal"
        for value in (torch.nan, torch.inf):
            assert self.why([[1, 2, 3], [4, value, 6], [7, 8, 9]]) == "its scores are not finite"

    def test_ties_of_some_blocks_are_a_ranking(self):
        assert self.why([[0, 0, 0], [0, 0, 0], [0, 0, 1]]) is None

    def test_only_blocks_that_are_there_count(self):
        blocks = torch.ones(3, 3, dtype=torch.bool)
        blocks[2, 2] = False
        assert self.why([[1, 1, 1], [1, 1, 1], [1, 1, 9]], blocks) == "its scores are all equal"
        assert self.why([[1, 1, 1], [1, 1, 1], [1, 1, torch.nan]], blocks) == "its scores are all equal"
        blocks[:] = False
        blocks[0, 0] = True
        assert self.why(torch.ones(3, 3), blocks) is None
