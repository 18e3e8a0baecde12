"""Layers in standard operators give what the dense layer gives, in any number of groups."""

import pytest
import torch
from torch import nn

from sapp_cli.portable.layers import PortableConv, PortableLinear, portable
from sapp_cli.runtime.conv import BlockSparseConv
from sapp_cli.runtime.linear import BlockSparseLinear

GROUPS = (1, 2, 4)


def pruned(layer, block, seed=0):
    """Its weight with 60 % of the blocks zero, a whole block row among them; block rows keep different numbers."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        matrix = layer.weight.movedim(1, -1).flatten(1)
        rows, columns = (-(-size // side) for size, side in zip(matrix.shape, block, strict=True))
        kept = torch.rand(rows, columns, generator=generator) < 0.4
        kept[0] = False
        kept[-1, : columns // 2 + 1] = True
        mask = kept.repeat_interleave(block[0], 0)[: len(matrix)].repeat_interleave(block[1], 1)[:, : matrix.shape[1]]
        layer.weight.copy_((matrix * mask).reshape(layer.weight.movedim(1, -1).shape).movedim(-1, 1))
    return layer


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize(("out", "columns", "bias"), [(48, 64, True), (50, 70, True), (48, 64, False)])
def test_linear(out, columns, bias, groups):
    """Also with ragged blocks at both edges."""
    torch.manual_seed(1)
    dense = pruned(nn.Linear(columns, out, bias=bias), (8, 16))
    layer = portable(BlockSparseLinear.from_dense(dense, (8, 16)), groups)
    assert isinstance(layer, PortableLinear)
    assert 1 <= len(layer.parts) <= groups
    for shape in ((columns,), (3, columns), (2, 5, columns)):
        x = torch.randn(shape)
        y = layer(x)
        assert y.shape == (*shape[:-1], out)
        torch.testing.assert_close(y, dense(x))
    assert torch.equal(layer.weight, dense.weight)


CONVOLUTIONS = {
    "3x3": (lambda: nn.Conv2d(12, 20, 3, padding=1), (2, 12, 9, 7)),
    "stride and dilation": (lambda: nn.Conv2d(12, 20, (3, 2), stride=(2, 1), padding=2, dilation=2), (2, 12, 17, 15)),
    "1x1": (lambda: nn.Conv2d(16, 32, 1, bias=False), (2, 16, 5, 5)),
    "1x1 of every other pixel": (lambda: nn.Conv2d(16, 32, 1, stride=2), (1, 16, 7, 8)),
    "uneven padding": (lambda: nn.Conv1d(8, 16, 4, padding="same"), (2, 8, 20)),
    "reflected": (lambda: nn.Conv1d(8, 16, 5, padding=2, padding_mode="reflect"), (2, 8, 20)),
    "3-d": (lambda: nn.Conv3d(4, 8, 2, stride=2), (2, 4, 5, 6, 5)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name, groups):
    make, shape = CONVOLUTIONS[name]
    torch.manual_seed(2)
    dense, x = pruned(make(), (4, 8)), torch.randn(shape)
    layer = portable(BlockSparseConv.from_dense(dense, (4, 8)), groups)
    assert isinstance(layer, PortableConv)
    torch.testing.assert_close(layer(x), dense(x))
    assert torch.equal(layer.weight, dense.weight)


def test_more_groups_multiply_less():
    torch.manual_seed(3)
    sparse = BlockSparseLinear.from_dense(pruned(nn.Linear(256, 128), (8, 8)), (8, 8))
    multiplied = [portable(sparse, groups).blocks for groups in (1, 2, 4, 99)]
    assert multiplied == sorted(multiplied, reverse=True)
    assert multiplied[-1] == len(sparse.col) + 1  # the empty block row has one block, of zeros


def test_only_standard_operators():
    """Nothing of sapp's own: any exporter can take it, and other devices have it."""
    torch.manual_seed(4)
    layer = portable(BlockSparseLinear.from_dense(pruned(nn.Linear(70, 50), (8, 16)), (8, 16)), 2)
    recorded = torch.export.export(layer, (torch.randn(3, 70),))
    operators = {str(node.target) for node in recorded.graph.nodes if node.op == "call_function"}
    assert operators
    assert all(name.startswith("aten.") for name in operators), operators
