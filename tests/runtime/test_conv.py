"""`BlockSparseConv` computes what the dense convolution does, whatever its shape, and is an ordinary module."""

import copy
import pickle
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sapp_cli.checkpoint.block_sparse import encode
from sapp_cli.checkpoint.dtypes import DTYPES
from sapp_cli.errors import CheckpointError
from sapp_cli.grid import BlockGrid
from sapp_cli.runtime import conv_slabs
from sapp_cli.runtime.conv import BlockSparseConv
from sapp_cli.runtime.conv_geometry import ConvGeometry, Windows, channels_last
from sapp_cli.runtime.conv_operators import arguments_of
from sapp_cli.runtime.linear import BlockSparseLinear
from tests.runtime.weights import UNIT, has_onednn, sparse_weight

CPU_WAYS = ("kernel", "torch", "dense", "channels-last", *(["onednn"] if has_onednn(torch.float32) else []))
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BLOCK = (8, 8)


def dense_conv(axes=2, channels=20, out=24, block=BLOCK, share=0.4, dtype=torch.float32, **settings):
    """A convolution whose weight, as the matrix (out, kernel…·C), has whole blocks of zeros."""
    torch.manual_seed(0)
    conv = CONVOLUTIONS[axes - 1](channels, out, **{"kernel_size": 3, **settings}).to(dtype).requires_grad_(False)
    matrix = sparse_weight((out, conv.weight[0].numel()), block, share, dtype)
    conv.weight.copy_(matrix.view(out, *conv.kernel_size, channels).movedim(-1, 1))
    return conv


def image(*shape, dtype=torch.float32, last=False):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    return channels_last(x).movedim(-1, 1) if last else x


def assert_near_exact(y, x, conv):
    """|y − exact| ≤ n·u·(|x| * |W| + |bias|), n additions: Higham, Accuracy and Stability of Numerical Algorithms, §3.1."""
    exact = copy.deepcopy(conv).double()
    expected = exact(x.double())
    exact.weight.abs_()
    if exact.bias is not None:
        exact.bias.abs_()
    size = exact(x.double().abs())
    assert y.shape == expected.shape
    excess = (y.double() - expected).abs() - (conv.weight[0].numel() + 2) * UNIT[torch.float32] * size * 1.01
    assert excess.numel() == 0 or excess.max() <= 1e-37


@st.composite
def convolutions(draw):
    axes = draw(st.integers(1, 3))
    small = st.integers(1, 3)

    def each(numbers):
        return tuple(draw(numbers) for _ in range(axes))

    kernel, dilation = each(small), each(st.integers(1, 2))
    mode = draw(st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"]))
    padding = draw(st.sampled_from(["same", "valid", "some"]))
    settings = {
        "kernel_size": kernel,
        "dilation": dilation,
        "padding": each(st.integers(0, 2)) if padding == "some" else padding,
        "padding_mode": mode,
        "stride": (1,) * axes if padding == "same" else each(small),
        "bias": draw(st.booleans()),
    }
    block = draw(st.sampled_from([(8, 8), (4, 16), (16, 5), (3, 1)]))
    conv = dense_conv(
        axes,
        draw(st.integers(1, 20)),
        draw(st.integers(1, 20)),
        block,
        draw(st.sampled_from([0, 0.1, 0.5])),
        **settings,
    )
    size = tuple(2 * (side - 1) + draw(st.integers(3, 6)) for side in kernel)
    x = image(draw(st.integers(1, 2)), conv.in_channels, *size, last=draw(st.booleans()))
    return conv, block, x, draw(st.sampled_from(["kernel", "torch"])), draw(st.integers(1, 40))


@settings(max_examples=40, deadline=None)
@given(convolutions())
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_every_shape_gives_the_exact_convolution_within_its_bound(case):
    conv, block, x, way, rows = case
    sparse = BlockSparseConv.from_dense(conv, block, way)
    with pytest.MonkeyPatch.context() as patch:  # small slabs, so that images are cut on every axis
        patch.setattr(conv_slabs, "SLAB_BYTES", 0)
        patch.setattr(conv_slabs, "LEAST_SLAB_ROWS", rows)
        assert_near_exact(sparse(x), x, conv)
    assert torch.equal(sparse.weight, conv.weight)


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize("way", [*CPU_WAYS, None])
@pytest.mark.parametrize("settings", [{"kernel_size": 1, "stride": 2}, {"padding": 1}], ids=["1x1", "3x3"])
def test_every_way(way, last, settings):
    conv = dense_conv(**settings)
    sparse = BlockSparseConv.from_dense(conv, BLOCK, way)
    x = image(2, 20, 9, 12, last=last)
    assert_near_exact(sparse(x), x, conv)
    (choice,) = sparse.choices
    assert (choice.channels_last, choice.bucket) == (last, 4 if settings == {"padding": 1} else 3)  # 216 outputs, or 60
    if way:
        assert choice.way == way
        assert choice.reason.endswith("memory: asked for")
    else:
        assert set(choice.seconds) == set(CPU_WAYS) - {"torch"}  # that is for machines without kernels
        assert choice.reason.startswith(f"{choice.way} for up to {256 if choice.bucket == 4 else 64} outputs of x in ")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_onednn_is_a_way_if_torch_has_it_on_this_cpu(dtype):
    conv, x = dense_conv(padding=1, dtype=dtype), image(1, 20, 6, 6, dtype=dtype)
    sparse = BlockSparseConv.from_dense(conv, BLOCK, "onednn")
    if has_onednn(dtype):
        torch.testing.assert_close(sparse(x), conv(x), rtol=0.02, atol=0.02)
    else:
        with pytest.raises(ValueError, match=f"the way 'onednn' is not possible for {dtype} on cpu here; leave it out"):
            sparse(x)


def test_windows_by_hand():
    """A kernel of 2×2 over 2 channels of 3×3 pixels; only the columns of the pixel at the lower left are read."""
    geometry = ConvGeometry(2, (2, 2), (1, 1), (1, 1), ((0, 0), (0, 0)), "zeros")
    windows = Windows(geometry, BlockGrid((4, 8), (2, 2)), torch.tensor([2, 2], dtype=torch.int32).numpy())
    assert (windows.width, windows.columns.tolist()) == (2, [0, 0])
    pixels = torch.arange(18.0).view(1, 3, 3, 2)  # a pixel's channels are 2·(3·row + column) and one more
    ((first, rows, ((piece, view),)),) = windows.slabs(pixels, 100)
    assert (first, rows, piece.place, piece.width) == (0, 4, 0, 2)
    assert view.reshape(4, 2).tolist() == [[6, 7], [8, 9], [12, 13], [14, 15]]
    assert [(first, rows) for first, rows, _ in windows.slabs(pixels, 1)] == [(0, 1), (1, 1), (2, 1), (3, 1)]
    assert [(first, rows) for first, rows, _ in windows.slabs(pixels, 3)] == [(0, 2), (2, 2)]


def test_neighbouring_columns_are_copied_at_once():
    geometry = ConvGeometry(16, (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)), "zeros")
    everything = Windows(geometry, BlockGrid((8, 144), (8, 8)), torch.arange(18, dtype=torch.int32).numpy())
    pixels = torch.zeros(1, 6, 6, 16)
    ((_, _, views),) = everything.slabs(pixels, 100)
    assert [(piece.window, piece.width) for piece, _ in views] == [((0, 0), 48), ((1, 0), 48), ((2, 0), 48)]


def test_float64_and_float16_take_plain_torch_or_the_dense_layer():
    for dtype in (torch.float64, torch.float16):
        conv = dense_conv(padding=1, dtype=dtype)
        sparse = BlockSparseConv.from_dense(conv, BLOCK)
        x = image(1, 20, 8, 8, dtype=dtype)
        torch.testing.assert_close(sparse(x), conv(x))
        assert set(sparse.choices[0].seconds) <= {"torch", "dense", "channels-last"}
        with pytest.raises(ValueError, match=f"the way 'kernel' is not possible for {dtype} on cpu here; leave it out"):
            BlockSparseConv.from_dense(conv, BLOCK, "kernel")(x)


def test_bfloat16():
    conv = dense_conv(padding=1)
    x = image(1, 20, 8, 8)
    sparse = BlockSparseConv.from_dense(conv, BLOCK, "kernel").to(torch.bfloat16)
    found = sparse(x.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), conv(x), rtol=0.02, atol=0.1)
    with pytest.raises(ValueError, match=r"x is torch.float32, the weight of this .* is torch.bfloat16"):
        sparse(x)


def test_memory_formats():
    """Block-sparse ways give channels-last outputs, unless they are asked to keep the format of x."""
    conv, x = dense_conv(padding=1), image(2, 20, 6, 6)
    sparse = BlockSparseConv.from_dense(conv, BLOCK, "kernel")
    assert sparse(x).is_contiguous(memory_format=torch.channels_last)
    sparse.keep_format = True
    for way in CPU_WAYS:
        sparse.way = way
        assert sparse(x).is_contiguous()
        assert_near_exact(sparse(x), x, conv)
        last = x.contiguous(memory_format=torch.channels_last)
        assert way == "dense" or sparse(last).is_contiguous(memory_format=torch.channels_last)


def test_one_image_without_a_batch_and_batches_of_none():
    conv = dense_conv(padding=1)
    sparse = BlockSparseConv.from_dense(conv, BLOCK, "kernel")
    x = image(20, 7, 7)
    torch.testing.assert_close(sparse(x), conv(x))
    assert sparse(torch.empty(0, 20, 7, 7)).shape == (0, 24, 7, 7)


def test_what_does_not_fit_is_refused():
    conv = dense_conv()
    sparse = BlockSparseConv.from_dense(conv, BLOCK)
    with pytest.raises(ValueError, match=r"x is \(1, 19, 9, 9\); it must be \(images, 20 channels, 2 spatial axes\)"):
        sparse(torch.ones(1, 19, 9, 9))
    with pytest.raises(ValueError, match="x has 2×9 pixels, fewer than the kernel of 3×3 needs"):
        sparse(torch.ones(1, 20, 2, 9))
    with pytest.raises(ValueError, match="'fast' is not a way to convolve; there are kernel, "):
        BlockSparseConv.from_dense(conv, BLOCK, "fast")
    with pytest.raises(ValueError, match="a convolution of 2 groups has no one matrix"):
        BlockSparseConv.from_dense(nn.Conv2d(4, 4, 3, groups=2), BLOCK)
    with pytest.raises(ValueError, match="a weight of 180 columns for a convolution of 27"):
        BlockSparseConv(ConvGeometry.of(nn.Conv2d(3, 24, 3)), sparse.matrix)


def test_state_copies_pickles_and_changes_in_place():
    conv, x = dense_conv(padding=1), image(1, 20, 6, 6)
    sparse = BlockSparseConv.from_dense(conv, BLOCK, "kernel")
    expected = sparse(x)
    other = BlockSparseConv.from_dense(dense_conv(padding=1, share=0.9), BLOCK, "kernel")
    assert not torch.equal(other(x), expected)
    copies = [copy.deepcopy(sparse), pickle.loads(pickle.dumps(sparse))]
    matrix = ["matrix.bias", "matrix.col", "matrix.crow", "matrix.values"]
    for keeps, names in ((False, ["bias", "weight"]), (True, matrix)):
        sparse.keeps_blocks = keeps
        assert sorted(sparse.state_dict()) == names
        copies.append(copy.deepcopy(other))
        copies[-1].load_state_dict(sparse.state_dict())
    sparse.matrix.values.zero_()
    sparse.matrix.bias.zero_()
    assert torch.equal(sparse(x), torch.zeros_like(expected))
    for one in copies:
        assert torch.equal(one(x), expected)
    sparse.matrix.col[0] = 1000
    with pytest.raises(CheckpointError, match=r"bsr_col_indices\[0\] is 1000; there are 23 block columns"):
        sparse(x)


def test_dense_weights_that_lost_are_not_kept():
    conv = dense_conv(channels=64, out=64, share=0.1, padding=1)
    sparse = BlockSparseConv.from_dense(conv, BLOCK)
    own = sum(tensor.nbytes for tensor in (sparse.matrix.values, sparse.matrix.crow, sparse.matrix.col))
    assert sparse.weight_bytes == own
    x = image(1, 64, 24, 24, last=True)
    sparse(x)
    (choice,) = sparse.choices
    copies = sparse.weight_bytes - own
    assert copies < conv.weight.nbytes / 2 if choice.way == "kernel" else copies == conv.weight.nbytes
    sparse.way = CPU_WAYS[-1]
    sparse(x)
    assert sparse.weight_bytes == own + conv.weight.nbytes


def test_inference_mode_and_autocast():
    conv, x = dense_conv(padding=1), image(1, 20, 6, 6)
    sparse = BlockSparseConv.from_dense(conv, BLOCK, "kernel")

    def run():  # a new thread, which has no slab yet
        with torch.inference_mode():
            torch.testing.assert_close(sparse(x), conv(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(sparse(x), conv(x), rtol=1e-4, atol=1e-5)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    with torch.autocast("cpu", torch.bfloat16):
        found = sparse(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), conv(x), rtol=0.02, atol=0.1)


@pytest.mark.parametrize("settings", [{"padding": 1}, {"padding": "same", "padding_mode": "circular"}], ids=str)
def test_gradients_reach_x(settings):
    conv = dense_conv(dtype=torch.float64, **settings)
    sparse = BlockSparseConv.from_dense(conv, BLOCK, "torch")
    ours, theirs = (image(2, 20, 5, 6, dtype=torch.float64).requires_grad_() for _ in "ab")
    weights = torch.randn(2, 24, 5, 6, dtype=torch.float64)
    (sparse(ours) * weights).sum().backward()
    (conv(theirs) * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_torch_compile_goes_around_it_in_one_graph():
    conv, x = dense_conv(padding=1), image(2, 20, 6, 6)
    sparse = BlockSparseConv.from_dense(conv, BLOCK, "kernel")
    compiled = torch.compile(nn.Sequential(sparse, nn.ReLU()), fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), conv(x).relu(), rtol=1e-4, atol=1e-5)


def tensors(sparse):
    matrix = sparse.matrix
    return matrix.values, matrix.crow, matrix.col, matrix.bias


def test_the_operators_keep_their_promises_to_torch():
    sparse = BlockSparseConv.from_dense(dense_conv(padding=1), BLOCK)
    torch.library.opcheck(
        torch.ops.sapp.block_sparse_conv.default,
        (image(2, 20, 6, 6).requires_grad_(), *tensors(sparse), 24, *arguments_of(sparse.geometry), None),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static"),
    )
    for padding in ({"padding": 1}, {"padding": "same", "padding_mode": "circular"}):
        sparse = BlockSparseConv.from_dense(dense_conv(**padding), BLOCK)
        torch.library.opcheck(
            torch.ops.sapp.block_sparse_conv_backward.default,
            (image(2, 24, 6, 6), *tensors(sparse)[:3], [2, 20, 6, 6], *arguments_of(sparse.geometry)),
            test_utils=("test_schema", "test_faketensor"),
        )


def test_from_a_block_sparse_matrix():
    conv, x = dense_conv(padding=1), image(1, 20, 6, 6)
    matrix, grid = conv.weight.movedim(1, -1).flatten(1), BlockGrid((24, 180), BLOCK)
    sparse = BlockSparseConv.from_matrix(
        conv, encode(matrix.numpy(), grid, DTYPES["F32"]), grid, conv.bias, way="kernel"
    )
    assert torch.equal(sparse(x), BlockSparseConv.from_dense(conv, BLOCK, "kernel")(x))
    assert isinstance(sparse.matrix, BlockSparseLinear)
    for name in (
        "in_channels",
        "out_channels",
        "kernel_size",
        "stride",
        "padding",
        "padding_mode",
        "dilation",
        "groups",
    ):
        assert getattr(sparse, name) == getattr(conv, name)
    assert repr(sparse).startswith("BlockSparseConv(\n  20, 24, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1)\n")
