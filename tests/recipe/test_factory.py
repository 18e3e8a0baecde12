import pickle
import sys
from pathlib import Path

import pytest

from sapp_cli.errors import SettingError
from sapp_cli.recipe.factory import call_factory, load_factory


@pytest.fixture(autouse=True)
def _python_as_before(monkeypatch):
    """What a test's modules leave in this process goes with the test."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def message(factory: str, key: str = "model.factory") -> str:
    with pytest.raises(SettingError) as caught:
        load_factory(factory, key)
    return str(caught.value)


def test_a_function_of_a_file_and_of_a_package(tmp_path):
    file = write(tmp_path / "m.py", "def build(width): return width * 2\n")
    assert load_factory(f"{file}:build")(21) == 42
    assert load_factory("collections.abc:Mapping") is __import__("collections").abc.Mapping


def test_files_of_one_name_are_two_modules_and_one_file_is_one(tmp_path):
    first = write(tmp_path / "a/model.py", "class Model: where = 'a'\n")
    second = write(tmp_path / "b/model.py", "class Model: where = 'b'\n")
    assert [load_factory(f"{file}:Model").where for file in (first, second)] == ["a", "b"]
    assert load_factory(f"{first}:Model") is load_factory(f"{first}:Model")
    assert "model" not in sys.modules


def test_its_classes_can_be_pickled(tmp_path):
    rows = load_factory(f"{write(tmp_path / 'd.py', 'class Rows(list): pass')}:Rows")([1, 2])
    assert pickle.loads(pickle.dumps(rows)) == [1, 2]


def test_a_file_imports_what_lies_beside_it_but_hides_nothing_installed(tmp_path):
    write(tmp_path / "beside_the_model.py", "width = 3\n")
    write(tmp_path / "json.py", "raise RuntimeError('the wrong json')\n")
    late = "def later():\n    import beside_the_model\n    return beside_the_model.width\n"
    file = write(
        tmp_path / "m.py", f"import json\nfrom beside_the_model import width\ndef build(): return width\n{late}"
    )
    assert load_factory(f"{file}:build")() == 3
    assert load_factory(f"{file}:later")() == 3


def test_what_it_prints_is_no_data(tmp_path, capsys):
    file = write(tmp_path / "m.py", "print('imported')\ndef build(): print('called')\n")
    call_factory(f"{file}:build", {}, "model.factory")
    assert capsys.readouterr() == ("", "imported\ncalled\n")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import no_such_module_here\n", "m.py:1: ModuleNotFoundError: No module named 'no_such_module_here'"),
        ("x = 1\n\ny = nmae\n", "m.py:3: NameError: name 'nmae' is not defined"),
        (
            "import json\njson.loads('{')\n",
            "m.py:2: JSONDecodeError: Expecting property name enclosed in double quotes",
        ),
        ("def f(:\n", "m.py:1: SyntaxError: invalid syntax"),
        ("raise ValueError('first\\nsecond')\n", "m.py:1: ValueError: first"),
        ("raise SystemExit(3)\n", "m.py:1: SystemExit: 3"),
    ],
)
def test_a_file_that_cannot_be_imported(tmp_path, text, reason):
    factory = f"{write(tmp_path / 'm.py', text)}:f"
    for _ in range(2):  # a failed import leaves nothing behind
        assert message(factory).split("cannot be imported: ")[1].startswith(reason)
    assert message(factory).startswith("model.factory: '")


def test_what_is_named_but_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "m.py", "def build_mlp(): ...\ndepth = 3\n")
    assert message("m.py:build_mpl") == "model.factory: 'm.py:build_mpl': m.py has no 'build_mpl'; nearest: 'build_mlp'"
    assert message("m.py:xyz") == "model.factory: 'm.py:xyz': m.py has no 'xyz'"
    assert message("m.py:depth") == (
        "model.factory: 'm.py:depth': 'depth' is a value of type int; a factory is a function or a class"
    )
    assert message("n.py:f", "data.factory") == "data.factory: 'n.py:f': there is no such file; nearest: 'm.py'"
    assert message("none/n.py:f") == "model.factory: 'none/n.py:f': there is no such file"
    assert message("no_such_package.models:f") == (
        "model.factory: 'no_such_package.models:f': there is no module 'no_such_package'; install it, or name a file "
        "beside the recipe: file.py:callable"
    )
    assert message("json.no_such:f").startswith("model.factory: 'json.no_such:f': there is no module 'json.no_such';")


def test_a_package_that_cannot_be_imported(tmp_path, monkeypatch):
    write(tmp_path / "broken_pkg/__init__.py", "import no_such_module_here\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert message("broken_pkg:f") == (
        "model.factory: 'broken_pkg:f': cannot be imported: __init__.py:1: ModuleNotFoundError: "
        "No module named 'no_such_module_here'"
    )
