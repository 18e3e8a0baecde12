"""Weights that are frozen: who wants to train or change them is told, or gets what the weights are now."""

import logging

import numpy as np
import pytest
import torch
from torch import nn

from sapp_cli.errors import CheckpointError
from sapp_cli.runtime import dtypes
from sapp_cli.runtime.conv import BlockSparseConv
from sapp_cli.runtime.linear import BlockSparseLinear
from tests.runtime.weights import sparse_weight

BLOCK = (8, 8)
WEIGHT, BIAS = sparse_weight((16, 24), BLOCK, 0.5), torch.arange(16.0)


def linear(way="kernel"):
    return BlockSparseLinear.from_weight(WEIGHT, BIAS, BLOCK, way)


@pytest.mark.parametrize("name", ["values", "bias"])
@pytest.mark.parametrize("used", [False, True], ids=["new", "used"])
def test_a_weight_that_wants_a_gradient_is_refused_at_the_next_pass(name, used):
    conv = BlockSparseConv.from_dense(nn.Conv2d(8, 16, 3), BLOCK, "kernel")
    for layer, frozen, x in ((linear(), None, torch.randn(2, 24)), (conv, conv.matrix, torch.randn(1, 8, 5, 5))):
        if used:
            layer(x)
        tensor = getattr(frozen or layer, name)
        tensor.requires_grad_(True)
        for given in (x, x.clone().requires_grad_()):
            with pytest.raises(RuntimeError) as refused:
                layer(given)
            assert str(refused.value) == (
                f"the {name} of a block-sparse layer: requires_grad is True, expected False, for its weights are frozen; "
                f"call {name}.requires_grad_(False), and train the dense model with sapp prune or sapp.Pruner"
            )
        tensor.requires_grad_(False)
        layer(x)


def test_a_whole_model_that_is_set_to_train_goes_on_computing():
    """As the Trainer and PEFT set it: what is dense trains, what is block-sparse does not."""
    model = nn.Sequential(nn.Linear(24, 24), linear(), nn.Linear(16, 4))
    x = torch.randn(2, 24)
    before = model(x)
    model.train().requires_grad_(True)
    assert torch.equal(model(x), before)
    model(x).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert len(list(model.parameters())) == 4


def test_changes_in_place_count_under_inference_mode():
    x = torch.randn(2, 24)
    with torch.inference_mode():
        layer = linear("dense")
        layer(x)
        layer.values.zero_()
        assert torch.equal(layer(x), BIAS.expand(2, 16))
        layer.col[0] = 10**8
        with pytest.raises(CheckpointError, match=r"bsr_col_indices\[0\] is 100000000; there are 3 block columns"):
            layer(x)


@pytest.mark.parametrize("way", ["kernel", "torch", "dense"])
def test_what_torch_cannot_see_never_reads_beyond_an_array(way):
    """Writes through NumPy leave no trace; new tensors make the layer look again."""
    layer, x = linear(way), torch.randn(2, 24)
    expected = layer(x)
    layer.col.numpy()[0] = 10**8
    assert torch.equal(layer(x), expected)  # of the indices there are private copies
    layer.col = layer.col.clone()
    with pytest.raises(CheckpointError, match="is 100000000"):
        layer(x)
    layer = linear(way)
    layer(x)
    layer.values.numpy()[:] = np.float32(0)
    layer.values = layer.values.clone()
    assert torch.equal(layer(x), BIAS.expand(2, 16))


def test_a_dtype_without_a_kernel_is_told_once(monkeypatch, caplog):
    monkeypatch.setattr(dtypes, "_TOLD", set())
    layers = [linear(None), linear(None)]
    convolution = BlockSparseConv.from_dense(nn.Conv2d(8, 16, 3), BLOCK)
    x, image = torch.randn(2, 24), torch.randn(1, 8, 5, 5)
    with caplog.at_level(logging.WARNING, "sapp"):
        for layer in layers:
            layer(x)
            layer.bfloat16()(x.bfloat16())
        assert not caplog.records
        for layer in layers:
            layer.double()(x.double())
        convolution.double()(image.double())
        with torch.autocast("cpu", torch.float16):
            layers[0].float()(x)
            layers[1].float()(x)
    assert [record.getMessage() for record in caplog.records] == [
        f"block-sparse layers compute in torch.{dtype} on this cpu without a kernel, most of them as dense layers: expected "
        "one of torch.float32, torch.bfloat16; call model.to(torch.bfloat16), or autocast to it"
        for dtype in ("float64", "float16")
    ]
    with caplog.at_level(logging.WARNING, "sapp"):
        linear("dense").double()(x.double())  # asked for: nothing to tell
    assert len(caplog.records) == 2
