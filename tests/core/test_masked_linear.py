"""A Linear that makes its masked weight anew for each product: the numbers of the plain one, and no masked weight kept."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

import sapp_cli as sapp
from sapp_cli.core import masked_linear as room
from sapp_cli.core.masked_linear import SeenGradient, is_for, masked_linear
from sapp_cli.core.masked_linear_operator import masked_linear_operator
from sapp_cli.core.masks import SMALL, as_blocks, scale_blocks
from sapp_cli.grid import BlockGrid

GRID = BlockGrid((512, 384), (16, 32))
assert GRID.matrix[0] * GRID.matrix[1] >= SMALL


@pytest.fixture
def tensors():
    """(x, weight, one number a block, bias), seed 0, and the gradient of the result."""
    torch.manual_seed(0)
    x, weight = torch.randn(2, 5, 384), torch.randn(GRID.matrix) / 20
    inputs = x, weight, torch.rand(GRID.size), torch.randn(512)
    return [tensor.requires_grad_() for tensor in inputs], torch.randn(2, 5, 512)


def gradients(product, inputs, dy):
    wanted = [tensor for tensor in inputs if tensor is not None and tensor.requires_grad]
    y = product(*inputs)
    return y.detach(), torch.autograd.grad(y, wanted, dy)


def plain(x, weight, per_block, bias):
    return F.linear(x, scale_blocks(weight, per_block, GRID), bias)


def ours(x, weight, per_block, bias):
    return masked_linear(x, weight, per_block, bias, GRID)


def test_values_and_gradients_are_those_of_a_linear_with_the_masked_weight(tensors):
    inputs, dy = tensors
    assert is_for(*inputs[:2], inputs[3], GRID)
    (y, found), (plain_y, expected) = (gradients(product, inputs, dy) for product in (ours, plain))
    assert torch.equal(y, plain_y)
    for gradient, other in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("frozen", [(0,), (1,), (2,), (1, 2), (3,), (0, 3)], ids=str)
def test_what_needs_no_gradient_gets_none(tensors, frozen):
    inputs, dy = tensors
    for place in frozen:
        inputs[place].requires_grad_(False)
    (_, found), (_, expected) = (gradients(product, inputs, dy) for product in (ours, plain))
    for gradient, other in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-5, atol=1e-5)


def test_without_bias_and_with_one_row(tensors):
    (x, weight, per_block, _), dy = tensors
    inputs = x[0, 0].detach().requires_grad_(), weight, per_block, None
    (y, found), (plain_y, expected) = (gradients(product, inputs, dy[0, 0]) for product in (ours, plain))
    assert torch.equal(y, plain_y)
    for gradient, other in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-5, atol=1e-5)


def test_gradients_of_gradients(tensors):
    inputs, dy = tensors

    def slopes(product):
        first = torch.autograd.grad((product(*inputs) * dy).square().sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum(gradient.square().sum() for gradient in first), inputs)

    for found, expected in zip(slopes(ours), slopes(plain), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_nothing_as_large_as_the_weight_waits_for_the_backward_pass(tensors):
    inputs, _ = tensors
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.data_ptr()) or tensor, lambda t: t):
        ours(*inputs)
    assert sorted(kept) == sorted(tensor.data_ptr() for tensor in inputs)


def test_layers_share_the_memory_of_their_masked_weights(tensors):
    (x, weight, per_block, bias), dy = tensors
    other = torch.randn(GRID.matrix, requires_grad=True)
    y, z = ours(x, weight, per_block, bias), ours(x, other, per_block, bias)  # the second has overwritten the first
    found = torch.autograd.grad(y + z, [x, weight, other], dy)
    weights = (scale_blocks(each.detach(), per_block.detach(), GRID) for each in (weight, other))
    torch.testing.assert_close(found[0], sum(dy @ each for each in weights), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x, w, b: (x.double(), w, b), "dtype of x"),
        (lambda x, w, b: (x, w.double(), b), "dtype of the weight"),
        (lambda x, w, b: (x, w, b.double()), "dtype of the bias"),
        (lambda x, w, b: (x, w.t().contiguous().t(), b), "stored by columns"),
        (lambda x, w, b: (x.to("meta"), w, b), "no CPU"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_it_is_not_for(tensors, change, reason):
    (x, weight, _, bias), _ = tensors
    assert not is_for(*change(x.detach(), weight.detach(), bias.detach()), GRID)


def test_not_under_autocast_nor_for_ragged_or_small_weights(tensors):
    (x, weight, _, bias), _ = tensors
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_for(x, weight, bias, GRID)
    assert not is_for(x, weight, bias, BlockGrid(GRID.matrix, (16, 31)))
    assert not is_for(x[..., :16], weight[:16, :16].contiguous(), None, BlockGrid((16, 16), (16, 16)))


def test_squares_of_the_gradient_are_known_until_it_is_changed(tensors):
    (x, weight, per_block, bias), dy = tensors
    seen = SeenGradient()
    masked_linear(x, weight, per_block, bias, GRID, seen).backward(dy)
    exact = as_blocks((weight.grad * weight).detach(), GRID).square().sum((1, 3))  # dL/dŴ ⊙ Ŵ is dL/dθ ⊙ θ
    torch.testing.assert_close(seen.squares_of(weight.grad), exact, rtol=1e-5, atol=0)
    assert seen.squares_of(weight.grad.clone()) is None
    assert copy.deepcopy(seen).squares_of(weight.grad) is None
    torch.nn.utils.clip_grad_norm_([weight], 1e-3)
    assert seen.squares_of(weight.grad) is None
    masked_linear(x, weight, per_block, bias, GRID, seen).backward(dy)  # added to the gradient that is there
    assert seen.squares_of(weight.grad) is None
    weight.grad = None
    masked_linear(x, weight, per_block, bias, GRID, seen).backward(dy)
    assert seen.squares_of(weight.grad) is not None
    seen.forget()
    assert seen.squares_of(weight.grad) is None


class TestInTheModel:
    """`Pruner` puts it into plain Linear layers."""

    def pruned(self, model):
        torch.manual_seed(1)
        pruner = sapp.Pruner(model, {"block_size": 16, "min_blocks": 1}, steps=100)
        pruner.step(0)
        return pruner

    def test_a_linear_uses_it_and_is_plain_again_without_its_mask(self, monkeypatch):
        model = nn.Sequential(nn.Linear(384, 512), nn.GELU(), nn.Linear(512, 384))
        x = torch.randn(3, 384)
        dense = model(x)
        self.pruned(model)
        calls = []
        real = masked_linear
        monkeypatch.setattr("sapp_cli.layers.attached.masked_linear", lambda *args: calls.append(1) or real(*args))
        assert torch.equal(model(x), dense)  # a fresh mask changes no bit
        assert len(calls) == 2
        assert torch.equal(copy.deepcopy(model)(x), dense)
        assert len(calls) == 4
        for layer in (model[0], model[2]):
            parametrize.remove_parametrizations(layer, "weight")
        assert torch.equal(model(x), dense)
        assert len(calls) == 4

    def test_fisher_from_the_backward_pass_is_that_of_the_gradient(self, monkeypatch):
        def gathered():
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(384, 512), nn.GELU(), nn.Linear(512, 384))
            pruner = self.pruned(model)
            optimizer = torch.optim.AdamW(pruner.parameter_groups(lr=1e-3))
            x = torch.randn(8, 384)
            for step in range(3):
                pruner.step(step, optimizer)
                model(x).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
            return pruner.fisher.blocks

        seen = gathered()
        monkeypatch.setattr(SeenGradient, "squares_of", lambda self, gradient: None)
        for name, squares in gathered().items():
            torch.testing.assert_close(seen[name], squares, rtol=1e-4, atol=0)

    def test_another_forward_stays_in_place(self):
        class Doubled(nn.Linear):
            def forward(self, x):
                return 2 * super().forward(x)

        model = nn.Sequential(Doubled(384, 512))
        x = torch.randn(3, 384)
        before = model(x)
        self.pruned(model)
        assert torch.equal(model(x), before)

    def test_evaluation_with_rounded_weights_rounds(self):
        model = nn.Sequential(nn.Linear(384, 512))
        pruner = self.pruned(model)
        x = torch.randn(3, 384)
        with pruner.rounded({"0.weight": torch.bfloat16}):
            rounded = pruner.attached["0.weight"].theta.bfloat16().float()
            assert torch.equal(model(x), F.linear(x, rounded, model[0].bias))


def test_threads_have_memory_of_their_own(tensors):
    from concurrent.futures import ThreadPoolExecutor

    (x, weight, per_block, bias), _ = tensors
    expected = ours(x, weight, per_block, bias)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: ours(x, weight, per_block, bias), range(8)))
    assert all(torch.equal(each, expected) for each in found)
    assert room._SCRATCH.like(weight).shape == weight.shape


def operator(x, weight, per_block, bias):
    return masked_linear_operator(x, weight, per_block, bias, *GRID.block, SeenGradient().number)


@pytest.mark.parametrize("frozen", [(), (0,), (1,), (2,), (1, 2), (3,)], ids=str)
def test_the_operator_has_the_same_values_and_gradients(tensors, frozen):
    inputs, dy = tensors
    for place in frozen:
        inputs[place].requires_grad_(False)
    (y, found), (other_y, expected) = (gradients(product, inputs, dy) for product in (operator, ours))
    assert torch.equal(y, other_y)
    for gradient, other in zip(found, expected, strict=True):
        assert torch.equal(gradient, other)


@pytest.mark.parametrize("with_bias", [True, False])
def test_the_operator_is_what_torch_asks_of_one(tensors, with_bias):
    (x, weight, per_block, bias), _ = tensors
    torch.library.opcheck(masked_linear_operator, (x, weight, per_block, bias if with_bias else None, *GRID.block, 0))


def test_the_operator_takes_notes_while_somebody_holds_them(tensors):
    inputs, dy = tensors
    seen = SeenGradient()
    assert SeenGradient.numbered(seen.number) is seen
    masked_linear_operator(*inputs, *GRID.block, seen.number).backward(dy)
    weight = inputs[1]
    noted = seen.squares_of(weight.grad)
    expected = as_blocks((weight.grad * weight).detach(), GRID).square().sum((1, 3))
    torch.testing.assert_close(noted, expected, rtol=1e-4, atol=1e-6)
    number, twin = seen.number, copy.deepcopy(seen)
    assert twin.number != number
    del seen
    assert SeenGradient.numbered(number) is None
    masked_linear_operator(*inputs, *GRID.block, number).backward(dy)  # nobody is there to note it
