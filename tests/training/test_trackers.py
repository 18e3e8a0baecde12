"""What trackers are told, by a tracker of Accelerate's own kind that keeps it in a list."""

import importlib.util
import json

import pytest
import torch
from accelerate.tracking import GeneralTracker, on_main_process

from sapp_cli.errors import UsageError
from sapp_cli.pruner import Pruner
from sapp_cli.training.device import make_accelerator
from sapp_cli.training.processes import joined
from sapp_cli.training.sharding import shard
from sapp_cli.training.trackers import require_packages, tracked
from tests.training.crew import run_processes
from tests.training.test_distributed import KINDS, STEPS, recipe, train_all

TWO_ROUNDS = {"dense": 0.1, "rounds": 2, "last_round": 0.3, "final_sparse": 0.2}


class Notebook(GeneralTracker):
    """Keeps what it is told."""

    name = "notebook"
    requires_logging_directory = False

    def __init__(self):
        super().__init__(_blank=True)
        self.settings = {}
        self.lines = {}
        self.finished = False

    @property
    def tracker(self):
        return self

    @on_main_process
    def store_init_configuration(self, values):
        self.settings = values

    @on_main_process
    def log(self, values, step=None, **others):
        self.lines.setdefault(step, {}).update(values)

    @on_main_process
    def finish(self):
        self.finished = True


def watched(folder, sharded=False):
    """(settings, {step: values}, lines of metrics.jsonl) of a run with two rounds."""
    prune = {"phases": TWO_ROUNDS, "allocation": "uniform"}
    settings = recipe(prune=prune, train={"log_every": 7}, data={"batch_size": 48})
    accelerator = make_accelerator(settings.train)
    model = KINDS["network"][0]()
    pruner = Pruner(model, settings.prune, STEPS, notice=lambda line: None)  # of the pooler
    if sharded:
        shard(model, accelerator)
    notebook, lines = Notebook(), []
    with joined(), tracked(accelerator, [notebook], settings, folder / "out", pruner) as trackers:
        trackers.evaluation(0, {"accuracy": 0.5})

        def on_step(record):
            trackers.step(record)
            lines.append(record.as_json())

        train_all(model, pruner, settings, accelerator, on_step)
    assert notebook.finished == accelerator.is_main_process
    assert (folder / "out.trackers").is_dir()
    return notebook.settings, notebook.lines, lines


def test_what_is_told_and_when(tmp_path):
    settings, told, lines = watched(tmp_path)
    assert settings["optimizer.lr"] == 1e-2
    assert settings["prune.phases.rounds"] == 2
    assert json.loads(settings["train.trackers"]) == []
    assert all(isinstance(value, str | int | float | bool) for value in settings.values())

    first_steps = [line["step"] for line in lines if "attention" in line]
    assert first_steps == [1, 3, 6, 8, 11, 17]  # of dense, the three phases of the first round, the last round, sparse
    assert sorted(told) == sorted({0, 7, 14, 20, *first_steps})
    assert told[0] == {"metrics/accuracy": 0.5}
    assert told[7].keys() >= {"metrics/accuracy", "metrics/loss"}
    last = told[20]
    assert (last["phase"], last["round"], last["sparsity/first.weight"]) == (2, 0, 0.5)
    assert last["loss"] == lines[-1]["loss"]
    assert last["learning_rate"] == lines[-1]["learning_rate"]
    assert 0 < last["attention_min/first.weight"] < 1 < last["attention_max/first.weight"]


def test_metrics_jsonl_has_the_range_of_a_and_the_share_exchanged(tmp_path):
    _, told, lines = watched(tmp_path)
    assert lines[0]["attention"] == [1, 1]
    ranges = [line["attention"] for line in lines if "attention" in line]
    assert all(low < 1 < high for low, high in ranges[1:])
    assert [line["step"] for line in lines if "exchanged" in line] == [17]
    assert told[17]["exchanged"] == lines[16]["exchanged"]
    assert 0 <= lines[16]["exchanged"] < 1


def test_metrics_jsonl_has_each_layer_where_a_phase_begins_and_at_the_end(tmp_path):
    _, told, lines = watched(tmp_path)
    layers = {line["step"]: line["layers"] for line in lines if "layers" in line}
    assert list(layers) == [1, 3, 6, 8, 11, 17, 20]
    assert set(layers[1].values()) == {0.0}
    assert layers[20]["first.weight"] == 0.5
    for step, sparsities in layers.items():
        assert {f"sparsity/{name}": share for name, share in sparsities.items()}.items() <= told[step].items()


def test_the_share_exchanged_by_hand():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0])))
    pruner = Pruner(model, {"method": "acdc", "block_size": 1, "sparsity": 0.75, "min_blocks": 1}, 20)
    starts = [phase.start for phase in pruner.schedule.phases if phase.phase.value == "sparse"]
    pruner.step(starts[0])
    assert pruner.exchanged is None
    assert pruner.support["0.weight"].nonzero().tolist() == [[0, 0], [1, 1], [2, 2], [3, 3]]
    pruner.step(starts[0] + 1)
    pruner.step(next(phase.start for phase in pruner.schedule.phases if phase.start > starts[0]))
    with torch.no_grad():
        pruner.attached["0.weight"].theta[3, 3] = 0.0
        pruner.attached["0.weight"].theta[0, 1] = 5.0
    pruner.step(starts[1])
    assert pruner.exchanged == 0.25


def test_of_several_processes_the_main_one_tells_also_of_weights_that_are_spread(tmp_path):
    ended = run_processes(2, watched, tmp_path, True)
    assert [end.error for end in ended] == ["", ""], ended[0].said
    assert ended[1].value[:2] == ({}, {})
    told = ended[0].value[1]
    assert 0 < told[20]["attention_min/first.weight"] < 1 < told[20]["attention_max/first.weight"]


def test_a_tracker_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(
        "sapp_cli.training.trackers.find_spec", lambda name: None if name == "wandb" else importlib.util
    )
    require_packages(["tensorboard"])
    with pytest.raises(UsageError) as error:
        require_packages(["tensorboard", "wandb"])
    assert str(error.value) == "train.trackers: wandb needs its package: pip install 'sapp-cli[trackers]'"
