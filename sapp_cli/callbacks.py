"""Pruning inside a training loop that is somebody else's: a callback for the Hugging Face Trainer."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sapp_cli.errors import UsageError
from sapp_cli.pruner import Pruner


class PrunerCallback(TrainerCallback):  # type: ignore[misc]
    """Moves a pruner's masks along with a Trainer.

        pruner = sapp.Pruner(model, {"sparsity": 0.9}, steps=1000)
        optimizer = torch.optim.AdamW(pruner.parameter_groups(lr=3e-4))
        trainer = Trainer(model, arguments, callbacks=[PrunerCallback(pruner)], optimizers=(optimizer, None), ...)
        trainer.train()
        model_to_save.load_state_dict(pruner.fold())

    Raises UsageError when training begins if the Trainer's steps are not those of the pruner's schedule.
    """

    def __init__(self, pruner: Pruner) -> None:
        self.pruner = pruner

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        if state.max_steps != self.pruner.schedule.steps:
            raise UsageError(
                f"the Trainer will run {state.max_steps} steps, the pruner was made for {self.pruner.schedule.steps}: make "
                f"it with steps={state.max_steps}, or set max_steps={self.pruner.schedule.steps} in TrainingArguments"
            )

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        optimizer = others.get("optimizer")
        plain = getattr(optimizer, "optimizer", optimizer)  # Accelerate wraps it
        self.pruner.step(state.global_step, plain if isinstance(plain, torch.optim.Optimizer) else None)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        self.pruner.observe(state.global_step)  # after the Trainer has clipped: one factor for all layers
