"""The benchmark of sparse phases measures the three forms of the same step."""

import json

import pytest
import torch

from scripts import bench_sparse_phases


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)  # the tests' own number stays
    monkeypatch.setattr(bench_sparse_phases, "WIDTH", 32)
    monkeypatch.setattr(bench_sparse_phases, "HIDDEN", 48)
    monkeypatch.setattr(bench_sparse_phases, "LAYERS", ((32, 24),))
    monkeypatch.setattr(bench_sparse_phases, "LEAST_TURNS", 1)


def test_the_forms_take_the_same_step():
    losses = {}
    for form in ("masked", "kept-blocks"):
        torch.manual_seed(0)
        model = bench_sparse_phases.mlp(torch.nn.ReLU)
        run = bench_sparse_phases.step_of(model, 16, form, "sequential-attention", block=8)
        for _ in range(3):
            run()
        losses[form] = model(torch.ones(4, 32))
    torch.testing.assert_close(losses["kept-blocks"], losses["masked"])


@pytest.mark.parametrize("more", [[], ["--layers"]], ids=["mlp", "layers"])
def test_the_figures_go_to_a_file_with_their_machine(more, tmp_path, capsys):
    out = tmp_path / "figures.json"
    settings = ["--block", "8", "--sparsity", "0.5", "--tokens", "16", "--seconds", "0", "--out", str(out)]
    bench_sparse_phases.main([*settings, *more])
    (cell,) = json.loads(out.read_text())["cells"]
    assert (cell["block"], cell["sparsity"], cell["tokens"]) == (8, 0.5, 16)
    assert set(cell["seconds"]) == set(cell["cpu_seconds"]) == {"dense", "masked", "kept"}
    shown = capsys.readouterr().out.splitlines()[-1]
    assert f"{cell['seconds']['dense'] / cell['seconds']['kept']:.2f}×" in shown
