"""A network that guesses is noticed, one that dips or is merely worse is not."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from sapp_cli.core.schedule import Moment, Phase
from sapp_cli.errors import TrainingError
from sapp_cli.inputs.data import DataSets
from sapp_cli.inputs.rows import stack_rows
from sapp_cli.recipe.schema import ObjectiveSection, Recipe
from sapp_cli.training.collapse import CollapseWatch, Guess, guess_of
from sapp_cli.training.objectives import make_objective

RECIPE = Recipe.model_validate({"train": {"steps": 100}, "prune": {"sparsity": 0.98}})


def moment(progress, phase=Phase.SPARSE, step=79):
    return Moment(step, phase, 0, progress, begins=False, after_dense=False, dense_ahead=False)


def watch(dense=0.9, guess=0.1, metric="accuracy"):
    return CollapseWatch(Guess(metric, guess, metric == "accuracy"), {metric: dense}, RECIPE)


def test_two_evaluations_running_that_are_no_better_than_guessing_end_the_run():
    found = watch()
    found.look(moment(0.5), {"accuracy": 0.139})  # 0.05 of the way from 0.1 to 0.9
    assert found.suspects
    with pytest.raises(TrainingError) as error:
        found.look(moment(0.6), {"accuracy": 0.1})
    assert str(error.value) == (
        "accuracy is 0.1 in step 80 (sparse phase), no better than guessing (0.1), where the dense model had 0.9: the network "
        "has collapsed. Lower optimizer.lr (now 0.0003) or prune.sparsity (now 0.98), or set train.stop_on_collapse: false to "
        "go on regardless"
    )
    assert error.value.exit_code == 6


@pytest.mark.parametrize(
    "looks",
    [
        [(0.5, 0.1), (0.6, 0.15), (0.7, 0.1)],  # it came back in between
        [(0.1, 0.1), (0.2, 0.1), (0.3, 0.1)],  # the dip right after sparsification, and one more
        [(0.5, 0.3), (0.6, 0.3), (0.7, 0.3)],  # much worse, but it knows something
    ],
)
def test_what_is_no_collapse(looks):
    found = watch()
    for progress, accuracy in looks:
        found.look(moment(progress), {"accuracy": accuracy})


def test_nothing_is_found_while_blocks_go_or_all_are_there():
    found = watch()
    for phase in (Phase.DENSE, Phase.SPARSIFICATION):
        for _ in range(3):
            found.look(moment(0.9, phase), {"accuracy": 0.0})
    assert not found.suspects


@pytest.mark.parametrize(("dense", "guess"), [(0.97, 0.95), (0.1, 0.13)])
def test_a_dense_model_that_hardly_beats_guessing_has_nowhere_to_fall(dense, guess):
    found = watch(dense, guess)
    for now in (0.0, guess, 0.2, 0.9):
        found.look(moment(0.9), {"accuracy": now})


@pytest.mark.parametrize("now", [2.5, math.nan, math.inf])
def test_for_a_loss_less_is_better(now):
    found = watch(dense=1.0, guess=2.3, metric="loss")
    for _ in range(3):
        found.look(moment(0.9), {"loss": 2.2})
    found.look(moment(0.9), {"loss": now})
    with pytest.raises(TrainingError, match=r"^loss is "):
        found.look(moment(0.9), {"loss": now})


class Rows(torch.utils.data.Dataset):
    def __init__(self, targets):
        self.targets = None  # of the rows alone, as data of the user's own may have them
        self.values = torch.tensor(targets)

    def __len__(self):
        return len(self.values)

    def __getitem__(self, index):
        return {"inputs": torch.zeros(2), "targets": self.values[index]}


@pytest.mark.parametrize(
    ("task", "targets", "expected"),
    [
        ("classification", [0, 2, 2, 1], Guess("accuracy", 0.5, True)),
        ("binary", [0.0, 1.0, 1.0, 1.0], Guess("logloss", -0.75 * math.log(0.75) - 0.25 * math.log(0.25), False)),
        ("binary", [1.0, 1.0], Guess("logloss", 0.0, False)),
        ("regression", [[0.0, 1.0], [2.0, 1.0]], Guess("mse", 0.5, False)),
        ("causal-lm", [0], None),  # no vocabulary: the model has no config
        ("embedding-distillation", [0], Guess("cosine", 0.0, True)),
    ],
)
def test_what_guessing_reaches(task, targets, expected):
    model = nn.Linear(2, 1)
    data = DataSets(Rows(targets), Rows(targets), stack_rows, "rows")
    found = guess_of(make_objective(ObjectiveSection(task=task), model), model, data)
    if expected is None:
        assert found is None
    else:
        assert (found.metric, found.higher_is_better) == (expected.metric, expected.higher_is_better)
        assert found.value == pytest.approx(expected.value)


@pytest.fixture
def one_label(digits, tmp_path):
    """A recipe whose training rows all have the same label, so that the network unlearns all others."""
    rows = dict(np.load(digits / "data" / "train.npz"))
    np.savez(tmp_path / "train.npz", **{**rows, "targets": np.zeros_like(rows["targets"])})
    return ["--set", f"data.files.train={tmp_path / 'train.npz'}", "--set", "objective.distill.weight=0"]


def test_a_collapse_ends_the_run_and_leaves_the_state_before_it(sapp, digits, tmp_path, one_label):
    out = tmp_path / "out"
    settings = [*one_label, "--set", "train.evaluate_every=5", "--set", "train.save_steps=5"]
    command = ["prune", digits / "dense.safetensors", "-r", digits / "recipe.yaml", "-o", out, *settings]
    ran = sapp(*command)
    assert ran.code == 6, ran.err
    assert "no better than guessing (0.1" in ran.err.splitlines()[-1]
    assert not out.exists()
    # The sparse phase has steps 22 to 60: the first look is after step 35, the second after step 40.
    assert "in step 40 (sparse phase)" in ran.err.splitlines()[-1]
    states = sorted(path.name for path in (tmp_path / ".out.sapp-run").glob("step-*"))
    assert states == ["step-000000030"]
    again = sapp(*command, "--resume", "--set", "train.stop_on_collapse=false")
    assert again.code == 0, again.err
    assert "going on after step 30 of 60" in again.err


def test_a_run_at_98_percent_raises_no_alarm(sapp, digits, tmp_path):
    sets = ["--sparsity", "0.98", "--set", "train.evaluate_every=2"]
    ran = sapp("prune", digits / "dense.safetensors", "-r", digits / "recipe.yaml", "-o", tmp_path / "out", *sets)
    assert ran.code == 0, ran.err
