"""Sparse phases on kept blocks under DDP: the numbers of the masked form and of one process, the same choice everywhere."""

import gc
import os
import weakref

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from sapp_cli.core.schedule import Phase
from sapp_cli.pruner import Pruner
from sapp_cli.runtime import kept_product
from sapp_cli.runtime.timing import Timing
from sapp_cli.training import sparse_forms
from sapp_cli.training.device import make_accelerator
from sapp_cli.training.keeper import Keeper
from sapp_cli.training.optimizers import make_optimizer
from sapp_cli.training.processes import is_main
from sapp_cli.training.replica import Replica
from sapp_cli.training.run_record import StateRecord
from sapp_cli.training.run_state import RunFolder
from sapp_cli.training.sparse_phases import SparsePhases
from tests.training.crew import run_processes
from tests.training.test_distributed import KINDS, STEPS, assert_same, diverging, recipe, run, train_all

TWO_ROUNDS = {"dense": 0.1, "rounds": 2, "last_round": 0.3, "final_sparse": 0.3}
NAMES = ["first.weight", "second.weight"]
"""Of the network's pruned layers; the loss never sees its pooler, which stays dense."""


def parted_layers(pruner):
    return [name for name, layer in pruner.attached.items() if layer.masked.kept is not None]


def formed(form, size, **train):
    """A recipe of two rounds, in this form, with so many rows a process."""
    return recipe(data={"batch_size": size}, train={"sparse_phases": form, **train}, prune={"phases": TWO_ROUNDS})


def without_kernels():
    """For this process, where they would be compiled for seconds; plain torch computes on kept blocks as well."""
    kept_product.kernels_work = lambda: False


def seen_and_run(settings):
    """([(phase, layers parted in each step)], what `run` gives)."""
    without_kernels()
    seen = []
    found = run(settings, on_step=lambda pruner, record: seen.append((record.moment.phase, parted_layers(pruner))))
    return seen, found


@pytest.fixture(scope="module")
def alone():
    """The masked form, one process with all rows."""
    return run(formed("masked", 48))


@pytest.mark.parametrize(("count", "accumulate"), [(2, 1), (2, 2), (3, 1)])
def test_kept_blocks_of_several_processes_equal_the_masked_form_of_one(count, accumulate, alone):
    settings = formed("kept-blocks", 48 // count // accumulate, accumulate=accumulate)
    ended = run_processes(count, seen_and_run, settings)
    assert [end.error for end in ended] == [""] * count, ended[0].said
    for seen, found in (end.value for end in ended):
        assert [names for _, names in seen] == [NAMES if phase is Phase.SPARSE else [] for phase, _ in seen]
        if accumulate == 1:  # otherwise a step has other rows
            assert_same(found, alone)
        assert found[0] == ended[0].value[1][0]
        assert all(torch.equal(weight, ended[0].value[1][3][name]) for name, weight in found[3].items())
    if accumulate > 1:
        masked = run_processes(count, run, formed("masked", 48 // count // accumulate, accumulate=accumulate))
        assert_same(ended[1].value[1], masked[1].value)


class Killed(Exception):
    pass


def kept_run(settings, keeper=None, end=None):
    """The weights after a run that a keeper may save; Killed after step `end`, whose state is not saved."""
    model = KINDS["network"][0]()
    pruner = Pruner(model, settings.prune, STEPS, notice=lambda line: None)  # of the pooler

    def note(record):
        if record.moment.step == end:
            raise Killed

    train_all(model, pruner, settings, make_accelerator(settings.train), note, keeper=keeper)
    return dict(pruner.fold())


def killed_and_resumed(out, ends):
    """(weights of an undisturbed run, [layers that a state said are parted, weights of the run that went on from it])."""
    without_kernels()
    settings = formed("kept-blocks", 16, save_steps=1)
    undisturbed = kept_run(settings)
    found = []
    for end in ends:
        folder = RunFolder(out.with_name(f"{out.name}-{end}"))
        if is_main():
            folder.path.mkdir()
            folder.log.touch()
        record = StateRecord(recipe=settings, inputs={}, processes="2 (DDP)", dense={})
        with pytest.raises(Killed):
            kept_run(settings, Keeper(folder, settings.train, record), end)
        saved = folder.latest()
        assert saved.step == end
        found.append((saved.record.kept_blocks, kept_run(settings, Keeper(folder, settings.train, record, saved))))
    return undisturbed, found


def test_a_run_that_was_killed_within_a_sparse_phase_ends_with_the_same_bytes(tmp_path):
    # Of 20 steps: 4 and 5 in the first sparse phase, of which 5 is the last; 17 in the second; 2 between the two phases.
    ended = run_processes(2, killed_and_resumed, tmp_path / "out", (5, 17))
    assert [end.error for end in ended] == ["", ""], ended[0].said
    for undisturbed, found in (end.value for end in ended):
        for parted, resumed in found:
            assert parted == NAMES
            for name, weight in undisturbed.items():
                assert torch.equal(resumed[name], weight), name


def chosen_by_the_clock():
    """The layers that are parted where process 0 finds the first one faster on kept blocks, and the other is not asked."""

    def time_in_turns(ways, budget):
        assert os.environ["RANK"] == "0"
        asked.append(ways)
        faster = "kept-blocks" if len(asked) == 1 else "masked"
        return {form: Timing((1.0 if form == faster else 2.0,)) for form in ways}

    asked = []
    sparse_forms.time_in_turns = time_in_turns
    seen, found = seen_and_run(formed("measured", 16))
    return [names for phase, names in seen if phase is Phase.SPARSE], found[0]


def test_one_process_measures_for_all():
    first, second = run_processes(2, chosen_by_the_clock)
    assert (first.error, second.error) == ("", ""), first.said + second.said
    assert first.value == second.value
    assert first.value[0][0] == ["first.weight"]


def test_masks_that_differ_are_noticed_before_blocks_are_parted():
    ended = run_processes(2, diverging, {"method": "magnitude", "phases": "fine-tune"})
    assert [end.code for end in ended] == [6, 6], ended
    said = sorted(end.error for end in ended)
    assert said[1].startswith(
        "TrainingError: the processes disagree about the mask of 'first.weight' in step 2 (sparse phase)"
    )


def replicas():
    """What DDP averages before, in and after a sparse phase, by shape; how many of the copies made before are left."""
    without_kernels()
    settings = formed("kept-blocks", 16)
    accelerator = make_accelerator(settings.train)
    model = KINDS["network"][0]()
    pruner = Pruner(model, settings.prune.model_copy(update={"score": "norm"}), STEPS)  # no gradient is shown
    replica = Replica(model, accelerator, compile=False)
    phases = SparsePhases(pruner, make_optimizer(settings.optimizer, pruner, STEPS / 2), settings, replica)
    made, shapes = [], {}
    for step in range(STEPS):
        moment = phases.step(step)
        if not any(one() is replica.module for one in made):
            made.append(weakref.ref(replica.module))
            trained = [tuple(p.shape) for p in replica.module.parameters() if p.requires_grad]
            shapes.setdefault(moment.phase, sorted(shape for shape in trained if len(shape) > 1))
        replica.module(torch.zeros(2, 16)).sum().backward()
    gc.collect()
    return shapes, len(made), sum(one() is not None for one in made), type(replica.module)


def test_where_a_sparse_phase_begins_and_ends_ddp_is_made_anew_and_the_old_one_goes():
    for end in run_processes(2, replicas):
        assert end.error == "", end.said
        shapes, made, left, kind = end.value
        logits = [(1, 8), (8, 4), (8, 8)]
        assert shapes[Phase.DENSE] == sorted([*logits, (4, 32), (32, 16), (32, 32)])
        assert shapes[Phase.SPARSE] == sorted([*logits, (4, 4, 4), (16, 4, 4), (32, 4, 4)])
        assert (made, left) == (4, 1)
        assert kind is DistributedDataParallel
