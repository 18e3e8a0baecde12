"""The benchmark of the masks' cost takes the phases it names, and the check of predictions compares what it says."""

import json

import pytest

from sapp_cli.recipe.load import load_recipe
from scripts import bench_training, check_predictions
from scripts.bench_training import Case


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(bench_training, "CASES", {"mlp-512": Case((32, 64, 32), 8)})


def test_every_phase_is_compared_with_the_plain_step_of_its_turn(tiny):
    found = bench_training.overheads("mlp-512", compiled=False, block=8, seconds=0.0)
    assert [each.phase for each in found] == ["dense", "sparsification", "sparse"]
    for each in found:
        assert each.plain_seconds > 0
        assert each.quartiles[0] <= each.ratio <= each.quartiles[1]


def test_figures_go_to_a_file_with_their_machine(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench_training.torch, "set_num_threads", lambda count: None)  # the tests' own number stays
    out = tmp_path / "training.json"
    bench_training.main(["--case", "mlp-512", "--seconds", "0", "--no-memory", "--out", str(out), "--block-size", "8"])
    written = json.loads(out.read_text())
    assert {each["memory"] for each in written["overheads"]} == {None}
    assert written["machine"]["torch"]
    assert len(capsys.readouterr().out.splitlines()) == 2 + 3


def test_memory_is_measured_from_before_the_network_on(tiny):
    assert 0 <= bench_training.peak("mlp-512", "sparse", compiled=False, block=8) < 2000


@pytest.mark.parametrize("name", check_predictions.CASES)
def test_the_recipes_of_the_predictions_load(tmp_path, name):
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(check_predictions.recipe(check_predictions.CASES[name])))
    assert load_recipe(path).recipe.train.steps == check_predictions.CASES[name].steps


def test_a_prediction_is_off_by_its_share_of_what_was_used():
    outcome = check_predictions.Outcome("digits", "memory", 450e6, 500e6)
    assert outcome.error == pytest.approx(-0.1)
    assert check_predictions.line(outcome).split() == [
        "digits",
        "memory",
        "450.0",
        "MB",
        "predicted",
        "500.0",
        "MB",
        "used",
        "-10%",
    ]
