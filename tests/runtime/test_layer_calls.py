"""What a block-sparse layer may be asked for between two calls, and how: its short way must never be the wrong one."""

import copy
import os
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sapp_cli.codegen import threads as kernel_threads
from sapp_cli.runtime import products
from sapp_cli.runtime.choice import CPU_WAYS
from sapp_cli.runtime.conv import BlockSparseConv
from sapp_cli.runtime.linear import BlockSparseLinear
from tests.runtime.weights import sparse_weight

BLOCK = (8, 8)
WEIGHT = sparse_weight((40, 36), BLOCK, 0.4)  # ragged on the right
BIAS = torch.arange(40.0) / 40


def linear(way="kernel"):
    return BlockSparseLinear.from_weight(WEIGHT, BIAS, BLOCK, way)


def convolution(way="kernel", **settings):
    torch.manual_seed(0)
    dense = nn.Conv2d(8, 12, 3, **settings).requires_grad_(False)
    return dense, BlockSparseConv.from_dense(dense, BLOCK, way)


def expected(x):
    return x @ WEIGHT.t() + BIAS


@st.composite
def views(draw):
    """x (…, 36) as slices, permutations, expansions and negations of others lay it out in memory."""
    leading = draw(st.lists(st.sampled_from([0, 1, 2, 3, 7]), min_size=1, max_size=3))
    x = torch.randn(*leading, 36, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    how = draw(
        st.sampled_from(["sliced", "permuted", "expanded", "negative view", "frozen parameter", "beyond its start"])
    )
    if how == "sliced":
        wide = torch.zeros(*(2 * size for size in leading), 72)
        return wide[(*(slice(None, None, 2) for _ in leading), slice(1, None, 2))].copy_(x)
    if how == "permuted":
        return x.movedim(-1, 0).contiguous().movedim(0, -1)
    if how == "expanded":
        return x[..., :1, :].expand(x.shape) if x.numel() else x
    if how == "negative view":
        return torch._neg_view(x)
    if how == "frozen parameter":
        return nn.Parameter(x, requires_grad=False)
    return torch.cat([torch.full((1, 36), float("nan")), x.reshape(-1, 36)])[1:].view(x.shape)


@settings(max_examples=30, deadline=None)
@given(views(), st.sampled_from(CPU_WAYS))
def test_x_may_lie_in_memory_as_it_likes(x, way):
    layer = LAYERS[way]
    for _ in range(2):  # the second call takes what the first one found
        torch.testing.assert_close(layer(x), expected(x.resolve_neg()), rtol=1e-4, atol=1e-5)


LAYERS = {way: linear(way) for way in CPU_WAYS}


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 3), st.integers(3, 8), st.booleans(), st.sampled_from(["negative", "strided", "expanded"]))
def test_images_may_lie_in_memory_as_they_like(images, side, last, how):
    dense, sparse = CONVOLUTION
    x = torch.randn(images, 8, 2 * side, 2 * side)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    x = {
        "negative": torch._neg_view(x),
        "strided": x[:, :, ::2, 1::2],
        "expanded": x[:1].expand_as(x) if images else x,
    }[how]
    torch.testing.assert_close(sparse(x), dense(x.resolve_neg()), rtol=1e-4, atol=1e-5)


CONVOLUTION = convolution()


def test_the_short_way_is_left_where_a_call_needs_another():
    """Autocast, gradients, another dtype or width, another number of threads: after a plain call with the same x."""
    layer, x = linear(), torch.randn(3, 36)
    first = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    wants = x.clone().requires_grad_()
    assert layer(wants).requires_grad
    with torch.no_grad():
        assert not layer(wants).requires_grad
    assert torch.equal(layer(x), first)
    with pytest.raises(ValueError, match=r"x is torch.float64, the weight of this BlockSparseLinear is torch.float32"):
        layer(x.double())
    with pytest.raises(ValueError, match=r"x is \(3, 35\); its last dimension must be 36"):
        layer(x[:, :35])
    with pytest.raises(ValueError, match=r"x is \(\); its last dimension must be 36"):
        layer(torch.tensor(1.0))
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        torch.testing.assert_close(layer(x), first)
    finally:
        torch.set_num_threads(before)
    assert {choice.threads for choice in layer.choices} == {before, before + 1}


def replaced_in_inference_mode(layer):
    with torch.inference_mode():
        layer.values = torch.zeros_like(layer.values)


def zeros_of(layer):
    return {**layer.state_dict(keep_vars=True), "values": torch.zeros_like(layer.values)}


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.values.zero_(),
        lambda layer: setattr(layer, "values", torch.zeros_like(layer.values)),
        lambda layer: setattr(layer.values, "data", torch.zeros_like(layer.values)),
        lambda layer: layer.values.set_(torch.zeros_like(layer.values)),
        replaced_in_inference_mode,
        lambda layer: layer.load_state_dict(zeros_of(layer)),
        lambda layer: layer.load_state_dict(zeros_of(layer), assign=True),
        lambda layer: layer.load_state_dict({"weight": torch.zeros_like(layer.weight), "bias": layer.bias}),
    ],
    ids=["in place", "another tensor", "data", "set_", "in inference mode", "state", "assigned state", "dense state"],
)
@pytest.mark.parametrize("way", ["kernel", "dense"])
def test_every_change_of_the_values_is_seen(change, way):
    layer, x = linear(way), torch.randn(3, 36)
    layer(x)
    change(layer)
    assert torch.equal(layer(x), BIAS.expand(3, 40))
    dense, sparse = convolution(way)
    image = torch.randn(1, 8, 5, 5)
    sparse(image)
    change(sparse.matrix)
    assert torch.equal(sparse(image), dense.bias.view(1, -1, 1, 1).expand(1, 12, 3, 3))


def test_every_change_of_bias_indices_and_way_is_seen():
    layer, x = linear(), torch.randn(3, 36)
    layer(x)
    layer.bias.data = torch.zeros(40)
    torch.testing.assert_close(layer(x), x @ WEIGHT.t())
    layer.bias = None
    torch.testing.assert_close(layer(x), x @ WEIGHT.t())
    layer.way = "torch"
    layer(x)
    assert [choice.way for choice in layer.choices] == ["torch"]
    empty = BlockSparseLinear.from_weight(torch.zeros(40, 36), None, BLOCK, "kernel")
    for name in ("values", "crow", "col"):
        setattr(layer, name, getattr(empty, name))
    assert not layer(x).any()
    _, sparse = convolution()
    image = torch.randn(1, 8, 5, 5)
    sparse(image)
    sparse.matrix = BlockSparseLinear.from_weight(torch.zeros(12, 72), None, BLOCK)
    assert not sparse(image).any()


def test_more_shapes_than_are_remembered(monkeypatch):
    monkeypatch.setattr("sapp_cli.runtime.linear.MOST_SEEN", 3)
    monkeypatch.setattr(products, "MOST_SEEN", 3)
    monkeypatch.setattr("sapp_cli.runtime.kernel.MOST_PLANS", 3)
    layer = linear()
    for rows in (*range(9), *range(9)):
        x = torch.randn(rows, 36)
        torch.testing.assert_close(layer(x), expected(x))
    assert len(layer.state().ways) <= 3


@pytest.mark.parametrize("matrix", [(8, 0), (0, 8), (0, 0)], ids=str)
@pytest.mark.parametrize("way", ["kernel", "torch", "dense", None])  # oneDNN packs no empty weight
def test_layers_without_features(matrix, way):
    bias = torch.ones(matrix[0])
    sparse = BlockSparseLinear.from_weight(torch.zeros(matrix), bias, BLOCK, way)
    for rows in (0, 1, 30):
        assert torch.equal(sparse(torch.randn(rows, matrix[1])), bias.expand(rows, matrix[0]))


def test_a_great_many_small_blocks():
    weight = torch.randn(307, 293, generator=torch.Generator().manual_seed(0))
    layer = BlockSparseLinear.from_weight(weight, None, (1, 1), "kernel")  # 89,951 of them, more than 16 bits count
    x = torch.randn(13, 293)
    torch.testing.assert_close(layer(x), x @ weight.t(), rtol=1e-4, atol=1e-4)


def test_python_threads_share_a_layer_and_measure_one_after_the_other(monkeypatch):
    monkeypatch.setattr(products, "_MEASURED", {})
    layer, (dense, sparse) = linear(None), convolution(None)
    problems, measuring = [], []
    choose = products.choose

    def counted(ways, x):
        measuring.append(1)
        problems.extend(["two at once"] if len(measuring) > 1 else [])
        found = choose(ways, x)
        measuring.pop()
        return found

    monkeypatch.setattr(products, "choose", counted)

    def work(seed):
        generator = torch.Generator().manual_seed(seed)
        try:
            for rows in (1, 3, 20, 90, 2, 19):
                x = torch.randn(rows, 36, generator=generator)
                torch.testing.assert_close(layer(x), expected(x), rtol=1e-4, atol=1e-5)
                image = torch.randn(1, 8, rows + 3, 4, generator=generator)
                torch.testing.assert_close(sparse(image), dense(image), rtol=1e-4, atol=1e-5)
        except BaseException as error:
            problems.append(error)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not problems


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")  # of newer Pythons, about every fork
def test_a_forked_process_goes_on_with_threads_of_its_own(monkeypatch):
    """Where the kernel runs on a pool of ours, whose threads stay with the parent."""
    monkeypatch.setattr(kernel_threads, "LEAST_WORK", 1)
    monkeypatch.setattr("sapp_cli.codegen.machine_code.openmp", lambda: None)
    kernel = linear().products(torch.float32)._make("kernel", 0, 1)[0]
    x = torch.randn(60, 36)
    first = kernel(x, threads=2)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, b"equal" if torch.equal(kernel(x, threads=2), first) else b"other")
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 5) == b"equal"
    os.close(read)
    os.close(write)


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
def test_torchscript_records_the_dense_product():
    """What a trace does not see becomes a constant: with a kernel it would give the same y for every x."""
    layer, (dense, sparse) = linear(), convolution(padding="same", padding_mode="circular")
    x, image = torch.randn(3, 36), torch.randn(2, 8, 5, 5)
    layer(x), sparse(image)
    for module, example, reference in ((layer, x, expected), (sparse, image, dense)):
        traced = torch.jit.trace(module, (example,))
        other = torch.randn_like(example)
        torch.testing.assert_close(traced(other), reference(other))


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")  # torch's own
@pytest.mark.parametrize("way", CPU_WAYS)
def test_derivatives_forward_are_those_of_the_dense_layer(way):
    layer, (dense, sparse) = linear(way), convolution()
    x, image = torch.randn(3, 36), torch.randn(2, 8, 5, 5)
    layer(x), sparse(image)  # the ways are there already
    for module, example, reference in ((layer, x, expected), (sparse, image, dense)):
        tangent = torch.randn_like(example)
        y, along = torch.func.jvp(module, (example,), (tangent,))
        torch.testing.assert_close(y, reference(example))
        torch.testing.assert_close(along, reference(tangent) - reference(torch.zeros_like(example)))
    torch.testing.assert_close(torch.func.jacfwd(layer)(x[0]), WEIGHT)


def test_export_and_dynamic_shapes():
    layer, x = linear(), torch.randn(4, 36)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("rows", min=2, max=64)},))
    for rows in (2, 9):
        other = torch.randn(rows, 36)
        torch.testing.assert_close(program.module()(other), expected(other))


def test_the_dense_way_of_a_1x1_convolution_lies_in_memory_as_of_the_layer_that_it_stands_for():
    dense = nn.Conv2d(16, 24, 1).requires_grad_(False)
    sparse = BlockSparseConv.from_dense(dense, BLOCK, "dense")
    x = torch.randn(2, 16, 5, 5)
    assert sparse(x).stride() == dense(x).stride()


def test_a_copy_does_not_share_what_was_prepared():
    layer, x = linear(), torch.randn(3, 36)
    layer(x)
    other = copy.deepcopy(layer)
    assert other._known is None
    other.values.zero_()
    assert torch.equal(other(x), BIAS.expand(3, 40))
    torch.testing.assert_close(layer(x), expected(x))
