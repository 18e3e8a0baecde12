"""The step loop: masks, batch, forward, backward, optimizer; one way through, reported step by step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from signal import SIGINT, SIGTERM

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn

from sapp_cli.core.schedule import Moment, Phase, PhaseSchedule, TooFewSteps
from sapp_cli.errors import DataError, Interrupted, SettingError, TrainingError, UsageError
from sapp_cli.inputs.data import Batch, DataSets
from sapp_cli.inputs.rows import StreamedRows
from sapp_cli.layers import whole
from sapp_cli.pruner import Pruner
from sapp_cli.pruner.decisions import make_schedule
from sapp_cli.recipe.schema import Recipe
from sapp_cli.training.batches import BatchPlan, training_batches
from sapp_cli.training.collapse import CollapseWatch
from sapp_cli.training.compilation import compile_errors
from sapp_cli.training.device import draw_apart
from sapp_cli.training.evaluation import evaluate
from sapp_cli.training.health import GradientWatch, must_be_finite
from sapp_cli.training.interruption import graceful_stop
from sapp_cli.training.keeper import Keeper
from sapp_cli.training.learning_rate import learning_rate_share, total_share
from sapp_cli.training.objectives import Objective
from sapp_cli.training.optimizers import make_optimizer, set_learning_rates
from sapp_cli.training.processes import any_of
from sapp_cli.training.replica import Replica
from sapp_cli.training.sharding import is_sharded
from sapp_cli.training.sparse_phases import SparsePhases
from sapp_cli.training.user_code import UserCode


@dataclass(frozen=True)
class StepRecord:
    """One finished step."""

    moment: Moment
    steps: int  # of the whole run
    loss: float
    parts: dict[str, float]  # the terms of the loss, where it has several
    learning_rate: float  # of the weights
    sparsity: float  # share of the pruned layers' blocks removed
    seconds: float  # since the run began
    metrics: dict[str, float] = field(default_factory=dict)  # where the step was followed by an evaluation
    # Where a phase begins: least and greatest A of any kept block, and for a sparse phase after the first the share of its kept
    # blocks that the one before had not.
    attention: tuple[float, float] | None = None
    layers: dict[str, float] | None = None  # there and at the last step: {layer: share of its blocks removed}
    exchanged: float | None = None
    trial: str = ""  # like "trial 3, rate 1e-3": a step of the search for a rate, not of the run

    def is_logged(self, every: int) -> bool:
        """True for every `every`-th step, the first of each phase, the last, and those followed by an evaluation."""
        number = self.moment.step + 1
        return number % every == 0 or number == self.steps or self.moment.begins or bool(self.metrics)

    def as_json(self) -> dict[str, object]:
        """A line of metrics.jsonl."""
        return {
            "step": self.moment.step + 1,
            "phase": self.moment.phase.value,
            "round": self.moment.round,
            "sparsity": self.sparsity,
            "loss": self.loss,
            **self.parts,
            "learning_rate": self.learning_rate,
            "seconds": round(self.seconds, 3),
            **({} if self.attention is None else {"attention": list(self.attention)}),
            **({} if self.layers is None else {"layers": self.layers}),
            **({} if self.exchanged is None else {"exchanged": self.exchanged}),
            **({"metrics": self.metrics} if self.metrics else {}),
        }


def count_steps(recipe: Recipe, rows: int, world: int) -> int:
    """Optimizer steps of the run: as given, or from epochs over `rows` training rows."""
    if recipe.train.steps is not None:
        return recipe.train.steps
    assert recipe.train.epochs is not None, "the schema asks for steps or epochs"
    plan = BatchPlan(rows, recipe.data.batch_size, recipe.train.seed, world=world)
    return max(1, math.floor(recipe.train.epochs * plan.batches_per_epoch / recipe.train.accumulate + 0.5))


def run_schedule(recipe: Recipe, rows: int, world: int) -> PhaseSchedule:
    """The phases of the run over `rows` training rows, shared by `world` processes.

    Raises SettingError, naming what would be enough, if a phase gets no step.
    """
    steps = count_steps(recipe, rows, world)
    try:
        return make_schedule(recipe.prune, steps)
    except SettingError as error:
        short = error.__cause__
        if recipe.train.epochs is None or not isinstance(short, TooFewSteps):
            raise
        batches = f"batches of {recipe.data.batch_size}" + (f" on each of {world} processes" if world > 1 else "")
        averaged = f", {recipe.train.accumulate} to a step," if recipe.train.accumulate > 1 else ""
        problem = (
            f"{recipe.train.epochs:g} passes over {rows} rows in {batches}{averaged} are {steps} steps; this schedule needs at "
            f"least {short.fewest}: lower data.batch_size or raise train.epochs"
        )
        raise SettingError([("train.epochs", problem)]) from error


def train(
    model: nn.Module,
    pruner: Pruner,
    objective: Objective,
    data: DataSets,
    recipe: Recipe,
    accelerator: Accelerator,
    *,
    teacher: nn.Module | None,
    dtypes: Mapping[str, torch.dtype],
    on_step: Callable[[StepRecord], None],
    keeper: Keeper | None = None,
    collapse: CollapseWatch | None = None,
    chosen: Iterable[int] | None = None,
) -> None:
    """Train the model with its masks through every step of the pruner's schedule, in place.

    With a `keeper` the run goes on from its state, and saves one now and then and when it is interrupted. `chosen`: only
    these steps, in ascending order; a rehearsal, whose model is worth nothing.

    `dtypes` {state dict name: dtype} are those of the checkpoint: evaluations on the way use the weights that an export
    would hold.

    With several processes each takes its share of every batch, and a signal to one stops them all after the same step.

    `collapse` looks at the evaluations, and no state is saved while it suspects something.

    Raises TrainingError where the loss or a gradient is not finite, a layer is cut off or the metric collapses, or where
    processes disagree about a mask; Interrupted after a signal.
    """
    steps = pruner.schedule.steps
    settings = recipe.train
    optimizer = make_optimizer(recipe.optimizer, pruner, total_share(recipe.lr_schedule, steps))
    replica = Replica(model, accelerator, compile=settings.compile)
    if not is_sharded(model):
        optimizer = accelerator.prepare_optimizer(optimizer)
    phases = SparsePhases(pruner, optimizer, recipe, replica)
    plan = BatchPlan(
        len(data.train),  # type: ignore[arg-type]
        recipe.data.batch_size,
        settings.seed,
        accelerator.process_index,
        accelerator.num_processes,
    )
    if plan.rows < plan.world:
        raise DataError(
            f"{plan.rows} training rows for {plan.world} processes: start as many as there are rows, at most"
        )
    start = keeper.steps_done if keeper else 0
    stream = training_batches(data, plan, recipe.data.workers, start * settings.accumulate)
    draw_apart(settings, accelerator)
    if keeper:
        keeper.restore(model, pruner, phases, optimizer, accelerator)
    evaluation_size = recipe.data.evaluation_batch_size or recipe.data.batch_size
    guarded = UserCode(model, objective, None if isinstance(data.train, StreamedRows) else plan.rows_of)
    watch = GradientWatch(pruner.attached, steps) if settings.stop_on_cut_off else None
    began = time.perf_counter() - (keeper.seconds_before if keeper else 0.0)
    with graceful_stop() as stop, phases, compile_errors(settings):
        for step in range(start, steps) if chosen is None else chosen:
            moment = phases.step(step)
            weights = [p for group in optimizer.param_groups if group["name"] != "logits" for p in group["params"]]
            ranges = pruner.attention_ranges().values() if moment.begins else ()
            set_learning_rates(optimizer, learning_rate_share(recipe.lr_schedule, step, steps))
            batches = [_to_device(next(stream), accelerator) for _ in range(settings.accumulate)]
            doing = f"step {step + 1} of {steps} ({moment.phase.value})"
            with guarded.at(doing, step * settings.accumulate, None if step else UsageError):
                loss, parts = _backward(
                    replica.module, objective, batches, teacher, weights + pruner.logits, accelerator, guarded
                )
            must_be_finite(loss, "the loss", moment, recipe)
            if watch:
                watch.look(moment)
            if (settings.clip_norm is not None or pruner.observes) and accelerator.sync_gradients:
                accelerator.unscale_gradients(optimizer)
            pruner.observe(step, loss)
            if settings.clip_norm is not None and accelerator.sync_gradients:
                norm = torch.nn.utils.clip_grad_norm_(weights, settings.clip_norm)
                if settings.precision != "fp16":  # there the scaler skips such a step and goes on with a smaller scale
                    must_be_finite(float(whole(norm)), "the gradient", moment, recipe)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

            metrics: dict[str, float] = {}
            done = step + 1
            if settings.evaluate_every and done % settings.evaluate_every == 0 and done < steps:
                _share_statistics(model, accelerator)
                with pruner.rounded(dtypes):
                    metrics = evaluate(
                        model,
                        objective,
                        data,
                        evaluation_size,
                        accelerator,
                        teacher=teacher,
                        rows=settings.evaluation_rows,
                        doing=f"evaluation after step {done} of {steps}",
                        kind=TrainingError,
                    )
                if collapse:
                    collapse.look(moment, metrics)
            on_step(
                StepRecord(
                    moment=moment,
                    steps=steps,
                    loss=loss,
                    parts=parts,
                    learning_rate=optimizer.param_groups[0]["lr"],
                    sparsity=pruner.sparsity,
                    seconds=time.perf_counter() - began,
                    metrics=metrics,
                    attention=(min(low for low, _ in ranges), max(high for _, high in ranges)) if ranges else None,
                    layers=pruner.sparsities if moment.begins or done == steps else None,
                    exchanged=pruner.exchanged if moment.begins and moment.phase is Phase.SPARSE else None,
                )
            )
            interrupted, terminated, due = any_of(
                [
                    stop.signal_number == SIGINT,
                    stop.signal_number == SIGTERM,
                    keeper is not None
                    and keeper.is_due(done, last=done == steps)
                    and not (collapse and collapse.suspects),
                ]
            )
            if keeper and (interrupted or terminated or due):
                keeper.save(done, time.perf_counter() - began, model, pruner, optimizer, accelerator)
            if interrupted or terminated:
                raise Interrupted(_farewell(done, steps, keeper), SIGTERM if terminated else SIGINT)


def _share_statistics(model: nn.Module, accelerator: Accelerator) -> None:
    """The main process's buffers (batch norm's running statistics) for all, as DDP has it before the next forward."""
    if accelerator.num_processes > 1:
        for buffer in model.buffers():
            if buffer.is_floating_point():
                broadcast(buffer)


def _farewell(done: int, steps: int, keeper: Keeper | None) -> str:
    if keeper is None:
        return f"interrupted after step {done} of {steps}"
    return f"interrupted after step {done} of {steps}; the state is saved, the same command with --resume goes on"


def _backward(
    model: nn.Module,
    objective: Objective,
    batches: list[Batch],
    teacher: nn.Module | None,
    parameters: list[nn.Parameter],
    accelerator: Accelerator,
    guarded: UserCode,
) -> tuple[float, dict[str, float]]:
    """Gradients of the mean loss over all items of the step, wherever they lie; that loss and its parts.

    A mean of the batches' means would weigh a token in a short batch more than one in a long batch, so every batch's loss
    is weighted by its count and the gradients are divided by the total.
    """
    totals: dict[str, Tensor] = {}
    alone = len(batches) == 1 and accelerator.num_processes == 1
    for index, batch in enumerate(batches):
        last = index == len(batches) - 1
        guarded.looks_at(index, batch)
        with nullcontext() if last or is_sharded(model) else accelerator.no_sync(model):
            with accelerator.autocast():
                result = objective.loss(model, batch, teacher)
            count = torch.as_tensor(result.count, device=accelerator.device).double()
            accelerator.backward(result.loss if alone else result.loss * count.to(result.loss.dtype))
        for name, value in {"loss": result.loss, **result.parts, "count": torch.ones_like(count)}.items():
            weighted = value.detach().double() * count
            totals[name] = totals.get(name, torch.zeros_like(weighted)) + weighted
    *sums, count = accelerator.reduce(torch.stack(list(totals.values())), "sum")
    count = count.clamp(min=1)  # no item at all: a loss of 0
    if not alone:
        share = float(accelerator.num_processes / count)  # DDP has divided the sum of the gradients by the processes
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(share)
    means = {name: float(total / count) for name, total in zip(totals, sums, strict=False)}
    return means.pop("loss"), means


def _to_device(batch: Batch, accelerator: Accelerator) -> Batch:
    return {key: value.to(accelerator.device, non_blocking=True) for key, value in batch.items()}
