import hashlib
from fractions import Fraction
from pathlib import Path

import pytest

from sapp_cli.errors import UsageError
from sapp_cli.recipe.load import Flag, LoadedRecipe, load_recipe
from sapp_cli.recipe.prune_section import PhasesSection
from sapp_cli.recipe.schema import Recipe


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch) -> Path:
    """The current folder, with a folder for recipes in it."""
    (tmp_path / "recipes").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(text: str, *sets: str, **flags: Flag) -> LoadedRecipe:
    """The recipe `text` in recipes/r.yaml; flags by key, `__` for the dot."""
    Path("recipes/r.yaml").write_text(text, encoding="utf-8")
    return load_recipe("recipes/r.yaml", sets, {key.replace("__", "."): flag for key, flag in flags.items()})


def origins(loaded: LoadedRecipe) -> dict[str, str]:
    return {".".join(map(str, path)): str(origin) for path, origin in loaded.origins.items()}


def test_the_least_recipe_is_the_defaults():
    loaded = load("train: {steps: 5}")
    assert loaded.recipe == Recipe.model_validate({"train": {"steps": 5}})
    assert origins(loaded) == {"train.steps": "r.yaml:1"}
    assert loaded.path == Path("recipes/r.yaml")
    assert loaded.text == "train: {steps: 5}"
    assert loaded.sha256 == hashlib.sha256(b"train: {steps: 5}").hexdigest()


def test_later_layers_win_and_leave_the_rest():
    recipe = "train: {steps: 5}\nprune:\n  sparsity: 0.5\n  min_blocks: 7\n  block_size: 8\n"
    sets = ("prune.sparsity=0.6", "prune.min_blocks=8", "prune.min_blocks=9")
    loaded = load(recipe, *sets, prune__sparsity=Flag("--sparsity", 0.7), prune__method=Flag("--method", None))
    prune = loaded.recipe.prune
    assert (prune.sparsity, prune.min_blocks, prune.block_size) == (0.7, 9, 8)
    assert prune.method == "sequential-attention"
    assert origins(loaded) == {
        "train.steps": "r.yaml:1",
        "prune.sparsity": "--sparsity",
        "prune.min_blocks": "--set",
        "prune.block_size": "r.yaml:5",
    }


def test_set_replaces_what_stands_at_its_key():
    recipe = "train: {steps: 5}\noptimizer: {lr: 1.0, eps: 0.1}\nmodel: {kwargs: {a: 1}}\nprune: {phases: paper}\n"
    phases = "{dense: 0, rounds: 1, last_round: 0.5, final_sparse: 0.5}"
    loaded = load(recipe, "optimizer={lr: 2.0}", "model.kwargs={}", f"prune.phases={phases}", "prune.phases.exponent=1")
    assert loaded.recipe.optimizer == Recipe.model_fields["optimizer"].default.model_copy(update={"lr": 2.0})
    assert loaded.recipe.model.kwargs == {}
    assert loaded.recipe.prune.phases == PhasesSection(dense=0, rounds=1, last_round=0.5, final_sparse=0.5, exponent=1)


def test_set_reaches_into_lists_and_appends_one_past_their_end():
    recipe = "train: {steps: 5}\nprune: {rules: [{match: a, sparsity: 0.5}]}\n"
    loaded = load(
        recipe, "prune.rules.0.sparsity=0.25", "prune.rules[1]={match: '*b', dense: true}", "optimizer.betas.0=0.8"
    )
    first, second = loaded.recipe.prune.rules
    assert (first.match, first.sparsity) == ("a", 0.25)
    assert (second.match, second.dense) == ("*b", True)
    assert loaded.recipe.optimizer.betas == (0.8, 0.999)
    assert origins(loaded) == {
        "train.steps": "r.yaml:1",
        "prune.rules.0.match": "r.yaml:2",
        "prune.rules.0.sparsity": "--set",
        "prune.rules.1.match": "--set",
        "prune.rules.1.dense": "--set",
        "optimizer.betas.0": "--set",
    }


@pytest.mark.parametrize(
    ("recipe", "sets", "flag", "steps", "epochs", "origin"),
    [
        ("steps: 5", [], ("train.epochs", Flag("--epochs", 2.0)), None, 2.0, "--epochs"),
        ("epochs: 5", [], ("train.steps", Flag("--steps", 2)), 2, None, "--steps"),
        ("epochs: 5", ["train.steps=3"], ("train.epochs", Flag("--epochs", 1)), None, 1.0, "--epochs"),
        ("steps: 5, epochs: null", ["train.seed=1"], ("train.steps", Flag("--steps", None)), 5, None, "r.yaml:1"),
    ],
)
def test_steps_and_epochs_clear_each_other(recipe, sets, flag, steps, epochs, origin):
    loaded = load(f"train: {{{recipe}}}", *sets, **{flag[0].replace(".", "__"): flag[1]})
    assert (loaded.recipe.train.steps, loaded.recipe.train.epochs) == (steps, epochs)
    assert origins(loaded)["train.steps"] == origins(loaded)["train.epochs"] == origin


def test_paths_belong_to_the_recipe_or_to_the_current_folder(folder):
    recipe = """\
train: {steps: 5}
model: {factory: 'models/mlp.py:build'}
data:
  factory: package.module:load
  files: {train: [a.jsonl, /abs/b.jsonl, '~/c.jsonl'], validation: 'dev-*.jsonl'}
"""
    loaded = load(recipe)
    recipes = folder / "recipes"
    assert loaded.recipe.model.factory == f"{recipes}/models/mlp.py:build"
    assert loaded.recipe.data.factory == "package.module:load"
    assert loaded.recipe.data.files.train == [f"{recipes}/a.jsonl", "/abs/b.jsonl", f"{Path.home()}/c.jsonl"]
    assert loaded.recipe.data.files.validation == f"{recipes}/dev-*.jsonl"

    sets = ("data.files={train: [x.jsonl]}", "data.files.train.1=y.jsonl", "data.factory=load.py:f")
    loaded = load(recipe, *sets, model__factory=Flag("--factory", "m.py:f"))
    assert loaded.recipe.model.factory == f"{folder}/m.py:f"
    assert loaded.recipe.data.factory == f"{folder}/load.py:f"
    assert loaded.recipe.data.files.train == [f"{folder}/x.jsonl", f"{folder}/y.jsonl"]
    assert loaded.recipe.data.files.validation is None


def test_keyword_arguments_are_no_paths_and_keep_their_types():
    loaded = load("train: {steps: 5}\nmodel: {kwargs: {path: a.py, n: 1, x: 1.0, deep: [{on: yes}]}}\n")
    assert repr(loaded.recipe.model.kwargs) == repr({"path": "a.py", "n": 1, "x": 1.0, "deep": [{"on": "yes"}]})


def test_whole_numbers_are_numbers_and_decimals_are_exact():
    loaded = load("train: {epochs: 2}\nprune: {phases: {dense: 0, rounds: 2, last_round: 0.35, final_sparse: 0.55}}\n")
    assert loaded.recipe.train.epochs == 2.0
    assert loaded.recipe.prune.timetable.round == Fraction(1, 10)  # in floats 1 - 0.35 - 0.55 is 0.09999999999999998


def test_where_begins_a_problem_found_later():
    recipe = "train: {steps: 5}\nprune:\n  rules:\n    - {match: a, dense: true}\n    - match: b\n      dense: true\n"
    loaded = load(recipe, "prune.rules.1.match=c", prune__sparsity=Flag("--sparsity", 0.5))
    assert loaded.where("prune.rules[0].match") == "recipes/r.yaml:4: prune.rules[0].match"
    assert loaded.where("prune.rules[1].match") == "--set: prune.rules[1].match"
    assert loaded.where("prune.rules[1]") == "recipes/r.yaml:5: prune.rules[1]"
    assert loaded.where("prune.sparsity") == "--sparsity: prune.sparsity"
    assert loaded.where("prune.min_blocks") == "recipes/r.yaml:2: prune.min_blocks"
    assert loaded.where("data.files.train") == "recipes/r.yaml: data.files.train"


def test_a_file_that_cannot_be_read():
    Path("recipes/r.yaml").write_text("train: {steps: 5}", encoding="utf-8")
    Path("loop.yaml").symlink_to("loop.yaml")
    for name in ("recipes", "recipes/r.yaml/x.yaml", "loop.yaml", "x" * 5000, "a\0b"):
        with pytest.raises(UsageError):
            load_recipe(name)
