"""Pruning inside a training loop that is Lightning's; whichever of its two packages is installed."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch

from sapp_cli.errors import UsageError
from sapp_cli.pruner import Pruner

if find_spec("lightning") is not None:
    from lightning.pytorch import Callback
else:
    from pytorch_lightning import Callback


class PrunerLightningCallback(Callback):  # type: ignore[misc]
    """Moves a pruner's masks along with a Lightning Trainer, one optimizer step a step.

        pruner = sapp.Pruner(module, {"sparsity": 0.9}, steps=1000)  # configure_optimizers takes pruner.parameter_groups(lr)
        trainer = Trainer(max_steps=1000, callbacks=[PrunerLightningCallback(pruner)])
        trainer.fit(module, batches)
        state = pruner.fold()

    Raises UsageError when training begins if the Trainer's steps are not those of the pruner's schedule.
    """

    def __init__(self, pruner: Pruner) -> None:
        self.pruner = pruner
        self._step: int | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        steps = trainer.estimated_stepping_batches
        if steps != self.pruner.schedule.steps:
            raise UsageError(
                f"the Trainer will run {steps:g} steps, the pruner was made for {self.pruner.schedule.steps}: make it with "
                f"steps={steps:g}, or set max_steps={self.pruner.schedule.steps} in the Trainer"
            )

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        if step != self._step:  # of accumulated batches the first
            self._step = step
            plain = getattr(trainer.optimizers[0], "optimizer", trainer.optimizers[0])  # Lightning wraps some
            self.pruner.step(step, plain if isinstance(plain, torch.optim.Optimizer) else None)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.pruner.observe(trainer.global_step)
