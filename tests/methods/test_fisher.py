"""Score `fisher`: the gradients it is made of, what it ranks by, and what it asks of whoever drives the pruner."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from sapp_cli.core.masks import as_blocks, as_matrix, block_product_squares
from sapp_cli.core.schedule import Phase
from sapp_cli.errors import SettingError, UsageError
from sapp_cli.grid import BlockGrid
from sapp_cli.pruner import Pruner
from sapp_cli.pruner.block_fisher import DECAY

METHODS = ["sequential-attention", "acdc", "powerprop", "magnitude", "gradual-magnitude"]
LAYERS = {
    "linear": (lambda: nn.Linear(24, 32), (24,), 4),
    "ragged": (lambda: nn.Linear(23, 30), (23,), (4, 5)),
    "conv": (lambda: nn.Conv2d(6, 10, 3), (6, 7, 7), (5, 6)),
}


def fisher(method="gradual-magnitude", **settings):
    return {"method": method, "score": "fisher", "block_size": 4, "sparsity": 0.5, "min_blocks": 1, **settings}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", LAYERS)
def test_what_is_gathered_is_autograds_gradient_times_the_effective_weight(method, kind):
    make, shape, block = LAYERS[kind]
    torch.manual_seed(0)
    model = make()
    pruner = Pruner(model, fisher(method, block_size=block), 40)
    (layer,) = pruner.attached.values()
    masked = layer.masked
    pruner.step(0)
    with torch.no_grad():
        layer.theta.mul_(torch.linspace(0.5, 2, layer.theta[0].numel()).view_as(layer.theta[0]))
        masked.keep.view(-1)[1] = False
        if masked.logits is not None:
            masked.logits.copy_(torch.randn(masked.logits.shape) / 2)
    with parametrize.cached():
        weight = model.weight
        weight.retain_grad()
        model(torch.randn(5, *shape)).square().sum().backward()
    found = pruner.method.sensitivity(as_matrix(layer.theta.grad, masked.layout), layer.matrix, masked.state)
    products = as_matrix(weight.grad * weight.detach(), masked.layout)
    torch.testing.assert_close(found, as_blocks(products, masked.grid).square().sum((1, 3)), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("side", [64, 1024])  # in memory at once, and some block rows at a time
def test_squares_of_products_of_blocks(side):
    torch.manual_seed(0)
    grid = BlockGrid((side, 2 * side), (16, 32))
    first, second = torch.randn(2, side, 2 * side)
    found = block_product_squares(first, second, grid)
    torch.testing.assert_close(found, (first * second).view(side // 16, 16, -1, 32).square().sum((1, 3)))


def test_a_zero_block_has_no_gradient_to_divide_by():
    model = nn.Linear(8, 4, bias=False)
    with torch.no_grad():
        model.weight[:, :4] = 0
    pruner = Pruner(model, fisher("powerprop"), 40)
    pruner.step(0)
    model(torch.randn(3, 8)).sum().backward()
    pruner.observe(0)
    assert pruner.fisher.blocks["weight"].isfinite().all()


def test_the_running_mean_by_hand():
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 0.5]]))
    pruner = Pruner(model, fisher(block_size=1), 40)
    for step, x in enumerate(([1.0, 2.0], [3.0, -1.0])):
        pruner.step(step)
        model.zero_grad()
        model(torch.tensor([x])).sum().backward()  # dL/dW = x
        pruner.observe(step)
    rest = 1 - DECAY
    wanted = [rest * (DECAY * 1 + 9), rest * (DECAY * 4 + 1) / 4]
    torch.testing.assert_close(pruner.fisher.blocks["weight"][0], torch.tensor(wanted))


def test_blocks_rank_by_gradient_times_weight():
    model = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    pruner = Pruner(model, fisher("magnitude", block_size=1), 40)
    pruner.step(0)
    model(torch.tensor([[10.0, 0.1, 2.0, 1.0]])).sum().backward()
    pruner.observe(0)
    for step in range(1, 40):
        if pruner.step(step).phase is Phase.SPARSE:
            break
    assert pruner.masks["weight"].tolist() == [[True, False, True, False]]  # 10·1 and 2·3 against 0.2 and 4
    found = pruner.method.scores(pruner.attached["weight"].matrix, pruner._block_state("weight"))
    torch.testing.assert_close(found, math.sqrt(1 - DECAY) * torch.tensor([[10.0, 0.2, 6.0, 4.0]]))


def test_attention_multiplies_it():
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
    pruner = Pruner(model, fisher("sequential-attention", block_size=1), 40)
    pruner.step(0)
    with torch.no_grad():
        pruner.attached["weight"].masked.logits.copy_(torch.tensor([[math.log(3), 0.0]]))  # A = 3/2, 1/2
    model(torch.tensor([[1.0, 2.0]])).sum().backward()
    pruner.observe(0)
    found = pruner.method.scores(pruner.attached["weight"].matrix, pruner._block_state("weight")).detach()
    assert float(found[0, 0] / found[0, 1]) == pytest.approx(3 * 1 / 2)


def test_nothing_is_gathered_in_a_sparse_phase_nor_of_pruned_blocks():
    torch.manual_seed(0)
    model = nn.Linear(16, 16)
    pruner = Pruner(model, fisher(), 40)
    before = None
    for step in range(40):
        moment = pruner.step(step)
        model.zero_grad()
        model(torch.randn(4, 16)).square().mean().backward()
        pruner.observe(step)
        now = pruner.fisher.blocks["weight"].clone()
        if before is not None:
            same = now == before
            assert same[~pruner.masks["weight"]].all()
            assert same.all() if moment.phase is Phase.SPARSE else not same[pruner.masks["weight"]].any()
        before = now


def test_overflowing_gradients_count_as_none():
    model = nn.Linear(4, 4, bias=False)
    pruner = Pruner(model, fisher(block_size=1), 40)
    pruner.step(0)
    model(torch.ones(1, 4)).sum().backward()
    model.parametrizations.weight.original.grad[0, 0] = float("inf")
    pruner.observe(0)
    assert pruner.fisher.blocks["weight"].isfinite().all()
    assert pruner.fisher.blocks["weight"][0, 0] == 0


def test_whoever_does_not_show_gradients_is_told():
    model = nn.Linear(8, 8)
    pruner = Pruner(model, fisher(), 40)
    last = pruner.schedule.phases[1].stop - 1
    pruner.step(0)
    with pytest.raises(
        UsageError, match=r"^score fisher: no gradient was seen yet; call pruner\.step\(step, optimizer\) before"
    ):
        pruner.step(last)


def test_a_timetable_without_a_dense_start_is_refused():
    phases = {"dense": 0, "rounds": 1, "last_round": 0.5, "final_sparse": 0.5}
    with pytest.raises(SettingError) as caught:
        Pruner(nn.Linear(8, 8), fisher(phases=phases), 40)
    assert str(caught.value) == (
        "prune.phases: score fisher gathers gradients first: give `dense` a share of the run, e.g. 0.05"
    )


def test_attention_is_a_score_of_one_method_only():
    with pytest.raises(ValueError, match="score attention needs method sequential-attention, magnitude has none"):
        Pruner(nn.Linear(8, 8), {"method": "magnitude", "score": "attention"}, 40)


def test_prune_score_wins_over_the_methods_own():
    pruner = Pruner(nn.Linear(8, 8), {"score": "norm", "block_size": 4, "min_blocks": 1}, 40)
    assert pruner.method.score == "norm"
