"""One table, methods × layers, and what holds for every cell. A new method or kind of layer is a new row."""

import copy
from fractions import Fraction

import pytest
import torch
from torch import nn

from sapp_cli.core.schedule import Phase
from sapp_cli.errors import SettingError
from sapp_cli.grid import final_count
from sapp_cli.pruner import Pruner

STEPS = 20
SPARSITY = 0.7


class TiedAutoencoder(nn.Module):
    """One weight under two names."""

    def __init__(self):
        super().__init__()
        self.encode = nn.Linear(24, 24)
        self.decode = nn.Linear(24, 24)
        self.decode.weight = self.encode.weight

    def forward(self, x):
        return self.decode(torch.tanh(self.encode(x)))


class SelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


def hf_conv1d():
    from transformers.pytorch_utils import Conv1D

    return nn.Sequential(Conv1D(30, 20), nn.GELU())  # 20 in, 30 out; stored (20, 30)


LAYERS = {
    "linear": (lambda: nn.Linear(24, 32), (24,), 4),
    "ragged": (lambda: nn.Linear(23, 30), (23,), (4, 5)),
    "rectangular": (lambda: nn.Linear(24, 32), (24,), (2, 8)),
    "conv1d": (lambda: nn.Conv1d(8, 12, 3), (8, 10), 4),
    "conv2d": (lambda: nn.Conv2d(6, 10, 3, padding=1), (6, 7, 7), (5, 6)),
    "grouped": (lambda: nn.Conv2d(8, 16, 3, groups=2), (8, 6, 6), 4),
    "conv3d": (lambda: nn.Conv3d(3, 8, 2), (3, 4, 4, 4), 4),
    "hf-conv1d": (hf_conv1d, (20,), 4),
    "tied": (TiedAutoencoder, (24,), 4),
    "attention": (SelfAttention, (5, 16), 4),
    "bf16": (lambda: nn.Linear(24, 32).to(torch.bfloat16), (24,), 4),
}
METHODS = ["sequential-attention", "acdc", "powerprop", "magnitude", "gradual-magnitude"]


@pytest.fixture(params=METHODS)
def method(request):
    return request.param


@pytest.fixture(params=LAYERS)
def cell(request, method):
    """(a fresh model, its input, a maker of pruners over it)."""
    make, shape, block = LAYERS[request.param]
    torch.manual_seed(0)
    model = make()
    dtype = next(model.parameters()).dtype
    x = torch.randn(16, *shape).to(dtype)

    def pruner(model, phases="fine-tune", **settings):
        shared = {"block_size": block, "sparsity": SPARSITY, "min_blocks": 1, "allocation": "uniform"}
        return Pruner(model, {"method": method, **shared, **settings, "phases": phases}, STEPS)

    return model, x, pruner


TWO_ROUNDS = {"dense": 0.1, "rounds": 2, "last_round": 0.3, "final_sparse": 0.3}


def run(model, pruner, x, each=lambda step, moment: None):
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    target = torch.randn(model(x).shape, generator=torch.Generator().manual_seed(1)).to(x.dtype)
    for step in range(STEPS):
        moment = pruner.step(step, optimizer)
        each(step, moment)
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x).float(), target.float()).backward()
        optimizer.step()


def tolerance(x):
    return {"rtol": 2e-2, "atol": 2e-2} if x.dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}


def test_attaching_leaves_outputs_and_gradients_unchanged(cell, method):
    model, x, make = cell
    before, gradients_before = outputs_and_gradients(model, x)
    make(model)
    after, gradients = outputs_and_gradients(model, x)
    if method == "powerprop":  # ‖θ‖·θ rounds, and its gradient is another one
        torch.testing.assert_close(after, before, **tolerance(x))
    else:
        assert torch.equal(after, before)
        for name, gradient in gradients_before.items():
            assert torch.equal(gradients[name], gradient), name


def outputs_and_gradients(model, x):
    """What the model computes, and the gradients of its input and parameters by their names in the plain model."""
    x = x.clone().requires_grad_()
    y = model(x)
    named = {"x": x, **dict(model.named_parameters())}
    gradients = torch.autograd.grad(y.float().square().mean(), list(named.values()))
    plain = [name.replace("parametrizations.", "").removesuffix(".original") for name in named]
    return y, dict(zip(plain, gradients, strict=True))


CONVOLUTIONS = {
    "1x1": lambda: nn.Conv2d(8, 12, 1),
    "depthwise": lambda: nn.Conv2d(8, 8, 3, groups=8),
    "3x3": lambda: nn.Conv2d(8, 12, 3),
    "3x3x3": lambda: nn.Conv3d(8, 12, 3),
}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("make", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_a_convolution_keeps_its_memory_format(make, channels_last, method):
    # torch picks a convolution by the strides of input and weight, also by those of axes of length 1.
    torch.manual_seed(0)
    conv = make()
    model = nn.Sequential(conv)
    if channels_last:
        conv.to(memory_format=torch.channels_last if isinstance(conv, nn.Conv2d) else torch.channels_last_3d)
    x = torch.randn(4, 8, *(5 for _ in conv.kernel_size))
    strides, before = conv.weight.stride(), conv(x)
    pruner = Pruner(model, {"method": method, "block_size": 1, "sparsity": 0.5, "min_blocks": 1}, STEPS)
    theta = conv.parametrizations.weight.original
    assert (conv.weight.stride(), theta.stride()) == (strides, strides)
    assert pruner.fold()["0.weight"].stride() == strides
    if method != "powerprop":
        assert torch.equal(conv(x), before)
    run(model, pruner, x)
    assert (conv.weight.stride(), theta.stride()) == (strides, strides)


def test_a_format_that_is_set_after_attaching_is_followed():
    conv = nn.Conv2d(8, 12, 3)
    Pruner(nn.Sequential(conv), {"block_size": 4, "sparsity": 0.5, "min_blocks": 1}, STEPS)
    conv.to(memory_format=torch.channels_last)
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)


def test_gradients_reach_weights_and_logits(cell, method):
    model, x, make = cell
    pruner = make(model)
    pruner.step(0)
    model(x).square().mean().backward()
    for layer in pruner.attached.values():
        assert layer.theta.grad.abs().sum() > 0
        if method == "sequential-attention":
            assert layer.masked.logits.grad.abs().sum() > 0
            # The softmax does not see a shift of all logits, so its gradient adds up to nothing.
            assert abs(float(layer.masked.logits.grad.sum())) < 1e-5


def test_the_target_is_reached_exactly_and_folding_changes_nothing(cell):
    model, x, make = cell
    source = copy.deepcopy(model)
    names = list(source.state_dict())
    pruner = make(model)
    run(model, pruner, x)
    state = pruner.fold()
    assert list(state) == names
    for layer in pruner.attached.values():
        kept = int(layer.masked.keep.sum())
        assert kept == final_count(Fraction(7, 10), layer.masked.grid.count) == layer.layer.kept_count
        folded = state[layer.layer.name]
        rows, columns = layer.masked.grid.block
        matrix = folded.permute(layer.masked.layout.axes).reshape(layer.masked.layout.matrix)
        for row, column in (~layer.masked.keep).nonzero().tolist():
            block = matrix[row * rows : (row + 1) * rows, column * columns : (column + 1) * columns]
            assert (block == 0).all()
            assert not torch.signbit(block).any()  # +0, never −0
    source.load_state_dict(dict(state))
    torch.testing.assert_close(source(x), model(x), **tolerance(x))


def test_a_sparsification_phase_only_shrinks_and_a_sparse_phase_stands_still(cell):
    model, x, make = cell
    pruner = make(model, TWO_ROUNDS)
    before = {}

    def each(step, moment):
        for name, keep in pruner.masks.items():
            if moment.phase is Phase.DENSE:
                assert keep.all()
            elif not moment.begins:
                assert not (keep & ~before[name]).any()
                assert moment.phase is Phase.SPARSIFICATION or torch.equal(keep, before[name])
            before[name] = keep.clone()

    run(model, pruner, x, each)


def test_pruned_blocks_are_frozen_and_return_as_they_were(cell, method):
    model, x, make = cell
    pruner = make(model, TWO_ROUNDS)
    frozen = {}

    def each(step, moment):
        for name, layer in pruner.attached.items():
            pruned = ~layer.masked.keep
            matrix = layer.matrix
            rows, columns = layer.masked.grid.block
            logits = layer.masked.logits
            for row, column in frozen.get(name, {}):
                block = matrix[row * rows : (row + 1) * rows, column * columns : (column + 1) * columns]
                value, logit = frozen[name][row, column]
                assert torch.equal(block, value)
                assert logit is None or torch.equal(logits[row, column], logit)
            frozen[name] = {}
            if pruner.schedule.at(step).dense_ahead:
                for row, column in pruned.nonzero().tolist():
                    block = matrix[row * rows : (row + 1) * rows, column * columns : (column + 1) * columns]
                    logit = None if logits is None else logits[row, column].detach().clone()
                    frozen[name][row, column] = (block.clone(), logit)

    run(model, pruner, x, each)


def test_aliases_of_a_tied_weight_share_everything(method):
    torch.manual_seed(0)
    model = TiedAutoencoder()
    x = torch.randn(8, 24)
    pruner = Pruner(model, {"method": method, "block_size": 4, "sparsity": SPARSITY, "min_blocks": 1}, STEPS)
    assert list(pruner.attached) == ["encode.weight"]
    assert pruner.attached["encode.weight"].layer.aliases == ("decode.weight",)
    run(model, pruner, x)
    assert torch.equal(model.encode.weight, model.decode.weight)
    state = pruner.fold()
    assert torch.equal(state["encode.weight"], state["decode.weight"])
    assert sum(p.numel() for p in model.parameters()) == 24 * 24 + 48 + (36 if method == "sequential-attention" else 0)


def test_two_equal_runs_are_equal_bit_for_bit(cell):
    model, x, make = cell
    states = []
    for _ in range(2):
        twin = copy.deepcopy(model)
        pruner = make(twin)
        run(twin, pruner, x)
        states.append(dict(pruner.fold()))
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_acdc_drops_what_it_prunes_and_its_criteo_form_does_not():
    for pruned_weights in ("drop", "mask"):
        torch.manual_seed(0)
        model = nn.Linear(16, 16, bias=False)
        start = model.weight.detach().clone()
        settings = {"method": "acdc", "block_size": 4, "sparsity": 0.5, "min_blocks": 1}
        pruner = Pruner(model, {**settings, "acdc": {"pruned_weights": pruned_weights}}, 40)
        for step in range(6):  # 2 dense, 3 sparse, then dense again
            moment = pruner.step(step)
        assert (moment.phase, moment.round) == (Phase.DENSE, 1)
        dropped = model.weight.detach() == 0
        assert dropped.float().mean() == (0.5 if pruned_weights == "drop" else 0)
        assert torch.equal(model.weight.detach()[~dropped], start[~dropped])


def test_revive_lifts_pruned_logits_to_the_mean_of_the_kept():
    torch.manual_seed(0)
    model = nn.Linear(8, 4, bias=False)  # two blocks of 4
    settings = {"block_size": 4, "sparsity": 0.5, "min_blocks": 1, "phases": TWO_ROUNDS}
    pruner = Pruner(model, {**settings, "attention": {"revive": True, "score": "attention"}}, 40)
    masked = pruner.attached["weight"].masked
    with torch.no_grad():
        masked.logits.copy_(torch.tensor([[2.0, -1.0]]))
    for step in range(pruner.schedule.phases[3].start):
        pruner.step(step)
    assert masked.keep.tolist() == [[True, False]]
    moment = pruner.step(pruner.schedule.phases[3].start)
    assert moment.phase is Phase.DENSE
    assert masked.logits.tolist() == [[2.0, 2.0]]


def test_infinite_pruned_weights_fold_to_zero():
    model = nn.Linear(8, 4, bias=False)
    pruner = Pruner(model, {"method": "magnitude", "block_size": 4, "sparsity": 0.5, "min_blocks": 1}, 40)
    layer = pruner.attached["weight"]
    with torch.no_grad():
        layer.masked.keep.copy_(torch.tensor([[True, False]]))
        layer.theta[0, 5] = float("inf")
    assert (pruner.fold()["weight"][:, 4:] == 0).all()


def test_locked_zero_blocks_never_come_back(method):
    torch.manual_seed(0)
    model = nn.Linear(16, 16, bias=False)
    with torch.no_grad():
        model.weight[:4, :8] = 0  # two of sixteen blocks
    settings = {"method": method, "block_size": 4, "sparsity": 0.5, "min_blocks": 1, "lock_zero_blocks": True}
    pruner = Pruner(model, {**settings, "phases": TWO_ROUNDS}, STEPS)

    def each(step, moment):
        assert (model.weight[:4, :8] == 0).all()
        if moment.phase is Phase.DENSE:
            assert int(pruner.masks["weight"].sum()) == 14

    run(model, pruner, torch.randn(8, 16), each)
    assert int(pruner.masks["weight"].sum()) == 8


def test_more_locked_blocks_than_the_target_are_kept_locked():
    model = nn.Linear(16, 16, bias=False)
    with torch.no_grad():
        model.weight[4:] = 0  # twelve of sixteen blocks, the target is eight
    pruner = Pruner(model, {"block_size": 4, "sparsity": 0.5, "min_blocks": 1, "lock_zero_blocks": True}, STEPS)
    run(model, pruner, torch.randn(8, 16))
    assert pruner.masks["weight"].tolist() == [[True] * 4] + [[False] * 4] * 3


@pytest.mark.parametrize(("monotone", "during", "final"), [(True, [0, 1, 2], [0, 1]), (False, [0, 2, 3], [0, 3])])
def test_a_sparsification_phase_may_choose_anew_in_each_step(monotone, during, final):
    model = nn.Linear(4, 1, bias=False)  # four blocks of one entry
    model.weight.data = torch.tensor([[4.0, 3.0, 2.0, 1.0]])
    phases = {"dense": 0.25, "rounds": 1, "last_round": 0.5, "final_sparse": 0.25}
    settings = {"method": "gradual-magnitude", "block_size": 1, "sparsity": 0.5, "min_blocks": 1, "monotone": monotone}
    pruner = Pruner(model, {**settings, "phases": phases}, 8)
    theta = pruner.attached["weight"].theta

    def kept(step):
        pruner.step(step)
        return pruner.masks["weight"].flatten().nonzero().flatten().tolist()

    def train(*values):
        with torch.no_grad():
            theta.copy_(torch.tensor([values]))

    for step in range(2):
        kept(step)
    # sparsity(1/4) = 0.5·0.64 of four blocks is one, and so until the last step takes the second.
    assert kept(2) == [0, 1, 2]
    train(4, 0.5, 2, 9)  # what an optimizer does to a pruned block is undone, now that it may return
    assert kept(3) == during
    assert kept(4) == during
    train(4, 0.5, 0.25, 1)
    assert kept(5) == final
    assert kept(6) == final


def test_a_run_that_would_end_dense_is_refused(method):
    ends_dense = {"acdc", "magnitude", "powerprop"}
    settings = {"method": method, "block_size": 4, "min_blocks": 1}
    phases = {"dense": 0.5, "rounds": 1, "last_round": 0.5, "final_sparse": 0}
    if method in ends_dense - {"acdc"}:
        phases = {"dense": 0.4, "rounds": 2, "last_round": 0.3, "final_sparse": 0}
    if method in ends_dense:
        with pytest.raises(SettingError, match="the run ends with a dense phase; give `final_sparse` a share"):
            Pruner(nn.Linear(16, 16), {**settings, "phases": phases}, 40)
    else:
        Pruner(nn.Linear(16, 16), {**settings, "phases": phases}, 40)
