"""Which weights of a model are pruned and why the others are not; masked weights in the live model; folding them."""

from sapp_cli.layers.attached import AttachedLayer, attach
from sapp_cli.layers.decisions import (
    FROZEN,
    Layer,
    RuleMatches,
    decide_layers,
    decide_weights,
    is_hf_conv1d,
    left_dense,
    matrix_layout,
    rule_matches,
    some_names,
    with_no_gain,
)
from sapp_cli.layers.folding import FoldedState, tensor_state
from sapp_cli.layers.masked_weight import KeptBlocks, MaskedWeight
from sapp_cli.layers.rows import held, put, rows_held, whole

__all__ = [
    "FROZEN",
    "AttachedLayer",
    "FoldedState",
    "KeptBlocks",
    "Layer",
    "MaskedWeight",
    "RuleMatches",
    "attach",
    "decide_layers",
    "decide_weights",
    "held",
    "is_hf_conv1d",
    "left_dense",
    "matrix_layout",
    "put",
    "rows_held",
    "rule_matches",
    "some_names",
    "tensor_state",
    "whole",
    "with_no_gain",
]
