"""The verbs as flows of data: plan, prune, evaluate. `prune` is the function to read first.

recipe → checkpoint → model → data → masks → training → folded weights → files → evaluation of the files → report
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import nn

from sapp_cli.checkpoint.output import (
    check_free_space,
    check_output,
    copy_companions,
    output_folder,
    sha256_file,
    write_json,
)
from sapp_cli.checkpoint.source import Checkpoint, open_checkpoint
from sapp_cli.core.schedule import PhaseSchedule
from sapp_cli.costs import see_costs
from sapp_cli.errors import RecipeError, ResourceError, SappError, SettingError, UsageError
from sapp_cli.inputs.data import DataSets, load_data
from sapp_cli.inputs.models import LoadedModel, load_model
from sapp_cli.inputs.rows import rows_in
from sapp_cli.layers import Layer, decide_layers
from sapp_cli.outputs.card import FileSizes, write_card
from sapp_cli.outputs.manifest import Manifest, Metric
from sapp_cli.outputs.metrics_log import MetricsLog
from sapp_cli.outputs.weights import Layout, PrunedWeights
from sapp_cli.planning import Plan, layer_facts, make_plan, with_peak
from sapp_cli.pruner import Pruner, make_schedule
from sapp_cli.recipe.load import LoadedRecipe
from sapp_cli.recipe.schema import Recipe
from sapp_cli.report.gallery import Gallery
from sapp_cli.report.html import HTML_FILE, write_html
from sapp_cli.report.measure import measure
from sapp_cli.report.run import read_run
from sapp_cli.report.sparsity import SparsityReport
from sapp_cli.runtime.example_inputs import BenchInputs, Given
from sapp_cli.targets import Solved, sparsity_for_size, sparsity_for_speedup
from sapp_cli.training.activations import checkpoint_gradients
from sapp_cli.training.collapse import CollapseWatch, guess_of
from sapp_cli.training.compilation import require_compiler
from sapp_cli.training.device import describe_processes, make_accelerator, reproducible, shards
from sapp_cli.training.evaluation import evaluate
from sapp_cli.training.footprint import Footprint, free_bytes, measure_footprint, process_bytes, some_rows
from sapp_cli.training.heap import keep_freed_memory
from sapp_cli.training.keeper import Keeper, open_run
from sapp_cli.training.loop import StepRecord, count_steps, train
from sapp_cli.training.objectives import Objective, check_fits, make_objective
from sapp_cli.training.objectives.forward import Inputs
from sapp_cli.training.processes import from_main, is_main, joined, meet
from sapp_cli.training.run_state import RunFolder, SavedState
from sapp_cli.training.sharding import hand_over, put_together, shard
from sapp_cli.training.trackers import Trackers, require_packages, tracked

LONG_ENOUGH = 1_000_000
"""Steps of a run that a plan knows no number for."""


class Watcher(Protocol):
    """Whoever looks on: the terminal, a test, nobody."""

    def say(self, text: str) -> None:
        """One line of what is going on."""

    def detail(self, text: str) -> None:
        """One line for those who want to know everything."""

    def step(self, record: StepRecord) -> None:
        """A finished step."""


class _Silence:
    """The watcher of a process that is not the main one."""

    def say(self, text: str) -> None: ...

    def detail(self, text: str) -> None: ...

    def step(self, record: StepRecord) -> None: ...


@dataclass(frozen=True)
class PruneResult:
    """What `prune` tells at the end."""

    out: Path
    report: SparsityReport
    metrics: Mapping[str, Metric]
    sizes: FileSizes
    seconds: float

    def as_json(self) -> dict[str, Any]:
        return {
            "out": str(self.out),
            "metrics": {name: metric.as_json() for name, metric in self.metrics.items()},
            "pruned_block_sparsity": self.report.pruned_block_sparsity,
            "file_bytes": asdict(self.sizes),
            "seconds": round(self.seconds, 3),
            **self.report.as_json(),
        }


def prune(
    recipe: LoadedRecipe,
    checkpoint_path: Path,
    out: Path,
    watcher: Watcher,
    *,
    layout: Layout = "both",
    overwrite: bool = False,
    resume: bool = False,
    max_shard_bytes: int | None = None,
    chosen: Callable[[PhaseSchedule], Iterable[int]] | None = None,
) -> PruneResult | None:
    """Fine-tune the checkpoint with the recipe's method and write OUT: weights, report, manifest, card.

    OUT appears whole or not at all. With `resume` an interrupted run goes on where it stopped, if there is one. Of several
    processes the main one writes and speaks, the others train along and get None. `chosen` picks the steps of a rehearsal,
    in which all the rest is as always. Raises SappError; whatever can be seen before the first step is seen before it.
    """
    began = time.perf_counter()
    settings = recipe.recipe
    accelerator = make_accelerator(settings.train)
    with joined(), reproducible(settings.train, accelerator), _memory_errors(settings):
        watcher = watcher if is_main() else _Silence()
        require_packages(settings.train.trackers)
        require_compiler(settings.train, accelerator)
        if is_main():
            check_output(out, checkpoint_path, overwrite)
        run = _set_up(recipe, checkpoint_path, accelerator, watcher)
        model = run.loaded.model
        check_fits(run.objective, model, run.data)
        steps = count_steps(settings, rows_in(run.data.train), accelerator.num_processes)
        folder = RunFolder(out)
        inputs, state = _look_for_state(run, folder, out, resume=resume, anew=overwrite)
        with located(recipe):
            costs = (state.about.get("costs") if state else None) or from_main(_see_costs(run))
        # A teacher is a model of its own: the student's weights are about to move.
        teacher = run.teacher or (copy.deepcopy(model).to(accelerator.device) if run.objective.needs_teacher else None)
        in_pieces = shards(settings.train, accelerator)
        dense = {} if in_pieces else _dense_metrics(run, teacher, state, watcher)
        with located(recipe):
            if settings.train.gradient_checkpointing:
                checkpoint_gradients(model)
            pruner = Pruner(model, settings.prune, steps, run.loaded.stored_names, costs["blocks"])
        if in_pieces:  # and evaluated only now, with masks that let everything through: whole it may fit on no card
            shard(model, accelerator)
            dense = _dense_metrics(run, teacher, state, watcher)
        else:
            model.to(accelerator.device)
        watcher.say(describe_layers(pruner.layers))
        for layer in pruner.layers:
            watcher.detail(f"  {layer.stored} {tuple(layer.shape)}: {layer.reason}")

        about = {
            "recipe": settings.model_dump(mode="json"),
            "inputs": inputs,
            "processes": describe_processes(settings.train, accelerator),
            "dense": dense,
            "costs": costs,
        }
        keeper = Keeper(folder, settings.train, about, state)
        with (
            folder.made() if is_main() else nullcontext(),
            _log(folder, settings, state) as log,
            tracked(accelerator, settings.train.trackers, settings, out, pruner) as trackers,
        ):
            if state:
                watcher.say(f"going on after step {state.step} of {steps}")
            elif log:
                log.evaluation(0, dense)
                trackers.evaluation(0, dense)
            few = chosen(pruner.schedule) if chosen else None
            seconds = _train(run, pruner, teacher, keeper, log, trackers, watcher, _collapse_watch(run, dense), few)
            if log is None:
                hand_over(pruner.fold())
                return None
            watcher.say("writing and evaluating what was written")
            with (
                output_folder(out, checkpoint_path, overwrite) as staged,
                put_together(pruner.fold(), in_pieces) as folded,
            ):
                weights = PrunedWeights(run.checkpoint, run.loaded, folded, pruner.attached)
                companions = copy_companions(run.checkpoint.folder, staged) if run.checkpoint.folder else []
                files = _write_weights(weights, staged, layout, max_shard_bytes)
                # Loaded the way anybody would load it.
                written = open_checkpoint(staged)
                again = load_model(written, settings.model).model.to(accelerator.device)
                pruned = run.evaluate(again, teacher, alone=True)
                log.evaluation(steps, pruned)
                trackers.evaluation(steps, pruned)
                gallery = Gallery()
                facts = layer_facts(
                    pruner.layers, run.loaded, run.checkpoint, settings.prune.allocation, costs["applications"]
                )
                report = measure(written, facts, gallery.add)
                manifest = Manifest(
                    method=settings.prune.method,
                    seed=settings.train.seed,
                    steps=steps,
                    phases=pruner.schedule,
                    inputs=inputs,
                    outputs={str(file.relative_to(staged)): sha256_file(file) for file in files},
                    recipe_sha256=recipe.sha256,
                    masks_sha256=weights.masks_sha256(),
                    metrics=_before_and_after(dense, pruned, run.objective),
                    seconds={"training": seconds, "total": time.perf_counter() - began},
                    threads=torch.get_num_threads(),
                    block_costs=pruner.costs,
                )
                sizes = _sizes(run.checkpoint, staged, files)
                (staged / "metrics.jsonl").write_bytes(folder.log.read_bytes())
                (staged / "recipe.yaml").write_text(recipe.dump(), encoding="utf-8")
                write_json(staged / "sparsity.json", report.as_json())
                write_json(staged / "manifest.json", manifest.as_json())
                write_html(staged / HTML_FILE, out.name, report, gallery, read_run(staged))
                write_card(staged, out.name, report, manifest.as_json(), sizes, run.architecture, companions)
        folder.remove()
        return PruneResult(out, report, manifest.metrics, sizes, time.perf_counter() - began)


def _look_for_state(
    run: _Run, folder: RunFolder, out: Path, *, resume: bool, anew: bool
) -> tuple[dict[str, str], SavedState | None]:
    """The hashes of the input's files, and the state to go on from: the main process looks, the others take its word."""
    meet()  # whoever could not set up is gone by now
    inputs: dict[str, str] = {}
    state = None
    if is_main():
        check_free_space(out.parent, 2 * run.checkpoint.bytes)
        inputs = {file.path.name: sha256_file(file.path) for file in run.checkpoint.files}
        processes = describe_processes(run.settings.train, run.accelerator)
        state = open_run(folder, run.settings, inputs, processes, resume=resume, anew=anew)
    return from_main((inputs, state))


def _see_costs(run: _Run) -> dict[str, Any]:
    """JSON of what the model was seen to do for one example: {"applications", "blocks"}; saved with the run's state."""
    layers = decide_layers(run.loaded.model, run.settings.prune, run.loaded.stored_names)
    applications, blocks = see_costs(run.loaded.model, layers, run.settings, run.data)
    return {"applications": applications, "blocks": blocks}


def _dense_metrics(
    run: _Run, teacher: nn.Module | None, state: SavedState | None, watcher: Watcher
) -> dict[str, float]:
    """The metrics of the checkpoint that came in; an interrupted run has noted them."""
    metrics = dict(state.about["dense"]) if state else run.evaluate(run.loaded.model, teacher)
    watcher.say(f"dense: {describe_metrics(metrics)}")
    return metrics


def _log(folder: RunFolder, settings: Recipe, state: SavedState | None) -> AbstractContextManager[MetricsLog | None]:
    """metrics.jsonl of the main process; the others have none."""
    if not is_main():
        return nullcontext()
    return MetricsLog(folder.log, settings.train.log_every, state.about["log_bytes"] if state else 0)


def _before_and_after(
    dense: Mapping[str, float], pruned: Mapping[str, float], objective: Objective
) -> dict[str, Metric]:
    return {name: Metric(value, pruned[name], objective.metrics.get(name, False)) for name, value in dense.items()}


def _train(
    run: _Run,
    pruner: Pruner,
    teacher: nn.Module | None,
    keeper: Keeper,
    log: MetricsLog | None,
    trackers: Trackers,
    watcher: Watcher,
    collapse: CollapseWatch | None,
    chosen: Iterable[int] | None,
) -> float:
    """Train to the end of the schedule; the seconds it took, those before an interruption included."""
    keep_freed_memory()
    seconds = 0.0

    def on_step(record: StepRecord) -> None:
        nonlocal seconds
        seconds = record.seconds
        if log:
            log.step(record)
        trackers.step(record)
        watcher.step(record)

    train(
        run.loaded.model,
        pruner,
        run.objective,
        run.data,
        run.settings,
        run.accelerator,
        teacher=teacher,
        dtypes=run.loaded.dtypes,
        on_step=on_step,
        keeper=keeper,
        collapse=collapse,
        chosen=chosen,
    )
    return seconds


def _collapse_watch(run: _Run, dense: Mapping[str, float]) -> CollapseWatch | None:
    """None where the recipe does not want one, or evaluates at the end only."""
    if run.settings.train.evaluate_every is None or not run.settings.train.stop_on_collapse:
        return None
    return CollapseWatch(guess_of(run.objective, run.loaded.model, run.data), dense, run.settings)


def _write_weights(weights: PrunedWeights, staged: Path, layout: Layout, max_shard_bytes: int | None) -> list[Path]:
    """The weight files of the layouts asked for."""
    dense = weights.write_dense(staged, max_shard_bytes) if layout in ("both", "dense") else []
    sparse = weights.write_sparse(staged / "sparse", max_shard_bytes) if layout in ("both", "bsr") else []
    return [*dense, *sparse]


def _sizes(source: Checkpoint, staged: Path, files: list[Path]) -> FileSizes:
    return FileSizes(
        source=sum(file.path.stat().st_size for file in source.files),
        dense=sum(file.stat().st_size for file in files if file.parent == staged),
        sparse=sum(file.stat().st_size for file in files if file.parent != staged),
    )


def plan(recipe: LoadedRecipe, checkpoint_path: Path) -> Plan:
    """Everything `prune` would decide, without training; the data are looked at if they are there."""
    settings = recipe.recipe
    checkpoint = open_checkpoint(checkpoint_path)
    loaded = load_model(checkpoint, settings.model)
    with located(recipe):
        layers = decide_layers(loaded.model, settings.prune, loaded.stored_names)
        rows: int | None = 0  # not looked at where the recipe gives steps
        data = None
        with suppress(SappError):  # a plan does not need the data; without it the timetable may stay in shares
            data = _load_data(settings, checkpoint)
        if settings.train.steps is None:
            rows = None if data is None else rows_in(data.train)
        schedule = None if rows is None else make_schedule(settings.prune, count_steps(settings, rows, world=1))
        applications, costs = see_costs(loaded.model, layers, settings, data)
        made = make_plan(checkpoint, loaded, layers, schedule, settings, applications)
        on_cpu = settings.train.device == "cpu" or not torch.cuda.is_available()
        process = max(0, process_bytes() - made.memory["weights"]) if on_cpu else 0
        steps = schedule.steps if schedule else LONG_ENOUGH
        if settings.train.gradient_checkpointing:
            checkpoint_gradients(loaded.model)
        pruner = Pruner(loaded.model, settings.prune, steps, loaded.stored_names, costs)
    return replace(made, memory=with_peak(made.memory, _footprint(loaded.model, pruner, settings, data), process))


def solve_target(recipe: LoadedRecipe, checkpoint_path: Path, size: int | None, speedup: float | None) -> Solved:
    """The sparsity that meets a size in bytes, or else a speed-up. Raises UsageError where none does."""
    settings = recipe.recipe
    checkpoint = open_checkpoint(checkpoint_path)
    loaded = load_model(checkpoint, settings.model)
    with located(recipe):
        if size is not None:
            return sparsity_for_size(checkpoint, loaded, settings, size)
        assert speedup is not None, "one of the two is given"
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UsageError(
                "--target-speedup: every process would measure another time; find it with `sapp plan` first"
            )
        data = None
        with suppress(SappError):  # a config may say what the model takes
            data = _load_data(settings, checkpoint)
        return sparsity_for_speedup(loaded, settings, data, speedup)


def interrupted_sparsity(out: Path) -> float | None:
    """`prune.sparsity` of the interrupted run of OUT; None where there is none."""
    state = RunFolder(out).latest()
    return None if state is None else float(state.about["recipe"]["prune"]["sparsity"])


def _footprint(model: nn.Module, pruner: Pruner, settings: Recipe, data: DataSets | None) -> Footprint | None:
    """What a step takes; None where that cannot be seen: unknown inputs, or a machine too small to try a few rows."""
    rows = some_rows(model, settings, data)
    if rows is None or free_bytes() < 4 * sum(parameter.nbytes for parameter in model.parameters()):
        return None
    try:
        teacher = copy.deepcopy(model) if make_objective(settings.objective, model).needs_teacher else None
        return measure_footprint(model, pruner, settings, teacher, rows)
    except (SappError, RuntimeError, TypeError, ValueError, LookupError, AttributeError):
        return None


def evaluate_checkpoint(
    recipe: LoadedRecipe, checkpoint_path: Path, teacher_path: Path | None
) -> dict[str, float] | None:
    """The recipe's metrics of a dense or block-sparse checkpoint on the recipe's validation data.

    Of several processes the main one gets them, the others None.
    """
    settings = recipe.recipe
    accelerator = make_accelerator(settings.train)
    with joined(), reproducible(settings.train, accelerator), _memory_errors(settings):
        run = _set_up(recipe, checkpoint_path, accelerator, None, pruning=False, teacher_path=teacher_path)
        if settings.objective.task == "embedding-distillation" and run.teacher is None:
            raise UsageError(
                f"objective.task: {settings.objective.task} compares with a dense checkpoint; name it with --teacher"
            )
        check_fits(run.objective, run.loaded.model, run.data)
        meet()  # whoever could not set up is gone by now
        metrics = run.evaluate(run.loaded.model, run.teacher)
        return metrics if is_main() else None


def bench_inputs(
    recipe: LoadedRecipe, checkpoint_path: Path, batch_sizes: tuple[int, ...]
) -> tuple[LoadedModel, BenchInputs]:
    """The recipe's model, and a batch of each size of its validation rows: evenly spaced, some twice where there are few."""
    settings = recipe.recipe
    checkpoint = open_checkpoint(checkpoint_path)
    loaded = load_model(checkpoint, settings.model)
    data = _load_data(settings, checkpoint)
    takes, rows = Inputs.of(loaded.model), rows_in(data.validation)

    def given(model: nn.Module) -> Iterator[Given]:
        for size in batch_sizes:
            batch = data.collate([data.validation[place * rows // size] for place in range(size)])
            yield Given(size, None, *takes.arguments(batch))

    return loaded, BenchInputs("rows of the recipe's validation data", given)


@dataclass(frozen=True)
class _Run:
    """All that training and evaluation start from."""

    accelerator: Accelerator
    settings: Recipe
    checkpoint: Checkpoint
    loaded: LoadedModel
    teacher: nn.Module | None  # where the recipe or the command line names one
    data: DataSets
    objective: Objective

    @property
    def architecture(self) -> str | None:
        """The class that config.json names."""
        names = (self.checkpoint.config or {}).get("architectures")
        return str(names[0]) if names else None

    def evaluate(self, model: nn.Module, teacher: nn.Module | None, *, alone: bool = False) -> dict[str, float]:
        """The metrics of a model on all validation rows, shared out among the processes unless this one is `alone`."""
        size = self.settings.data.evaluation_batch_size or self.settings.data.batch_size
        return evaluate(model, self.objective, self.data, size, self.accelerator, teacher=teacher, alone=alone)


def _set_up(
    recipe: LoadedRecipe,
    checkpoint_path: Path,
    accelerator: Accelerator,
    watcher: Watcher | None,
    *,
    pruning: bool = True,
    teacher_path: Path | None = None,
) -> _Run:
    """Read everything, cheap checks first: a mistake shows before minutes of work."""
    settings = recipe.recipe
    say = watcher.say if watcher else lambda text: None
    checkpoint = open_checkpoint(checkpoint_path)
    loaded = load_model(checkpoint, settings.model)
    say(f"{checkpoint_path}: {loaded.description}")
    for name in loaded.added:
        say(f"warning: the checkpoint has no '{name}'; it starts at random and is exported with the others")
    if pruning:
        with located(recipe):
            decide_layers(loaded.model, settings.prune, loaded.stored_names)
            if settings.train.steps is not None:
                make_schedule(settings.prune, settings.train.steps)
    data = _load_data(settings, checkpoint)
    say(data.description)
    objective = make_objective(settings.objective, loaded.model)
    teacher = None
    named = teacher_path or settings.objective.distill.teacher
    if objective.needs_teacher and named is not None:
        teacher = load_model(open_checkpoint(named), settings.model).model.to(accelerator.device)
    if not (pruning and shards(settings.train, accelerator)):
        loaded.model.to(accelerator.device)
    return _Run(accelerator, settings, checkpoint, loaded, teacher, data, objective)


@contextmanager
def located(recipe: LoadedRecipe) -> Iterator[None]:
    """Problems that only the model or the data shows, with the file and line of the setting."""
    try:
        yield
    except SettingError as error:
        raise RecipeError([f"{recipe.where(key)}: {text}" for key, text in error.problems]) from error


def _load_data(recipe: Recipe, checkpoint: Checkpoint) -> DataSets:
    return load_data(recipe.data, recipe.objective, checkpoint.folder, checkpoint.config, recipe.train.seed)


def describe_metrics(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())


def describe_layers(layers: list[Layer]) -> str:
    pruned = [layer for layer in layers if layer.pruned]
    prunable = [layer for layer in layers if layer.prunable]
    share = sum(layer.parameters for layer in pruned) / max(1, sum(layer.parameters for layer in prunable))
    return f"{len(pruned)} of {len(prunable)} prunable layers are pruned, {share:.1%} of their weights"


@contextmanager
def _memory_errors(settings: Recipe) -> Iterator[None]:
    """ResourceError, with what to change, in place of torch's several ways to say that memory ran out."""
    advice = f"out of memory: lower data.batch_size (now {settings.data.batch_size}) and raise train.accumulate instead"
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ResourceError(advice) from error
    except RuntimeError as error:
        if "can't allocate memory" in str(error):  # of the CPU's allocator
            raise ResourceError(advice) from error
        raise
