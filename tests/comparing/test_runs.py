"""`sapp compare`, whole: real runs in processes of their own, kept, repeated, interrupted."""

import json
import re
import signal
import subprocess
import time

import pytest

from sapp_cli.checkpoint.lock import locked
from sapp_cli.cli.comparison_progress import last_line
from sapp_cli.comparing.cells import Cell, Record, Store, Variant
from sapp_cli.comparing.runs import _end, _Running
from sapp_cli.errors import UsageError
from tests.cli.test_startup import modules_after
from tests.runs import Running


def arguments(digits, out, *more):
    return [
        "compare",
        digits / "dense.safetensors",
        "-r",
        digits / "recipe.yaml",
        "-o",
        out,
        "--block-size",
        "8",
        *more,
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("compare") / "comparison"


TWO = ("--methods", "calm=magnitude,wild=magnitude", "--method-set", "wild:optimizer.lr=1e30", "--seeds", "1")
SHORT = ("--sparsity", "0.9", "--steps", "20", "--set", "train.evaluate_every=null", "--jobs", "2")


def test_a_comparison_is_made_once(sapp, digits, folder):
    ran = sapp(*arguments(digits, folder, *TWO, *SHORT, "--json"))
    assert ran.code == 0, ran.err
    said = ran.err.splitlines()
    assert said[0] == "2 cells to run; the checkpoint and the data are looked at first"
    assert said[1].startswith(f"{digits / 'dense.safetensors'}: ")
    assert said[2].startswith("training: ")
    cells = [f"{label}-block8-sparsity0.9-seed0" for label in ("calm", "wild")]
    assert said[3:5] == [f"cell {number}/2  {cell}  begins" for number, cell in enumerate(cells, 1)]
    ended = {line.split("  ")[1]: line for line in said[5:]}
    assert re.fullmatch(r"cell 1/2  \S+  accuracy 0\.\d{4} → 0\.\d{4}  \d+ s(  about \d+ s left)?", ended[cells[0]])
    assert ended[cells[1]].startswith(f"cell 2/2  {cells[1]}  exit code 6: scores of the blocks of hidden1.weight, ")
    calm, wild = ran.json["rows"]
    assert (calm["method"], wild["method"]) == ("calm", "wild")
    assert calm["values"] == {"0": calm["mean"]}
    assert calm["prunable_sparsity"] > 0.85
    assert calm["kept_multiply_adds"] < 0.2 * ran.json["dense"]["multiply_adds"]
    assert wild["mean"] is None
    assert wild["failures"][0]["exit_code"] == 6
    assert "training diverged" in wild["failures"][0]["error"]
    assert sorted(path.name for path in folder.iterdir()) == [
        *("cells", "comparison.csv", "comparison.html", "comparison.json", "comparison.md"),
        *("cost.png", "cost.svg", "sparsity.png", "sparsity.svg"),
    ]
    assert json.loads((folder / "comparison.json").read_text()) == ran.json
    out = folder / "cells" / "calm-block8-sparsity0.9-seed0"
    assert (out / "sparse" / "model.safetensors").is_file()
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["seed"], manifest["steps"], manifest["threads"]) == (0, 20, 1)
    assert manifest["metrics"]["accuracy"]["pruned"] == calm["mean"]

    again = sapp(*arguments(digits, folder, *TWO, *SHORT))
    assert again.code == 0
    assert again.err == "2 of 2 cells are there already\n"
    assert any(line.split() == ["wild", "diverged", "–", "–"] for line in again.out.splitlines())
    again = modules_after(*arguments(digits, folder, *TWO, *SHORT))
    assert "matplotlib" in again  # the whole way, from the settings to the plots
    assert not again & {"torch", "transformers", "accelerate"}
    shown = sapp(*arguments(digits, folder, *TWO, *SHORT, "--csv", "--metric", "loss", "--quiet"))
    assert shown.err == ""
    assert shown.out.startswith("method,block,")


def wait_for(log, words=""):
    """Until the log is there, with these words in it."""
    for _ in range(600):
        if log.is_file() and words in log.read_text():
            return
        time.sleep(0.1)
    pytest.fail(f"no '{words}' in {log}")


def test_a_sigterm_says_what_is_done_and_how_to_go_on(digits, folder, tmp_path):
    before = (folder / "comparison.json").read_bytes()
    command = map(str, arguments(digits, folder, *TWO, *SHORT[2:], "--sparsity", "0.9,0.5"))
    running = Running(tmp_path / "said.log", *command)
    wait_for(folder / "cells" / "calm-block8-sparsity0.5-seed0.log")
    running.send(signal.SIGTERM)
    code, said = running.finish()
    assert code == 143, said
    lines = [line for line in said.splitlines() if "cell" in line]
    assert lines == [
        "2 cells to run; the checkpoint and the data are looked at first",
        "2 of 4 cells are there already",
        "cell 3/4  calm-block8-sparsity0.5-seed0  begins",
        "cell 4/4  wild-block8-sparsity0.5-seed0  begins",
        "the running cells save their states",
        "sapp: interrupted; 2 of 4 cells are done, the same command goes on",
    ]
    assert (folder / "comparison.json").read_bytes() == before
    assert not (folder / "cells" / "calm-block8-sparsity0.5-seed0").exists()


@pytest.mark.parametrize(("code", "kept"), [(0, 0), (6, 6), (143, None)])
def test_a_cell_that_comes_to_its_own_end_while_it_is_told_to_stop_is_kept(tmp_path, code, kept):
    store, cell = Store(tmp_path), Cell(Variant("norm", "magnitude"), "8", 0.5, 0, "hash")
    store.note(cell, Record("hash"))
    store.log(cell).write_text("step 3/20\nerror: the loss is nan\n")
    script = f"trap 'exit {code}' TERM; echo ready; while :; do sleep 0.02; done"
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        _end([_Running(cell, process, time.monotonic())], store)
    assert store.record(cell).exit_code == kept
    assert store.record(cell).error == ("the loss is nan" if kept == 6 else "")


def test_an_interrupted_comparison_goes_on(sapp, digits, tmp_path):
    long = (
        "--methods",
        "magnitude",
        "--sparsity",
        "0.5",
        "--seeds",
        "1",
        "--steps",
        "150",
        "--set",
        "train.log_every=1",
    )
    running = Running(tmp_path / "said.log", *map(str, arguments(digits, tmp_path / "out", *long)))
    log = tmp_path / "out" / "cells" / "magnitude-block8-sparsity0.5-seed0.log"
    wait_for(log, "step 1/150")
    running.send(signal.SIGINT)
    code, said = running.finish()
    assert code == 130, said
    assert said.splitlines()[-1] == "sapp: interrupted; 0 of 1 cells are done, the same command goes on"
    assert "the state is saved" in log.read_text()
    ran = sapp(*arguments(digits, tmp_path / "out", *long, "--json"))
    assert ran.code == 0, ran.err
    assert "going on after step" in log.read_text()
    assert ran.json["steps"] == 150


def test_cells_end_with_a_comparison_that_is_killed_and_the_same_command_resumes_them(sapp, digits, tmp_path):
    long = ("--methods", "magnitude,acdc", "--sparsity", "0.5", "--seeds", "1", "--jobs", "2", "--steps", "400")
    command = arguments(
        digits, tmp_path / "out", *long, "--set", "train.log_every=1", "--set", "train.evaluate_every=null"
    )
    running = Running(tmp_path / "said.log", *map(str, command))
    cells = [tmp_path / "out" / "cells" / f"{method}-block8-sparsity0.5-seed0" for method in ("magnitude", "acdc")]
    for cell in cells:
        wait_for(cell.with_name(f"{cell.name}.log"), "step 1/400")
    for other in (command, ["prune", digits / "dense.safetensors", "-r", digits / "recipe.yaml", "-o", cells[0]]):
        beside = sapp(*other)
        assert beside.code == 2
        assert ": another run is writing there: process " in beside.err
    running.send(signal.SIGKILL)
    assert running.finish()[0] == -signal.SIGKILL
    for cell in cells:
        wait_for(cell.with_name(f"{cell.name}.log"), "; the state is saved, ")
        for _ in range(600):
            try:
                with locked(cell):
                    break
            except UsageError:
                time.sleep(0.1)
        else:
            pytest.fail(f"{cell}: its run goes on")
        assert not cell.exists()
        assert list(cell.with_name(f".{cell.name}.sapp-run").glob("step-*"))
    short = sapp(*command, "--set", "train.save_steps=1000")
    assert short.code == 0, short.err
    assert all("going on after step" in cell.with_name(f"{cell.name}.log").read_text() for cell in cells)
    assert sorted(path.name for path in tmp_path.glob(".*")) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--methods", "magnitud"],
            "'magnitud' is no method; there are sequential-attention, acdc, powerprop, magnitude, ",
        ),
        (["--methods", "magnitude,magnitude"], "names something twice"),
        (["--methods", "a/b=magnitude"], "'a/b' is no label"),
        (["--sparsity", "0.9,x"], "'x' is no number; write 0.8,0.9"),
        (["--sparsity", "0.9,"], "has an empty place in its list"),
        (["--block-size", "8,0"], "'0' is no block size; write 8,16x32"),
        (["--seeds", "0"], "'0': write a number of seeds, 3, or the seeds, 3,4,5 (one: 3,)"),
        (
            ["--method-set", "acdc:prune.score=norm", "--methods", "magnitude"],
            "write METHOD:KEY=VALUE with one of magnitude",
        ),
        (["--sparsity", "0.9,1.5"], "prune.sparsity: 1.5 is too large"),
        (["--set", "prune.score=attention"], "score attention needs method sequential-attention"),
        (["--set", "model.factory=digits.py:cnn3"], "model.factory: "),
        (["--metric", "f1"], "--metric f1: the runs have accuracy, loss"),
        (["--steps", "2"], "steps leave none for the phase"),
        (["--set", "train.device=cuda"], "train.device: cuda, but torch sees no CUDA device"),
    ],
)
def test_mistakes_are_told_before_anything_runs(sapp, digits, tmp_path, options, message, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    ran = sapp(*arguments(digits, tmp_path / "out", *options))
    assert ran.code == 2
    assert message in " ".join(ran.err.replace("│", " ").split())
    assert not (tmp_path / "out").exists()


def test_what_every_cell_would_end_with_stops_it_at_the_first(sapp, digits, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    options = ("--methods", "magnitude", "--seeds", "2", "--set", "train.compile=true")
    ran = sapp(*arguments(digits, tmp_path / "out", *SHORT[:-2], *options))
    assert ran.code == 2
    cell = "magnitude-block8-sparsity0.9-seed"
    assert [line.split("  ")[1:3] for line in ran.err.splitlines() if line.startswith("cell ")] == [
        [f"{cell}0", "begins"],
        [f"{cell}0", "exit code 2: --set: train.compile: torch.compile needs a C++ compiler on a CPU, and there is "
         "no 'no-such-compiler'; install one, name it in the environment as CXX, or leave it out"],
    ]  # fmt: skip
    assert ran.err.splitlines()[-1].startswith("error: --set: train.compile: torch.compile needs a C++ compiler")


def test_a_variant_with_data_of_its_own_is_looked_at_too(sapp, digits, tmp_path):
    """Before any cell begins, though the model and the data of the first variant are sound."""
    options = ("--methods", "magnitude,other=magnitude", "--method-set", "other:data.files.train=no.npz")
    ran = sapp(*arguments(digits, tmp_path / "out", *SHORT, *options))
    assert ran.code == 4
    assert ran.err.splitlines()[0] == "6 cells to run; the checkpoint and the data are looked at first"
    assert ran.err.splitlines()[-1].startswith("error: --set: data.files.train: no file")
    assert not (tmp_path / "out").exists()


def test_a_terminal_shows_what_the_running_cells_said_last(tmp_path):
    log = tmp_path / "cell.log"
    assert last_line(log) == ""
    log.write_text("step 20/60  sparse\nstep 40/60  spar")
    assert last_line(log) == "step 40/60  spar"
    log.write_text("x" * 3000 + "\n" + "y" * 2000)
    assert last_line(log) == "y" * 500


def test_every_method_is_tuned_alike_before_the_cells_begin(sapp, digits, tmp_path):
    command = [
        "compare", str(digits / "dense.safetensors"), "-r", str(digits / "recipe.yaml"), "-o", str(tmp_path / "comparison"),
        "--methods", "magnitude,gradual-magnitude", "--sparsity", "0.9", "--block-size", "8", "--seeds", "1", "--steps", "40",
        "--set", "train.evaluate_every=null", "--tune", "-j", "2",
    ]  # fmt: skip
    ran = sapp(*command)
    assert ran.code == 0, ran.err
    rows = json.loads((tmp_path / "comparison" / "comparison.json").read_text())["rows"]
    searches = {
        path.name: json.loads(path.read_text())["search"]
        for path in (tmp_path / "comparison" / "tuning").glob("*.json")
    }
    assert set(searches) == {f"{row['method']}-block8-sparsity0.9-seed1000.json" for row in rows}
    first = [[(t["learning_rate"], t["steps"]) for t in search["trials"]][:3] for search in searches.values()]
    assert first == [[(5e-4, 20), (1e-3, 20), (2e-3, 20)]] * 2  # same grid, same steps
    for row in rows:
        rate = searches[f"{row['method']}-block8-sparsity0.9-seed1000.json"]["learning_rate"]
        assert row["learning_rate"] == rate
        out = tmp_path / "comparison" / "cells" / f"{row['method']}-block8-sparsity0.9-seed0"
        assert f"  lr: {rate!r}" in (out / "recipe.yaml").read_text().splitlines()
    line = next(
        line for line in ran.out.splitlines() if line.startswith("learning rates found alike for all, 8×8, 90.0 %: ")
    )
    assert [part.split()[0] for part in line.partition(": ")[2].split(", ")] == ["magnitude", "gradual-magnitude"]
    assert line in (tmp_path / "comparison" / "comparison.html").read_text()
    again = sapp(*command)
    assert "begins" not in again.err and again.out == ran.out
