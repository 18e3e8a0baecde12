"""Our masks, gradients and whole short runs against the NumPy reference of Algorithm 1."""

import numpy as np
import pytest
import torch
from torch import nn

from sapp_cli.pruner import Pruner
from tests.methods.reference import Run

# 20 % dense; round 1 of 30 % in thirds; round 2 sparsifies for 30 %; 20 % sparse: of 40 steps, by hand.
PHASES = {"dense": 0.2, "rounds": 2, "last_round": 0.3, "final_sparse": 0.2}
BOUNDS = [
    ("dense", 0, 8),
    ("sparsification", 8, 12),
    ("sparse", 12, 16),
    ("dense", 16, 20),
    ("sparsification", 20, 32),
    ("sparse", 32, 40),
]
RATE, LOGIT_RATE, MOMENTUM, DECAY = 0.05, 0.05, 0.9, 0.01


def make(seed, shape, block, sparsity, kept, score, clip):
    generator = np.random.default_rng(seed)
    weight = generator.normal(size=shape).astype(np.float32)
    x = generator.normal(size=(64, shape[1])).astype(np.float32)
    y = generator.normal(size=(64, shape[0])).astype(np.float32)
    model = nn.Linear(shape[1], shape[0], bias=False)
    model.weight.data = torch.from_numpy(weight.copy())
    settings = {
        "block_size": block,
        "sparsity": sparsity,
        "min_blocks": 1,
        "phases": PHASES,
        "attention": {"score": score, "clip": clip},
    }
    pruner = Pruner(model, settings, steps=40)
    run = Run(weight, block, sparsity, kept, 40, BOUNDS, RATE, LOGIT_RATE, MOMENTUM, DECAY, score, clip)
    return model, pruner, run, x, y


CASES = [
    (0, (12, 20), (4, 4), 0.6, 6, "effective-norm", True),  # n = 15, ⌈9⌉ go
    (1, (12, 20), (4, 4), 0.6, 6, "attention", True),
    (2, (13, 22), (4, 5), 0.75, 5, "effective-norm", False),  # ragged; n = 20
    (3, (9, 30), (2, 7), 0.5, 12, "attention", False),  # ragged, n = 25, ⌈12.5⌉ = 13 go
]


@pytest.mark.parametrize("case", CASES)
def test_forward_and_gradients(case):
    model, pruner, run, x, y = make(*case)
    generator = np.random.default_rng(9)
    run.logits = generator.normal(size=run.size)
    run.keep = generator.random(run.size) < 0.7
    masked = pruner.attached["weight"].masked
    with torch.no_grad():
        masked.logits.copy_(torch.from_numpy(run.logits))
        masked.keep.copy_(torch.from_numpy(run.keep))
    out = model(torch.from_numpy(x))
    loss = nn.functional.mse_loss(out, torch.from_numpy(y))
    loss.backward()
    grad_weight, grad_logits, expected_loss = run.gradients(x, y)
    np.testing.assert_allclose(out.detach(), run.forward(x)[0], rtol=1e-4, atol=1e-5)
    assert loss.item() == pytest.approx(expected_loss, rel=1e-5)
    np.testing.assert_allclose(pruner.attached["weight"].theta.grad, grad_weight, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(masked.logits.grad, grad_logits, rtol=1e-4, atol=1e-6)
    assert (masked.logits.grad[~masked.keep] == 0).all()


@pytest.mark.parametrize("case", CASES)
def test_a_whole_run(case):
    model, pruner, run, x, y = make(*case)
    layer = pruner.attached["weight"]
    optimizer = torch.optim.SGD(
        [
            {"params": [layer.theta], "lr": RATE, "weight_decay": DECAY},
            {"params": pruner.logits, "lr": LOGIT_RATE, "weight_decay": 0.0},
        ],
        momentum=MOMENTUM,
    )
    exchanged = []
    for step in range(40):
        pruner.step(step, optimizer)
        loss = nn.functional.mse_loss(model(torch.from_numpy(x)), torch.from_numpy(y))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected_loss = run.step(step, x, y)
        assert torch.equal(layer.masked.keep, torch.from_numpy(run.keep)), step
        assert loss.item() == pytest.approx(expected_loss, rel=1e-3), step
        exchanged.append(run.keep.copy())
    pruner.fold()  # puts what decay and momentum did to pruned entries back
    alive = run.keep.repeat(case[2][0], 0).repeat(case[2][1], 1)[: case[1][0], : case[1][1]]
    np.testing.assert_allclose(layer.theta.detach()[alive], run.weight[alive], rtol=2e-3, atol=1e-4)
    np.testing.assert_allclose(layer.masked.logits.detach(), run.logits, rtol=2e-3, atol=1e-3)
    assert run.keep.sum() == case[4]
    # The case is worth something only if the logits moved: A is far from 1 in places.
    assert np.abs(run.logits).max() > 0.1
