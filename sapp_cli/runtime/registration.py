"""The operators of block-sparse layers, made known to torch."""

from __future__ import annotations


def register_operators() -> None:
    """Make sapp's operators known to torch, for a program that `torch.export` has made of a block-sparse model.

    Call it before `torch.export.load` in a process that loads no model with `sapp.load`. Calling it again does nothing.
    """
    import sapp_cli.runtime.conv_operators
    import sapp_cli.runtime.operators  # noqa: F401
