"""The sparsity that meets a size or a speed: `--target-size` and `--target-speedup`, solved for `prune.sparsity`.

Both fall (or rise) with the sparsity, so the least one that is enough is found by halving. Sparsities that rules give to single
layers stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sapp_cli.checkpoint.source import Checkpoint
from sapp_cli.costs import see_times
from sapp_cli.errors import UsageError
from sapp_cli.inputs.data import DataSets
from sapp_cli.inputs.models import LoadedModel
from sapp_cli.layers import Layer, decide_layers
from sapp_cli.planning import dearest_bytes, layer_facts, other_tensors
from sapp_cli.recipe.prune_section import PruneSection
from sapp_cli.recipe.schema import Recipe
from sapp_cli.report.wording import percent, size_text, time_text

STEPS = 10_000  # sparsities tried are whole multiples of 1/STEPS
HEADER_BYTES = 150  # of a tensor in a safetensors header, beside its name
PRUNED_HEADER_BYTES = 4 * HEADER_BYTES  # of a pruned weight: three tensors, and its entry in the metadata


@dataclass(frozen=True)
class Solved:
    """A sparsity, and what it is expected to come to."""

    sparsity: float
    text: str  # one line for the log


def sparsity_for_size(checkpoint: Checkpoint, loaded: LoadedModel, recipe: Recipe, most: int) -> Solved:
    """The least `prune.sparsity` with which the block-sparse file has at most `most` bytes.

    Raises UsageError where no sparsity is enough, none is needed, or the allocation leaves the size open.
    """
    allocation = recipe.prune.resolved_allocation
    if allocation not in ("uniform", "parameters"):
        raise UsageError(
            f"--target-size: with prune.allocation {allocation} the size depends on which blocks win; take "
            "uniform or parameters"
        )

    def size(sparsity: float) -> float:
        layers = _decide(loaded, recipe.prune, sparsity)
        return expected_file_bytes(checkpoint, loaded, layers, allocation)

    dense = expected_file_bytes(checkpoint, loaded, [], "uniform")
    if dense <= most:
        raise UsageError(
            f"--target-size {size_text(most)}: the checkpoint has {size_text(dense)}, which is no more than that"
        )
    sparsity = _least(lambda s: size(s) <= most)
    if sparsity is None:
        raise UsageError(
            f"--target-size {size_text(most)}: {size_text(round(size(1 - 1 / STEPS)))} are left at the greatest sparsity, "
            "most of them in layers that stay dense; see `sapp plan` for the reasons, then lower prune.min_blocks or "
            "prune.block_size, change prune.rules, "
            "or set prune.embeddings"
        )
    found = size_text(round(size(sparsity)))
    return Solved(sparsity, f"--target-size {size_text(most)}: sparsity {percent(sparsity)}, {found} expected")


def sparsity_for_speedup(loaded: LoadedModel, recipe: Recipe, data: DataSets | None, least: float) -> Solved:
    """The least `prune.sparsity` with which one example is expected to take at most 1/`least` of its time, on this machine now.

    Each layer is timed dense and with a few numbers of blocks, the whole model dense; what the layers save is taken off.
    Raises UsageError where no sparsity is enough, or the allocation leaves the time open.
    """
    allocation = recipe.prune.resolved_allocation
    if allocation not in ("uniform", "time"):
        raise UsageError(
            f"--target-speedup: with prune.allocation {allocation} the time depends on which blocks win; take "
            "uniform or time"
        )
    layers = _decide(loaded, recipe.prune, 1 - 1 / STEPS)
    times, whole = see_times(loaded.model, layers, recipe, data)

    def speedup(sparsity: float) -> float:
        saved = sum(
            times[layer.name].dense - times[layer.name].at(layer.kept_count)
            for layer in _decide(loaded, recipe.prune, sparsity)
            if layer.pruned and layer.name in times
        )
        return whole / max(whole - saved, 1e-9)

    sparsity = _least(lambda s: speedup(s) >= least)
    if sparsity is None:
        share = sum(time.dense for time in times.values()) / whole
        raise UsageError(
            f"--target-speedup {least:g}: even the greatest sparsity comes to {speedup(1 - 1 / STEPS):.2f}× only; the "
            f"{len(times)} layers that can be computed block-sparse take {percent(min(1.0, share))} of the model's "
            f"{time_text(whole)}"
        )
    return Solved(
        sparsity,
        f"--target-speedup {least:g}: sparsity {percent(sparsity)}, {speedup(sparsity):.2f}× expected for one example, dense "
        f"{time_text(whole)} here and now",
    )


def expected_file_bytes(checkpoint: Checkpoint, loaded: LoadedModel, layers: list[Layer], allocation: str) -> int:
    """Bytes of the block-sparse file or files, headers included, rounded up; `layers` empty: of the dense ones."""
    facts = layer_facts(layers, loaded, checkpoint)
    names = {fact.name for fact in facts}
    total = other_tensors(facts, loaded, checkpoint)[1]
    total += sum(HEADER_BYTES + len(name) for name in checkpoint.dense_names() if name not in names)
    for fact, layer in zip(facts, layers, strict=True):
        total += HEADER_BYTES + len(fact.name)
        if not fact.pruned or fact.grid is None:
            total += fact.parameters * fact.itemsize
            continue
        total += PRUNED_HEADER_BYTES + 4 * len(fact.name)
        if allocation == "uniform":
            total += fact.grid.stored_bytes(layer.kept_count, fact.itemsize)
    kept = {layer.stored: layer.kept_count for layer in layers if layer.pruned}
    return total if allocation == "uniform" else total + dearest_bytes(facts, kept)


def _decide(loaded: LoadedModel, settings: PruneSection, sparsity: float) -> list[Layer]:
    return decide_layers(loaded.model, settings.model_copy(update={"sparsity": sparsity}), loaded.stored_names)


def _least(enough: Callable[[float], bool]) -> float | None:
    """The least sparsity that is enough, None if none is. Whole multiples of 1/STEPS; 0 is not tried, it prunes nothing."""
    low, high = 1, STEPS - 1
    if not enough(high / STEPS):
        return None
    while low < high:
        middle = (low + high) // 2
        if enough(middle / STEPS):
            high = middle
        else:
            low = middle + 1
    return low / STEPS
