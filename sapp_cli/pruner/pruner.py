"""Pruner: attach masks to a model, move them along the schedule, fold them into a state dict.

Our own loop, a user's loop and a trainer's callback all drive the same object:

    pruner = Pruner(model, settings, steps)                        # before the optimizer is made: it adds parameters
    optimizer = torch.optim.AdamW(pruner.parameter_groups(lr=3e-4))
    for t, batch in enumerate(batches):
        pruner.step(t, optimizer)                                  # before each forward
        ...                                                        # the step as it was
    state = pruner.fold()                                          # a state dict under the model's own names
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sapp_cli.core.budgets import within_budgets
from sapp_cli.core.masks import attention, from_matrix
from sapp_cli.core.schedule import Moment, Phase, ramp
from sapp_cli.core.selection import floor_count, ramp_count, uniform
from sapp_cli.errors import UsageError
from sapp_cli.layers import AttachedLayer, FoldedState, attach, decide_layers, left_dense, put, tensor_state
from sapp_cli.methods import BlockState
from sapp_cli.pruner.block_fisher import BlockFisher
from sapp_cli.pruner.decisions import BUDGETS, block_costs, make_schedule
from sapp_cli.pruner.dense_start import DenseStart
from sapp_cli.pruner.held_blocks import HeldBlocks
from sapp_cli.pruner.parameter_groups import logit_settings, weight_groups
from sapp_cli.pruner.ranking import Ranking, describe_unranked, must_be_finite
from sapp_cli.recipe.prune_section import PruneSection, exact


class Pruner:
    """The masks of one model over one run.

    `settings`: the recipe's `prune` section, or a mapping of its keys. `stored_names` {name in the model: in the checkpoint}.
    `costs` {layer name: the multiply-adds of one of its blocks, or with `allocation: time` its picoseconds}, integers from
    `sapp_cli.costs`. Without them and without an `allocation` in the settings, parameters are the only budget.

    `notice` is called with one line when layers turn out to have no ranking; None: a Python warning says it.

    Attributes: `layers`, every weight with its decision; `attached`, the pruned ones in the live model; `schedule`;
    `unranked`, the layers that keep all their blocks {name: why nothing ranks them}, known from the first selection on;
    `support`, the masks {layer name: keep} of the last sparse phase, empty before the first; `exchanged`, the share of its
    kept blocks that the sparse phase before it had not kept, None before the second; `fisher`, what `observe` has gathered.

    Raises SettingError if no layer would be pruned, a rule matches nothing, the run is too short for its timetable, or an
    allocation lacks its costs.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: PruneSection | Mapping[str, Any],
        steps: int,
        stored_names: Mapping[str, str] | None = None,
        costs: Mapping[str, int] | None = None,
        *,
        notice: Callable[[str], None] | None = None,
    ) -> None:
        self.settings = settings if isinstance(settings, PruneSection) else PruneSection.model_validate(settings)
        self.method = self.settings.settings
        self.schedule = make_schedule(self.settings, steps)
        self.layers = decide_layers(model, self.settings, stored_names)
        self.costs = block_costs(self.layers, self.settings, costs)
        self._model = model
        self._names = list(tensor_state(model))
        self.attached = attach(model, self.layers, self.method, self.settings.lock_zero_blocks)
        self.support: dict[str, Tensor] = {}
        self.exchanged: float | None = None
        self.fisher = BlockFisher(self.attached, self.method)
        self.ranking = Ranking()
        self.dense_start = DenseStart()
        self._left_dense: dict[str, AttachedLayer] = {}
        self._notice = notice or warnings.warn
        self._held: dict[str, HeldBlocks] = {}
        self.logits_before: dict[str, Tensor] = {}
        self._step = 0

    def parameter_groups(
        self,
        lr: float,
        weight_decay: float = 0.0,
        *,
        adam: bool = True,
        decay_vectors: bool = False,
        total_share: float | None = None,
    ) -> list[dict[str, Any]]:
        """Groups for torch.optim: "weights", "vectors" (biases, norms; not decayed unless told) and the mask's "logits".

        `lr` is the peak rate of the weights; the logits get theirs from the method's settings. `adam`: the optimizer is
        Adam or AdamW, not SGD. `total_share`: the learning-rate shares of all steps added up; None: half the steps, which is
        that of a cosine or linear decay to zero.
        """
        share = self.schedule.steps / 2 if total_share is None else total_share
        groups = [
            *weight_groups(self._model, self.logits, decay_vectors),
            {"name": "logits", "params": self.logits, **logit_settings(self.method, lr, adam, share)},
        ]
        return [{"lr": lr, "weight_decay": weight_decay, **group} for group in groups if group["params"]]

    @property
    def logits(self) -> list[nn.Parameter]:
        """The trained logits of all pruned layers: a parameter group of their own in the optimizer."""
        return [layer.masked.logits for layer in self.attached.values() if layer.masked.logits is not None]

    @property
    def unranked(self) -> dict[str, str]:
        """{layer name: why nothing ranks its blocks}; empty before the first selection."""
        return self.ranking.unranked or {}

    @property
    def stored_unranked(self) -> dict[str, str]:
        """`unranked` under the layers' names in the checkpoint."""
        return {layer.stored: self.unranked[layer.name] for layer in self.layers if layer.name in self.unranked}

    @property
    def masks(self) -> dict[str, Tensor]:
        """{layer name: keep, bool (R, C)}; the live tensors."""
        return {name: layer.masked.keep for name, layer in self.attached.items()}

    @property
    def named_costs(self) -> dict[str, dict[str, int]] | None:
        """{pruned layer: {budget: what one of its blocks takes of it}}; None if each layer has its own count."""
        if self.costs is None:
            return None
        budgets = BUDGETS[self.settings.resolved_allocation]
        return {name: dict(zip(budgets, cost, strict=False)) for name, cost in self.costs.items()}

    @property
    def sparsity(self) -> float:
        """Share of the pruned layers' blocks that is removed right now."""
        kept = sum(int(keep.sum()) for keep in self.masks.values())
        return 1 - kept / sum(keep.numel() for keep in self.masks.values())

    @property
    def sparsities(self) -> dict[str, float]:
        """{layer's name in the checkpoint: share of its blocks that is removed right now}."""
        return {
            self.attached[name].layer.stored: 1 - int(keep.sum()) / keep.numel() for name, keep in self.masks.items()
        }

    @torch.no_grad()
    def attention_ranges(self) -> dict[str, tuple[float, float]]:
        """{layer name: least and greatest A of its kept blocks}, before the clamp, for methods that train A."""
        states = {name: layer.masked.state for name, layer in self.attached.items()}
        kept = {name: attention(it.logits)[it.keep] for name, it in states.items() if it.logits is not None}
        return {name: (float(values.min()), float(values.max())) for name, values in kept.items()}

    @torch.no_grad()
    def step(self, step: int, optimizer: torch.optim.Optimizer | None = None) -> Moment:
        """Bring the masks to where they are in step `step`, counted from 0; call it before the step's forward.

        Where a phase begins, the state of `optimizer` is forgotten if one is given ("crucial", paper App. C.1). Its own step
        then calls `observe`, unless that has been done.
        """
        self._restore_pruned()
        for layer in self.attached.values():
            layer.masked.seen.forget()
        moment = self.schedule.at(step)
        self._step = step
        if optimizer is not None and (self.observes or self.ranking.unranked is None):
            self.fisher.watch(optimizer, lambda: self.observe(self._step))
        if moment.begins:
            self._begin(moment)
            if optimizer is not None:
                optimizer.state.clear()
        shrinks = moment.phase is Phase.SPARSIFICATION and self._shrink(moment)
        self._note_logits(moment)
        if moment.begins or shrinks:
            self._remember(moment)
        if moment.begins and moment.phase is Phase.SPARSE:
            self._compare_support()
        return moment

    @property
    def observes(self) -> bool:
        """True where blocks are ranked by gradients, which `observe` is shown."""
        return self.settings.resolved_score == "fisher"

    @torch.no_grad()
    def observe(self, step: int, loss: float | None = None) -> None:
        """See which layers the gradients of step `step` reach, until the first selection; for score `fisher` gather them.

        With the `loss` of the step, a dense start that raises it is noticed, and its gradients no longer count.

        An optimizer that `step` was given does it by itself, with gradients that may have been clipped: one factor for all
        layers. Or call it after the whole step's backward, when the gradients are those of its mean loss over all batches and
        processes. A pruned block keeps what was gathered until it was pruned.
        """
        self.ranking.look(self.attached)
        moment = self.schedule.at(step)
        counts = self.dense_start.counts(moment, loss, self.schedule, self._notice)
        if self.observes and moment.phase is not Phase.SPARSE:
            self.fisher.gather(step, counts)

    @torch.no_grad()
    def hold(self) -> None:
        """Make the parameters what they are meant to be: pruned blocks as they were when pruned, bit by bit, kept ones trained.

        Decay and momentum move pruned ones in an optimizer's step; `step` and `fold` undo that before they look at anything.
        Kept blocks that are trained by themselves (`training.sparse_phases`) are written into the weights they belong to.
        """
        self._restore_pruned()
        for layer in self.attached.values():
            layer.settle()

    def _restore_pruned(self) -> None:
        for name, before in self._held.items():
            before.restore(self.attached[name])

    @torch.no_grad()
    def restore(
        self,
        steps_done: int,
        masks: Mapping[str, Tensor],
        support: Mapping[str, Tensor] | None = None,
        fisher: Mapping[str, Tensor] | None = None,
        ranking: Ranking | None = None,
        logits_before: Mapping[str, Tensor] | None = None,
        dense_start: DenseStart | None = None,
    ) -> None:
        """Go on from a saved run: the model's state is loaded already; the rest was that of then."""
        self.ranking = ranking or Ranking()
        self.dense_start = dense_start or DenseStart()
        for name, why in self.unranked.items():
            self._keep_all_blocks(name, why)
        for name, keep in self.masks.items():
            keep.copy_(masks[name])
        self.fisher.restore(fisher or {})
        self.support = {name: keep.to(self.masks[name].device) for name, keep in (support or {}).items()}
        self.logits_before = {
            name: logits.to(self.masks[name].device) for name, logits in (logits_before or {}).items()
        }
        if steps_done:
            self._remember(self.schedule.at(steps_done - 1))

    def fold(self) -> FoldedState:
        """The model's state dict under its own names, masks folded in; the live model stays as it is."""
        self.hold()
        return FoldedState(self._model, self._names, self._parametrized)

    @contextmanager
    def rounded(self, dtypes: Mapping[str, torch.dtype]) -> Iterator[None]:
        """Within it the live model computes with the weights an export in `dtypes` {name: dtype} would hold."""
        self.hold()
        parameters = dict(self._model.named_parameters())
        masked = {name: layer.masked for layer in self._parametrized.values() for name in layer.layer.names}
        kept = {}
        with torch.no_grad():
            for name, dtype in dtypes.items():
                if name in masked:
                    masked[name].round_to = dtype
                elif name in parameters and parameters[name].dtype != dtype:
                    kept[name] = parameters[name].clone()
                    parameters[name].copy_(parameters[name].to(dtype))
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in kept.items():
                    parameters[name].copy_(value)
            for layer in self._parametrized.values():
                layer.masked.round_to = None

    @property
    def _parametrized(self) -> dict[str, AttachedLayer]:
        """Every layer that got a masked weight, those left dense since included."""
        return {**self.attached, **self._left_dense}

    def _begin(self, moment: Moment) -> None:
        before = {name: keep.clone() for name, keep in self.masks.items()}
        if moment.phase is Phase.DENSE:
            for layer in self.attached.values():
                layer.masked.keep.copy_(layer.masked.available)
        elif moment.phase is Phase.SPARSE and moment.after_dense:
            self._select({name: layer.layer.kept_count for name, layer in self.attached.items()})
        for name, layer in self.attached.items():
            matrix, state = layer.matrix.clone(), layer.masked.state
            self.method.begin(moment, matrix, state, before[name])
            put(layer.theta, from_matrix(matrix, layer.masked.layout))
            if layer.masked.logits is not None and state.logits is not None:
                put(layer.masked.logits, state.logits)

    def _shrink(self, moment: Moment) -> bool:
        """A sparsification step: the blocks of least score among those still there go; False: none went.

        With `prune.monotone` off all blocks are chosen from, and one may return.
        """
        share = ramp(moment.progress, self.settings.exponent)
        counts = {
            name: ramp_count(layer.masked.sparsity, layer.masked.grid.count, share)
            for name, layer in self.attached.items()
        }
        ranked = {name: keep for name, keep in self.masks.items() if name not in self.unranked}
        chooses = self.costs is not None or not self.settings.monotone
        if chooses or any(counts[name] < int(keep.sum()) for name, keep in ranked.items()):
            self._select(counts)
            return True
        return False

    def _select(self, counts: Mapping[str, int]) -> None:
        """Keep the best of the blocks to choose from, all layers in one selection: `counts` of each, or what so many cost.

        A layer that has fewer, because zero blocks are locked, keeps them all.
        """
        scores = {
            name: self.method.scores(layer.matrix, self._block_state(name))
            for name, layer in self.attached.items()
            if name not in self.unranked
        }
        if self.ranking.unranked is None:
            self._decide(scores)
            scores = {name: score for name, score in scores.items() if name not in self.unranked}
        must_be_finite(self.attached, scores, self._step)
        choices = {name: self.attached[name].masked for name in scores}
        there = {name: mask.keep if self.settings.monotone else mask.available for name, mask in choices.items()}
        scores = {name: score.masked_fill(~there[name], -torch.inf) for name, score in scores.items()}
        if self.costs is None:
            chosen = uniform(scores, counts)
        else:
            floor = exact(self.settings.floor)
            floors = {name: floor_count(floor, self.attached[name].layer.kept_count) for name in scores}
            chosen = within_budgets(scores, counts, self.costs, floors)
        for name, keep in chosen.items():
            self.attached[name].masked.keep.copy_(keep & there[name])

    def _note_logits(self, moment: Moment) -> None:
        """Note the logits of the last step of a dense phase, before its update, where the next selection ranks by them."""
        self.logits_before = {}
        last = moment.step + 1 == self.schedule.steps
        if last or not self.method.selects_before_update or moment.phase is not Phase.DENSE:
            return
        if self.schedule.at(moment.step + 1).begins:
            logits = {name: layer.masked.state.logits for name, layer in self.attached.items()}
            self.logits_before = {name: its.detach().clone() for name, its in logits.items() if its is not None}

    def _decide(self, scores: Mapping[str, Tensor]) -> None:
        """The first selection: layers whose blocks nothing ranks keep them all."""
        if self.observes:
            self.dense_start.warn_of_few(self._notice)
        for name, why in self.ranking.decide(self.attached, scores, self._step).items():
            if self.attached[name].masked.available.all():
                self.attached[name].leave_dense()
            self._keep_all_blocks(name, why)
        if self.unranked:
            self._notice(describe_unranked(self.stored_unranked))

    def _keep_all_blocks(self, name: str, why: str) -> None:
        """Take a layer out of selections and budget on both sides, and out of the pruned ones unless zero blocks are locked."""
        layer = self.attached[name]
        if self.costs is not None:
            self.costs.pop(name, None)
        if layer.masked.available.all():
            layer.masked.dense = True
            self._left_dense[name] = self.attached.pop(name)
            self.fisher.blocks.pop(name, None)
            self._held.pop(name, None)
            decided = left_dense(layer.layer, why)
        else:
            decided = replace(layer.layer, sparsity=None, reason=f"only its zero blocks are removed: {why}")
        self.layers = [decided if known.name == name else known for known in self.layers]

    def _block_state(self, name: str) -> BlockState:
        """What a method is told of a layer's blocks, gathered gradients included where they rank them."""
        state = self.attached[name].masked.state
        if self.observes:
            if not self.fisher.blocks and not self.ranking.shown:
                raise UsageError(
                    "score fisher: no gradient was seen yet; call pruner.step(step, optimizer) before each forward, or "
                    "pruner.observe(step) after each backward"
                )
            state.fisher = self.fisher.of(name)
        state.logits = self.logits_before.get(name, state.logits)
        return state

    def _compare_support(self) -> None:
        if self.support:
            new = sum(int((keep & ~self.support[name]).sum()) for name, keep in self.masks.items())
            self.exchanged = new / sum(int(keep.sum()) for keep in self.masks.values())
        self.support = {name: keep.clone() for name, keep in self.masks.items()}

    def _remember(self, moment: Moment) -> None:
        """Note what the pruned blocks hold, so that `hold` can undo what decay and momentum do to them.

        Weights that no later step brings back are not noted: nothing reads them again.
        """
        if not self.method.freezes_pruned:
            return
        may_return = moment.phase is Phase.SPARSIFICATION and not self.settings.monotone
        weights = moment.dense_ahead or may_return
        self._held = {name: HeldBlocks.of(layer, weights) for name, layer in self.attached.items()}
