"""On a GPU a layer chooses among tiles of our kernel, torch's kernel, plain torch and dense. Here the CPU stands in for it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from triton.runtime.errors import OutOfResources

from sapp_cli.grid import BlockGrid
from sapp_cli.runtime import gpu, products, triton_kernel, weight_state
from sapp_cli.runtime.linear import BlockSparseLinear
from sapp_cli.runtime.torch_bsr import is_possible, whole_tiles
from sapp_cli.runtime.triton_tiles import tiles
from tests.runtime.weights import assert_near_exact, sparse_weight, triple

pytestmark = pytest.mark.usefixtures("interpreted")

NAMES = [tile.name for tile in tiles(16, (16, 16), torch.float32)]


@pytest.fixture
def on_gpu(monkeypatch):
    """Layers take the CPU for a GPU; Triton's interpreter is one that computes, if slowly."""
    monkeypatch.setattr(products, "is_on_gpu", lambda values: True)
    monkeypatch.setattr(products, "_MEASURED", {})


def made(weight, way=None, bias=None):
    return products.Products(*tensors(weight), bias, BlockGrid(tuple(weight.shape), (16, 16)), weight.dtype, way)


def tensors(weight):
    values, crow, col = triple(weight, (16, 16))
    return values, torch.from_numpy(crow), torch.from_numpy(col)


def test_all_ways_are_measured_and_one_that_fails_is_told(on_gpu):
    weight, bias = sparse_weight((40, 64), (16, 16), 0.5), torch.randn(40)
    layer = made(weight, bias=bias)
    x = torch.randn(7, 64)
    assert_near_exact(layer(x), x, weight, bias)
    choice = next(iter(layer.choices.values()))
    assert set(choice.seconds) == {*NAMES, "torch", "dense"}
    assert choice.way in ("torch", "dense")  # an interpreter wins nothing
    assert set(choice.problems) == {"torch-bsr"}
    assert "; torch-bsr failed: NameError: " in choice.reason  # torch has it for GPUs only
    assert layer._for_triton is None


def test_of_triton_alone_the_tiles_are_measured(on_gpu):
    weight = sparse_weight((32, 64), (16, 16), 0.5)
    layer = made(weight, "triton")
    x = torch.randn(7, 64)
    assert_near_exact(layer(x), x, weight)
    choice = next(iter(layer.choices.values()))
    assert choice.way in choice.seconds
    assert set(choice.seconds) == set(NAMES)
    assert {name for name, _ in layer._prepared} == {choice.way}


def test_a_tile_that_does_not_fit_is_left_out(on_gpu, monkeypatch):
    first = tiles(16, (16, 16), torch.float32)[0]
    kernel = triton_kernel.block_sparse_product

    class Small:
        """A card with little shared memory."""

        def __getitem__(self, programs):
            def launch(*arguments, num_warps, **constants):
                if num_warps == first.warps:
                    raise OutOfResources(200_000, 100_000, "shared memory")
                kernel[programs](*arguments, num_warps=num_warps, **constants)

            return launch

    monkeypatch.setattr(triton_kernel, "block_sparse_product", Small())
    layer = made(sparse_weight((32, 64), (16, 16), 0.5), "triton")
    layer(torch.ones(7, 64))
    choice = next(iter(layer.choices.values()))
    assert set(choice.seconds) == set(NAMES) - {first.name}
    told = "OutOfResources: out of resource: shared memory, Required: 200000, Hardware limit: 100000"
    assert choice.problems[first.name].startswith(told)


def test_without_triton_a_gpu_computes_in_plain_torch_or_dense(on_gpu, monkeypatch):
    monkeypatch.setattr(products, "triton_is_there", lambda: False)
    weight = sparse_weight((32, 64), (16, 16), 0.5)
    layer = made(weight)
    layer(torch.ones(7, 64))
    assert set(next(iter(layer.choices.values())).seconds) == {"torch", "dense"}
    for way in ("triton", "torch-bsr"):
        message = f"the way '{way}' is not possible for torch.float32 on cpu here; leave it out"
        with pytest.raises(ValueError, match=message):
            made(weight, way)(torch.ones(7, 64))


def test_a_way_that_failed_says_why_when_it_is_asked_for(on_gpu):
    with pytest.raises(
        ValueError, match=r"'torch-bsr' is not possible for torch.float32 on cpu here \(NameError: .+\); leave"
    ):
        made(sparse_weight((32, 64), (16, 16), 0.5), "torch-bsr")(torch.ones(7, 64))


def test_nothing_is_measured_while_a_cuda_graph_is_captured(on_gpu, monkeypatch):
    weight = sparse_weight((32, 64), (16, 16), 0.5)
    layer = made(weight)
    monkeypatch.setattr(products, "is_captured", lambda x: True)
    x = torch.randn(20, 64)
    assert_near_exact(layer(x), x, weight)
    assert [choice.reason for choice in layer.choices.values()] == [
        "torch for 17–64 rows: not measured while a CUDA graph is captured"
    ]
    monkeypatch.setattr(products, "is_captured", lambda x: False)
    layer(x)
    measured = next(iter(layer.choices.values()))
    assert "dense" in measured.seconds
    monkeypatch.setattr(products, "is_captured", lambda x: True)
    layer(torch.randn(300, 64))
    reason = f"{measured.way} for 257–1024 rows: not measured while a CUDA graph is captured; as for 17–64 rows"
    assert [choice.reason for choice in layer.choices.values()] == [measured.reason, reason]


def test_a_layer_that_has_never_computed_cannot_begin_while_a_graph_is_captured(monkeypatch):
    layer = BlockSparseLinear.from_weight(sparse_weight((32, 64), (16, 16), 0.5), None, (16, 16))
    monkeypatch.setattr(weight_state, "is_captured", lambda x: True)
    with pytest.raises(RuntimeError, match=r"run the model once before, as torch.cuda.graph asks for anyway"):
        layer(torch.ones(1, 64))


def test_tf32_is_taken_where_the_user_allows_it_and_chosen_for_on_its_own(on_gpu):
    layer = made(sparse_weight((32, 64), (16, 16), 0.5), "torch")
    before = torch.get_float32_matmul_precision()
    try:
        for precision, allowed in (("highest", False), ("high", True)):
            torch.set_float32_matmul_precision(precision)
            assert gpu.tf32_allowed() is allowed
            layer(torch.ones(1, 64))
        assert set(layer.choices) == {(0, 0), (0, 1)}
    finally:
        torch.set_float32_matmul_precision(before)
    half = made(sparse_weight((32, 64), (16, 16), 0.5, torch.float16), "torch")
    half(torch.ones(1, 64, dtype=torch.float16))
    assert set(half.choices) == {(0, 0)}


def test_rows_that_torch_s_kernel_takes():
    assert [whole_tiles(rows, 16) for rows in (1, 16, 17, 40)] == [16, 16, 32, 48]
    assert [whole_tiles(rows, 64) for rows in (1, 17, 33, 63, 64, 65)] == [16, 32, 64, 64, 64, 128]
    assert is_possible((16, 32), torch.float16)
    assert not is_possible((8, 16), torch.float16)
    assert not is_possible((24, 16), torch.float16)
    assert not is_possible((16, 16), torch.float64)


INTERPRET_TORCH = """
import torch, torch.utils._triton
torch.utils._triton.has_triton = lambda: True  # then torch defines its kernels, for the interpreter
from torch.sparse import _triton_ops
from sapp_cli.grid import BlockGrid
from sapp_cli.runtime.torch_bsr import TorchBsrProduct
from tests.runtime.weights import assert_near_exact, sparse_weight, triple

kernel = _triton_ops._bsr_strided_addmm_kernel
class Launcher:
    def __getitem__(self, programs):
        return kernel[tuple(programs)]  # a list is one thing that the interpreter does not take
_triton_ops._bsr_strided_addmm_kernel = Launcher()
for matrix, block, rows in [((70, 100), (32, 16), 40), ((64, 64), (64, 32), 20)]:
    for bias in (None, torch.randn(matrix[0])):
        weight = sparse_weight(matrix, block, 0.4)
        values, crow, col = triple(weight, block)
        product = TorchBsrProduct(values, torch.from_numpy(crow), torch.from_numpy(col), bias, BlockGrid(matrix, block))
        x = torch.randn(rows, matrix[1])
        y = product(x)
        assert y.shape == (rows, matrix[0]) and y.is_contiguous()
        assert_near_exact(y, x, weight, bias)
        print(product.bytes == values.nbytes)
"""


def test_torch_s_kernel_is_given_what_it_takes():
    """Padded rows and edges, the bias, both layouts: in a process of its own, for torch has no kernels without a GPU."""
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", INTERPRET_TORCH],
        env={"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": "."},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.stdout, ran.stderr) == ("True\n" * 4, "")
