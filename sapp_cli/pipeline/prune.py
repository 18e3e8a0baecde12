"""`sapp prune` as a flow of data; the function to read first.

recipe → checkpoint → model → data → masks → training → folded weights → files → evaluation of the files → report
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sapp_cli.checkpoint.json_text import CONFIG_LIMIT, read_object
from sapp_cli.checkpoint.lock import locked
from sapp_cli.checkpoint.output import (
    MANIFEST,
    check_companions,
    check_free_space,
    companion_bytes,
    copy_companions,
    is_output,
    sha256_file,
    write_json,
)
from sapp_cli.checkpoint.output_folder import check_output, output_folder, prepare_output
from sapp_cli.checkpoint.source import open_checkpoint
from sapp_cli.core.schedule import PhaseSchedule
from sapp_cli.costs import see_costs
from sapp_cli.inputs.fingerprints import (
    Beside,
    Fingerprints,
    fingerprint_checkpoint,
    fingerprint_code,
    fingerprint_files,
)
from sapp_cli.inputs.models import load_model
from sapp_cli.inputs.rows import rows_in
from sapp_cli.layers import decide_layers
from sapp_cli.outputs.card import FileSizes, write_card
from sapp_cli.outputs.manifest import Manifest, Metric
from sapp_cli.outputs.metrics_log import MetricsLog
from sapp_cli.outputs.sparse_folder import finish_sparse_folder
from sapp_cli.outputs.weights import Layout, PrunedWeights
from sapp_cli.pipeline.start import Run, memory_errors, set_up, warn_below_guessing
from sapp_cli.pipeline.tune import tune_for_run
from sapp_cli.pipeline.watcher import Silence, Watcher, describe_layers, describe_metrics
from sapp_cli.planning import layer_facts
from sapp_cli.pruner import Pruner, list_unranked
from sapp_cli.recipe.load import LoadedRecipe
from sapp_cli.recipe.located import located
from sapp_cli.recipe.schema import Recipe
from sapp_cli.report.gallery import Gallery
from sapp_cli.report.html import HTML_FILE, write_html
from sapp_cli.report.inspect import layer_facts as recorded_facts
from sapp_cli.report.measure import measure
from sapp_cli.report.run import read_run
from sapp_cli.report.sparsity import SparsityReport
from sapp_cli.runtime.heap import LARGEST_IN_TRAINING, keep_freed_memory
from sapp_cli.training.activations import checkpoint_gradients
from sapp_cli.training.collapse import CollapseWatch, guess_of
from sapp_cli.training.compilation import require_compiler
from sapp_cli.training.device import describe_processes, make_accelerator, reproducible, shards
from sapp_cli.training.keeper import Keeper, open_run
from sapp_cli.training.loop import StepRecord, count_steps, train
from sapp_cli.training.objectives import Objective
from sapp_cli.training.processes import from_main, is_main, joined, meet
from sapp_cli.training.run_record import Costs, StateRecord
from sapp_cli.training.run_state import RunFolder, SavedState
from sapp_cli.training.sharding import hand_over, put_together, shard
from sapp_cli.training.trackers import Trackers, require_packages, tracked

LOG_FILE, RECIPE_FILE = "metrics.jsonl", "recipe.yaml"


@dataclass(frozen=True)
class PruneResult:
    """What `prune` tells at the end."""

    out: Path
    report: SparsityReport
    metrics: Mapping[str, Metric]
    sizes: FileSizes
    seconds: float
    unranked: str  # the layers that keep all their blocks, and why nothing ranks them

    def as_json(self) -> dict[str, Any]:
        return {
            "out": str(self.out),
            "metrics": {name: metric.as_json() for name, metric in self.metrics.items()},
            "pruned_block_sparsity": self.report.pruned_block_sparsity,
            "file_bytes": asdict(self.sizes),
            "seconds": round(self.seconds, 3),
            **self.report.as_json(),
        }


@located
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
    settings, anew = recipe.recipe, overwrite
    if resume and (done := _finished(recipe, checkpoint_path, out, watcher)):
        return done
    accelerator = make_accelerator(settings.train)
    with (
        joined(),
        reproducible(settings.train, accelerator),
        memory_errors(settings),
        _alone(out, checkpoint_path, overwrite, watcher),
    ):
        watcher = watcher if is_main() else Silence()
        require_packages(settings.train.trackers)
        require_compiler(settings.train, accelerator)
        tuned = None
        if settings.optimizer.lr == "auto":
            tuned = tune_for_run(recipe, checkpoint_path, out, accelerator, watcher, resume=resume, anew=anew)
            recipe = tuned.settled(recipe)
            settings = recipe.recipe
            anew = False  # it has thrown away what an earlier run left
        hashing = Beside(lambda: fingerprint_files(settings)) if is_main() else None  # while model and data load
        run = set_up(recipe, checkpoint_path, accelerator, watcher)
        if run.checkpoint.folder:
            check_companions(run.checkpoint.folder)
        model = run.loaded.model
        steps = count_steps(settings, rows_in(run.data.train), accelerator.num_processes)
        folder = RunFolder(out)
        inputs, state = _look_for_state(run, folder, out, hashing, watcher, resume=resume, anew=anew)
        costs = state.record.costs if state else from_main(_see_costs(run))
        if settings.prune.resolved_allocation == "balanced" and costs.blocks is None:
            watcher.say(
                "allocation balanced: the multiply-adds of the layers are not known, so parameters are the only budget"
            )
        # A teacher is a model of its own: the student's weights are about to move.
        teacher = run.teacher or (copy.deepcopy(model).to(accelerator.device) if run.objective.needs_teacher else None)
        in_pieces = shards(settings.train, accelerator)
        dense = {} if in_pieces else _dense_metrics(run, teacher, state, watcher)
        if settings.train.gradient_checkpointing:
            checkpoint_gradients(model)
        names = run.loaded.stored_names
        pruner = Pruner(model, settings.prune, steps, names, costs.blocks, notice=watcher.say)
        if in_pieces:  # and evaluated only now, with masks that let everything through: whole it may fit on no card
            shard(model, accelerator)
            dense = _dense_metrics(run, teacher, state, watcher)
        else:
            model.to(accelerator.device)
        watcher.say(describe_layers(pruner.layers))
        for layer in pruner.layers:
            watcher.detail(f"  {layer.stored} {tuple(layer.shape)}: {layer.reason}")

        processes = describe_processes(settings.train, accelerator)
        record = StateRecord(recipe=settings, inputs=inputs, processes=processes, dense=dense, costs=costs)
        keeper = Keeper(folder, settings.train, record, state)
        with (
            folder.made() if is_main() else nullcontext(),
            _log(folder, settings, state) as log,
            tracked(accelerator, settings.train.trackers, settings, out, pruner) as trackers,
        ):
            if state:
                if log and log.lost_from is not None:
                    lost = f"the records of steps {log.lost_from} to {state.step} are lost"
                    watcher.say(f"warning: {folder.log}: shorter or other than when the state was saved; {lost}")
                watcher.say(f"going on after step {state.step} of {steps}")
            elif log:
                log.evaluation(0, dense)
                trackers.evaluation(0, dense)
            few = chosen(pruner.schedule) if chosen else None
            seconds = _train(run, pruner, teacher, keeper, log, trackers, watcher, _collapse_watch(run, dense), few)
            if log is None:
                hand_over(pruner.fold())
                return None
            run.checkpoint.require_unchanged(inputs)
            watcher.say("writing and evaluating what was written")
            with (
                output_folder(out, checkpoint_path, overwrite) as staged,
                put_together(pruner.fold(), in_pieces) as folded,
            ):
                weights = PrunedWeights(run.checkpoint, run.loaded, folded, pruner.attached)
                companions = copy_companions(run.checkpoint.folder, staged) if run.checkpoint.folder else []
                files = weights.write(staged, layout, max_shard_bytes)
                # Loaded the way anybody would load it.
                written = open_checkpoint(staged)
                again = load_model(written, settings.model).model.to(accelerator.device)
                pruned = run.evaluate(again, teacher, alone=True)
                log.evaluation(steps, pruned)
                trackers.evaluation(steps, pruned)
                gallery = Gallery()
                facts = layer_facts(pruner.layers, run.loaded, run.checkpoint, costs.multiply_adds)
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
                    block_costs=pruner.named_costs,
                    search=None if tuned is None else tuned.as_json(),
                )
                sizes = FileSizes.of(run.checkpoint, staged, files)
                (staged / LOG_FILE).write_bytes(folder.log.read_bytes())
                (staged / RECIPE_FILE).write_text(recipe.dump(), encoding="utf-8")
                write_json(staged / "sparsity.json", report.as_json())
                write_json(staged / "manifest.json", manifest.as_json())
                write_html(staged / HTML_FILE, out.name, report, gallery, read_run(staged))
                write_card(staged, out.name, report, manifest.as_json(), sizes, run.architecture, companions)
                finish_sparse_folder(staged, out.name, report, run.checkpoint, run.architecture, companions)
        folder.remove()
        return PruneResult(
            out, report, manifest.metrics, sizes, time.perf_counter() - began, list_unranked(pruner.stored_unranked)
        )


def _finished(recipe: LoadedRecipe, checkpoint_path: Path, out: Path, watcher: Watcher) -> PruneResult | None:
    """The result of a run that was killed when OUT was in its place and its state not yet removed; removes the state.

    The log of the run's state then ends as the one in OUT does, which has the times of every step. None for anything else: a
    state of another run, a recipe or a checkpoint that changed since. A run of several processes looks for nothing.
    """
    folder, log = RunFolder(out), out / LOG_FILE
    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    if not (alone and is_output(out) and folder.log.is_file() and log.is_file()):
        return None
    with locked(out, watcher.say):
        same = folder.log.read_bytes() == log.read_bytes()
        merged = out / RECIPE_FILE
        if not same or not merged.is_file() or merged.read_text(encoding="utf-8") != recipe.dump():
            return None
        source, written = open_checkpoint(checkpoint_path), open_checkpoint(out)
        manifest = read_object(out / MANIFEST, "the manifest", CONFIG_LIMIT)
        if not fingerprint_checkpoint(source).values.items() <= manifest["inputs"].items():
            return None
        report = measure(written, recorded_facts(written, None))
        result = PruneResult(
            out,
            report,
            {name: Metric(**metric) for name, metric in manifest["metrics"].items()},
            FileSizes.of(source, out, [out / name for name in manifest["outputs"]]),
            manifest["seconds"]["total"],
            "",
        )
        folder.remove()
    watcher.say(f"{out}: is the finished output of the interrupted run, whose state is removed; nothing is left to do")
    return result


@contextmanager
def _alone(out: Path, checkpoint_path: Path, overwrite: bool, watcher: Watcher) -> Iterator[None]:
    """Within it OUT can be written and no other run writes it; rank 0 looks and locks for all ranks."""
    if not is_main():
        yield
        return
    check_output(out, checkpoint_path, overwrite)
    with locked(out, watcher.say):
        prepare_output(out, checkpoint_path, overwrite, watcher.say)
        yield


def _look_for_state(
    run: Run,
    folder: RunFolder,
    out: Path,
    hashing: Beside[Fingerprints] | None,
    watcher: Watcher,
    *,
    resume: bool,
    anew: bool,
) -> tuple[dict[str, str], SavedState | None]:
    """The hashes of everything that the run is made from, and the state to resume: rank 0 looks and broadcasts both."""
    meet()  # a rank that could not set up has exited by now
    inputs: dict[str, str] = {}
    state = None
    if hashing is not None:
        beside = companion_bytes(run.checkpoint.folder) if run.checkpoint.folder else 0
        check_free_space(out.parent, 2 * (run.checkpoint.bytes + beside))
        found = fingerprint_checkpoint(run.checkpoint) | hashing.result() | fingerprint_code(run.settings)
        inputs = dict(found.values)
        processes = describe_processes(run.settings.train, run.accelerator)
        state = open_run(folder, run.settings, inputs, processes, resume=resume, anew=anew)
        if state:
            layers = decide_layers(run.loaded.model, run.settings.prune, run.loaded.stored_names)
            state.require(run.objective.metrics, [layer.name for layer in layers if layer.pruned])
            for limit in found.limits:
                watcher.say(f"not fully compared with the interrupted run: {limit}")
    return from_main((inputs, state))


def _see_costs(run: Run) -> Costs:
    """What the model was seen to do for one example; saved with the run's state."""
    layers = decide_layers(run.loaded.model, run.settings.prune, run.loaded.stored_names)
    multiply_adds, blocks = see_costs(run.loaded.model, layers, run.settings, run.data)
    return Costs(multiply_adds=multiply_adds, blocks=blocks)


def _dense_metrics(run: Run, teacher: nn.Module | None, state: SavedState | None, watcher: Watcher) -> dict[str, float]:
    """The metrics of the checkpoint that came in; an interrupted run has noted them."""
    metrics = dict(state.record.dense) if state else run.evaluate(run.loaded.model, teacher)
    watcher.say(f"dense: {describe_metrics(metrics)}")
    warn_below_guessing(run, metrics, watcher)
    return metrics


def _log(folder: RunFolder, settings: Recipe, state: SavedState | None) -> AbstractContextManager[MetricsLog | None]:
    """metrics.jsonl of the main process; the others have none."""
    if not is_main():
        return nullcontext()
    return MetricsLog(folder.log, settings.train.log_every, state.record.log_bytes if state else 0)


def _before_and_after(
    dense: Mapping[str, float], pruned: Mapping[str, float], objective: Objective
) -> dict[str, Metric]:
    return {name: Metric(value, pruned[name], objective.metrics.get(name, False)) for name, value in dense.items()}


def _train(
    run: Run,
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
    keep_freed_memory(LARGEST_IN_TRAINING)
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


def _collapse_watch(run: Run, dense: Mapping[str, float]) -> CollapseWatch | None:
    """None where the recipe does not want one, or evaluates at the end only."""
    if run.settings.train.evaluate_every is None or not run.settings.train.stop_on_collapse:
        return None
    return CollapseWatch(guess_of(run.objective, run.loaded.model, run.data), dense, run.settings)
