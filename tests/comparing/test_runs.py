"""`sapp compare`, whole: real runs in processes of their own, kept, repeated, interrupted."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest


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
    calm, wild = ran.json["rows"]
    assert (calm["method"], wild["method"]) == ("calm", "wild")
    assert calm["values"] == {"0": calm["mean"]}
    assert calm["prunable_sparsity"] > 0.85
    assert calm["kept_multiply_adds"] < 0.2 * ran.json["dense"]["multiply_adds"]
    assert wild["mean"] is None
    assert wild["failures"][0]["exit_code"] == 6
    assert "training diverged" in wild["failures"][0]["error"]
    assert sorted(path.name for path in folder.iterdir()) == [
        *("cells", "comparison.csv", "comparison.json", "comparison.md"),
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
    shown = sapp(*arguments(digits, folder, *TWO, *SHORT, "--csv", "--metric", "loss", "--quiet"))
    assert shown.err == ""
    assert shown.out.startswith("method,block,")


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
    command = [sys.executable, "-m", "sapp_cli", *map(str, arguments(digits, tmp_path / "out", *long))]
    running = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    log = tmp_path / "out" / "cells" / "magnitude-block8-sparsity0.5-seed0.log"
    for _ in range(600):
        if log.is_file() and "step 1/150" in log.read_text():
            break
        time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    stderr = running.communicate(timeout=60)[1].decode()
    assert running.returncode == 130, stderr
    assert stderr == "sapp: interrupted; 0 of 1 cells are done, the same command goes on\n"
    assert "the state is saved" in log.read_text()
    ran = sapp(*arguments(digits, tmp_path / "out", *long, "--json"))
    assert ran.code == 0, ran.err
    assert "going on after step" in log.read_text()
    assert ran.json["steps"] == 150


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
        (["--seeds", "0"], "'0': write a number of seeds, 3, or the seeds, 3,4,5"),
        (
            ["--method-set", "acdc:prune.score=norm", "--methods", "magnitude"],
            "write METHOD:KEY=VALUE with one of magnitude",
        ),
        (["--sparsity", "0.9,1.5"], "prune.sparsity: 1.5 is too large"),
        (["--set", "prune.score=attention"], "score attention needs method sequential-attention"),
    ],
)
def test_mistakes_are_told_before_anything_runs(sapp, digits, tmp_path, options, message, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    ran = sapp(*arguments(digits, tmp_path / "out", *options))
    assert ran.code == 2
    assert message in " ".join(ran.err.replace("│", " ").split())
    assert not (tmp_path / "out").exists()


def test_a_missing_file_stops_it_at_once(sapp, digits, folder):
    ran = sapp(
        *arguments(digits, folder, *SHORT[:-2], "--methods", "magnitude", "--seeds", "2"),
        *("--set", "data.files.train=no.npz"),
    )
    assert ran.code == 4
    assert "cell 1/2" in ran.err
    assert "cell 2/2" not in ran.err
    assert "data.files.train: no file" in ran.err.splitlines()[-1]
