"""Text of any origin, under any locale: files are UTF-8, names need not be, and nothing that is printed steers the terminal."""

from __future__ import annotations

import ast
import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sapp_cli.cli.console import VisibleConsole
from tests.checkpoint.files import save_floats
from tests.report.outputs import write_output

PACKAGE = Path(__file__).parents[2] / "sapp_cli"
HOSTILE = "\x1b[2J\x1b]0;owned\x07\x9b5m\u202e"
SHOWN = r"\x1b[2J\x1b]0;owned\x07\x9b5m\u202e"
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]")
OLD = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
any_bytes = pytest.mark.skipif(sys.platform == "darwin", reason="its file systems take no name that is not UTF-8")


def zeros_below(path):
    """A checkpoint that is smaller block-sparse."""
    return save_floats(path, **{"größe.weight": np.pad(np.ones((16, 64)), ((0, 48), (0, 0)))})


def implicit_encodings(file):
    """The lines of a file where text is read or written in the encoding of the locale."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        given = {keyword.arg for keyword in node.keywords}
        first = node.args[1 if name == "open" and isinstance(node.func, ast.Name) else 0 :][:1]
        modes = [argument.value for argument in first if isinstance(argument, ast.Constant)]
        opens_text = name == "open" and (not node.args or (modes and isinstance(modes[0], str) and "b" not in modes[0]))
        runs_text = any(keyword.arg == "text" and isinstance(keyword.value, ast.Constant) for keyword in node.keywords)
        if (name in ("read_text", "write_text") or opens_text or runs_text) and "encoding" not in given:
            yield f"{file}:{node.lineno}"


def test_all_text_is_read_and_written_in_a_named_encoding(tmp_path):
    assert [place for file in PACKAGE.rglob("*.py") for place in implicit_encodings(file)] == []
    source = tmp_path / "source.py"
    source.write_text(
        'p.read_text()\np.write_text(t)\nopen(p, "w")\np.open()\np.open("a")\nsubprocess.run(c, text=True)\n'
        'p.open("rb")\nopen(p, "rb")\nImage.open(p)\nos.open(p, 0)\np.read_text(encoding="utf-8")\n',
        encoding="utf-8",
    )
    assert [place.rpartition(":")[2] for place in implicit_encodings(source)] == list("123456")


@pytest.mark.parametrize(
    "verb", ["export net.safetensors -o out --layout both", "recipes init net.safetensors -o r.yaml"]
)
def test_files_are_utf_8_in_a_locale_without_letters(tmp_path, verb):
    zeros_below(tmp_path / "net.safetensors")
    command = [sys.executable, "-m", "sapp_cli", *verb.split()]
    ran = subprocess.run(command, cwd=tmp_path, env={**os.environ, **OLD}, capture_output=True, check=False, timeout=60)
    assert (ran.returncode, ran.stderr) == (0, b"")
    ran.stdout.decode("ascii")
    texts = [
        path.read_text(encoding="utf-8") for path in tmp_path.rglob("*") if path.suffix in (".md", ".yaml", ".json")
    ]
    assert any("×" in text or "→" in text for text in texts)


@any_bytes
def test_names_need_not_be_utf_8(sapp, digits, tmp_path, monkeypatch):
    folder = tmp_path / "f\udcff"
    folder.mkdir()
    monkeypatch.chdir(folder)
    shutil.copy(digits / "dense.safetensors", "n\udcff.safetensors")
    shutil.copy(digits / "recipe.yaml", "r\udcff.yaml")
    shutil.copy(digits / "digits.py", "g\udcff.py")
    shutil.copytree(digits / "data", "d\udcff")
    data = ["--set", "data.files.train=d\udcff/train.npz", "--set", "data.files.validation=d\udcff/validation.npz"]
    recipe = ["-r", "r\udcff.yaml", "--set", "model.factory=g\udcff.py:mlp", *data]
    short = ["--steps", "10", "--set", "train.evaluate_every=null"]
    ran = sapp("prune", "n\udcff.safetensors", *recipe, "-o", "o\udcff", *short, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["out"] == r"o\xff"
    out = folder / "o\udcff"
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    assert r"n\xff.safetensors" in manifest["inputs"]
    assert "# o&#92;xff\n" in (out / "README.md").read_text(encoding="utf-8")
    again = sapp("eval", "o\udcff", "-r", out / "recipe.yaml", "--json")  # what the run wrote names the same files
    assert again.code == 0, again.err
    assert sapp("plan", "n\udcff.safetensors", *recipe, *short).code == 0
    assert sapp("check", "o\udcff").code == 0
    assert sapp("export", "n\udcff.safetensors", "-o", "e\udcff", "--layout", "dense", "--json").code == 0
    assert sapp("report", "o\udcff", "--against", "e\udcff", "--html", "h\udcff.html", "--markdown").code == 0
    assert sapp("recipes", "init", "n\udcff.safetensors", "-o", "i\udcff.yaml").code == 0
    missing = sapp("report", "no\udcff.safetensors", "--json")
    assert missing.code == 4
    assert missing.json["error"]["message"].startswith(r"no\xff.safetensors: ")


def npz(folder):
    np.savez(folder / "data/train.npz", **{HOSTILE: np.ones((4, 64), "f4")})


def columns(folder):
    (folder / "rows.jsonl").write_text(json.dumps({HOSTILE: "x"}) + "\n", encoding="utf-8")
    return ["--set", "data.source=datasets", "--set", "data.files.train=rows.jsonl"]


def setting(folder):
    return ["--set", f"optimizer.name={HOSTILE[-1]}x"]


@pytest.mark.parametrize("world", [npz, columns, setting])
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_what_comes_out_of_files_cannot_steer_the_terminal(sapp, digits, tmp_path, monkeypatch, world, more):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(digits, tmp_path, dirs_exist_ok=True)
    ran = sapp("prune", "dense.safetensors", "-r", "recipe.yaml", "-o", "out", *(world(tmp_path) or []), *more)
    assert ran.code in (2, 4)
    assert not CONTROL.search(ran.err + ran.out)
    if world is npz:
        assert SHOWN in ran.err


def test_a_text_in_colours_cannot_steer_the_terminal(monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stdout", shown)
    console = VisibleConsole("stdout", force_terminal=True, color_system="standard")
    console.print(f"a [b] {HOSTILE}", style="bold")
    assert shown.getvalue().replace(r"\x07", "") == f"\x1b[1ma [b] {SHOWN}\x1b[0m\n".replace(
        r"\x07", ""
    )  # rich drops it


def test_a_csv_holds_no_formula_and_no_control_character(sapp, tmp_path):
    names = ["=cmd|' /C calc'!A0.weight", "+1.weight", "-1.weight", "@x.weight", "\t=1.weight", f"{HOSTILE}.weight"]
    save_floats(tmp_path / "m.safetensors", **{name: np.ones((2, 2)) for name in names})
    ran = sapp("report", tmp_path / "m.safetensors", "--csv")
    assert not CONTROL.search(ran.out)
    first = {row[0] for row in list(csv.reader(io.StringIO(ran.out)))[1:]}
    assert first == {*(f"'{name}" for name in names[:4]), r"'\t=1.weight", f"{SHOWN}.weight"}


@pytest.mark.parametrize("name", ["x\n# owned<script>", 'x"`](http://x)\x1b'])
def test_the_card_takes_names_and_numbers_for_text(sapp, tmp_path, name):
    out = write_output(tmp_path / "out")
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    metric = {"dense": 1.0, "pruned": 0.5, "higher_is_better": True}
    manifest |= {"metrics": {f"{name} |\n\n# owned <img src=x>": metric}, "method": f"a`\n# owned {name}"}
    (out / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    made = tmp_path / name.replace("/", ":")
    assert sapp("export", out, "-o", made, "--layout", "both").code == 0
    card = (made / "README.md").read_text(encoding="utf-8")
    headings = [line for line in card.splitlines() if line.startswith("#") and "# This" not in line]
    assert len(headings) == 2  # the name and how to load it
    assert headings[1] == "## How to load it"
    assert not CONTROL.search(card)
    assert not re.search("<(?!/?code>)", re.sub("```.*?```", "", card, flags=re.DOTALL))
    literal = re.search(r"sapp\.load\(model, (.*)\)  #", card)
    assert literal
    assert ast.literal_eval(literal[1]) == made.name


def test_a_tensor_keeps_its_name_whatever_it_is(sapp, tmp_path):
    save_file({HOSTILE: np.ones((4, 4), np.float32)}, tmp_path / "m.safetensors")
    assert sapp("export", tmp_path / "m.safetensors", "-o", tmp_path / "out", "--layout", "dense").code == 0
    assert list(load_file(tmp_path / "out/model.safetensors")) == [HOSTILE]


def test_an_error_is_a_document_too(sapp, digits, tmp_path):
    ran = sapp("report", tmp_path / "none.safetensors", "--json")
    message = f"{tmp_path}/none.safetensors: no such file or folder"
    assert (ran.code, ran.err) == (4, f"error: {message}\n")
    assert ran.json == {"error": {"code": 4, "message": message, "problems": [message]}}
    recipe = tmp_path / "r.yaml"
    recipe.write_text("train: {steps: x}\nprune: {sparsity: 2}\n", encoding="utf-8")
    ran = sapp("plan", digits / "dense.safetensors", "-r", recipe, "--json")
    lines = ran.err.splitlines()
    assert ran.json["error"] == {
        "code": 2,
        "message": "\n".join(line.removeprefix("error: ") for line in lines),
        "problems": [line.removeprefix("error: ") for line in lines],
    }
    assert len(lines) == 2
    ran = sapp("report", "--jason", "--json")
    assert ran.json["error"]["code"] == ran.code == 2
    assert "--jason" in ran.json["error"]["message"]


def test_a_gate_that_is_not_met_is_one_document(sapp, tmp_path):
    path = save_floats(tmp_path / "m.safetensors", **{"a.weight": np.ones((2, 2))})
    ran = sapp("check", path, "--min-sparsity", "0.5", "--json")
    assert ran.code == 3
    assert "error" not in ran.json


def test_nothing_of_the_current_folder_is_run(tmp_path):
    save_floats(tmp_path / "m.safetensors", **{"a.weight": np.ones((2, 2))})
    for name in ("re", "json", "typing", "os", "pathlib", "__future__", "multiprocessing"):
        (tmp_path / f"{name}.py").write_text('open("ran", "w")\n', encoding="utf-8")
    command = [sys.executable, "-m", "sapp_cli", "report", "m.safetensors", "--json"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False, timeout=60)
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert json.loads(ran.stdout)["model"]["parameters"] == 4
    assert not (tmp_path / "ran").exists()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 cannot be told to leave the current folder out")
def test_a_process_of_ours_runs_nothing_of_the_current_folder(tmp_path):
    for name in ("re", "multiprocessing", "pickle"):
        (tmp_path / f"{name}.py").write_text('open("ran", "w")\n', encoding="utf-8")
    source = tmp_path / "above"
    source.mkdir()
    (source / "program.py").write_text(
        "import os, sys\n"
        "from sapp_cli.cli.apart import call_apart\n"
        "def here(watcher):\n    return os.getcwd()\n"
        "if __name__ == '__main__':\n    os.chdir(sys.argv[1])\n    print(call_apart(here, None))\n",
        encoding="utf-8",
    )
    command = [sys.executable, str(source / "program.py"), str(tmp_path)]
    ran = subprocess.run(command, cwd=source, capture_output=True, encoding="utf-8", check=False, timeout=60)
    assert ran.stdout == f"{tmp_path}\n", ran.stderr
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("verb", [[], ["recipes"]])
def test_alone_it_prints_its_help(sapp, verb):
    ran = sapp(*verb)
    assert (ran.code, ran.err) == (0, "")
    assert ran == sapp(*verb, "--help")


def test_paths_of_a_recipe_that_is_named_begin_in_the_current_folder(sapp, digits, tmp_path, monkeypatch):
    from sapp_cli.recipe.load import load_recipe
    from sapp_cli.recipe.shipped import find_recipe

    tmp_path = tmp_path / "above" / "here"  # nothing of other tests lies beside it
    tmp_path.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    named = load_recipe("text-classification").recipe.data.files
    assert named.train == str(tmp_path / "train.jsonl")
    given = load_recipe(find_recipe("text-classification")).recipe.data.files
    assert given.train == str(find_recipe("text-classification").parent / "train.jsonl")
    (tmp_path / "digits.py").write_text("raise SystemExit\n", encoding="utf-8")  # not the one of the recipe
    assert load_recipe("digits").recipe.model.factory == f"{find_recipe('digits').parent / 'digits.py'}:mlp"
    ran = sapp("eval", digits / "dense.safetensors", "-r", "text-classification", "--set", "data.files.train=x.jsonl")
    assert ran.code == 4
    line = ran.err.splitlines()[-1]
    assert f"data.files.validation: no file {tmp_path}/validation.jsonl" in line
    assert line.endswith("; put it there, or copy the recipe and change it: sapp recipes cp text-classification .")
    assert "x.jsonl" not in line


@pytest.mark.parametrize(
    "command",
    [
        "plan no.pt -r recipe.yaml",
        "prune no.pt -r recipe.yaml -o out",
        "eval no.pt -r recipe.yaml",
        "compare no.pt -r recipe.yaml -o out",
        "bench no.pt --random-mask",
        "prune net.safetensors -r no.yaml -o out",
    ],
)
def test_a_missing_path_is_found_before_torch_is_imported(tmp_path, command):
    zeros_below(tmp_path / "net.safetensors")
    (tmp_path / "recipe.yaml").write_text("train: {steps: 9}\n", encoding="utf-8")
    program = "import sys; sys.modules['torch'] = None; from sapp_cli.cli.main import main; main()"
    ran = subprocess.run(
        [sys.executable, "-c", program, *command.split()],
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert ran.returncode in (2, 4), ran.stderr
    assert re.fullmatch(r"error: no\.(pt|yaml): no such file( or folder)?(; nearest: 'recipe.yaml')?\n", ran.stderr)
