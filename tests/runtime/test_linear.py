"""`BlockSparseLinear` is an ordinary module, and never lets an unchecked index near a kernel."""

import copy
import pickle

import numpy as np
import pytest
import torch
from scipy.sparse import bsr_array
from torch import nn
from torch.nn import functional as F

from sapp_cli.checkpoint.block_sparse import encode
from sapp_cli.checkpoint.dtypes import DTYPES
from sapp_cli.errors import CheckpointError
from sapp_cli.grid import BlockGrid
from sapp_cli.runtime.choice import CPU_WAYS
from sapp_cli.runtime.linear import BlockSparseLinear
from tests.runtime.weights import assert_near_exact, has_onednn, sparse_weight, triple

BLOCK = (16, 16)
MATRIX = (80, 56)  # ragged on the right


def dense_layer(dtype=torch.float32, seed=0, bias=True):
    torch.manual_seed(seed)
    layer = nn.Linear(MATRIX[1], MATRIX[0], bias=bias).to(dtype)
    with torch.no_grad():
        layer.weight.copy_(sparse_weight(MATRIX, BLOCK, 0.4, dtype, seed))
    return layer.requires_grad_(False)


def pair(dtype=torch.float32, seed=0, way="kernel", bias=True):
    dense = dense_layer(dtype, seed, bias)
    return dense, BlockSparseLinear.from_dense(dense, BLOCK, way)


@pytest.mark.parametrize("way", CPU_WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_every_way_gives_the_exact_product_within_its_bound(way, dtype):
    dense, sparse = pair(dtype, way=way)
    if way == "onednn" and not has_onednn(dtype):
        with pytest.raises(ValueError, match=f"the way 'onednn' is not possible for {dtype} on cpu here; leave it out"):
            sparse(torch.zeros(1, MATRIX[1], dtype=dtype))
        return
    for rows in (1, 3, 70):
        x = torch.randn(rows, MATRIX[1]).to(dtype)
        y = sparse(x)
        if dtype == torch.float32:
            assert_near_exact(y, x, dense.weight, dense.bias)
        else:  # of the dense libraries the order and place of rounding are not known
            torch.testing.assert_close(
                y.float(), F.linear(x.float(), dense.weight.float(), dense.bias.float()), rtol=0.02, atol=0.02
            )
    assert [choice.way for choice in sparse.choices] == [way] * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_only_ways_that_this_cpu_has_are_measured(dtype):
    sparse = pair(dtype, way=None)[1]
    sparse(torch.ones(3, MATRIX[1], dtype=dtype))
    ways = {"kernel", "torch", "dense"} | ({"onednn"} if has_onednn(dtype) else set())
    assert set(sparse.choices[0].seconds) == ways


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_dtypes_without_a_kernel(dtype):
    dense, _ = pair(dtype)
    sparse = BlockSparseLinear.from_dense(dense, BLOCK)
    x = torch.randn(5, MATRIX[1], dtype=dtype)
    torch.testing.assert_close(sparse(x), dense(x))
    assert set(sparse.choices[0].seconds) <= {"torch", "dense"}
    assert torch.equal(sparse.weight, dense.weight)


@pytest.mark.parametrize("leading", [(), (0,), (1,), (3, 0), (2, 3), (2, 1, 5)], ids=str)
def test_any_leading_dimensions(leading):
    dense, sparse = pair()
    x = torch.randn(*leading, MATRIX[1])
    assert sparse(x).shape == (*leading, MATRIX[0])
    torch.testing.assert_close(sparse(x), dense(x))


def test_x_need_not_be_contiguous():
    dense, sparse = pair(bias=False)
    x = torch.randn(MATRIX[1], 12).t()
    torch.testing.assert_close(sparse(x), dense(x))
    torch.testing.assert_close(sparse(x[::2]), dense(x[::2]))


def test_from_a_block_sparse_matrix():
    weight = sparse_weight((64, 64), BLOCK, 0.5)
    grid = BlockGrid((64, 64), BLOCK)
    sparse = BlockSparseLinear.from_matrix(encode(weight.numpy(), grid, DTYPES["F32"]), grid, None)
    assert torch.equal(sparse.weight, weight)
    assert "in_features=64, out_features=64" in repr(sparse)


def test_the_three_tensors_are_those_of_scipy():
    dense, sparse = pair()
    theirs = bsr_array((sparse.values.numpy(), sparse.col.numpy(), sparse.crow.numpy()), shape=(80, 64))
    theirs.check_format()
    assert np.array_equal(theirs.toarray()[:, :56], dense.weight.numpy())


def test_a_state_dict_goes_there_and_back_whatever_the_number_of_blocks():
    dense, sparse = pair()
    other = BlockSparseLinear.from_weight(sparse_weight(MATRIX, BLOCK, 0.8, seed=9), torch.zeros(80), BLOCK, "kernel")
    x = torch.randn(4, MATRIX[1])
    assert not torch.allclose(other(x), dense(x))
    assert len(other.col) != len(sparse.col)
    for keeps, names in ((False, ["bias", "weight"]), (True, ["bias", "col", "crow", "values"])):
        sparse.keeps_blocks = keeps
        assert sorted(sparse.state_dict()) == names
        filled = copy.deepcopy(other)
        filled.load_state_dict(sparse.state_dict())
        assert torch.equal(filled(x), sparse(x))
        assert len(filled.col) == len(sparse.col)


def test_values_changed_in_place_count():
    _, sparse = pair(bias=False)
    x = torch.randn(4, MATRIX[1])
    before = sparse(x)
    sparse.values.mul_(2)
    assert torch.equal(sparse(x), 2 * before)


def test_copies_and_pickles_compute_the_same_on_their_own():
    _, sparse = pair()
    x = torch.randn(4, MATRIX[1])
    expected = sparse(x)
    copies = [copy.deepcopy(sparse), pickle.loads(pickle.dumps(sparse))]
    sparse.values.zero_()
    for one in copies:
        assert torch.equal(one(x), expected)
        assert torch.equal(torch.compile(one, backend="eager")(x), expected)


def test_conversion_to_another_dtype():
    dense, sparse = pair()
    x = torch.randn(4, MATRIX[1])
    sparse(x)
    found = sparse.to(torch.bfloat16)(x.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), dense(x), rtol=0.02, atol=0.05)
    assert sparse.crow.dtype == torch.int32
    with pytest.raises(ValueError, match=r"x is torch.float32, the weight of this BlockSparseLinear is torch.bfloat16"):
        sparse(x)


def test_inference_mode_and_tensors_made_in_it():
    dense, sparse = pair()
    x = torch.randn(4, MATRIX[1])
    with torch.inference_mode():
        torch.testing.assert_close(sparse(x), dense(x))
        made_inside = BlockSparseLinear.from_dense(dense, BLOCK, "kernel")
        torch.testing.assert_close(made_inside(torch.randn(2, 3, MATRIX[1])).shape, (2, 3, MATRIX[0]))
    torch.testing.assert_close(made_inside(x), dense(x))


def test_autocast_computes_in_bfloat16_as_for_a_linear():
    dense, sparse = pair()
    x = torch.randn(4, MATRIX[1])
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = sparse(x), dense(x)
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)
    assert sparse(x).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_gradients_reach_x(dtype):
    dense, _ = pair(dtype)
    sparse = BlockSparseLinear.from_dense(dense, BLOCK, "torch" if dtype == torch.float64 else "kernel")
    ours, theirs = (torch.randn(2, 3, MATRIX[1], dtype=dtype, generator=torch.Generator().manual_seed(1)) for _ in "ab")
    weights = torch.randn(2, 3, MATRIX[0], dtype=dtype)
    (sparse(ours.requires_grad_()) * weights).sum().backward()
    (dense(theirs.requires_grad_()) * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_torch_compile_goes_around_it_in_one_graph():
    dense, sparse = pair()
    compiled = torch.compile(nn.Sequential(sparse, nn.ReLU()), fullgraph=True, backend="aot_eager")
    x = torch.randn(4, MATRIX[1])
    torch.testing.assert_close(compiled(x), dense(x).relu())
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    compiled(ours).sum().backward()
    dense(theirs).relu().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_the_operators_keep_their_promises_to_torch():
    _, sparse = pair()
    x = torch.randn(2, 4, MATRIX[1], requires_grad=True)
    torch.library.opcheck(
        torch.ops.sapp.block_sparse_linear.default,
        (x, sparse.values, sparse.crow, sparse.col, sparse.bias, sparse.out_features, None),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static"),
    )


@pytest.mark.parametrize(
    ("field", "change", "message"),
    [
        ("col", lambda t: t.__setitem__(0, 4), "bsr_col_indices[0] is 4; there are 4 block columns"),
        ("col", lambda t: t.__setitem__(0, -1), "bsr_col_indices[0] is -1; there are 4 block columns"),
        ("crow", lambda t: t.__setitem__(-1, 99), "bsr_crow_indices ends with 99; there are 9 blocks"),
        ("crow", lambda t: t.__setitem__(1, 7), "bsr_crow_indices falls at block row 1"),
    ],
)
def test_hostile_indices_are_refused_wherever_they_come_from(field, change, message):
    weight = sparse_weight(MATRIX, BLOCK, 0.4)
    values, crow, col = triple(weight, BLOCK)
    tensors = {"values": values, "crow": torch.from_numpy(crow), "col": torch.from_numpy(col)}
    sparse = BlockSparseLinear(MATRIX, **tensors, way="kernel")
    good = sparse(torch.ones(2, MATRIX[1]))
    bad = tensors[field].clone()
    change(bad)
    full = f"a 80×56 weight in blocks of 16×16: {message}"
    with pytest.raises(CheckpointError) as refused:
        BlockSparseLinear(MATRIX, **{**tensors, field: bad})
    assert str(refused.value) == full
    with pytest.raises(CheckpointError, match="weight in blocks of"):
        copy.deepcopy(sparse).load_state_dict({**tensors, field: bad}, assign=False)
    change(getattr(sparse, field))  # in place, after it was checked
    with pytest.raises(CheckpointError) as refused:
        sparse(torch.ones(2, MATRIX[1]))
    assert str(refused.value) == full
    getattr(sparse, field).copy_(tensors[field])
    assert torch.equal(sparse(torch.ones(2, MATRIX[1])), good)


def test_shapes_that_do_not_fit_are_refused():
    values, crow, col = triple(sparse_weight(MATRIX, BLOCK, 0.4), BLOCK)
    crow, col = torch.from_numpy(crow), torch.from_numpy(col)
    with pytest.raises(CheckpointError, match=r"values are \(8, 16, 16\), not \(9, 16, 16\)"):
        BlockSparseLinear(MATRIX, values[:-1], crow, col)
    with pytest.raises(CheckpointError, match=r"the bias is \(79,\), not \(80,\)"):
        BlockSparseLinear(MATRIX, values, crow, col, torch.zeros(79))
    with pytest.raises(ValueError, match="'fast' is not a way to multiply; there are kernel, triton, "):
        BlockSparseLinear(MATRIX, values, crow, col, way="fast")
    with pytest.raises(ValueError, match=r"x is \(2, 55\); its last dimension must be 56"):
        BlockSparseLinear(MATRIX, values, crow, col)(torch.ones(2, 55))


def test_a_weight_that_changes_before_the_backward_pass_is_told():
    """As torch does for its own layers: the gradient would be of weights that are gone."""
    torch.manual_seed(0)
    layer = BlockSparseLinear.from_dense(nn.Linear(64, 64), (16, 16))
    x = torch.randn(3, 64, requires_grad=True)
    y = layer(x)
    with torch.no_grad():
        layer.values.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
