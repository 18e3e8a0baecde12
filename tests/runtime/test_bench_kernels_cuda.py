"""The benchmark for a GPU says so where there is none; what it measures with is run by Triton's interpreter."""

import json
from dataclasses import replace

import pytest
import torch

from scripts import bench_kernels_cuda as bench

CPU = torch.device("cpu")


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as end:
        bench.main(["--quick"])
    assert end.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "bench_kernels_cuda: no GPU that torch can use is here, so there is nothing to measure\n"


@pytest.mark.usefixtures("interpreted")
def test_every_way_is_checked_and_measured():
    weight = bench.random_weight((48, 64), (16, 16), 0.75, torch.float32, CPU)
    assert len(weight.col) == 3
    cell = bench.measure(weight, 3, budget=0.0)
    measured = {bench.family(way) for way in cell.seconds}
    assert measured == {"dense", "torch", "triton"}
    assert list(cell.failed) == ["torch-bsr"]  # torch defines it where there is a GPU
    assert cell.sparsity == 0.75
    assert cell.tile == min((way for way in cell.seconds if "triton" in way), key=cell.seconds.get)
    assert cell.over_dense == cell.seconds["dense"] / cell.seconds[cell.tile]
    assert cell.over_torch is None
    assert cell.layer_over_dense == cell.layer["dense"] / cell.layer["block_sparse"]
    with_torch = replace(cell, seconds={"dense": 3e-4, "torch-bsr": 2e-4, cell.tile: 1e-4}, failed={}, chosen=cell.tile)
    assert (with_torch.over_dense, with_torch.over_torch) == (pytest.approx(3), pytest.approx(2))
    shown = bench.line(replace(with_torch, layer={"dense": 3e-4, "block_sparse": 1e-4}))
    assert shown == (
        f" float32    48×64    16×16    75%    3   3.00×   2.00×   3.00×: {cell.tile}   {cell.tile} 100.0  torch-bsr 200.0  "
        "dense 300.0"
    )
    written = json.loads(json.dumps(with_torch.as_json()))
    assert (written["over_torch"], written["tile"], written["rows"]) == (pytest.approx(2), cell.tile, 3)


def test_a_way_that_is_wrong_is_not_timed():
    weight = bench.random_weight((32, 32), (16, 16), 0.5, torch.float32, CPU)
    x = torch.randn(300, 32)
    right = x @ weight.dense.t()
    bench._check("kernel", right, x, weight)
    right[-1, 5] += 1.0
    with pytest.raises(
        AssertionError, match=r"kernel is wrong by .+ of the largest output: .+, 300 rows, torch.float32"
    ):
        bench._check("kernel", right, x, weight)
