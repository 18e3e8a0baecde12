"""What the files alone say of the layers, and records that say nonsense."""

import json

import numpy as np
import pytest

from sapp_cli.checkpoint.source import open_checkpoint
from sapp_cli.errors import CheckpointError
from sapp_cli.report.inspect import EXPERTS, layer_facts
from sapp_cli.report.run import home_of, read_run
from tests.checkpoint.files import save, save_floats
from tests.report.outputs import layer, write_manifest, write_output


def test_every_floating_weight_of_two_axes_is_a_layer(tmp_path):
    tensors = {
        "linear.weight": ("F32", np.ones((2, 3), np.float32)),
        "conv.weight": ("F16", np.ones((2, 3, 5, 5), np.float16)),
        "norm.weight": ("F32", np.ones(3, np.float32)),
        "table": ("F32", np.ones((2, 3), np.float32)),
        "packed.weight": ("I32", np.ones((2, 3), np.int32)),
        "empty.weight": ("F32", np.ones((0, 3), np.float32)),
        "mlp.experts.gate_up_proj": ("F32", np.ones((2, 3, 4), np.float32)),
    }
    facts = layer_facts(open_checkpoint(save(tmp_path / "m.safetensors", tensors)), None)
    assert [(fact.name, fact.layout and fact.layout.matrix, fact.prunable) for fact in facts] == [
        ("linear.weight", (2, 3), True),
        ("conv.weight", (2, 75), True),
        ("empty.weight", None, True),
        ("mlp.experts.gate_up_proj", None, False),
    ]
    assert facts[-1].reason == EXPERTS == "3-D expert weights are not supported"


def test_parts_of_an_output_know_where_they_belong(tmp_path):
    out = write_output(tmp_path / "out")
    for part in ("", "sparse", "model.safetensors", "sparse/model.safetensors"):
        assert home_of(open_checkpoint(out / part)) == out
    stranger = save_floats(out / "other.safetensors", **{"first.weight": np.ones((4, 6))})
    assert home_of(open_checkpoint(stranger)) is None
    assert [fact.pruned for fact in layer_facts(open_checkpoint(stranger), None)] == [None]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"name": 3}, "is not a sparsity report of sapp: a layer has no name"),
        ({"block": [2]}, "'first.weight': 'block' is missing, or not what a sparsity report has there"),
        ({"block": [0, 2]}, "'first.weight': 'block' is missing, or not what a sparsity report has there"),
        ({"block": [True, 2]}, "'first.weight': 'block' is missing, or not what a sparsity report has there"),
        ({"layout": "spiral"}, "'first.weight': 'layout' is missing, or not what a sparsity report has there"),
        ({"target": 1.5}, "'first.weight': 'target' is missing, or not what a sparsity report has there"),
        ({"target": float("nan")}, "'first.weight': 'target' is missing, or not what a sparsity report has there"),
        ({"pruned": "yes"}, "'first.weight': 'pruned' is missing, or not what a sparsity report has there"),
        ({"sparsity": None}, "'first.weight': 'sparsity' is missing, or not what a sparsity report has there"),
        ({"kept_blocks": -1}, "'first.weight': 'kept_blocks' is missing, or not what a sparsity report has there"),
        ({"reason": 7}, "'first.weight': 'reason' is missing, or not what a sparsity report has there"),
    ],
)
def test_a_record_of_nonsense_is_refused(tmp_path, changes, problem):
    out = write_output(tmp_path / "out")
    path = out / "sparsity.json"
    path.write_text(json.dumps({"layers": [{**layer("first.weight", [4, 6]), **changes}]}))
    with pytest.raises(CheckpointError) as error:
        layer_facts(open_checkpoint(out), None)
    assert str(error.value) == f"{path}: {problem}"


def test_a_layout_that_the_shape_cannot_have_is_refused(tmp_path):
    out = write_output(tmp_path / "out", sparse=False)
    save_floats(out / "model.safetensors", **{"first.weight": np.ones((2, 2, 2))})
    write_manifest(out)
    with pytest.raises(CheckpointError) as error:
        layer_facts(open_checkpoint(out), None)
    assert (
        str(error.value) == f"{out / 'sparsity.json'}: 'first.weight': layout linear does not fit its shape [2, 2, 2]"
    )


def test_a_run_is_read_back(tmp_path):
    run = read_run(write_output(tmp_path / "out"))
    assert (run.method, run.steps, run.sapp_version) == ("magnitude", 40, "0.1.0")
    assert [(phase.phase, phase.first_step, phase.last_step) for phase in run.phases] == [
        ("dense", 1, 10),
        ("sparse", 11, 40),
    ]
    assert run.loss == ((10, 2.0), (20, 0.05), (40, 0.5))
    assert run.sparsity == ((10, 0.0), (20, 2 / 3), (40, 2 / 3))
    assert run.evaluations == {"accuracy": ((10, 0.9), (40, 0.96)), "loss": ((10, 0.7), (40, 0.45))}
    assert run.metrics["accuracy"].drop == pytest.approx(0.01)
    assert run.metrics["loss"].drop == pytest.approx(-0.05)


def test_a_manifest_of_another_program_is_no_run(tmp_path):
    (tmp_path / "manifest.json").write_text('{"name": "an app"}')
    assert read_run(tmp_path) is read_run(None) is None


@pytest.mark.parametrize(
    ("file", "text", "problem"),
    [
        ("manifest.json", '{"sapp_version": "1", "metrics": []}', "'metrics' is not a JSON object"),
        (
            "manifest.json",
            '{"sapp_version": "1", "metrics": {"a": {"dense": "1"}}}',
            "metric 'a' has no numbers 'dense' and 'pruned'",
        ),
        (
            "manifest.json",
            '{"sapp_version": "1", "phases": [{"phase": "dense", "round": -1}]}',
            "a phase's round is not a count",
        ),
        ("manifest.json", '{"sapp_version": "1", "steps": 1e3}', "steps is not a count"),
        ("metrics.jsonl", '{"step": 1}\n{"step": "2"}\n', "line 2 is no record of a step"),
        ("metrics.jsonl", '{"step": 1}\n[1]\n', "line 2 is not a JSON object"),
    ],
)
def test_records_of_a_run_that_are_damaged_are_refused(tmp_path, file, text, problem):
    write_manifest(tmp_path)
    (tmp_path / file).write_text(text)
    with pytest.raises(CheckpointError) as error:
        read_run(tmp_path)
    assert str(error.value) == f"{tmp_path / file}: {problem}"
