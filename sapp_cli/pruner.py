"""Pruner: attach masks to a model, move them along the schedule, fold them into a state dict.

Our own loop, a user's loop and a trainer's callback all drive the same object:

    pruner = Pruner(model, settings, steps)                        # before the optimizer is made: it adds parameters
    optimizer = torch.optim.AdamW(pruner.parameter_groups(lr=3e-4))
    for t, batch in enumerate(batches):
        pruner.step(t, optimizer)                                  # before each forward
        ...
    state = pruner.fold()                                          # a state dict under the model's own names
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sapp_cli.core.masks import attention, from_matrix, spread
from sapp_cli.core.schedule import Moment, Phase, PhaseSchedule, ramp
from sapp_cli.core.selection import ramp_count, uniform
from sapp_cli.errors import SettingError
from sapp_cli.layers import AttachedLayer, FoldedState, attach, decide_layers, held, put, rows_held
from sapp_cli.methods import SequentialAttention
from sapp_cli.recipe.schema import PruneSection

LOGIT_RATES_ADD_UP_TO = 3.0  # under Adam, over the run: far enough for A to matter, short of collapse (docs/method.md)
SGD_LOGIT_RATE_FACTOR = 3.0
SGD_LOGIT_RATE_LIMIT = 1.0


class Pruner:
    """The masks of one model over one run.

    `settings`: the recipe's `prune` section, or a mapping of its keys. `stored_names` {name in the model: in the checkpoint}.

    Attributes: `layers`, every weight with its decision; `attached`, the pruned ones in the live model; `schedule`;
    `support`, the masks {layer name: keep} of the last sparse phase, empty before the first; `exchanged`, the share of its
    kept blocks that the sparse phase before it had not kept, None before the second.

    Raises SettingError if no layer would be pruned, a rule matches nothing, or the run is too short for its timetable.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: PruneSection | Mapping[str, Any],
        steps: int,
        stored_names: Mapping[str, str] | None = None,
    ) -> None:
        self.settings = settings if isinstance(settings, PruneSection) else PruneSection.model_validate(settings)
        self.method = self.settings.settings
        self.schedule = make_schedule(self.settings, steps)
        self.layers = decide_layers(model, self.settings, stored_names)
        self._model = model
        self._names = list(model.state_dict())
        self.attached = attach(model, self.layers, self.method, self.settings.lock_zero_blocks)
        self.support: dict[str, Tensor] = {}
        self.exchanged: float | None = None
        self._held: dict[str, _Held] = {}

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
        logits = self.logits
        logit_ids = {id(logit) for logit in logits}
        others = [p for p in self._model.parameters() if p.requires_grad and id(p) not in logit_ids]
        vectors = [] if decay_vectors else [p for p in others if p.dim() < 2]
        vector_ids = {id(p) for p in vectors}
        own = self._logit_settings(lr, adam, self.schedule.steps / 2 if total_share is None else total_share)
        groups: list[dict[str, Any]] = [
            {"name": "weights", "params": [p for p in others if id(p) not in vector_ids]},
            {"name": "vectors", "params": vectors, "weight_decay": 0.0},
            {"name": "logits", "params": logits, **own},
        ]
        return [{"lr": lr, "weight_decay": weight_decay, **group} for group in groups if group["params"]]

    def _logit_settings(self, lr: float, adam: bool, total_share: float) -> dict[str, Any]:
        """The logits' own rate, decay and moments; `same` leaves those of the weights."""
        method = self.method
        if not isinstance(method, SequentialAttention):
            return {}
        own: dict[str, Any] = {}
        if method.lr is None:
            own["lr"] = (
                LOGIT_RATES_ADD_UP_TO / total_share if adam else min(SGD_LOGIT_RATE_LIMIT, SGD_LOGIT_RATE_FACTOR * lr)
            )
        elif method.lr != "same":
            own["lr"] = method.lr
        if method.decay != "same":
            own["weight_decay"] = method.decay
        if adam and method.betas != "same":
            own["betas"] = method.betas
        return own

    @property
    def logits(self) -> list[nn.Parameter]:
        """The trained logits of all pruned layers: a parameter group of their own in the optimizer."""
        return [layer.masked.logits for layer in self.attached.values() if layer.masked.logits is not None]

    @property
    def masks(self) -> dict[str, Tensor]:
        """{layer name: keep, bool (R, C)}; the live tensors."""
        return {name: layer.masked.keep for name, layer in self.attached.items()}

    @property
    def sparsity(self) -> float:
        """Share of the pruned layers' blocks that is removed right now."""
        kept = sum(int(keep.sum()) for keep in self.masks.values())
        return 1 - kept / sum(keep.numel() for keep in self.masks.values())

    @torch.no_grad()
    def attention_ranges(self) -> dict[str, tuple[float, float]]:
        """{layer name: least and greatest A of its kept blocks}, before the clamp, for methods that train A."""
        ranges = {}
        for name, layer in self.attached.items():
            state = layer.masked.state
            if state.logits is not None:
                kept = attention(state.logits)[state.keep]
                ranges[name] = (float(kept.min()), float(kept.max()))
        return ranges

    @torch.no_grad()
    def step(self, step: int, optimizer: torch.optim.Optimizer | None = None) -> Moment:
        """Bring the masks to where they are in step `step`, counted from 0; call it before the step's forward.

        Where a phase begins, the state of `optimizer` is forgotten if one is given ("crucial", paper App. C.1).
        """
        self.hold()
        moment = self.schedule.at(step)
        if moment.begins:
            self._begin(moment)
            if optimizer is not None:
                optimizer.state.clear()
        if moment.phase is Phase.SPARSIFICATION:
            self._shrink(moment)
        if moment.begins or moment.phase is Phase.SPARSIFICATION:
            self._remember(moment)
        if moment.begins and moment.phase is Phase.SPARSE:
            self._compare_support()
        return moment

    @torch.no_grad()
    def hold(self) -> None:
        """Put the weights and logits of pruned blocks back to what they were when pruned, bit by bit.

        Decay and momentum move them in an optimizer's step; `step` and `fold` undo that before they look at anything.
        """
        for name, before in self._held.items():
            before.restore(self.attached[name])

    @torch.no_grad()
    def restore(
        self, steps_done: int, masks: Mapping[str, Tensor], support: Mapping[str, Tensor] | None = None
    ) -> None:
        """Go on from a saved run: the model's state is loaded already, `masks` and `support` were those of then."""
        for name, keep in self.masks.items():
            keep.copy_(masks[name])
        self.support = {name: keep.to(self.masks[name].device) for name, keep in (support or {}).items()}
        if steps_done:
            self._remember(self.schedule.at(steps_done - 1))

    def fold(self) -> FoldedState:
        """The model's state dict under its own names, masks folded in; the live model stays as it is."""
        self.hold()
        return FoldedState(self._model, self._names, self.attached)

    @contextmanager
    def rounded(self, dtypes: Mapping[str, torch.dtype]) -> Iterator[None]:
        """Within it the live model computes with the weights an export in `dtypes` {name: dtype} would hold."""
        self.hold()
        parameters = dict(self._model.named_parameters())
        masked = {name: layer.masked for layer in self.attached.values() for name in layer.layer.names}
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
            for layer in self.attached.values():
                layer.masked.round_to = None

    def _begin(self, moment: Moment) -> None:
        before = {name: keep.clone() for name, keep in self.masks.items()}
        if moment.phase is Phase.DENSE:
            for layer in self.attached.values():
                layer.masked.keep.copy_(layer.masked.available)
        elif moment.phase is Phase.SPARSE and moment.after_dense:
            self._select({name: layer.layer.kept_count for name, layer in self.attached.items()})  # fewer, if locked
        for name, layer in self.attached.items():
            matrix, state = layer.matrix.clone(), layer.masked.state
            self.method.begin(moment, matrix, state, before[name])
            put(layer.theta, from_matrix(matrix, layer.masked.layout))
            if layer.masked.logits is not None and state.logits is not None:
                put(layer.masked.logits, state.logits)

    def _shrink(self, moment: Moment) -> None:
        """A sparsification step: the blocks of least score among those still there go. Never revives one."""
        share = ramp(moment.progress, self.settings.exponent)
        counts = {}
        for name, layer in self.attached.items():
            count = ramp_count(layer.masked.sparsity, layer.masked.grid.count, share)
            counts[name] = min(count, int(layer.masked.keep.sum()))
        if any(counts[name] < int(keep.sum()) for name, keep in self.masks.items()):
            self._select(counts)

    def _select(self, counts: Mapping[str, int]) -> None:
        """Keep the `counts` best of the blocks still kept, or all of them if they are fewer; all layers in one selection."""
        scores = {}
        for name, layer in self.attached.items():
            score = self.method.scores(layer.matrix, layer.masked.state)
            scores[name] = score.masked_fill(~layer.masked.keep, -torch.inf)
        for name, keep in uniform(scores, counts).items():
            self.attached[name].masked.keep.logical_and_(keep)

    def _compare_support(self) -> None:
        if self.support:
            new = sum(int((keep & ~self.support[name]).sum()) for name, keep in self.masks.items())
            self.exchanged = new / sum(int(keep.sum()) for keep in self.masks.values())
        self.support = {name: keep.clone() for name, keep in self.masks.items()}

    def _remember(self, moment: Moment) -> None:
        """Note what the pruned blocks hold, so that `hold` can undo what decay and momentum do to them.

        Weights that no later dense phase brings back are not noted: nothing reads them again.
        """
        self._held = {name: _Held.of(layer, weights=moment.dense_ahead) for name, layer in self.attached.items()}


class _Held:
    """Weights and logits of one layer's pruned blocks, as they were when pruned; under FSDP of this process's rows."""

    def __init__(self, pruned: Tensor, weights: Tensor | None, entries: Tensor | None, logits: Tensor | None) -> None:
        self.pruned = pruned  # bool (R, C)
        self.entries = entries  # bool, the weight's shape: the entries of pruned blocks
        self.weights = weights  # their values, 1-d
        self.logits = logits  # logits of the pruned blocks, 1-d

    @classmethod
    def of(cls, layer: AttachedLayer, weights: bool) -> _Held:
        masked = layer.masked
        pruned = ~masked.keep
        entries = values = logits = None
        if weights and pruned.any():
            entries = rows_held(layer.theta, from_matrix(spread(pruned, masked.grid), masked.layout))
            values = held(layer.theta.detach())[entries]
        if masked.logits is not None:
            pruned = rows_held(masked.logits, pruned)
            logits = held(masked.logits.detach())[pruned]
        return cls(pruned, values, entries, logits)

    def restore(self, layer: AttachedLayer) -> None:
        if self.entries is not None and self.weights is not None:
            held(layer.theta)[self.entries] = self.weights
        if self.logits is not None and layer.masked.logits is not None:
            held(layer.masked.logits)[self.pruned] = self.logits


def make_schedule(settings: PruneSection, steps: int) -> PhaseSchedule:
    """The phases of a run of `steps` steps. Raises SettingError, naming the smallest number that works, if it is too short."""
    try:
        return PhaseSchedule(settings.settings.spans(settings.timetable), steps)
    except ValueError as error:
        raise SettingError([("train.steps", str(error))]) from error
