"""What it is worth to keep freed memory is measured in processes of their own."""

from __future__ import annotations

import platform

import pytest

from sapp_cli.runtime.heap import CHOSEN_BY_USER
from scripts import bench_freed_memory as bench
from scripts.make_checkpoints import make_bert


def test_each_cell_comes_from_processes_of_its_own(tmp_path, capsys, monkeypatch) -> None:
    for variable in CHOSEN_BY_USER:
        monkeypatch.delenv(variable, raising=False)
    checkpoint = make_bert(tmp_path / "bert", head="Model")
    quick = ["--block-size", "8", "--batch-size", "2", "--tokens", "16", "--seconds", "0.05", "--processes", "1"]
    if platform.libc_ver()[0] != "glibc":
        with pytest.raises(SystemExit, match="this C library keeps nothing"):
            bench.main([str(checkpoint), *quick])
        return
    bench.main([str(checkpoint), *quick])
    _, heads, *rows = capsys.readouterr().out.splitlines()
    assert heads.split() == ["batch", "thread", "as", "it", "is", "kept", "ratio"]
    assert [row.split()[:2] for row in rows] == [["2", "main"], ["2", "other"]]
    for row in rows:
        words = row.split()
        before, after = float(words[2]), float(words[8])
        rounded, half = 0.05, 0.005  # what one decimal of the times, and two of the ratio, may hide
        least, most = (before - rounded) / (after + rounded), (before + rounded) / (after - rounded)
        assert least - half <= float(words[-1]) <= most + half
    with pytest.raises(SystemExit, match="fewer than min_blocks 100"):
        bench.main([str(checkpoint), "--batch-size", "2"])
