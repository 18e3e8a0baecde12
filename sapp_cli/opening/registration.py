"""The names under which transformers finds us: a quantization method called `sapp`."""

from __future__ import annotations

from types import ModuleType

from sapp_cli.checkpoint.quantization_entry import QUANT_METHOD


def register_quantizer(module: ModuleType) -> None:
    """`module`: transformers.quantizers.auto, just imported. Nothing happens if we are known there already."""
    if QUANT_METHOD in module.AUTO_QUANTIZER_MAPPING:
        return
    from sapp_cli.opening.quantizer import SappConfig, SappQuantizer

    module.register_quantization_config(QUANT_METHOD)(SappConfig)
    module.register_quantizer(QUANT_METHOD)(SappQuantizer)
