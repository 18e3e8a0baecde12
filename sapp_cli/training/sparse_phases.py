"""Sparse phases that compute with what is kept: layers change their form where such a phase begins, and back where it ends.

While a mask is fixed, the zeros of a masked weight are multiplied, differentiated and kept moments for in vain. So for the
length of a sparse phase a layer may part with θ: its kept blocks become the parameter that the optimizer moves, forward and
backward run on them alone (`runtime.kept_product`). Losses are those of the masked form up to the order of sums. Of several
processes (DDP) all do the same in the same step.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sapp_cli.core.schedule import Moment, Phase
from sapp_cli.layers import AttachedLayer
from sapp_cli.pruner import Pruner
from sapp_cli.recipe.schema import Recipe
from sapp_cli.training.kept_layer import KeptLayer, can_part
from sapp_cli.training.processes import agree_on_masks, from_main, is_main
from sapp_cli.training.replica import Replica
from sapp_cli.training.sparse_forms import measured, worth_it


class SparsePhases:
    """Moves masks, optimizer and layers along the schedule of one run; with it over, the model is as it was, and trained."""

    def __init__(
        self, pruner: Pruner, optimizer: torch.optim.Optimizer, recipe: Recipe, replica: Replica | None = None
    ) -> None:
        """`replica`: what calls the model in steps, and keeps the masked form where it is fixed; None: the model itself."""
        self._pruner = pruner
        self._optimizer = optimizer
        self._replica = replica
        self._reset = recipe.optimizer.reset
        self._form = "masked" if replica is not None and replica.fixed else recipe.train.sparse_phases
        self._full_precision = recipe.train.precision == "fp32"
        self._layers: dict[str, KeptLayer] = {}
        self._rows: dict[str, int] = {}  # of x, in each layer's last forward pass
        self._hooks = [self._note_rows(*item) for item in pruner.attached.items()] if self._form == "measured" else []

    def __enter__(self) -> SparsePhases:
        return self

    def __exit__(self, *error: object) -> None:
        self.leave()
        for hook in self._hooks:
            hook.remove()

    def step(self, step: int) -> Moment:
        """`Pruner.step`, with the layers in the form that the step is computed in.

        Raises TrainingError where the processes' masks differ.
        """
        ahead = self._pruner.schedule.at(step)
        if ahead.begins or ahead.phase is not Phase.SPARSE:  # a rehearsal leaves out steps
            self.leave()
        moment = self._pruner.step(step, self._optimizer if self._reset else None)
        if moment.begins or moment.phase is Phase.SPARSIFICATION:
            agree_on_masks(self._pruner.masks, f"in step {step + 1} ({moment.name} phase)")
        if moment.begins and moment.phase is Phase.SPARSE:
            # One choice for all: clocks differ, and so may the machines of several nodes.
            self.enter(from_main(self._chosen(moment) if is_main() else []))
        if self._replica is not None:
            self._replica.train_beside([self._pruner.attached[name].trained for name in self._layers])
        return moment

    def enter(self, names: Iterable[str]) -> None:
        """Part the kept blocks of these layers; the optimizer goes on with them in the place of the whole weights.

        Of several processes each does so by itself, the next `step` brings them together.
        """
        for name in names:
            layer = self._pruner.attached[name]
            theta = layer.theta
            self._layers[name] = KeptLayer(layer)
            self._replace(theta, layer.trained)
            self._carry_over(theta, layer)

    def leave(self) -> None:
        """Every layer as it would be had it been trained as a whole; the optimizer's state of parted ones is gone.

        Nothing is told to other processes: they may be gone, where this one leaves with an error.
        """
        for name, parted in self._layers.items():
            layer = self._pruner.attached[name]
            values = layer.trained
            parted.remove()
            self._replace(values, layer.theta)
            self._optimizer.state.pop(values, None)
        self._layers.clear()

    def _chosen(self, moment: Moment) -> list[str]:
        """The layers to part in the phase that begins."""
        if self._form == "masked" or not self._pruner.method.freezes_pruned:
            return []
        if moment.dense_ahead and not self._reset:
            return []  # pruned entries have moments of their own, which a dense phase would go on with
        lower = not self._full_precision
        # Under autocast on a GPU a parted layer would put its whole weight together in every step.
        attached = {name: layer for name, layer in self._pruner.attached.items() if layer.theta.is_cpu or not lower}
        possible = {name: layer for name, layer in attached.items() if can_part(layer)}
        if self._form == "kept-blocks":
            return list(possible)
        if self._form == "measured":
            return measured(possible, self._rows, lower)
        phase = next(phase for phase in self._pruner.schedule.phases if phase.start == moment.step)
        return worth_it(possible, phase.stop - phase.start, lower)

    def _note_rows(self, name: str, layer: AttachedLayer) -> RemovableHandle:
        def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            if inputs and isinstance(inputs[0], Tensor):
                self._rows[name] = inputs[0].numel() // max(1, inputs[0].shape[-1])

        return layer.owner.register_forward_pre_hook(note)

    def _replace(self, old: nn.Parameter, new: nn.Parameter) -> None:
        for group in self._optimizer.param_groups:
            group["params"] = [new if parameter is old else parameter for parameter in group["params"]]

    def _carry_over(self, theta: nn.Parameter, layer: AttachedLayer) -> None:
        """The optimizer's state of θ, where there is any, for its kept blocks."""
        state = self._optimizer.state.pop(theta, None)
        if state:
            kept = {key: layer.kept_of(value) if _is_like(value, theta) else value for key, value in state.items()}
            self._optimizer.state[layer.trained] = kept


def _is_like(value: object, theta: nn.Parameter) -> bool:
    """True for a moment, False for a count of steps."""
    return isinstance(value, Tensor) and value.shape == theta.shape
