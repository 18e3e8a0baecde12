"""Which weights of a model are pruned and why the others are not; the masked weight; folding masks into a state dict.

out, in: a weight as a matrix.  R, C: block rows and columns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sapp_cli.core.masks import (
    as_matrix,
    block_norms,
    from_matrix,
    gather_blocks,
    scale_blocks,
    scatter_blocks,
    spread,
)
from sapp_cli.core.selection import final_count
from sapp_cli.core.workspace import Workspace
from sapp_cli.errors import SettingError
from sapp_cli.grid import BlockGrid, LayoutKind, MatrixLayout
from sapp_cli.methods import BlockState, Method
from sapp_cli.recipe.prune_section import PruneSection, RuleSection, block_shape, exact

NO_SPARSITY = "its target sparsity is 0"


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

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self.aliases)

    @property
    def kept_count(self) -> int:
        """Blocks that stay in the end, K."""
        assert self.grid is not None and self.sparsity is not None, f"{self.name} is not pruned"
        return final_count(self.sparsity, self.grid.count)


def decide_layers(
    model: nn.Module, settings: PruneSection, stored_names: Mapping[str, str] | None = None
) -> list[Layer]:
    """Every weight of two or more dimensions in the model's order, each with its decision and the reason.

    `stored_names` {name in the model: name in the checkpoint} where they differ; rules may use either.

    Raises SettingError if a rule matches no weight, or if no layer would be pruned.
    """
    weights = list(_weights(model, stored_names or {}))
    unmatched = [rule for rule in settings.rules if not any(_matches(rule, weight) for weight in weights)]
    if unmatched:
        raise SettingError([_unmatched(settings, rule, weights) for rule in unmatched])
    layers = [_decide(weight, settings) for weight in weights]
    if not any(layer.pruned for layer in layers):
        reasons = Counter(layer.reason for layer in layers if layer.prunable)
        why = "; ".join(f"{count} × {reason}" for reason, count in reasons.most_common(4))
        advice = "take a smaller prune.block_size or prune.min_blocks, or change prune.rules"
        if NO_SPARSITY in reasons:
            advice = "raise prune.sparsity, or change prune.rules"
        problem = f"no layer would be pruned: {why or 'the model has no Linear or convolution weight'}; {advice}"
        raise SettingError([("prune", problem)])
    return layers


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
        what = (
            f"{len(weight.shape)}-d weights of {weight.kind}" if len(weight.shape) > 2 else f"weights of {weight.kind}"
        )
        return replace(weight, reason=f"{what} are not supported")
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
    return replace(weight, pruned=True, grid=grid, sparsity=sparsity, reason=reason)


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


@dataclass(frozen=True, eq=False)
class KeptBlocks:
    """θ's kept blocks as a parameter of their own, which an optimizer moves in θ's place; no part of the model's state."""

    values: nn.Parameter  # (K, bc, br), as `gather_blocks` gives them


class MaskedWeight(nn.Module):
    """A torch parametrization: θ -> Ŵ = θ ⊙ spread(scale · keep), the same instance on every alias of a tied weight.

    `keep` is not a persistent buffer: the run state stores it, and checkpoints of the live model stay as they were.
    """

    keep: Tensor  # bool (R, C)
    available: Tensor  # bool (R, C): what a dense phase trains; all blocks, unless zero ones are locked
    logits: nn.Parameter | None  # fp32 (R, C)

    def __init__(
        self, method: Method, layout: MatrixLayout, grid: BlockGrid, sparsity: Fraction, available: Tensor | None = None
    ) -> None:
        super().__init__()
        self.method = method
        self.layout = layout
        self.grid = grid
        self.sparsity = sparsity
        self.encoded = False
        self.workspace = Workspace()
        self.kept: KeptBlocks | None = None  # while a sparse phase trains those by themselves
        self.round_to: torch.dtype | None = None  # while evaluating what an export in this dtype would hold
        every = torch.ones(grid.size, dtype=torch.bool)
        self.register_buffer("available", every if available is None else available, persistent=False)
        self.register_buffer("keep", self.available.clone(), persistent=False)
        self.register_parameter("logits", nn.Parameter(torch.zeros(grid.size)) if method.has_logits else None)

    @property
    def state(self) -> BlockState:
        logits = None if self.logits is None else whole(self.logits)
        return BlockState(self.grid, self.keep, logits, density=float(1 - self.sparsity))

    def block_scale(self, matrix: Tensor) -> Tensor:
        """What every block of θ (out, in) is multiplied by, fp32 (R, C): the method's scale where kept, 0 elsewhere."""
        scale = self.method.scale(matrix, self.state)
        return self.keep.float() if scale is None else scale * self.keep

    def forward(self, theta: Tensor) -> Tensor:
        matrix = as_matrix(theta, self.layout)
        if self.kept is not None and self.round_to is None:  # while it is set, θ is up to date (`Pruner.rounded`)
            # Whoever asks for the whole weight gets it, and its gradient reaches the blocks.
            matrix = scatter_blocks(self.kept.values, self.keep, self.grid)
        matrix = scale_blocks(matrix, self.block_scale(matrix), self.grid, self.workspace)
        weight = from_matrix(matrix, self.layout)
        if self.round_to is not None:
            weight = weight.to(self.round_to)
        return weight.to(theta.dtype)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """θ from the checkpoint's weight; once, however many aliases are attached."""
        if self.encoded:
            return weight
        self.encoded = True
        matrix = self.method.encode(as_matrix(weight.detach(), self.layout), self.grid)
        return from_matrix(matrix, self.layout).to(weight.dtype)

    @torch.no_grad()
    def fold(self, theta: Tensor) -> Tensor:
        """The weight as it is exported, in fp32: pruned blocks are +0 (w·0 would give −0, or NaN for an infinite w)."""
        matrix = as_matrix(theta.float(), self.layout)
        matrix = scale_blocks(matrix, self.block_scale(matrix), self.grid)
        matrix = torch.where(spread(self.keep, self.grid), matrix, 0.0)
        return from_matrix(matrix, self.layout)


@dataclass(frozen=True)
class AttachedLayer:
    """A pruned layer in the live model."""

    layer: Layer
    masked: MaskedWeight
    owner: nn.Module
    attribute: str

    @property
    def theta(self) -> nn.Parameter:
        """The trained parameter, in the weight's own shape."""
        theta = self.owner.parametrizations[self.attribute].original  # type: ignore[index, union-attr]
        assert isinstance(theta, nn.Parameter), "a masked weight has one original"
        return theta

    @property
    def matrix(self) -> Tensor:
        """θ as its matrix (out, in), detached."""
        return as_matrix(whole(self.theta.detach()), self.masked.layout)

    @property
    def trained(self) -> nn.Parameter:
        """What the optimizer moves and gradients arrive at: θ, or its kept blocks while they are a parameter of their own."""
        return self.theta if self.masked.kept is None else self.masked.kept.values

    @torch.no_grad()
    def part_kept_blocks(self) -> None:
        """From here on the kept blocks are trained by themselves. θ stays as it is; its kept blocks are out of date."""
        self.masked.kept = KeptBlocks(nn.Parameter(self.kept_of(self.theta)))

    @torch.no_grad()
    def kept_of(self, tensor: Tensor) -> Tensor:
        """The kept blocks (K, bc, br) of a tensor in the weight's own shape."""
        masked = self.masked
        return gather_blocks(as_matrix(tensor.detach(), masked.layout), masked.keep, masked.grid)

    @torch.no_grad()
    def settle(self) -> None:
        """Bring θ up to date, where its kept blocks are trained by themselves."""
        masked = self.masked
        if masked.kept is not None:
            matrix = scatter_blocks(masked.kept.values, masked.keep, masked.grid)
            self.theta.copy_(
                from_matrix(torch.where(spread(masked.keep, masked.grid), matrix, self.matrix), masked.layout)
            )

    def join_kept_blocks(self) -> None:
        """Train θ as a whole again."""
        self.settle()
        self.masked.kept = None


def attach(
    model: nn.Module, layers: list[Layer], method: Method, lock_zero_blocks: bool = False
) -> dict[str, AttachedLayer]:
    """Put a masked weight on every pruned layer, in place; {layer name: what was attached}."""
    attached = {}
    for layer in layers:
        if not layer.pruned:
            continue
        assert layer.layout is not None and layer.grid is not None and layer.sparsity is not None, layer.name
        owners = [(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in layer.names]
        weight = getattr(*owners[0]).detach()
        available = block_norms(as_matrix(weight, layer.layout), layer.grid) > 0 if lock_zero_blocks else None
        masked = MaskedWeight(method, layer.layout, layer.grid, layer.sparsity, available)
        masked.to(weight.device)
        for owner, attribute in owners:
            if not parametrize.is_parametrized(owner, attribute):  # a module that is itself shared has it already
                parametrize.register_parametrization(owner, attribute, masked, unsafe=True)
        attached[layer.name] = AttachedLayer(layer, masked, *owners[0])
    return attached


class FoldedState(Mapping[str, Tensor]):
    """The model's state dict under the names it had before `attach`, masks folded in; tensors are made when asked for.

    Aliases of a tied weight give equal tensors. Pruned weights come in fp32, all others as they are. Of a model that FSDP
    has spread all processes must ask for the same tensor.
    """

    def __init__(self, model: nn.Module, names: list[str], attached: Mapping[str, AttachedLayer]) -> None:
        self._plain = model.state_dict()
        self._names = names
        self._masked = {name: layer for layer in attached.values() for name in layer.layer.names}

    def __getitem__(self, name: str) -> Tensor:
        if name in self._masked:
            layer = self._masked[name]
            return layer.masked.fold(whole(layer.theta.detach()))
        plain: Tensor = self._plain[name]
        return whole(plain.detach())

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def whole(tensor: Tensor) -> Tensor:
    """The tensor; where FSDP has spread it, put together from the rows of all processes, which must all ask for it."""
    put_together: Callable[[], Tensor] | None = getattr(tensor, "full_tensor", None)
    return tensor if put_together is None else put_together()


def held(tensor: Tensor) -> Tensor:
    """The rows of a tensor that this process holds, in place: all of them, unless FSDP has spread it."""
    local: Callable[[], Tensor] | None = getattr(tensor, "to_local", None)
    return tensor if local is None else local()


def rows_held(tensor: Tensor, full: Tensor) -> Tensor:
    """Of `full`, as long as the tensor, those rows that this process holds of the tensor."""
    if held(tensor) is tensor:
        return full
    mesh = tensor.device_mesh  # type: ignore[attr-defined]
    each = -(-tensor.shape[0] // mesh.size())  # every process has so many rows, the last ones fewer or none
    start = min(tensor.shape[0], each * mesh.get_local_rank())
    return full[start : start + held(tensor).shape[0]]


@torch.no_grad()
def put(tensor: Tensor, full: Tensor) -> None:
    """Write `full` into the tensor, each process the rows it holds."""
    assert tensor.shape == full.shape, f"{tuple(full.shape)} does not fit {tuple(tensor.shape)}"
    held(tensor).copy_(rows_held(tensor, full))
