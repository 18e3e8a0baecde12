"""The benchmark of small layers: both modules compute the same, and no cell is lost."""

from __future__ import annotations

import re

import torch

from scripts import bench_small_layers as bench


def test_every_cell_has_its_ratio_and_each_block_its_least(capsys, monkeypatch) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)  # the tests' own number stays
    bench.main(["--shape", "128x128", "--block", "16", "--block", "4x8", "--seconds", "0"])
    lines = capsys.readouterr().out.splitlines()[2:]
    cells = [[float(ratio) for ratio in re.findall(r" (\d+\.\d\d) \w+", line)] for line in lines[:6]]
    assert [len(ratios) for ratios in cells] == [5] * 6
    assert lines[6:] == [
        f"least of 16×16: {min(min(ratios) for ratios in cells[:3]):.2f}",
        f"least of 4×8: {min(min(ratios) for ratios in cells[3:]):.2f}",
    ]


def test_the_two_layers_compute_the_same() -> None:
    with torch.no_grad():
        linear, sparse = bench.layers((48, 64), (16, 8), 0.75)
        x = torch.randn(5, 64)
        torch.testing.assert_close(sparse(x), linear(x))
    assert len(sparse.col) == 6  # of 24 blocks
