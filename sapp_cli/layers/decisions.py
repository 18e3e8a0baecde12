"""Which weights of a model are pruned and why the others are not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import Any

from torch import Tensor, nn

from sapp_cli.core.schedule import Phase
from sapp_cli.errors import SettingError
from sapp_cli.grid import BlockGrid, LayoutKind, MatrixLayout, final_count
from sapp_cli.layers.no_gain import run_of, why_no_gain
from sapp_cli.recipe.prune_section import PruneSection, RuleSection, block_shape, exact

NO_SPARSITY = "its target sparsity is 0"
FROZEN = "frozen: requires_grad is False"
NAMES_SHOWN = 4


@dataclass(frozen=True)
class Layer:
    """One weight of two or more dimensions, and what was decided about it."""

    name: str  # as in the model's state_dict
    aliases: tuple[str, ...]  # other names of the same, tied weight
    stored: str  # as in the checkpoint: what plan and report show
    kind: str  # class of the module that holds it
    shape: tuple[int, ...]
    parameters: int
    prunable: bool  # a Linear or convolution weight (an embedding, when asked for)
    pruned: bool
    reason: str
    layout: MatrixLayout | None = None  # None: not seen as a matrix
    grid: BlockGrid | None = None
    sparsity: Fraction | None = None  # target, of blocks; pruned layers only
    frozen: bool = False  # no gradient is asked for: its values never change
    constant: str | None = None  # what is known of a weight whose values are all equal
    run: int | None = None  # of a convolution: values of its window that lie together (`no_gain.run_of`)

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self.aliases)

    @property
    def kept_count(self) -> int:
        """Blocks that stay in the end, K."""
        assert self.grid is not None and self.sparsity is not None, f"{self.name} is not pruned"
        return final_count(self.sparsity, self.grid.count)

    @property
    def no_gain(self) -> str | None:
        """Why a pruned layer is not faster with the blocks of its target than dense, by the rule.

        None if it is, and for an embedding, which multiplies nothing.
        """
        if not self.pruned or self.grid is None or self.sparsity is None or self.kind == "Embedding":
            return None
        return why_no_gain(self.grid, self.kept_count, self.run)


def decide_layers(
    model: nn.Module, settings: PruneSection, stored_names: Mapping[str, str] | None = None
) -> list[Layer]:
    """Every weight of two or more dimensions in the model's order, each with its decision and the reason.

    `stored_names` {name in the model: name in the checkpoint} where they differ; rules may use either.

    Raises SettingError if a rule matches no weight, or if no layer would be pruned.
    """
    return decide_weights(list(_weights(model, stored_names or {})), settings)


def decide_weights(weights: list[Layer], settings: PruneSection) -> list[Layer]:
    """`decide_layers` for weights that are known already, whether a model or only the headers of its files tell them."""
    unmatched = [rule for rule in settings.rules if not any(_matches(rule, weight) for weight in weights)]
    if unmatched:
        raise SettingError([_unmatched(settings, rule, weights) for rule in unmatched])
    layers = [_known(_decide(weight, settings), settings) for weight in weights]
    if not any(layer.pruned for layer in layers):
        raise SettingError([("prune", _nothing_pruned(layers))])
    return layers


def _nothing_pruned(layers: Sequence[Layer]) -> str:
    """Why no layer would be pruned, and what to change."""
    frozen = [layer.stored for layer in layers if layer.reason.startswith(FROZEN)]
    if frozen:
        return (
            f"all pruned weights are frozen (requires_grad is False): {some_names(frozen)}; set requires_grad_(True) where "
            "the model is made, or change prune.rules"
        )
    reasons = Counter(layer.reason for layer in layers if layer.prunable)
    why = "; ".join(f"{count} × {reason}" for reason, count in reasons.most_common(4))
    advice = "take a smaller prune.block_size or prune.min_blocks, or change prune.rules"
    if NO_SPARSITY in reasons:
        advice = "raise prune.sparsity, or change prune.rules"
    elif any(layer.constant and layer.reason.startswith(layer.constant) for layer in layers):
        advice = "start from a trained checkpoint, or give prune.phases a dense start"
    return f"no layer would be pruned: {why or 'the model has no Linear or convolution weight'}; {advice}"


def some_names(names: Sequence[str]) -> str:
    """The first names, and how many more there are: "a, b, c, d and 3 more"."""
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def left_dense(layer: Layer, why: str) -> Layer:
    """The layer that would be pruned, left dense instead; a rule that asks for it is named."""
    rule = f"; {layer.reason.partition(';')[0]} has no effect" if layer.reason.startswith("rule ") else ""
    return replace(layer, pruned=False, sparsity=None, reason=f"{why}{rule}")


@dataclass(frozen=True)
class RuleMatches:
    """How many weights one of `prune.rules` matches, and how many of them an earlier rule decides about."""

    pattern: str
    weights: int
    taken: int


def rule_matches(layers: Sequence[Layer], settings: PruneSection) -> list[RuleMatches]:
    """Of each rule, in the recipe's order."""
    found = []
    for index, rule in enumerate(settings.rules):
        matched = [layer for layer in layers if _matches(rule, layer)]
        taken = sum(any(_matches(earlier, layer) for earlier in settings.rules[:index]) for layer in matched)
        found.append(RuleMatches(rule.match, len(matched), taken))
    return found


def _weights(model: nn.Module, stored_names: Mapping[str, str]) -> Iterator[Layer]:
    """All floating weights of two or more dimensions, tied ones once, as layers not yet decided about."""
    holders: dict[int, list[tuple[str, nn.Module, str]]] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for attribute, parameter in module.named_parameters(recurse=False):
            if parameter.dim() >= 2 and parameter.is_floating_point():
                holders.setdefault(id(parameter), []).append((f"{prefix}.{attribute}".lstrip("."), module, attribute))
    for places in holders.values():
        # An embedding's name comes first: it makes a weight that is tied to an output layer an embedding.
        places.sort(key=lambda place: not isinstance(place[1], nn.Embedding))
        (name, module, attribute), *others = places
        weight = getattr(module, attribute)
        layout = matrix_layout(module, attribute)
        yield Layer(
            name=name,
            aliases=tuple(other for other, _, _ in others),
            stored=next((stored_names[known] for known, _, _ in places if known in stored_names), name),
            kind=type(module).__name__,
            shape=tuple(weight.shape),
            parameters=weight.numel(),
            prunable=layout is not None and not isinstance(module, nn.Embedding),
            pruned=False,
            reason="",
            layout=layout,
            frozen=not weight.requires_grad,
            constant=_constant(weight),
            run=run_of(module) if attribute == "weight" else None,
        )


def matrix_layout(module: nn.Module, attribute: str) -> MatrixLayout | None:
    """How the module's weight is seen as a matrix, or None where sapp does not know it."""
    kind: LayoutKind
    if isinstance(module, (nn.Linear, nn.Embedding)) and attribute == "weight":
        kind = "linear"
    elif isinstance(module, nn.MultiheadAttention) and attribute.endswith("proj_weight"):
        kind = "linear"  # in_proj_weight holds query, key and value as one matrix (3·embed, embed)
    elif isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and attribute == "weight":
        kind = "conv"
    elif is_hf_conv1d(module) and attribute == "weight":
        kind = "transposed"
    else:
        return None
    return MatrixLayout(kind, tuple(getattr(module, attribute).shape))


def is_hf_conv1d(module: nn.Module) -> bool:
    """GPT-2's `Conv1D`, a Linear stored in × out; recognized without importing transformers."""
    return any(cls.__name__ == "Conv1D" and cls.__module__.startswith("transformers.") for cls in type(module).__mro__)


def _decide(weight: Layer, settings: PruneSection) -> Layer:
    rule = next((rule for rule in settings.rules if _matches(rule, weight)), None)
    is_embedding = weight.layout is not None and not weight.prunable
    if weight.layout is None:
        return replace(weight, reason=_not_a_matrix(weight))
    if is_embedding and not settings.embeddings:
        tied = f", tied to {weight.aliases[0]}" if weight.aliases else ""
        return replace(weight, reason=f"an embedding{tied} (prune.embeddings is false)")
    weight = replace(weight, prunable=True)
    if rule is not None and rule.dense:
        return replace(weight, reason=f"rule '{rule.match}'")

    block = block_shape(_first_set(rule and rule.block_size, settings.block_size))
    sparsity = exact(_first_set(rule and rule.sparsity, settings.sparsity))
    fewest = _first_set(rule and rule.min_blocks, settings.min_blocks)
    assert weight.layout is not None, "checked above"
    grid = BlockGrid(weight.layout.matrix, block)
    if sparsity == 0:
        return replace(weight, grid=grid, reason=NO_SPARSITY)
    if block[0] > grid.matrix[0] or block[1] > grid.matrix[1]:
        return replace(weight, reason=f"a {_by(block)} block is larger than its {_by(grid.matrix)} matrix")
    if grid.count < fewest:
        return replace(weight, grid=grid, reason=f"{grid.count} blocks, fewer than min_blocks {fewest}")
    reason = f"rule '{rule.match}'" if rule else "pruned"
    if int(grid.count * (1 - sparsity)) < 1:
        reason += f"; one block stays: {float(sparsity):g} of {grid.count} blocks would leave none"
    decided = replace(weight, pruned=True, grid=grid, sparsity=sparsity, reason=reason)
    return with_no_gain(decided, decided.no_gain)


def with_no_gain(layer: Layer, why: str | None) -> Layer:
    """The layer with the reason why it is not faster block-sparse, if there is one."""
    return replace(layer, reason=f"{layer.reason}; block-sparse is not faster here: {why}") if why else layer


def _known(layer: Layer, settings: PruneSection) -> Layer:
    """The decision with what the weight's values say of it before the first step: what has no ranking is not pruned."""
    if not layer.pruned:
        return layer
    if layer.frozen:
        return left_dense(layer, FROZEN)
    if layer.constant is None or settings.lock_zero_blocks:
        return layer
    if settings.settings.spans(settings.timetable)[0].phase is Phase.DENSE:
        return replace(
            layer, reason=f"{layer.reason}; {layer.constant} so far: stays dense unless training changes them"
        )
    return left_dense(layer, layer.constant)


def _constant(weight: Tensor) -> str | None:
    """What makes it impossible to rank the blocks of a weight by norm; None unless all its values are equal."""
    if weight.is_meta or not weight.numel():
        return None
    some = weight.detach()[0].flatten()
    if not bool((some == some[0]).all()) or not bool((weight == some[0]).all()):
        return None
    return "its values are all equal" if bool(some[0]) else "its values are all zero"


def _not_a_matrix(weight: Layer) -> str:
    """Why a weight is not seen as a matrix; with the call that makes it one, if it is a part of a weight."""
    attribute = weight.name.rpartition(".")[2]
    if attribute.endswith(("_g", "_v")):
        return "a part of weight_norm; torch.nn.utils.remove_weight_norm makes it a plain weight"
    if attribute.endswith("_orig"):
        return (
            "a part of spectral_norm or a mask of torch; remove_spectral_norm or prune.remove makes it a plain weight"
        )
    if weight.kind == "ParametrizationList":
        return "parametrized; torch.nn.utils.parametrize.remove_parametrizations makes it a plain weight"
    axes = f"{len(weight.shape)}-d " if len(weight.shape) > 2 else ""
    return f"{axes}weights of {weight.kind} are not supported"


def _first_set(setting: object, default: object) -> Any:
    return default if setting is None else setting


def _by(sides: tuple[int, int]) -> str:
    return f"{sides[0]}×{sides[1]}"


def _matches(rule: RuleSection, weight: Layer) -> bool:
    """True if the pattern is that of one of the weight's names, or of the module that holds it."""
    return any(
        fnmatchcase(name, rule.match) or fnmatchcase(name.rpartition(".")[0], rule.match)
        for name in (*weight.names, weight.stored)
    )


def _unmatched(settings: PruneSection, rule: RuleSection, weights: list[Layer]) -> tuple[str, str]:
    """The problem of a rule that matches nothing: (key, text)."""
    names = [weight.stored for weight in weights]
    nearest = get_close_matches(rule.match, names, n=1, cutoff=0.3)
    hint = f"; nearest: '{nearest[0]}'" if nearest else ""
    return (
        f"prune.rules[{settings.rules.index(rule)}].match",
        f"'{rule.match}' matches none of {len(names)} weights{hint}",
    )
