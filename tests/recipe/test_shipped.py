import re
from pathlib import Path

import pytest

from sapp_cli.errors import UsageError
from sapp_cli.recipe.load import load_recipe
from sapp_cli.recipe.shipped import ShippedRecipe, copy_recipe, find_recipe, shipped_recipes

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch) -> Path:
    """A folder with two shipped recipes in place of our own; the current folder is an empty one."""
    folder = tmp_path / "shipped"
    folder.mkdir()
    (folder / "vit.yaml").write_text(
        "# yaml-language-server: $schema=recipe.json\n#\n# A vision transformer\n# and more\ntrain: {steps: 5}\n",
        "utf-8",
    )
    (folder / "mlp.yaml").write_text(
        "train: {steps: 5}\nmodel: {factory: 'own/mlp.py:build'}\n"
        "data: {factory: 'rows.py:load', source: factory}\nobjective: {factory: 'package.loss:loss', task: factory}\n",
        "utf-8",
    )
    (folder / "own").mkdir()
    (folder / "own/mlp.py").write_text("def build(): ...\n", "utf-8")
    (folder / "rows.py").write_text("def load(): ...\n", "utf-8")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("sapp_cli.recipe.shipped._folder", lambda: folder)
    return folder


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_our_recipes_load_and_have_a_title(path):
    recipe = next(recipe for recipe in shipped_recipes() if recipe.name == path.stem)
    assert recipe.path == path
    assert re.fullmatch(r"\w.{10,120}", recipe.title)
    assert load_recipe(path.stem).path == path


def test_a_listing_has_name_path_and_first_comment(shipped):
    assert shipped_recipes() == [
        ShippedRecipe("mlp", shipped / "mlp.yaml", ""),
        ShippedRecipe("vit", shipped / "vit.yaml", "A vision transformer"),
    ]


def test_a_name_is_a_shipped_recipe_and_a_path_is_a_file(shipped):
    assert find_recipe("vit") == shipped / "vit.yaml"
    Path("vit").mkdir()
    assert find_recipe("vit") == shipped / "vit.yaml"
    Path("vit.yaml").write_text("train: {steps: 1}", "utf-8")
    assert find_recipe(Path("vit.yaml")) == Path("vit.yaml")
    assert find_recipe("vit") == shipped / "vit.yaml"
    Path("mlp").write_text("train: {steps: 1}", "utf-8")
    assert find_recipe("mlp") == Path("mlp")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vitt", "vitt: no such recipe, neither a file nor a shipped name; shipped: mlp, vit; nearest: 'vit'"),
        ("resnet", "resnet: no such recipe, neither a file nor a shipped name; shipped: mlp, vit"),
        ("first", "first: no such recipe, neither a file nor a shipped name; shipped: mlp, vit; nearest: 'first.yml'"),
        ("..", "..: is a folder, not a recipe; shipped: mlp, vit"),
        ("", ".: is a folder, not a recipe; in it: first.yml"),
        ("vit.yaml", "vit.yaml: no such file; the shipped recipe is -r vit"),
        ("vit.yml", "vit.yml: no such file; the shipped recipe is -r vit"),
        ("./vit", "vit: no such file; the shipped recipe is -r vit"),
        ("frist", "frist: no such recipe, neither a file nor a shipped name; shipped: mlp, vit; nearest: 'first.yml'"),
        ("first.yaml", "first.yaml: no such file; nearest: 'first.yml'"),
        ("../here/frist.yml", "../here/frist.yml: no such file; nearest: '../here/first.yml'"),
        ("own/vit.yaml", "own/vit.yaml: no such file: there is no folder own"),
        ("other.yaml", "other.yaml: no such file"),
        ("net.pt", "net.pt: is a file of weights, not a recipe"),
    ],
)
def test_what_is_not_found(shipped, name, message):
    Path("first.yml").write_text("train: {steps: 1}", "utf-8")
    Path("net.pt").write_bytes(b"")
    with pytest.raises(UsageError) as caught:
        find_recipe(name)
    assert str(caught.value) == message


def test_a_copy_takes_the_python_files_along_and_loads(shipped):
    copies = copy_recipe("mlp", Path("mine"))
    assert copies == [Path("mine/mlp.yaml"), Path("mine/own/mlp.py"), Path("mine/rows.py")]
    for copy in copies:
        assert copy.read_bytes() == (shipped / copy.relative_to("mine")).read_bytes()
    assert load_recipe("mine/mlp.yaml").recipe.model.factory == f"{Path.cwd()}/mine/own/mlp.py:build"


def test_a_copy_under_another_name(shipped):
    assert copy_recipe("vit", Path("mine/other.yml")) == [Path("mine/other.yml")]
    assert Path("mine/other.yml").read_bytes() == (shipped / "vit.yaml").read_bytes()


def test_the_name_of_its_file_names_a_recipe_to_copy(shipped):
    assert copy_recipe("vit.yaml", Path("mine")) == [Path("mine/vit.yaml")]
    with pytest.raises(UsageError, match=r"^mine/vti.yaml: no such file; nearest: 'mine/vit.yaml'$"):
        copy_recipe("mine/vti.yaml", Path("other"))


def test_a_copy_overwrites_only_when_told(shipped):
    Path("rows.py").write_text("mine", "utf-8")
    with pytest.raises(UsageError) as caught:
        copy_recipe("mlp", Path())
    assert str(caught.value) == "rows.py: exists already; --overwrite replaces it"
    assert sorted(Path().iterdir()) == [Path("rows.py")]
    with pytest.raises(UsageError) as caught:
        copy_recipe("mlp", Path(), overwrite=True)
    assert str(caught.value) == (
        "rows.py: exists already and is not a copy of rows.py; give another name, or move that file elsewhere first"
    )
    assert sorted(Path().iterdir()) == [Path("rows.py")]
    Path("rows.py").write_text("def load(): ...\nchanged\n", "utf-8")
    copy_recipe("mlp", Path(), overwrite=True)
    assert Path("rows.py").read_text("utf-8") == "def load(): ...\n"


def test_a_copy_that_cannot_be_written(shipped):
    Path("mine").write_text("a file", "utf-8")
    with pytest.raises(UsageError) as caught:
        copy_recipe("vit", Path("mine"))
    assert str(caught.value) == "mine/vit.yaml: cannot be written: File exists"
