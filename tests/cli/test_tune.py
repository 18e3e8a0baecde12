"""The search for a learning rate on a real small network: what it tries, what it finds, how it resumes, what it leaves."""

import json
import signal
from collections import OrderedDict

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import nn

from sapp_cli.errors import Interrupted, TrainingError, UsageError
from sapp_cli.pipeline.prune import prune
from sapp_cli.pipeline.tune import tune
from sapp_cli.pipeline.watcher import Silence
from sapp_cli.recipe.load import load_recipe
from tests.runs import Interrupting, hashes, losses

AUTO = ("optimizer.lr=auto", "train.evaluate_every=null")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def start(digits):
    """(recipe with `auto`, checkpoint): 60 steps, so three trials of 30."""
    return load_recipe(digits / "recipe.yaml", AUTO), digits / "dense.safetensors"


@pytest.fixture(scope="module")
def pruned(start, tmp_path_factory):
    """OUT of a run that searched its rate."""
    out = tmp_path_factory.mktemp("tuned") / "out"
    recipe, checkpoint = start
    prune(recipe, checkpoint, out, Silence())
    return out


def search_of(out):
    return json.loads((out / "manifest.json").read_text())["search"]


class Lines(Silence):
    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)


def test_the_run_is_that_of_a_recipe_with_the_rate_that_was_found(pruned, digits, tmp_path):
    rate = search_of(pruned)["learning_rate"]
    assert yaml.safe_load((pruned / "recipe.yaml").read_text())["optimizer"]["lr"] == rate
    recipe = load_recipe(digits / "recipe.yaml", [f"optimizer.lr={rate}", "train.evaluate_every=null"])
    prune(recipe, digits / "dense.safetensors", tmp_path / "out", Silence())
    assert hashes(tmp_path / "out") == hashes(pruned)
    assert losses(tmp_path / "out") == losses(pruned)
    assert "search" not in json.loads((tmp_path / "out" / "manifest.json").read_text())


def test_the_manifest_has_every_trial(pruned):
    search = search_of(pruned)
    assert {key: search[key] for key in ("metric", "higher_is_better", "run_steps", "most_steps")} == {
        "metric": "accuracy",
        "higher_is_better": True,
        "run_steps": 60,
        "most_steps": 120,
    }
    trials = search["trials"]
    assert [(trial["learning_rate"], trial["steps"]) for trial in trials][:3] == [(5e-4, 30), (1e-3, 30), (2e-3, 30)]
    assert search["trial_steps"] == sum(trial["steps"] for trial in trials) <= 120
    best = min(trials, key=lambda trial: (-trial["value"], trial["learning_rate"]))
    assert search["learning_rate"] == best["learning_rate"]


def test_a_trial_is_a_whole_short_run(digits, pruned, tmp_path):
    """The value of a trial is the metric that `prune` with its rate and steps ends with: same start, data and schedule."""
    trial = search_of(pruned)["trials"][-1]
    sets = [f"optimizer.lr={trial['learning_rate']}", f"train.steps={trial['steps']}", "train.evaluate_every=null"]
    recipe = load_recipe(digits / "recipe.yaml", sets)
    result = prune(recipe, digits / "dense.safetensors", tmp_path / "out", Silence())
    assert result.metrics["accuracy"].pruned == trial["value"]


def test_two_searches_are_the_same_and_leave_the_checkpoint_as_it_was(start, pruned):
    recipe, checkpoint = start
    before = checkpoint.read_bytes()
    assert tune(recipe, checkpoint, Silence()).as_json() == search_of(pruned)
    assert checkpoint.read_bytes() == before


def test_the_search_finds_what_whole_runs_find(digits, tmp_path):
    """An untrained network: the smallest rate does not move it, the greatest breaks it."""
    torch.manual_seed(0)
    network = nn.Sequential(
        OrderedDict(
            hidden1=nn.Linear(64, 512),
            relu1=nn.ReLU(),
            hidden2=nn.Linear(512, 512),
            relu2=nn.ReLU(),
            output=nn.Linear(512, 10),
        )
    )
    checkpoint = tmp_path / "untrained.safetensors"
    save_file(network.state_dict(), checkpoint)
    rates = [1e-6, 3e-3, 1e3]

    def tried(steps):
        sets = [f"train.steps={steps}", "train.evaluate_every=null", "objective.distill.weight=0"]
        return tune(load_recipe(digits / "recipe.yaml", sets), checkpoint, Silence(), rates=rates).choice

    search, whole = tried(60), tried(120)  # trials of 30 steps, and of 60, as many as the first search's run has
    assert [trial.steps for trial in whole.trials] == [60] * 3
    best = max(whole.trials, key=lambda trial: trial.value if trial.value is not None else -1)
    assert search.rate == best.rate == 3e-3


class InTrial(Interrupting):
    """Presses Ctrl-C in the second step of this trial."""

    def __init__(self, trial):
        super().__init__(1)
        self._trial = f"trial {trial},"
        self.said = []

    def say(self, text):
        self.said.append(text)

    def step(self, record):
        if record.trial.startswith(self._trial):
            super().step(record)


class InRun(Lines):
    """Presses Ctrl-C in step 21 of the run."""

    def step(self, record):
        if not record.trial:
            Interrupting(20).step(record)


def test_resume_keeps_finished_trials_and_ends_with_the_same_bytes(start, digits, pruned, tmp_path):
    recipe, checkpoint = start
    out = tmp_path / "out"
    with pytest.raises(
        Interrupted, match="in a trial; finished trials are kept; the same command with --resume"
    ) as ended:
        prune(recipe, checkpoint, out, InTrial(3))
    assert ended.value.exit_code == 128 + signal.SIGINT
    kept = json.loads((tmp_path / ".out.sapp-run" / "trials.json").read_text())["trials"]
    assert [trial["rate"] for trial in kept] == [5e-4, 1e-3]

    with pytest.raises(UsageError, match="holds an interrupted run, 2 trials done; --resume goes on with it"):
        prune(recipe, checkpoint, out, Silence())
    other = load_recipe(digits / "recipe.yaml", [*AUTO, "prune.sparsity=0.8"])
    with pytest.raises(UsageError, match=r"prune.sparsity: 0.9 then, 0.8 now"):
        prune(other, checkpoint, out, Silence(), resume=True)

    lines = InRun()
    with pytest.raises(Interrupted, match="interrupted after step 21 of 60"):
        prune(recipe, checkpoint, out, lines, resume=True)
    trials = [line.endswith("(kept)") for line in lines.said if line.startswith("trial ")]
    assert trials == [True, True] + [False] * (len(search_of(pruned)["trials"]) - 2)

    lines = Lines()
    prune(recipe, checkpoint, out, lines, resume=True)
    assert all(line.endswith("(kept)") for line in lines.said if line.startswith("trial "))
    assert "going on after step 21 of 60" in lines.said
    assert search_of(out) == search_of(pruned)
    assert hashes(out) == hashes(pruned)
    assert not (tmp_path / ".out.sapp-run").exists()


def test_a_search_in_which_every_trial_diverges_is_an_error_of_training(digits):
    recipe = load_recipe(digits / "recipe.yaml", ["train.evaluate_every=null"])
    with pytest.raises(
        TrainingError, match=r"^optimizer.lr auto: every trial diverged, down to a rate of 1e\+20; the last"
    ):
        tune(recipe, digits / "dense.safetensors", Silence(), rates=[1e30, 1e20])


def test_the_verb_prints_the_trials_and_the_line_for_the_recipe(sapp, digits):
    common = ["tune", str(digits / "dense.safetensors"), "-r", str(digits / "recipe.yaml")]
    ran = sapp(*common, "--rates", "2e-3,2e-6", "--set", "train.evaluate_every=null")
    assert ran.code == 0
    lines = ran.out.splitlines()
    assert lines[0].split() == ["learning", "rate", "steps", "accuracy"]
    assert [line.split()[:2] for line in lines[1:3]] == [["2e-6", "45"], ["2e-3", "45"]]
    assert lines[4] == "accuracy, higher is better; 90 steps in all trials, for a run of 60 steps"
    assert lines[-1] == "optimizer: {lr: 2e-3}"


def test_plan_shows_what_the_search_costs(sapp, digits):
    common = ["plan", str(digits / "dense.safetensors"), "-r", str(digits / "recipe.yaml")]
    common += ["--set", "optimizer.lr=auto"]
    line = next(line for line in sapp(*common).out.splitlines() if line.startswith("learning rate: "))
    assert line == (
        "learning rate: searched before the run: 3 rates × 30 steps; 90 steps, 150 % of the run; at most 120 (200 %), if the "
        "best rate is at the edge of the grid"
    )
    assert sapp(*common, "--json").json["search"] == {
        "rates": [5e-4, 1e-3, 2e-3],
        "rounds": [{"trials": 3, "steps": 30}],
        "steps": 90,
        "most_steps": 120,
        "share_of_run": 1.5,
    }
    printed = sapp(*common, "--print-config").out
    assert [line.split("#")[1] for line in printed.splitlines() if "lr: auto" in line] == [
        " --set: searched before the run"
    ]
