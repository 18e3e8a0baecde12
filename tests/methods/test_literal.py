"""`attention.pruned: literal` against the paper's text, and what it leaves to training, by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from sapp_cli.pruner import Pruner
from sapp_cli.recipe.prune_section import PruneSection
from tests.methods.paper_reference import Run

STEPS = 60
# 12 dense; two rounds of 15 in thirds; 12 sparsification; 6 sparse: by hand.
TIMETABLE = {"dense": 0.2, "rounds": 3, "last_round": 0.2, "final_sparse": 0.1}
THIRDS = [
    ("dense", 0, 12),
    ("sparsification", 12, 17),
    ("sparse", 17, 22),
    ("dense", 22, 27),
    ("sparsification", 27, 32),
    ("sparse", 32, 37),
    ("dense", 37, 42),
    ("sparsification", 42, 54),
    ("sparse", 54, 60),
]
# The paper's first ablation (App. D.1) on the same timetable: halves of 7.5 steps, of which the first are rounded up.
HALVES = [
    ("dense", 0, 12),
    ("sparse", 12, 20),
    ("dense", 20, 27),
    ("sparse", 27, 35),
    ("dense", 35, 42),
    ("sparse", 42, 48),
    ("dense", 48, 54),
    ("sparse", 54, 60),
]
NO_SPARSIFICATION = {**TIMETABLE, "split": [0, 1, 1], "last_split": [0, 1, 1]}
OPTIMIZERS = {"sgd": ("sgd", 0.5, 0.02), "adam": ("adam", 0.03, 0.01), "adamw": ("adamw", 0.03, 0.3)}
PAPER = {"score": "attention", "lr": "same", "decay": "same", "betas": "same"}


class Twice:
    """The same run, here and in the reference, on the same batches."""

    def __init__(self, optimizer="sgd", dtype=torch.float64, timetable=TIMETABLE, phases=THIRDS, **attention):
        generator = np.random.default_rng(5)
        weights = [generator.normal(size=shape) / 3 for shape in ((18, 20), (7, 18))]  # 6 × 4 and, ragged, 3 × 4 blocks
        self.batches = [(generator.normal(size=(16, 20)), generator.normal(size=(16, 7))) for _ in range(STEPS)]
        self.dtype = dtype
        self.model = nn.Sequential(nn.Linear(20, 18, bias=False), nn.Tanh(), nn.Linear(18, 7, bias=False))
        for layer, weight in zip((self.model[0], self.model[2]), weights, strict=True):
            layer.weight.data = torch.from_numpy(weight.copy()).to(dtype)
        attention = {**PAPER, "pruned": "literal", **attention}
        settings = {"block_size": [3, 5], "sparsity": 0.7, "min_blocks": 1, "phases": timetable, "attention": attention}
        self.pruner = Pruner(self.model, settings, STEPS)
        self.model.to(dtype)  # logits as well
        self.attached = list(self.pruner.attached.values())
        kind, rate, decay = OPTIMIZERS[optimizer]
        make = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[kind]
        more = {"momentum": 0.9} if kind == "sgd" else {}
        groups = self.pruner.parameter_groups(rate, decay, adam=kind != "sgd")
        self.optimizer = make(groups, **more)
        if dtype is torch.float32:  # the same start
            weights = [weight.astype(np.float32) for weight in weights]
        clip, sees = attention.get("clip", True), attention.get("selection", "after-update")
        self.reference = Run(weights, (3, 5), 0.7, phases, OPTIMIZERS[optimizer], clip, sees)

    def steps(self):
        """(step, our loss, that of the reference) of each step, after both have moved."""
        for step, (x, y) in enumerate(self.batches):
            self.pruner.step(step, self.optimizer)
            inputs, targets = torch.from_numpy(x).to(self.dtype), torch.from_numpy(y).to(self.dtype)
            loss = nn.functional.mse_loss(self.model(inputs), targets)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            yield step, loss.item(), self.reference.step(step, x, y)

    def same_masks(self):
        return all(
            layer.masked.keep.flatten().tolist() == (other.mask > 0).tolist()
            for layer, other in zip(self.attached, self.reference.layers, strict=True)
        )


EXACT = {torch.float64: (1e-9, 1e-11), torch.float32: (1e-3, 5e-4)}
CLEAR = {torch.float64: 1e-6, torch.float32: 1e-4}
"""How far apart, relatively, the scores on both sides of a selection are at least: rounding decides nothing."""
CASES = [
    *(
        (optimizer, torch.float64, *case)
        for optimizer in OPTIMIZERS
        for case in (
            (TIMETABLE, THIRDS, {}),
            (TIMETABLE, THIRDS, {"selection": "before-update"}),
            (NO_SPARSIFICATION, HALVES, {}),
            (NO_SPARSIFICATION, HALVES, {"selection": "before-update"}),
        )
    ),
    ("sgd", torch.float64, TIMETABLE, THIRDS, {"clip": False}),
    *((optimizer, torch.float32, TIMETABLE, THIRDS, {}) for optimizer in OPTIMIZERS),
]


@pytest.mark.parametrize(("optimizer", "dtype", "timetable", "phases", "attention"), CASES)
def test_every_step_is_that_of_the_papers_text(optimizer, dtype, timetable, phases, attention):
    both = Twice(optimizer, dtype, timetable, phases, **attention)
    relative, absolute = EXACT[dtype]
    exchanged = 0.0
    for step, loss, expected in both.steps():
        assert both.same_masks(), step
        assert loss == pytest.approx(expected, rel=relative, abs=absolute), step
        for layer, other in zip(both.attached, both.reference.layers, strict=True):  # pruned entries as well
            np.testing.assert_allclose(layer.theta.detach(), other.W, rtol=relative, atol=absolute)
            np.testing.assert_allclose(layer.masked.logits.detach().flatten(), other.L, rtol=relative, atol=absolute)
        exchanged = max(exchanged, both.pruner.exchanged or 0.0)
    assert both.reference.least_gap > CLEAR[dtype]
    assert exchanged > 0, "a later round chose other blocks, or the comparison is empty"
    folded = both.pruner.fold()
    for layer, other in zip(both.attached, both.reference.layers, strict=True):
        weight, effective = folded[layer.layer.name], other.effective()
        np.testing.assert_allclose(weight, effective, rtol=max(relative, 1e-5), atol=max(absolute, 1e-6))
        assert np.array_equal(weight == 0, effective == 0)  # whatever moved behind the mask, none of it is exported
        assert int(layer.masked.keep.sum()) == other.final


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_frozen_blocks_make_another_run_of_it(optimizer):
    both = Twice(optimizer, pruned="frozen")
    differ = [step for step, _, _ in both.steps() if not both.same_masks()]
    assert differ and differ[0] >= 27, "the first round is the same: nothing has come back yet"


# One layer of two blocks with logits of 0, of which the second is pruned in the first step of the final sparse phase.
ONE_SELECTION = {"dense": 0.5, "rounds": 1, "last_round": 0, "final_sparse": 0.5}


def two_blocks(**attention):
    """(model, pruner, optimizer): weights 1, 1, 0.5, 0.5 in blocks of two; rate 0.1, decay 0.5, no momentum."""
    model = nn.Linear(4, 1, bias=False)
    model.weight.data = torch.tensor([[1.0, 1.0, 0.5, 0.5]])
    settings = {"block_size": [1, 2], "sparsity": 0.5, "min_blocks": 1, "phases": ONE_SELECTION}
    attention = {**PAPER, "score": "effective-norm", "clip": False, **attention}
    pruner = Pruner(model, {**settings, "attention": attention}, 2)
    return model, pruner, torch.optim.SGD(pruner.parameter_groups(0.1, 0.5, adam=False))


@pytest.mark.parametrize(("pruned", "logit"), [("literal", 0.1), ("frozen", 0.0)])
def test_decay_and_the_softmax_reach_a_pruned_block(pruned, logit):
    model, pruner, optimizer = two_blocks(pruned=pruned)
    pruner.step(0)  # nothing is trained in it
    pruner.step(1, optimizer)
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    pruner.hold()
    layer = pruner.attached["weight"]
    # In the sparse step Ŵ = (1, 1, 0, 0), loss = its sum. Kept weights: 1 − 0.1·(1 + 0.5·1). Pruned: 0.5 − 0.1·0.5·0.5, with
    # `frozen` too, for no dense phase will bring them back.
    np.testing.assert_allclose(layer.theta.detach()[0], [0.85, 0.85, 0.475, 0.475], rtol=1e-6)
    # A = (1, 1), dLoss/dA = (2, 0), dA₁/dL₁ = A₁(1 − A₁/2) = 1/2, dA₁/dL₂ = −A₁A₂/2 = −1/2: gradients of 1 and −1.
    np.testing.assert_allclose(layer.masked.logits.detach()[0], [-0.1, logit], rtol=1e-6, atol=1e-8)
    assert layer.masked.keep.tolist() == [[True, False]]
    assert pruner.fold()["weight"][0, 2:].tolist() == [0, 0]


@pytest.mark.parametrize("pruned", ["literal", "frozen"])
def test_momentum_carries_a_pruned_weight_into_the_next_dense_phase(pruned):
    model = nn.Linear(4, 1, bias=False)
    model.weight.data = torch.tensor([[1.0, 1.0, 0.5, 0.5]])
    settings = {"block_size": [1, 2], "sparsity": 0.5, "min_blocks": 1, "phases": {
        "dense": 0.2, "rounds": 2, "last_round": 0.2, "final_sparse": 0.2, "split": [0, 1, 1]
    }}  # fmt: skip
    attention = {**PAPER, "score": "effective-norm", "pruned": pruned}
    pruner = Pruner(model, {**settings, "attention": attention}, 5)
    layer = pruner.attached["weight"]
    # The optimizer keeps its state at phase boundaries here (optimizer.reset: false), so its momentum lives on.
    optimizer = torch.optim.SGD([layer.theta], lr=0.1, momentum=0.5)
    for step in range(2):  # dense, then sparse
        pruner.step(step)
        optimizer.zero_grad()
        model(torch.ones(1, 4)).sum().backward()
        optimizer.step()
    assert pruner.step(2).phase.value == "dense"
    # Dense: 0.5 − 0.1·1 = 0.4. Sparse: no gradient, momentum 0.5·1, so 0.4 − 0.1·0.5 = 0.35.
    expected = {"literal": 0.35, "frozen": 0.4}[pruned]
    np.testing.assert_allclose(layer.theta.detach()[0, 2:], [expected, expected], rtol=1e-6)


def test_the_selection_sees_the_logits_before_the_last_update_if_wanted():
    kept = {}
    for selection in ("after-update", "before-update"):
        _, pruner, optimizer = two_blocks(score="attention", selection=selection)
        logits = pruner.attached["weight"].masked.logits
        logits.data = torch.tensor([[0.0, 0.1]])
        pruner.step(0, optimizer)
        with torch.no_grad():  # the last update of the dense phase turns the order round
            logits.copy_(torch.tensor([[0.2, 0.1]]))
        pruner.step(1, optimizer)
        kept[selection] = pruner.masks["weight"].tolist()
    assert kept == {"after-update": [[True, False]], "before-update": [[False, True]]}


def test_what_literal_excludes():
    for settings, said in (
        ({"attention": {"pruned": "literal", "revive": True}}, "revive changes logits"),
        ({"attention": {"pruned": "literal"}, "lock_zero_blocks": True}, "lock_zero_blocks keeps zero blocks at zero"),
        ({"attention": {"selection": "before-update"}}, "which score fisher does not rank by"),
    ):
        with pytest.raises(ValueError, match=said):
            PruneSection.model_validate(settings)
    for method in ("acdc", "gradual-magnitude"):  # they read nothing of `attention`
        settings = {"method": method, "lock_zero_blocks": True, "attention": {"pruned": "literal"}}
        assert PruneSection.model_validate(settings).settings.freezes_pruned
