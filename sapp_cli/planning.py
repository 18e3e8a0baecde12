"""What a run would decide, without running it: layers, timetable, sizes, memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from typing import Any

from sapp_cli.checkpoint.dtypes import DTYPES
from sapp_cli.checkpoint.source import Checkpoint
from sapp_cli.core.schedule import Phase, PhaseSchedule, Span
from sapp_cli.gains import Gain, gains_by_block
from sapp_cli.inputs.models import LoadedModel
from sapp_cli.layers import AttachedLayer, Layer, RuleMatches, decide_layers, rule_matches
from sapp_cli.outputs.manifest import phases_json
from sapp_cli.recipe.prune_section import PruneSection
from sapp_cli.recipe.schema import Recipe
from sapp_cli.report.sparsity import LayerFacts, SparsityReport, expected_counts, make_report
from sapp_cli.short_runs import short_run_choices
from sapp_cli.training.footprint import Footprint
from sapp_cli.training.rate_search import SearchPlan

FP32 = 4  # bytes
HEAP_SLACK = 1 / 3
"""Share of what comes and goes that a CPU's heap holds beyond it, in pieces that fit nothing (docs/results-engine.md)."""


@dataclass(frozen=True)
class Plan:
    """Everything `prune` would decide."""

    layers: list[Layer]
    report: SparsityReport  # with expected figures
    spans: tuple[Span, ...]  # the timetable as shares of the run
    schedule: PhaseSchedule | None  # and in steps; None where they follow from epochs over data that is not there
    memory: dict[str, int]  # bytes
    rules: list[RuleMatches]
    gains: tuple[Gain, ...] = ()  # by block size, the recipe's first
    allocation: str = "uniform"  # with another one the layers' counts set the budget and say not what each will keep
    choices: tuple[str, ...] = ()  # what the recipe chooses differently from the defaults, and what a short run changes
    search: SearchPlan | None = None  # for the learning rate, if the recipe has `auto`

    @property
    def targets(self) -> dict[str, float]:
        """What the targets of the pruned layers come to, before blocks are counted in whole numbers."""
        sparsities = {layer.stored: float(layer.sparsity) for layer in self.layers if layer.sparsity is not None}
        removed = sum(sparsities[layer.name] * layer.parameters for layer in self.report.pruned)
        model = self.report.model
        return {
            "prunable_sparsity": removed / max(1, model.prunable_parameters),
            "sparsity": removed / max(1, model.parameters),
        }

    def as_json(self) -> dict[str, Any]:
        schedule = {
            "shares": [
                {"phase": span.phase.value, "round": span.round, "share": float(span.fraction)} for span in self.spans
            ],
            "steps": self.schedule.steps if self.schedule else None,
            "phases": phases_json(self.schedule) if self.schedule else None,
        }
        decided = {"targets": self.targets, "rules": list(map(asdict, self.rules)), "schedule": schedule}
        gains = [gain.as_json() for gain in self.gains]
        choices = list(self.choices)
        search = {} if self.search is None else {"search": self.search.as_json()}
        found = {"choices": choices, "memory": self.memory, "gains": gains}
        return {**self.report.as_json(), **decided, **search, **found}


def make_plan(
    checkpoint: Checkpoint,
    loaded: LoadedModel,
    layers: list[Layer],
    schedule: PhaseSchedule | None,
    recipe: Recipe,
    multiply_adds: Mapping[str, int | None] | None = None,
) -> Plan:
    """The plan of a run over these layers, its report filled with expected figures.

    `multiply_adds` {layer name: of its weight, for one example}; None if that is not known.
    """
    report = expected_report(checkpoint, loaded, layers, multiply_adds, recipe.prune.resolved_allocation)
    gains = gains_by_block(
        recipe.prune,
        lambda settings: decide_layers(loaded.model, settings, loaded.stored_names),
        lambda decided: expected_report(checkpoint, loaded, decided, allocation=recipe.prune.resolved_allocation),
    )
    spans = schedule.spans if schedule else recipe.prune.settings.spans(recipe.prune.timetable)
    memory = expected_memory(loaded, layers, spans, recipe)
    rules = rule_matches(layers, recipe.prune)
    allocation = recipe.prune.resolved_allocation
    choices = (*mask_choices(recipe.prune, spans), *(short_run_choices(recipe, schedule) if schedule else ()))
    return Plan(layers, report, spans, schedule, memory, rules, tuple(gains), allocation, choices)


def mask_choices(settings: PruneSection, spans: tuple[Span, ...]) -> tuple[str, ...]:
    """What a run does with its masks other than by default, a line each; only what this method and timetable use."""
    lines = []
    if not settings.settings.freezes_pruned:
        lines += [
            "attention.pruned: literal: weight decay, momentum and the softmax still move pruned weights and logits",
            "sparse phases compute densely: attention.pruned: literal",
        ]
    if settings.settings.selects_before_update:
        lines.append(
            "attention.selection: before-update: the first step after a dense phase ranks by A before its last update"
        )
    if not settings.monotone and any(span.phase is Phase.SPARSIFICATION for span in spans):
        lines.append("monotone: false: each step of a sparsification phase chooses anew among all blocks")
    return tuple(lines)


def expected_report(
    checkpoint: Checkpoint,
    loaded: LoadedModel,
    layers: list[Layer],
    multiply_adds: Mapping[str, int | None] | None = None,
    allocation: str = "uniform",
) -> SparsityReport:
    """The report of the output, as far as the decisions about the layers tell it.

    The `allocation` may put all parameters into the layers whose blocks cost most bytes: the size is an upper bound.
    """
    facts = layer_facts(layers, loaded, checkpoint, multiply_adds)
    kept = {layer.stored: layer.kept_count for layer in layers if layer.pruned}
    parameters, size = other_tensors(facts, loaded, checkpoint)
    report = make_report(facts, expected_counts(kept), parameters, parameters, size)
    if allocation not in ("balanced", "parameters"):
        return report
    model = report.model
    stored = model.bytes_sparse - sum(row.bytes_sparse for row in report.layers if row.name in kept)
    most = min(model.bytes_dense, stored + dearest_bytes(facts, kept))
    return replace(report, model=replace(model, bytes_sparse=max(model.bytes_sparse, most)))


def dearest_bytes(facts: Iterable[LayerFacts], kept: Mapping[str, int]) -> int:
    """Bytes of the pruned layers if all their entries lay where an entry costs most; `kept` {stored name: blocks}.

    A block has an index of 4 bytes, so an entry of a small block costs more than one of a large block.
    """
    rows, entries, dearest = 0, 0, Fraction(0)
    for fact in facts:
        if fact.name in kept and fact.grid is not None:
            block = math.prod(fact.grid.block)
            rows += fact.grid.stored_bytes(0, fact.itemsize)
            entries += kept[fact.name] * block
            dearest = max(dearest, fact.itemsize + Fraction(4, block))
    return rows + math.ceil(dearest * entries)


def layer_facts(
    layers: list[Layer],
    loaded: LoadedModel,
    checkpoint: Checkpoint,
    multiply_adds: Mapping[str, int | None] | None = None,
) -> list[LayerFacts]:
    """The layers that the checkpoint stores or will store, as the report takes them."""
    known = set(loaded.names)
    return [
        LayerFacts(
            name=layer.stored,
            shape=layer.shape,
            itemsize=DTYPES[checkpoint.dtype(layer.stored)].itemsize if layer.stored in known else FP32,
            prunable=layer.prunable,
            pruned=layer.pruned,
            reason=layer.reason,
            layout=layer.layout,
            grid=layer.grid,
            target=None if layer.sparsity is None else float(layer.sparsity),
            multiply_adds=(multiply_adds or {}).get(layer.name),
            no_gain=layer.no_gain,
        )
        for layer in layers
    ]


def other_tensors(facts: list[LayerFacts], loaded: LoadedModel, checkpoint: Checkpoint) -> tuple[int, int]:
    """(parameters, bytes) of the checkpoint's tensors that are no layers; further names of a tied weight do not count."""
    layers = {fact.name for fact in facts}
    layer_names = {loaded.names[name] for name in layers if name in loaded.names}
    parameters = size = 0
    for name, info in checkpoint.tensors.items():
        if name in layers or loaded.names.get(name) in layer_names or name not in checkpoint.dense_names():
            continue
        size += info.nbytes
        if DTYPES[info.dtype].floating:
            parameters += info.size
    return parameters, size


def expected_memory(
    loaded: LoadedModel, layers: list[Layer], spans: tuple[Span, ...], recipe: Recipe
) -> dict[str, int]:
    """Bytes that a run holds all the time, by purpose."""
    weights = FP32 * sum(parameter.numel() for parameter in loaded.model.parameters())
    pruned = FP32 * sum(layer.parameters for layer in layers if layer.pruned)
    moments = {"adamw": 2, "adam": 2, "sgd": 1 if recipe.optimizer.momentum else 0}[recipe.optimizer.name]
    objective = recipe.objective
    has_teacher = objective.distill.weight > 0 or objective.distill.hidden_states > 0
    has_teacher = has_teacher or objective.task == "embedding-distillation" or objective.distill.teacher is not None
    # Masks are undone by every dense phase, so what they hid is remembered until then, unless training may move it.
    comes_back = any(span.phase is Phase.DENSE for span in spans[1:]) or not recipe.prune.monotone
    comes_back = comes_back and recipe.prune.settings.freezes_pruned
    return {
        "weights": weights,
        "gradients": weights,
        "optimizer": moments * weights,
        "masked_weights": pruned,
        "pruned_weights": round(pruned * recipe.prune.sparsity) if comes_back else 0,
        "teacher": weights if has_teacher else 0,
    }


def masked_weight_bytes(attached: Mapping[str, AttachedLayer]) -> int:
    """Bytes of the masked weights that are there at once in float32 on a CPU: most of a Linear are made in one place."""
    sizes = [(layer.theta.nbytes, layer.holds_no_masked_weight) for layer in attached.values()]
    return sum(size for size, alone in sizes if not alone) + max((size for size, alone in sizes if alone), default=0)


def with_peak(parts: Mapping[str, int], footprint: Footprint | None, process: int) -> dict[str, int]:
    """`expected_memory` with what depends on the batch and on the process, and "total", the most that a run holds at once.

    `footprint` None: what enters the model is not known, and "activations" are missing. `process`: bytes that the program
    itself takes, 0 where the memory is that of a GPU.
    """
    parts = {**parts, "process": process}
    step = parts["gradients"] + parts["masked_weights"]
    evaluation = 0
    if footprint is not None:
        parts["activations"] = max(0, footprint.step - step)
        step, evaluation = footprint.step, footprint.evaluation
    always = process + parts["weights"] + parts["teacher"]
    moving = parts["optimizer"] + parts["pruned_weights"] + step
    training = always + moving + (round(HEAP_SLACK * moving) if process else 0)
    at_the_end = always + parts["weights"] + evaluation  # what was written is loaded beside the model it came from
    return {**parts, "total": max(training, at_the_end)}
