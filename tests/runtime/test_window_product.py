"""Kernels that copy the windows of a convolution straight from the pixels."""

import pytest
import torch

from sapp_cli.grid import BlockGrid
from sapp_cli.runtime.conv import BlockSparseConv
from sapp_cli.runtime.conv_products import ConvProducts
from sapp_cli.runtime.kernel import Kernel
from sapp_cli.runtime.window_product import WindowProduct
from tests.runtime.test_conv import BLOCK, assert_near_exact, dense_conv, image
from tests.runtime.weights import triple


def test_kernels_copy_windows_from_the_pixels_to_the_same_last_bit_as_from_a_slab():
    """Strides, dilation, several images, unused columns; one thread or two."""
    settings = {"stride": (2, 1), "dilation": (1, 2), "padding": (1, 2)}
    for channels, block, share in ((16, (8, 8), 0.05), (24, (8, 48), 0.5)):
        conv = dense_conv(channels=channels, block=block, share=share, **settings)
        direct = BlockSparseConv.from_dense(conv, block, "kernel")
        x = image(3, channels, 9, 11, last=True)
        found = direct(x)
        assert_near_exact(found, x, conv)
        ways = [ready.run for ready in direct.products(torch.float32)._prepared.values()]
        spans_pixels = block == (8, 48)  # of which only one is in a row, with this dilation
        assert [isinstance(way, WindowProduct) for way in ways] == [not spans_pixels]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ConvProducts, "_window_product", lambda products: None)
            assert torch.equal(BlockSparseConv.from_dense(conv, block, "kernel")(x), found)
        before = torch.get_num_threads()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sapp_cli.codegen.threads.LEAST_WORK", 1)
            torch.set_num_threads(2)
            try:
                assert torch.equal(direct(x), found)
            finally:
                torch.set_num_threads(before)


def test_a_kernel_reads_rows_from_the_places_that_it_is_told_and_no_others():
    weight = torch.zeros(8, 10)  # two blocks of 8×8, the second cut off after two columns
    weight[3, 7], weight[3, 8] = 1.0, 10.0
    kernel = Kernel(*triple(weight, BLOCK), None, BlockGrid((8, 10), BLOCK), scattered=True)
    x = torch.arange(40.0)
    plan = kernel.for_places((40,), torch.tensor([0, 5, 30]), torch.tensor([0, 8]), (3,))
    assert plan(x)[:, 3].tolist() == [7 + 80, 12 + 130, 37 + 380]
    with pytest.raises(AssertionError, match=r"entry 41 of an x of \(40,\)"):
        kernel.for_places((40,), torch.tensor([31]), torch.tensor([0, 8]), (1,))
    with pytest.raises(AssertionError, match=r"x is \(39,\) of torch.float32 on cpu, not \(40,\) of torch.float32"):
        plan(x[1:])
