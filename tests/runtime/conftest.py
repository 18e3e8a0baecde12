"""The CUDA kernel on a machine without a GPU: as Triton's interpreter runs it."""

import sys

import pytest

collect_ignore_glob = [] if sys.platform == "linux" else ["test_triton_*.py", "*_cuda.py"]  # where there is no Triton


@pytest.fixture(scope="module")
def interpreted():
    """In the tests of a module the kernel is interpreted, one program after the other; y is NaN before."""
    from triton.runtime.interpreter import InterpretedFunction

    from sapp_cli.runtime import triton_kernel

    kernel = InterpretedFunction(triton_kernel.block_sparse_product.fn)

    class Launcher:
        def __getitem__(self, programs):
            def launch(*arguments, **constants):
                arguments[kernel.arg_names.index("y")].fill_(float("nan"))
                kernel[programs](*arguments, **constants)

            return launch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_kernel, "block_sparse_product", Launcher())
        yield
