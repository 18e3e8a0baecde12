"""What a run is made from, as hashes: names that may move, contents that may not, and what is said not to be compared."""

import hashlib
import importlib
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from sapp_cli.checkpoint.source import open_checkpoint
from sapp_cli.errors import CheckpointError, DataError
from sapp_cli.inputs import fingerprints
from sapp_cli.inputs.code_files import code_files, installed_version
from sapp_cli.inputs.fingerprints import Beside, fingerprint_checkpoint, fingerprint_code, fingerprint_files
from sapp_cli.recipe.schema import Recipe, comparable


def recipe(files=None, **sections):
    """With these data.files; without any of a source that has none."""
    data = {"source": "tensors", "files": files} if files else {"source": "factory", "factory": "json:loads"}
    return Recipe.model_validate({"train": {"steps": 1}, "data": data, **sections})


def put(folder, **contents):
    for name, content in contents.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


def test_files_are_named_below_the_folder_that_holds_them_all(tmp_path):
    put(tmp_path, a__x_npz="1", b__x_npz="2", v_npz="3")
    found = fingerprint_files(recipe({"train": [f"{tmp_path}/*/x.npz"], "validation": f"{tmp_path}/v.npz"}))
    assert found.values == {
        "data.files.train/a/x.npz": sha256("1"),
        "data.files.train/b/x.npz": sha256("2"),
        "data.files.validation/v.npz": sha256("3"),
    }
    assert found.limits == ()


def of_folder(folder):
    (value,) = fingerprint_files(recipe({"train": str(folder)})).values.values()
    return value


@pytest.mark.parametrize("change", ["content", "name", "size", "class", "one more", "one less"])
def test_a_folder_of_images_is_one_hash_over_names_and_contents(tmp_path, change):
    folder = tmp_path / "images"
    put(folder, cat__1_png="aa", cat__2_png="bb", dog__3_png="cc")
    before = of_folder(folder)
    (folder / "cat" / ".DS_Store").write_text("left by a file manager")
    assert of_folder(folder) == before
    match change:
        case "content":
            put(folder, cat__2_png="bc")
        case "name":
            (folder / "cat/2.png").rename(folder / "cat/4.png")
        case "size":
            put(folder, cat__2_png="b")
        case "class":
            (folder / "cat/2.png").rename(folder / "dog/2.png")
        case "one more":
            put(folder, dog__4_png="")
        case _:
            (folder / "dog/3.png").unlink()
    assert of_folder(folder) != before


def test_a_folder_that_moved_is_the_same(tmp_path):
    put(tmp_path / "one" / "images", cat__1_png="aa", dog__3_png="cc")
    before = fingerprint_files(recipe({"train": str(tmp_path / "one/images")}))
    (tmp_path / "one").rename(tmp_path / "other")
    assert fingerprint_files(recipe({"train": str(tmp_path / "other/images")})) == before


@pytest.mark.parametrize("place", [0, 40, 79])
def test_of_large_data_some_pieces_are_compared_and_it_says_so(tmp_path, monkeypatch, place):
    """80 bytes, of which a piece of 4 in 16 is read, and the last one."""
    monkeypatch.setattr(fingerprints, "WHOLE_BYTES", 79)
    monkeypatch.setattr(fingerprints, "SAMPLED_BYTES", 20)
    monkeypatch.setattr(fingerprints, "PIECE", 4)
    path = tmp_path / "x.npz"
    path.write_bytes(bytes(80))
    before = fingerprint_files(recipe({"train": str(path)}))
    assert before.values["data.files.train/x.npz"].startswith("sampled:")
    assert before.limits == (
        "data.files.train: 0 GB are compared by all names and sizes, and evenly spaced pieces of the contents, 1 byte in 4",
    )
    changed = bytearray(80)
    changed[place] = 1
    path.write_bytes(changed)
    seen = place % 16 < 4 or place >= 76
    assert (fingerprint_files(recipe({"train": str(path)})) != before) == seen
    path.write_bytes(bytes(81))
    assert fingerprint_files(recipe({"train": str(path)})) != before


def test_large_folders_compare_all_sizes(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprints, "WHOLE_BYTES", 5)
    monkeypatch.setattr(fingerprints, "SAMPLED_BYTES", 3)
    put(tmp_path / "images", cat__1_png="aa", cat__2_png="bb", dog__3_png="cc")
    before = of_folder(tmp_path / "images")
    put(tmp_path / "images", cat__2_png="bbb", dog__3_png="c")
    assert of_folder(tmp_path / "images") != before


def test_a_file_that_cannot_be_read_is_an_error_of_the_data(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.png").symlink_to("1.png")
    with pytest.raises((DataError, CheckpointError)):
        fingerprint_files(recipe({"train": str(tmp_path / "images" / "1.png")}))


def test_the_teacher_s_files_count(tmp_path):
    put(tmp_path, t_safetensors="weights")
    found = fingerprint_files(recipe(objective={"distill": {"teacher": f"{tmp_path}/t.safetensors"}}))
    assert found.values == {"objective.distill.teacher/t.safetensors": sha256("weights")}


def test_configuration_and_tokenizer_count_and_notes_beside_them_do_not(tmp_path):
    save_file({"a": np.ones(2, np.float32)}, tmp_path / "model.safetensors")
    names = ("config.json", "tokenizer.json", "vocab.txt", "merges.txt", "spiece.model", "preprocessor_config.json")
    for name in (*names, "notes.txt", "results.json", "README.md"):
        (tmp_path / name).write_text("{}")
    found = fingerprint_checkpoint(open_checkpoint(tmp_path))
    weights = hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    assert found.values == {"model.safetensors": weights, **dict.fromkeys(names, sha256("{}"))}


NET = """
import os
import parts.head as head
from parts import body
from late_import import nothing  # a module that is not there

def net():
    from helper import something
    return head, body, something
"""


def test_a_factory_is_its_file_and_the_modules_beside_it(tmp_path):
    put(tmp_path, net_py=NET, helper_py="import parts.deep.end", unused_py="", os_py="")
    put(tmp_path / "parts", head_py="from . import body\nfrom .deep import thing", body_py="import net", unused_py="")
    put(tmp_path / "parts", deep__thing_py="from ..body import x", deep__end_py="def broken(:")
    (tmp_path / "parts" / "__init__.py").write_text("")
    found = code_files(f"{tmp_path}/net.py:net")
    assert list(found) == [
        *("helper.py", "net.py", "os.py", "parts/__init__.py"),
        *("parts/body.py", "parts/deep/end.py", "parts/deep/thing.py", "parts/head.py"),
    ]
    assert found["parts/body.py"] == tmp_path / "parts" / "body.py"


def test_a_package_that_is_not_installed_is_its_files(tmp_path, monkeypatch):
    put(tmp_path, ownpackage__nets__small_py="from ..layers import x", ownpackage__layers_py="x = 1")
    (tmp_path / "ownpackage" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    importlib.import_module("ownpackage.nets.small")
    assert installed_version("ownpackage.nets.small") is None
    found = fingerprint_code(recipe({"train": "x"}, model={"factory": "ownpackage.nets.small:net"}))
    assert found.values == {
        "model.factory/ownpackage/__init__.py": sha256(""),
        "model.factory/ownpackage/layers.py": sha256("x = 1"),
        "model.factory/ownpackage/nets/small.py": sha256("from ..layers import x"),
    }
    for name in [name for name in sys.modules if name.startswith("ownpackage")]:
        del sys.modules[name]


JSON = {"task": "factory", "factory": "json:loads"}


def test_installed_code_is_its_version_and_that_is_said():
    import torch
    import yaml

    found = fingerprint_code(recipe({"train": "x"}, model={"factory": "torch.nn:Linear"}, objective=JSON))
    python = f"Python {sys.version.partition(' ')[0]}"
    assert found.values == {"model.factory/torch": f"torch {torch.__version__}", "objective.factory/json": python}
    assert found.limits == (
        f"model.factory: torch is compared by its version, torch {torch.__version__}",
        f"objective.factory: json is compared by its version, {python}",
    )
    assert installed_version("yaml") == f"PyYAML {yaml.__version__}"


def test_rows_that_a_callable_makes_are_not_compared_and_that_is_said(tmp_path):
    put(tmp_path, own_py="def rows(): pass")
    found = fingerprint_code(recipe(data={"source": "factory", "factory": f"{tmp_path}/own.py:rows"}))
    assert found.values == {"data.factory/own.py": sha256("def rows(): pass")}
    assert found.limits == ("data.factory: the rows that own.py:rows returns are not compared, only its code is",)


def test_settings_are_compared_without_their_folders():
    def at(folder):
        return comparable(
            recipe(
                {"train": [f"{folder}/a.npz", f"{folder}/*.npz"]},
                model={"factory": f"{folder}/net.py:net", "kwargs": {"path": "/kept"}},
                objective={"distill": {"teacher": f"{folder}/t.pt"}},
            )
        )

    assert at("/one") == at("/other/place")
    assert at("/one")["data"]["files"]["train"] == ["a.npz", "*.npz"]
    assert at("/one")["model"] == {"factory": "net.py:net", "kwargs": {"path": "/kept"}}
    assert at("/one")["objective"]["distill"]["teacher"] == "t.pt"


def test_what_runs_beside_gives_its_value_or_raises_its_error():
    assert Beside(lambda: 3).result() == 3
    with pytest.raises(ZeroDivisionError):
        Beside(lambda: 1 // 0).result()
