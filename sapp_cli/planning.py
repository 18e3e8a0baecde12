"""What a run would decide, without running it: layers, timetable, sizes, memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sapp_cli.checkpoint.dtypes import DTYPES
from sapp_cli.checkpoint.source import Checkpoint
from sapp_cli.core.schedule import Phase, PhaseSchedule, Span
from sapp_cli.inputs.models import LoadedModel
from sapp_cli.layers import Layer
from sapp_cli.outputs.manifest import phases_json
from sapp_cli.recipe.schema import Recipe
from sapp_cli.report.sparsity import LayerFacts, SparsityReport, expected_counts, make_report

FP32 = 4  # bytes


@dataclass(frozen=True)
class Plan:
    """Everything `prune` would decide."""

    layers: list[Layer]
    report: SparsityReport  # with expected figures
    spans: tuple[Span, ...]  # the timetable as shares of the run
    schedule: PhaseSchedule | None  # and in steps; None where they follow from epochs over data that is not there
    memory: dict[str, int]  # bytes

    @property
    def targets(self) -> dict[str, float]:
        """What the targets of the pruned layers come to, before blocks are counted in whole numbers."""
        removed = sum((layer.target or 0.0) * layer.parameters for layer in self.report.pruned)
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
        return {**self.report.as_json(), "targets": self.targets, "schedule": schedule, "memory": self.memory}


def make_plan(
    checkpoint: Checkpoint,
    loaded: LoadedModel,
    layers: list[Layer],
    schedule: PhaseSchedule | None,
    recipe: Recipe,
) -> Plan:
    """The plan of a run over these layers, its report filled with expected figures."""
    facts = layer_facts(layers, loaded, checkpoint)
    kept = {layer.stored: layer.kept_count for layer in layers if layer.pruned}
    parameters, size = other_tensors(facts, loaded, checkpoint)
    report = make_report(facts, expected_counts(kept), parameters, parameters, size)
    spans = recipe.prune.settings.spans(recipe.prune.timetable)
    return Plan(layers, report, spans, schedule, expected_memory(loaded, layers, spans, recipe))


def layer_facts(layers: list[Layer], loaded: LoadedModel, checkpoint: Checkpoint) -> list[LayerFacts]:
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
    """Bytes that a run holds all the time, by purpose; activations, which depend on the batch, come on top."""
    weights = FP32 * sum(parameter.numel() for parameter in loaded.model.parameters())
    pruned = FP32 * sum(layer.parameters for layer in layers if layer.pruned)
    moments = {"adamw": 2, "adam": 2, "sgd": 1 if recipe.optimizer.momentum else 0}[recipe.optimizer.name]
    objective = recipe.objective
    has_teacher = objective.distill.weight > 0 or objective.distill.hidden_states > 0
    has_teacher = has_teacher or objective.task == "embedding-distillation"
    # Masks are undone by every dense phase, so what they hid is remembered until then.
    comes_back = any(span.phase is Phase.DENSE for span in spans[1:])
    parts = {
        "weights": weights,
        "gradients": weights,
        "optimizer": moments * weights,
        "masked_weights": pruned,
        "pruned_weights": round(pruned * recipe.prune.sparsity) if comes_back else 0,
        "teacher": weights if has_teacher else 0,
    }
    return {**parts, "total": sum(parts.values())}
