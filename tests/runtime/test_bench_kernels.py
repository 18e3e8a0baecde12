"""The benchmark of the kernels measures what it says, and compares before it measures."""

import json

import pytest
import torch

from scripts import bench_kernels
from tests.runtime.weights import has_onednn


def test_every_way_is_measured_and_the_ratio_is_over_the_best_dense_one():
    cell = bench_kernels.measure((128, 64), (16, 16), 0.75, 3, torch.float32, budget=0.0)
    dense = {"dense", "onednn"} if has_onednn(torch.float32) else {"dense"}
    assert set(cell.seconds) == set(cell.least) == dense | {"kernel", "torch", "bsr", "scipy"}
    assert all(cell.least[way] <= cell.seconds[way] for way in cell.seconds)
    assert cell.speedup == min(cell.seconds[way] for way in dense) / cell.seconds["kernel"]
    assert cell.ideal == pytest.approx(4.0)


def test_blocks_may_be_named(capsys, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    bench_kernels.main(
        ["--quick", "--shape", "64x48", "--block", "1x16", "--block", "4x1", "--rows", "2", "--seconds", "0"]
    )
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()[2:]] == ["1×16", "4×1"]


def test_the_figures_go_to_a_file_with_their_machine(tmp_path, capsys, monkeypatch):
    out = tmp_path / "kernels.json"
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)  # the tests' own number stays
    bench_kernels.main(
        ["--quick", "--shape", "64x48", "--rows", "2", "--seconds", "0", "--sweeps", "3", "--bf16", "--out", str(out)]
    )
    written = json.loads(out.read_text())
    assert written["machine"]["threads"] == torch.get_num_threads()
    assert [(cell["matrix"], cell["block"], cell["rows"]) for cell in written["cells"]] == [
        ([64, 48], [8, 8], 2),
        ([64, 48], [16, 16], 2),
    ]
    assert {cell["dtype"] for cell in written["cells"]} == {"bfloat16"}
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2 + 3 * 2 + 2 + 2  # the heads, each sweep, and what is taken of them
    ratios = sorted(float(line.split("×")[2].split()[-1]) for line in printed[2:8:2])
    assert [line.split()[:2] for line in printed[-2:]] == [["64×48", "8×8"], ["64×48", "16×16"]]
    assert f"{written['cells'][0]['speedup']:.2f}" == f"{ratios[1]:.2f}"
