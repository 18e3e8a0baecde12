"""PEFT's LoRA beside a block-sparse layer: the blocks stay as they are, the adapter is trained."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


def register_lora(module: ModuleType) -> None:
    """`module`: peft.tuners.lora.model, just imported. It asks one function after the other what a layer becomes; the last
    one gets to know ours.
    """
    default = module.dispatch_default
    if getattr(default, "knows_blocks", False):
        return
    adapted = _adapted_layer()

    def dispatch_default(target: Any, adapter_name: str, *arguments: Any, **settings: Any) -> Any:
        base = target.get_base_layer() if hasattr(target, "get_base_layer") else target
        runtime = sys.modules.get("sapp_cli.runtime.linear")  # without it, there is no such layer
        if runtime is not None and isinstance(base, runtime.BlockSparseLinear):
            return adapted(target, adapter_name, *arguments, **settings)
        return default(target, adapter_name, *arguments, **settings)

    dispatch_default.knows_blocks = True  # type: ignore[attr-defined]
    module.dispatch_default = dispatch_default  # type: ignore[attr-defined]


def _adapted_layer() -> Any:
    """PEFT's own Linear without merging, for which the blocks have no room."""
    from peft.tuners.lora.layer import Linear

    class BlockSparseLora(Linear):  # type: ignore[misc]
        """y of the block-sparse layer and of the adapter, added."""

        def _get_in_out_features(self, module: Any) -> tuple[int, int]:
            """PEFT's own knows the classes of a list only, and warns of all others."""
            return module.in_features, module.out_features

        def merge(self, *_: Any, **__: Any) -> None:
            """Raise NotImplementedError: the sum of blocks and adapter is dense."""
            raise NotImplementedError(
                "merge: the adapter of a block-sparse layer, expected that of a dense one, for the sum is dense; "
                "load the dense folder and merge the adapter there"
            )

        def unmerge(self) -> None:
            """Nothing to do: nothing was merged."""

    return BlockSparseLora
