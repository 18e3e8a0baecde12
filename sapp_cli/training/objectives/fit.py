"""Do model, data and objective go together? Asked before the first step, of two rows and of every label."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from sapp_cli.errors import DataError, UsageError
from sapp_cli.inputs.rows import Batch, DataSets, Targets, describe_batch, rows_in
from sapp_cli.training.objectives.custom import Custom
from sapp_cli.training.objectives.forward import Inputs
from sapp_cli.training.objectives.objective import Objective
from sapp_cli.training.objectives.supervised import Supervised
from sapp_cli.training.user_code import describe, is_of_user

NO_PADDING = (
    'set "pad_token_id" in config.json, and "pad_token" in tokenizer_config.json, to the token that fills rows up'
)


def check_fits(
    objective: Objective,
    model: nn.Module,
    data: DataSets,
    *,
    trains: bool = True,
    batch_size: int | None = None,
    teacher: nn.Module | None = None,
) -> None:
    """Run the model on two rows, as in evaluation and, if it `trains`, as in training, and look at every label.

    Some models ask more of the data in training (dropout of time steps wants sounds of a certain length). The model and the
    random states are left as they were. Without a `teacher` the model is its own. One row is tried if `batch_size` is 1:
    batch norm takes no single row in training. Raises UsageError for what the model raises, DataError naming the row whose
    label the model cannot give, or the inputs its forward does not take; SettingError for outputs the task cannot use.
    """
    batch, device = _two_rows(model, data, batch_size or 2)
    teacher = (teacher or model) if objective.needs_teacher else None
    where = ""
    # A loss of the user's own is asked with gradients: whether it has any shows only then.
    asks_gradients = isinstance(objective, Custom)
    try:
        with _left_as_it_was(model, device), torch.set_grad_enabled(asks_gradients):
            model.eval()
            _check_inputs(objective, model, batch)
            if isinstance(objective, Supervised):
                logits = objective.logits(model, batch)
                for part in (data.train, data.validation):
                    targets = getattr(part, "targets", None)
                    if isinstance(targets, Targets):
                        objective.task.require_targets(targets, logits)
            objective.loss(model, batch, teacher)
            if trains:
                where = " in training"
                model.train()
                objective.loss(model, batch, teacher)
    except Exception as error:
        if not is_of_user(error):
            raise
        taken = ", ".join(sorted(Inputs.of(model).names)) or "anything"
        advice = f"\n  {NO_PADDING}" if "padding token" in str(error) else ""
        raise UsageError(
            f"the model does not take the data{where}: {describe(error)}{advice}\n"
            f"  a batch holds {describe_batch(batch)}; {type(model).__name__}.forward takes {taken}"
        ) from error


def parameters_read(objective: Objective, model: nn.Module, data: DataSets, names: Sequence[str]) -> list[str]:
    """Those of these parameters that the loss of two rows depends on. The model is left as it was."""
    batch, device = _two_rows(model, data)
    parameters = dict(model.named_parameters())
    wanted = {name: parameters[name] for name in names if name in parameters}
    trained = {parameter for parameter in model.parameters() if parameter.requires_grad}
    try:
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for parameter in wanted.values():
            parameter.requires_grad_(True)
        with _left_as_it_was(model, device), torch.enable_grad():
            model.eval()
            loss = objective.loss(model, batch, model if objective.needs_teacher else None).loss
            gradients = (
                torch.autograd.grad(loss, list(wanted.values()), allow_unused=True) if loss.requires_grad else []
            )
        return [name for name, gradient in zip(wanted, gradients, strict=False) if gradient is not None]
    finally:
        for parameter in model.parameters():
            parameter.requires_grad_(parameter in trained)


def _two_rows(model: nn.Module, data: DataSets, most: int = 2) -> tuple[Batch, torch.device]:
    """The first rows of training, at most two, as a batch where the model is."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    rows = [data.train[index] for index in range(min(2, most, rows_in(data.train)))]
    return {key: value.to(device) for key, value in data.collate(rows).items()}, device


@contextmanager
def _left_as_it_was(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Modes, buffers (the running statistics of norms) and random states, of NumPy and Python too, where some models draw."""
    modes = {module: module.training for module in model.modules()}
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        for module, mode in modes.items():
            module.training = mode


def _check_inputs(objective: Objective, model: nn.Module, batch: Batch) -> None:
    inputs = Inputs.of(model)
    unused = [] if isinstance(objective, Custom) else inputs.unused(batch)
    if unused:
        raise DataError(
            f"the rows have '{unused[0]}', which {type(model).__name__}.forward does not take; it takes: "
            f"{', '.join(sorted(inputs.names))}"
        )
