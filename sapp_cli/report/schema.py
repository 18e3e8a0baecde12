"""The JSON Schema of sparsity.json, of `report --json` and of `plan --json`; published as docs/sparsity.schema.json."""

from __future__ import annotations

from typing import Any

from sapp_cli.report.sparsity import VERSION

COUNT = {"type": "integer", "minimum": 0}
SHARE = {"type": "number", "minimum": 0, "maximum": 1}
TEXT = {"type": "string"}
YES_OR_NO = {"type": "boolean"}
NAMES = {"type": "array", "items": TEXT}


def sparsity_schema() -> dict[str, Any]:
    """The schema, version 1. A later sapp may add keys at the top; layers and totals change with the version only."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Sparsity of a checkpoint, version 1",
        "description": "sparsity.json, `sapp report --json`, and with expected figures `sapp plan --json`",
        "type": "object",
        "properties": {
            "version": {"const": VERSION},
            "model": _strict(_model(), optional=_multiply_adds("the layers")),
            "layers": {
                "type": "array",
                "items": _strict(
                    _layer(),
                    optional={
                        **_multiply_adds("the dense weight"),
                        "multiply_adds_share": _about(SHARE, "of the kept multiply-adds of all layers"),
                        "no_gain": _about(TEXT, "why the layer is not faster block-sparse; missing where it is"),
                    },
                ),
            },
            "requested": _strict(
                _requested(), "only if a run gave layers a target: what was requested and what was reached"
            ),
            "targets": _strict(
                {"prunable_sparsity": SHARE, "sparsity": SHARE},
                "`plan` only: what the targets come to before blocks are counted in whole numbers",
            ),
            "rules": {
                "description": "`plan` only: what each of prune.rules matches",
                "type": "array",
                "items": _strict(
                    {
                        "pattern": TEXT,
                        "weights": _about(COUNT, "that it matches"),
                        "taken": _about(COUNT, "of them, that an earlier rule decides about"),
                    }
                ),
            },
            "schedule": _strict(_schedule(), "`plan` only: the timetable"),
            "choices": {
                **NAMES,
                "description": "`plan` only: what the run does with its masks other than by default, a sentence each",
            },
            "memory": {
                "description": "`plan` only: bytes that a run holds, by purpose; total: the most at once",
                "type": "object",
                "additionalProperties": COUNT,
            },
            "gains": {
                "description": "`plan` only: what blocks of a size bring, the recipe's size first",
                "type": "array",
                "items": _strict(
                    {
                        "block": {"type": "array", "items": COUNT, "minItems": 2, "maxItems": 2},
                        "layers": _about(COUNT, "that would be pruned"),
                        "bytes_dense": _about(COUNT, "of all tensors"),
                        "bytes_sparse": _about(COUNT, "of all tensors, the pruned layers stored block-sparse"),
                    }
                ),
            },
            "expected_latency": _strict(
                _latency(), "`plan` without a recipe or with --time: of one example, blocks left out at random"
            ),
            "time": _strict(_time(), "`plan --time` only: seconds on this machine"),
            "against": _strict(_against(), "`report --against` only: the other checkpoint, layer by layer"),
        },
        "required": ["version", "model", "layers"],
    }


def _time() -> dict[str, Any]:
    seconds = {"type": "number", "minimum": 0}
    return {
        "training": _about(seconds, "of all steps, with the evaluations between them"),
        "total": _about(seconds, "of the whole run"),
        "steps": {"description": "of one step, by phase", "type": "object", "additionalProperties": seconds},
        "evaluation": _about(_optional(seconds), "of one during the run"),
    }


def _latency() -> dict[str, Any]:
    number = {"type": "number", "minimum": 0}
    return {
        "dense": _about(_optional(number), "seconds, median; null if it was not measured"),
        "block_sparse": _about(_optional(number), "seconds, median"),
        "speedup": _about(_optional(number), "dense / block_sparse"),
        "layers": _about(_optional(COUNT), "computed block-sparse"),
        "example": _about(_optional(TEXT), "what the model was given"),
        "machine": _about(_optional({"type": "object"}), "as in `bench --json`"),
        "reason": _about(_optional(TEXT), "why it was not measured"),
    }


def _model() -> dict[str, Any]:
    return {
        "parameters": _about(COUNT, "entries of all floating tensors, ties once"),
        "nonzero": _about(COUNT, "of these, the ones that are not zero"),
        "sparsity": _about(SHARE, "share of the parameters that is zero"),
        "prunable_parameters": _about(
            COUNT, "entries of all Linear and convolution weights, those left dense included"
        ),
        "prunable_sparsity": _about(SHARE, "share of the prunable parameters that is zero"),
        "bytes_dense": _about(COUNT, "of all tensors"),
        "bytes_sparse": _about(COUNT, "of all tensors, the pruned layers stored block-sparse"),
    }


def _requested() -> dict[str, Any]:
    budget = _strict(
        {
            "limit": _about(COUNT, "what the kept blocks take if each layer meets its own target"),
            "used": _about(COUNT, "what the kept blocks take"),
        }
    )
    return {
        "sparsity": _about(SHARE, "share of the blocks of all layers with a target, weighted by block size"),
        "reached": _about(SHARE, "the same share, as removed"),
        "layers": _about(COUNT, "with a target, those that lost no block included"),
        "budgets": {
            "description": "of parameters and, if every layer was seen at work, of multiply-adds; edge blocks as whole ones",
            "type": "object",
            "additionalProperties": budget,
        },
    }


def _layer() -> dict[str, Any]:
    return {
        "name": _about(TEXT, "as the checkpoint stores it"),
        "shape": {"type": "array", "items": COUNT},
        "layout": _about({"enum": ["linear", "conv", "transposed", None]}, "how the weight is seen as a matrix"),
        "block": _about(_optional({"type": "array", "items": COUNT, "minItems": 2, "maxItems": 2}), "rows, columns"),
        "blocks": _about(_optional(COUNT), "of the whole grid"),
        "kept_blocks": _about(_optional(COUNT), "blocks with anything nonzero in them"),
        "block_sparsity": _about(_optional(SHARE), "share of the blocks that is removed"),
        "sparsity": _about(SHARE, "share of the entries that is zero"),
        "target": _about(_optional(SHARE), "requested block_sparsity; null for a layer that was not to be pruned"),
        "bytes_dense": COUNT,
        "bytes_sparse": _about(COUNT, "in the smaller of its two forms, if pruned"),
        "prunable": _about(YES_OR_NO, "counts towards prunable_parameters"),
        "pruned": YES_OR_NO,
        "reason": _about(TEXT, "why it is pruned, or kept dense"),
    }


def _multiply_adds(what: str) -> dict[str, Any]:
    return {
        "multiply_adds": _about(COUNT, f"of {what}, for one example; missing where the model was not seen at work"),
        "kept_multiply_adds": _about(
            COUNT, "of the kept blocks, edge blocks as whole ones; of all blocks where block-sparse is not faster"
        ),
    }


def _schedule() -> dict[str, Any]:
    kind = {"phase": {"enum": ["dense", "sparsification", "sparse"]}, "round": COUNT}
    share = {**kind, "share": SHARE}
    phase = {**kind, "first_step": _about(COUNT, "counted from 1"), "last_step": COUNT}
    return {
        "shares": _about({"type": "array", "items": _strict(share)}, "phases as shares of the run"),
        "steps": _about(_optional(COUNT), "null where they follow from epochs over data that was not read"),
        "phases": _optional({"type": "array", "items": _strict(phase)}),
    }


def _against() -> dict[str, Any]:
    layer = {
        "name": TEXT,
        "block": _layer()["block"],
        "kept_in_both": _optional(COUNT),
        "only_here": _optional(COUNT),
        "only_there": _optional(COUNT),
        "change": _about(_optional({"type": "number", "minimum": 0}), "‖here − there‖ / ‖there‖"),
        "problem": _about(_optional(TEXT), "why the layer cannot be compared"),
    }
    return {
        "path": TEXT,
        "layers": {"type": "array", "items": _strict(layer)},
        "only_here": _about(NAMES, "layers that the other checkpoint lacks"),
        "only_there": _about(NAMES, "layers that only the other checkpoint has"),
    }


def _strict(
    properties: dict[str, Any], description: str | None = None, optional: dict[str, Any] | None = None
) -> dict[str, Any]:
    """An object with these properties, all of them, perhaps the optional ones, and no others."""
    about = {} if description is None else {"description": description}
    return {
        **about,
        "type": "object",
        "properties": {**properties, **(optional or {})},
        "required": list(properties),
        "additionalProperties": False,
    }


def _optional(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


def _about(schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"description": description, **schema}
