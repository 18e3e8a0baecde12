"""Block-sparse weights for the tests, and how far a kernel may be from the exact product."""

import numpy as np
import torch

from sapp_cli.checkpoint.block_sparse import encode
from sapp_cli.checkpoint.dtypes import DTYPES
from sapp_cli.grid import BlockGrid
from sapp_cli.runtime.kernel import Kernel

UNIT = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8}
"""Largest relative error of rounding to nearest once."""


def has_onednn(dtype):
    """True if torch says that oneDNN multiplies matrices of this dtype here: bfloat16 needs instructions of the CPU."""
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype is torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def sparse_weight(matrix, block, share, dtype=torch.float32, seed=0):
    """A weight (out, in) in which each block was kept with probability `share`; whole block rows may be empty."""
    generator = torch.Generator().manual_seed(seed)
    grid = BlockGrid(matrix, block)
    kept = torch.rand(grid.size, generator=generator) < share
    spread = kept.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)[: matrix[0], : matrix[1]]
    return torch.where(spread, torch.randn(matrix, generator=generator), 0.0).to(dtype)


def triple(weight, block):
    """(values (K, br, bc), crow, col) of the nonzero blocks, as NumPy counts them."""
    sparse = encode(weight.float().numpy(), BlockGrid(tuple(weight.shape), block), DTYPES["F32"])
    return torch.from_numpy(sparse.values).to(weight.dtype), sparse.crow, sparse.col


def kernel_for(weight, block, bias=None, isa=None):
    return Kernel(*triple(weight, block), bias, BlockGrid(tuple(weight.shape), block), isa)


def assert_near_exact(y, x, weight, bias=None):
    """|y − exact| ≤ γ·(|x|·|W|ᵀ + |bias|), γ = n·u of n float32 additions, plus the rounding of the result to its dtype.

    The bound of any order of summation (Higham, Accuracy and Stability of Numerical Algorithms, §3.1).
    """
    x64, w64 = x.double().numpy(), weight.double().numpy()
    b64 = np.zeros(len(w64)) if bias is None else bias.double().numpy()
    exact, size = x64 @ w64.T + b64, np.abs(x64) @ np.abs(w64).T + np.abs(b64)
    additions = weight.shape[1] + 2
    allowed = additions * UNIT[torch.float32] * size * 1.01
    if y.dtype != torch.float32:
        allowed = allowed + UNIT[y.dtype] * (np.abs(exact) + allowed)
    excess = np.abs(y.double().numpy() - exact) - allowed
    assert excess.size == 0 or excess.max() <= 1e-37, f"beyond the bound by {excess.max()}"
