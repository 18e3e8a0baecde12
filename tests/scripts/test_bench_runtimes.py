"""The bench of runtimes: which blocks stay, and figures of a real file in a real runtime."""

import json
import sys

import numpy as np
from transformers import BertConfig, BertModel

from scripts import bench_runtimes
from scripts.bench_runtimes import masked


def test_blocks_by_hand():
    """Norms of 2×2 blocks: 1 to 4 in the first block row, 5 to 8 in the second. Half goes: of each row, or of all."""
    norms = np.arange(1, 9, dtype=np.float32).reshape(2, 4)
    weight = norms.repeat(2, 0).repeat(2, 1)
    kept = masked(weight, "rows", 2, 0.5)[::2, ::2]
    assert kept.tolist() == [[0, 0, 3, 4], [0, 0, 7, 8]]
    kept = masked(weight, "layer", 2, 0.5)[::2, ::2]
    assert kept.tolist() == [[0, 0, 0, 0], [5, 6, 7, 8]]


def test_the_figures_go_to_a_file_with_their_machine(tmp_path, monkeypatch, capsys):
    def tiny(folder):
        sizes = {"hidden_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 256}
        BertModel(BertConfig(vocab_size=20000, **sizes)).save_pretrained(folder)

    monkeypatch.setattr(bench_runtimes, "MODELS", {"tiny": tiny})
    monkeypatch.setattr(bench_runtimes, "SETTINGS", (("layer", 32, 0.75),))
    monkeypatch.setattr(bench_runtimes, "SECONDS", 0.05)
    monkeypatch.setattr(
        sys, "argv", ["bench_runtimes", "--out", str(tmp_path / "a/b.json"), "--runtime", "onnxruntime"]
    )
    bench_runtimes.main()
    found = json.loads((tmp_path / "a/b.json").read_text())
    assert "threads" in found["machine"] or "thread" in found["machine"]
    assert [(row["batch"], row["layers"], row["sparsity"]) for row in found["rows"]] == [(1, 6, 0.75), (8, 6, 0.75)]
    for row in found["rows"]:
        assert 0 < row["blocks"] < 60
        assert row["dense"] > 0
        assert row["int8"] > 0
        assert row["runtime"].startswith("onnxruntime ")
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in printed if line.startswith("| tiny, onnxruntime")] == printed
