"""The layers of a plan in a terminal: alike ones in one row, names whole, reasons readable."""

import io

from rich.console import Console

from sapp_cli.cli.report_table import layer_table
from sapp_cli.grid import BlockGrid
from sapp_cli.report.sparsity import LayerFacts, expected_counts, make_report

PARTS = {"attention.self.query": (768, 768), "intermediate.dense": (3072, 768), "output.dense": (768, 3072)}


def encoder():
    """Twelve layers of BERT, each weight with a fifth of its blocks, and an embedding that stays dense."""
    embedding = LayerFacts(
        "bert.embeddings.word_embeddings.weight",
        (30522, 768),
        4,
        True,
        False,
        "an embedding (prune.embeddings is false)",
    )
    layers = [
        LayerFacts(f"bert.encoder.layer.{index}.{part}.weight", shape, 4, True, True, "pruned", None, grid, 0.8)
        for index in range(12)
        for part, shape in PARTS.items()
        for grid in [BlockGrid(shape, (16, 16))]
    ]
    kept = {layer.name: layer.grid.count // 5 for layer in layers if layer.grid}
    return make_report([embedding, *layers], expected_counts(kept), 0, 0, 0)


def shown(width, every_layer=False):
    text = io.StringIO()
    Console(file=text, width=width).print(layer_table(encoder(), every_layer, width))
    return [line.rstrip() for line in text.getvalue().splitlines()]


def test_at_80_columns():
    assert shown(80) == [
        "layer                                   shape  block  sparsity    dense   sparse",
        "bert.embeddings.word_embeddings.    30522×768      –     0.0 %  93.8 MB        –",
        "weight",
        "  an embedding (prune.embeddings",
        "  is false)",
        "bert.encoder.layer.{0..11}.           768×768  16×16    80.0 %  2.36 MB   473 kB",
        "attention.self.query.weight ×12",
        "bert.encoder.layer.{0..11}.          3072×768  16×16    80.0 %  9.44 MB  1.90 MB",
        "intermediate.dense.weight ×12",
        "bert.encoder.layer.{0..11}.output.   768×3072  16×16    80.0 %  9.44 MB  1.89 MB",
        "dense.weight ×12",
        "pruned layers, blocks                                   80.0 %",
        "all prunable weights                                    58.5 %",
        "whole model                                             58.5 %   349 MB   145 MB",
    ]


def test_a_wide_terminal_has_every_column_and_the_reasons_beside():
    lines = shown(180)
    assert lines[0].split("  ")[0] == "layer"
    assert lines[0].endswith("why")
    assert lines[2].split("  ")[0] == "bert.encoder.layer.{0..11}.attention.self.query.weight ×12"
    assert " ".join(lines[2].split()[2:]) == "768×768 16×16 460 / 2,304 80.0 % 80.0 % 2.36 MB 473 kB pruned"
    assert len(lines) == 8


def test_every_layer_has_a_row_if_wanted():
    lines = shown(160, every_layer=True)
    assert sum(line.startswith("bert.encoder.layer.") for line in lines) == 36


def test_no_line_is_cut_at_any_width():
    for width in range(50, 200, 7):
        text = "".join("".join(shown(width)).split())
        assert "…" not in text
        assert max(map(len, shown(width))) <= width
