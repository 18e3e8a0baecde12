"""What stands at the end of a run and below a table, and what the progress lines say: whole lines."""

import re
import shlex

import numpy as np
import pytest
from rich.console import Console

from sapp_cli.cli import progress
from sapp_cli.core.schedule import Moment, Phase
from sapp_cli.training.loop import StepRecord
from scripts.make_checkpoints import make_bert
from tests.checkpoint.files import save_floats


@pytest.fixture
def words(tmp_path, monkeypatch):
    """`prune` of a Hugging Face folder, but for OUT."""
    monkeypatch.chdir(tmp_path)
    make_bert(tmp_path / "bert")
    for name in ("train", "validation"):
        lines = [f'{{"text": "text number {number}", "label": {number % 3}}}' for number in range(8)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    return ("prune", "bert", "-r", "text-classification", "--steps", "10", "--set", "prune.min_blocks=20")


def test_a_run_ends_with_the_line_that_uploads_its_output(sapp, words, tmp_path):
    ran = sapp(*words, "-o", "my out")
    assert ran.code == 0, ran.err
    written, upload = ran.out.splitlines()[-2:]
    assert written == "written to   my out"
    assert upload == "to publish   hf upload USER/NAME 'my out'"
    assert shlex.split(upload)[-1] == "my out"
    assert (tmp_path / "my out" / "config.json").is_file()


def test_an_output_that_the_hub_cannot_open_is_not_offered_to_it(sapp, digits, tmp_path):
    """A bare file of weights has no config.json."""
    ran = sapp(
        "prune", digits / "dense.safetensors", "-r", digits / "recipe.yaml", "-o", tmp_path / "o\nut", "--steps", "12"
    )
    assert ran.out.splitlines()[-1] == f"written to   {tmp_path}/o\\nut"  # on one line
    assert "hf upload" not in ran.out + ran.err


def record(step, steps, seconds, **more):
    moment = Moment(step, Phase.SPARSE, 0, 1.0, begins=False, after_dense=False, dense_ahead=False)
    return StepRecord(moment, steps, 0.5, {}, 1e-3, 0.9, seconds, **more)


def test_a_plain_line_says_what_each_of_its_figures_is(capsys):
    with progress.ProgressWatcher(quiet=False, verbose=False) as watcher:
        watcher.step(record(19, 200, 4.0))
        watcher.step(record(20, 200, 4.2))  # between two lines
        watcher.step(record(59, 200, 120.0, metrics={"accuracy": 0.75}))
    assert capsys.readouterr().err.splitlines() == [
        # 20 steps in 4 s, so 180 more take 36 s
        "step 20/200  sparse  sparsity 90.0 %  loss 0.5000  5.00 steps/s  4 s elapsed  36 s left",
        # 60 in 120 s: 140 more take 280 s
        "step 60/200  sparse  sparsity 90.0 %  loss 0.5000  accuracy 0.7500  0.50 steps/s  2 min 00 s elapsed  4 min 40 s left",
    ]


def test_the_live_line_has_a_label_for_every_clock(monkeypatch, capsys):
    console = Console(stderr=True, force_terminal=True, width=100, color_system=None)
    monkeypatch.setattr(progress, "stderr", lambda: console)
    with progress.ProgressWatcher(quiet=False, verbose=False) as watcher:
        for step in range(3):
            watcher.step(record(step, 200, 4.0))
    shown = capsys.readouterr().err  # drawn once more before it is erased
    assert "sparse · sparsity 90.0 % · loss 0.5000" in shown
    assert re.search(r" 3/200 +(\S+ steps/s)? +\d:\d\d:\d\d elapsed +[-\d:]+ left", shown), shown
    rows = re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", shown).replace("\r", "\n").split("\n")
    assert max(map(len, rows)) <= 100 - 8  # ^C has room behind it


def test_a_layer_that_cannot_be_compared_stands_below_the_table_with_the_reason(sapp, tmp_path):
    here = save_floats(tmp_path / "here.safetensors", **{"a.weight": np.ones((16, 16)), "b.weight": np.ones((16, 32))})
    there = save_floats(
        tmp_path / "there.safetensors", **{"a.weight": np.zeros((16, 16)), "b.weight": np.ones((32, 16))}
    )
    ran = sapp("report", here, "--against", there)
    against = ran.out.splitlines().index(f"against {there}")
    head, first, second, reason = ran.out.splitlines()[against + 1 :]
    assert head.split("  ")[0] == "layer"
    assert first.split() == ["a.weight", "0", "1", "0", "not", "finite"]  # relative to weights that are all zero
    assert second.split() == ["b.weight", "–", "–", "–", "–"]  # a reason is not a number
    assert reason.startswith("not compared, ") and reason.endswith(": b.weight"), reason
    assert "16×32" in reason and "32×16" in reason


def test_a_new_recipe_says_what_to_do_next_without_a_file_that_only_a_checkout_has(sapp, tmp_path):
    save_floats(tmp_path / "net.safetensors", **{"a.weight": np.ones((160, 160))})
    lines = sapp("recipes", "init", tmp_path / "net.safetensors").out.splitlines()
    assert lines[1:5] == [
        "#",
        "# Look first, without training and without the data:  sapp plan CHECKPOINT -r THIS_FILE",
        "# Then:                                               sapp prune CHECKPOINT -r THIS_FILE -o OUT",
        "# All keys and their meaning: `sapp recipes schema`; editors show them while you type.",
    ]
    assert not any("docs/" in line for line in lines)
    assert sapp("recipes", "schema").json["properties"].keys() >= {"data", "objective", "prune"}
