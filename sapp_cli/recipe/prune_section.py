"""The recipe's section `prune`: what is pruned, how far, and by which method; the docstring under a key is its help.

Values that the method leaves open are exact decimals here: 0.55 is 11/20, not the nearest float.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Literal

from pydantic import Field, model_validator

from sapp_cli.core.schedule import PRESETS, Timetable
from sapp_cli.methods import Acdc, GradualMagnitude, Magnitude, Method, Powerprop, SequentialAttention
from sapp_cli.recipe.section import PositiveInt, Section, Share

MethodName = Literal["sequential-attention", "acdc", "powerprop", "magnitude", "gradual-magnitude"]


Part = Annotated[float, Field(ge=0)]
Split = tuple[Part, Part, Part]


class PhasesSection(Section):
    """A timetable of one's own, as fractions of the run; the rounds before the last share what is left."""

    dense: Share
    """Share of the run before the first round, dense."""

    rounds: PositiveInt
    """Rounds; those of the paper have a sparsification, a sparse and a dense phase each, the last only the first of them."""

    last_round: Share
    """Share of the run that the last round takes."""

    final_sparse: Share
    """Share of the run at the end, sparse, with the mask fixed."""

    split: Split = (1.0, 1.0, 1.0)
    """How the sparsification, the sparse and the dense phase of a round share it, for methods with a sparsification phase:
    [1, 1, 1] are the paper's equal thirds, [0, 1, 1] leaves sparsification out and makes the others equally long."""

    last_split: Split = (1.0, 0.0, 0.0)
    """The same of the last round, which in the paper only sparsifies; [1, 1, 1] makes it a round like the others."""

    exponent: Annotated[float, Field(ge=0)] = 4.0
    """c of the sparsity ramp s·(1 − e^(−c·u))/(1 − e^(−c)) of a sparsification phase; 0 is a straight line."""

    @property
    def timetable(self) -> Timetable:
        shares = exact(self.dense), self.rounds, exact(self.last_round), exact(self.final_sparse)
        return Timetable(*shares, _exact_split(self.split), _exact_split(self.last_split))

    @model_validator(mode="after")
    def _fills_the_run(self) -> PhasesSection:
        _ = self.timetable  # raises ValueError
        return self


Score = Literal["attention", "effective-norm", "norm", "fisher"]
Allocation = Literal["balanced", "uniform", "parameters", "multiply-adds", "time"]
BlockSize = PositiveInt | tuple[PositiveInt, PositiveInt]


class RuleSection(Section):
    """An exception for the weights whose name matches; the first rule that matches wins."""

    match: Annotated[str, Field(min_length=1)]
    """Shell pattern over weight names as `sapp plan` prints them, e.g. "encoder.layer.0.*"; one that matches nothing is
    an error."""

    dense: bool = False
    """Leave these weights dense."""

    sparsity: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Of blocks; null: prune.sparsity."""

    block_size: BlockSize | None = None
    """Rows and columns of a block; null: prune.block_size."""

    min_blocks: PositiveInt | None = None
    """Those with fewer blocks stay dense; null: prune.min_blocks."""

    @model_validator(mode="after")
    def _says_something(self) -> RuleSection:
        settings = (self.sparsity, self.block_size, self.min_blocks)
        if self.dense == any(setting is not None for setting in settings):
            raise ValueError("a rule says either `dense: true` or at least one of sparsity, block_size, min_blocks")
        return self


class PruneSection(Section):
    """What is pruned, how far, and by which method."""

    method: MethodName = "sequential-attention"
    """sequential-attention is SequentialAttention++; the others are its baselines."""

    block_size: BlockSize = 16
    """Rows and columns of a block of the weight seen as out × in: 16, or [16, 32]."""

    sparsity: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Share of the blocks of all pruned layers that is removed. The blocks of a layer with a target of its own (rules)
    count with that. Of the parameters and the multiply-adds of these layers at least this share goes as well, except under
    an `allocation` that holds only one budget; under `uniform` it is the share of each layer."""

    min_blocks: PositiveInt = 100
    """Layers with fewer blocks stay dense (the paper's rule)."""

    embeddings: bool = False
    """Prune embedding tables, and weights tied to one, too."""

    lock_zero_blocks: bool = False
    """Blocks that are all zero in the checkpoint stay so, in dense phases too: go on from a sparse checkpoint."""

    phases: Literal["fine-tune", "paper", "criteo"] | PhasesSection = "fine-tune"
    """Timetable: `fine-tune` for trained checkpoints, the paper's two for training from scratch, or fractions of one's
    own."""

    monotone: bool = True
    """A sparsification phase only removes blocks. false: each of its steps chooses anew among all blocks, so that one that it
    removed can return before the phase is over."""

    score: Score | None = None
    """How blocks rank, for every method. `effective-norm`: by the norm of what pruning removes; `norm`: by ‖W_b‖_F;
    `fisher`: by √(Σ (g·Ŵ)²), the effective weight Ŵ times its gradient g, as seen in the dense and sparsification phases;
    `attention`: by A, which only that method has. null: `fisher` under sequential-attention
    (`prune.attention.score` if that is set, `effective-norm` in a timetable that does not begin dense), `norm` under the
    others."""

    allocation: Allocation | None = None
    """How many blocks each layer keeps. `uniform`: the share that its target leaves it. `balanced`: over all layers, the
    blocks of greatest total score that take no more parameters and no more multiply-adds than uniform targets would leave.
    `parameters`, `multiply-adds` and `time` hold only one such budget. Scores compare across layers with score `fisher`,
    not by norm. null: `balanced` where blocks rank by `fisher` (`parameters` with --target-size, `time` with
    --target-speedup), else `uniform`."""

    floor: Share = 0.5
    """Of an allocation over all layers: each layer keeps at least this share of the blocks that `uniform` would leave
    it, and 8 of them if it would leave as many; never more than `uniform`. 0: one block."""

    attention: SequentialAttention = SequentialAttention()
    """Settings of method sequential-attention."""

    acdc: Acdc = Acdc()
    """Settings of method acdc."""

    rules: list[RuleSection] = []
    """Exceptions for single layers."""

    @model_validator(mode="after")
    def _method_has_the_score(self) -> PruneSection:
        if self.score == "attention" and self.method != "sequential-attention":
            raise ValueError(
                f"score attention needs method sequential-attention, {self.method} has none; take fisher or norm"
            )
        return self

    @model_validator(mode="after")
    def _attention_agrees(self) -> PruneSection:
        if self.method != "sequential-attention":
            return self
        if self.lock_zero_blocks and not self.attention.freezes_pruned:
            raise ValueError(
                "lock_zero_blocks keeps zero blocks at zero, attention.pruned: literal lets training move them; take one of "
                "the two"
            )
        if self.attention.selects_before_update and self.resolved_score not in ("attention", "effective-norm"):
            raise ValueError(
                f"attention.selection: before-update is about A, which score {self.resolved_score} does not rank by; take "
                "score attention or effective-norm"
            )
        return self

    @property
    def resolved_score(self) -> Score:
        """`score`, or what null stands for."""
        if self.score is not None:
            return self.score
        if self.method != "sequential-attention":
            return "norm"
        if self.attention.score is not None:
            return self.attention.score
        return "fisher" if self.timetable.dense else "effective-norm"

    @property
    def resolved_allocation(self) -> Allocation:
        """`allocation`, or what null stands for."""
        if self.allocation is not None:
            return self.allocation
        return "balanced" if self.resolved_score == "fisher" else "uniform"

    @property
    def settings(self) -> Method:
        """The method with its settings."""
        score = self.resolved_score
        attention = self.attention if score == "fisher" else self.attention.model_copy(update={"score": score})
        methods: dict[MethodName, Method] = {
            "sequential-attention": attention,
            "acdc": self.acdc,
            "powerprop": Powerprop(),
            "magnitude": Magnitude(),
            "gradual-magnitude": GradualMagnitude(),
        }
        return methods[self.method]

    @property
    def timetable(self) -> Timetable:
        return PRESETS[self.phases] if isinstance(self.phases, str) else self.phases.timetable

    @property
    def exponent(self) -> float:
        return 4.0 if isinstance(self.phases, str) else self.phases.exponent


def exact(value: float) -> Fraction:
    """The decimal the user wrote as a fraction: repr gives it back for up to 15 digits."""
    return Fraction(repr(value))


def _exact_split(split: Split) -> tuple[Fraction, Fraction, Fraction]:
    sparsification, sparse, dense = split
    return exact(sparsification), exact(sparse), exact(dense)


def block_shape(size: int | tuple[int, int]) -> tuple[int, int]:
    """16 -> (16, 16); (16, 32) as it is: rows, columns."""
    return (size, size) if isinstance(size, int) else size
