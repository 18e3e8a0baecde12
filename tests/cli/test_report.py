"""`sapp report`: whole output of every form."""

import json
import re

import numpy as np
import pytest

from tests.checkpoint.files import save_floats
from tests.report.outputs import write_output


@pytest.fixture
def out(tmp_path):
    return write_output(tmp_path / "out")


@pytest.fixture
def other(tmp_path):
    first = np.kron([[1, 0, 0], [0, 0, 3]], np.ones((2, 2)))
    return save_floats(tmp_path / "other.safetensors", **{"first.weight": first, "third.weight": np.ones((2, 2))})


def test_the_table(sapp, out):
    ran = sapp("report", out)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines() == [
        "layer                  shape  block  kept / blocks  sparsity  target  dense  sparse  why",
        "first.weight             4×6    2×2          2 / 6    66.7 %  65.0 %   96 B    52 B  pruned",
        "second.weight            3×4      –              –     0.0 %       –   48 B       –  rule 'second*'",
        "pruned layers, blocks                                 66.7 %  65.0 %",
        "all prunable weights                                  44.4 %",
        "whole model                                           43.6 %          156 B   112 B",
    ]


@pytest.mark.parametrize(("order", "names"), [("sparsity", "fs"), ("name", "fs"), ("size", "fs"), ("blocks", "fs")])
def test_orders(sapp, out, order, names):
    lines = sapp("report", out, "--sort", order).out.splitlines()[1:3]
    assert "".join(line[0] for line in lines) == names


def test_the_table_against_another(sapp, out, other):
    ran = sapp("report", out, "--against", other)
    assert ran.out.splitlines()[7:] == [
        f"against {other}",
        "layer         kept in both  only here  only there  change",
        "first.weight             1          1           1    1.14",
        "layers only here: second.weight",
        "layers only there: third.weight",
    ]


def test_json(sapp, out, other):
    document = sapp("report", out, "--json", "--against", other).json
    assert document["model"] == {
        "parameters": 39,
        "nonzero": 22,
        "sparsity": 17 / 39,
        "prunable_parameters": 36,
        "prunable_sparsity": 16 / 36,
        "bytes_dense": 156,
        "bytes_sparse": 112,
    }
    assert document["layers"][0] == {
        "name": "first.weight",
        "shape": [4, 6],
        "layout": "linear",
        "block": [2, 2],
        "blocks": 6,
        "kept_blocks": 2,
        "block_sparsity": 4 / 6,
        "sparsity": 16 / 24,
        "target": 0.65,
        "bytes_dense": 96,
        "bytes_sparse": 52,
        "prunable": True,
        "pruned": True,
        "reason": "pruned",
    }
    # ‖a − b‖² = 4·2² + 4·3², ‖b‖² = 4·1² + 4·3²
    assert document["against"] == {
        "path": str(other),
        "layers": [
            {
                "name": "first.weight",
                "block": [2, 2],
                "kept_in_both": 1,
                "only_here": 1,
                "only_there": 1,
                "change": pytest.approx((52 / 40) ** 0.5),
                "problem": None,
            }
        ],
        "only_here": ["second.weight"],
        "only_there": ["third.weight"],
    }


def test_csv_and_markdown(sapp, out):
    assert (
        sapp("report", out, "--csv", "--sort", "name")
        .out.splitlines()[1]
        .startswith("first.weight,4x6,linear,2x2,6,2,")
    )
    assert sapp("report", out / "sparse", "--markdown").out.startswith(f"**Sparsity of `{out / 'sparse'}`**\n")
    assert "| accuracy (higher is better) | 0.9700 → 0.9600 |" in sapp("report", out / "sparse", "--markdown").out


def test_html_is_written_beside_the_table(sapp, out, other, tmp_path):
    page = tmp_path / "page.html"
    ran = sapp("report", out, "--html", page, "--against", other)
    assert ran.err == f"wrote {page}\n"
    assert ran.out.startswith("layer ")
    text = page.read_text()
    assert "<h1>out</h1>" in text
    assert f"<h2>Against {other}</h2>" in text
    assert "<td>1.14</td>" in text
    assert sapp("report", out, "--html", tmp_path / "no" / "page.html").code == 2


def test_the_schema(sapp):
    ran = sapp("report", "--schema")
    assert ran.code == 0
    assert ran.json["title"] == "Sparsity of a checkpoint, version 1"


def test_brackets_and_control_characters_in_names_are_no_markup(sapp, tmp_path):
    path = save_floats(tmp_path / "m.safetensors", **{"[red]a[0]\x1b[2J.weight": np.ones((2, 2))})
    assert sapp("report", path).out.splitlines()[1].startswith("[red]a[0]\\x1b[2J.weight ")


def test_a_long_name_stands_whole_where_there_is_no_terminal(sapp, tmp_path):
    name = f"{'deep.' * 60}weight"
    path = save_floats(tmp_path / "m.safetensors", **{name: np.ones((2, 2))})
    line = sapp("report", path).out.splitlines()[1]
    assert line.startswith(f"{name}    2×2  16×16          1 / 1     0.0 %       –   16 B       –")


def in_terminal(sapp, monkeypatch, columns, *arguments):
    """The lines on a screen of so many columns."""
    for key, value in {"FORCE_COLOR": "1", "NO_COLOR": "1", "COLUMNS": str(columns), "TERM": "xterm"}.items():
        monkeypatch.setenv(key, value)
    return [re.sub(r"\x1b\[[0-9]*m", "", line).rstrip() for line in sapp("report", *arguments).out.splitlines()]


@pytest.fixture
def encoder(tmp_path):
    """An output whose three layers have alike weights, but for the last one's first, and a head that a rule kept dense."""
    block, empty = np.ones((2, 2)), np.zeros((2, 2))
    half, full = np.block([[block, empty], [empty, block]]), np.ones((4, 4))
    weights = {f"encoder.layer.{index}.attention.self.query.weight": half if index < 2 else full for index in range(3)}
    weights |= {f"encoder.layer.{index}.output.dense.weight": half for index in range(3)}
    (tmp_path / "out").mkdir()
    path = save_floats(tmp_path / "out" / "model.safetensors", **weights, **{"classifier.weight": np.ones((4, 4))})
    made = {"layout": "linear", "block": [2, 2], "target": 0.5, "prunable": True}
    layers = [{"name": name, "pruned": True, "reason": "pruned", "shape": [4, 4], **made} for name in weights]
    head = {"name": "classifier.weight", "pruned": False, "reason": "rule 'classifier*'", "shape": [4, 4], **made}
    entries = [{**layer, "sparsity": 0.5} for layer in [*layers, head | {"block": None, "target": None}]]
    (tmp_path / "out" / "sparsity.json").write_text(json.dumps({"version": 1, "layers": entries}))
    return path.parent


def test_layers_that_are_alike_share_a_row_and_reasons_are_shown(sapp, encoder, monkeypatch):
    assert in_terminal(sapp, monkeypatch, 80, encoder) == [
        "layer                            shape  block  kept / blocks  sparsity  sparse",
        "encoder.layer.{0..1}.attention.    4×4    2×2          2 / 4    50.0 %    52 B",
        "self.query.weight ×2",
        "encoder.layer.2.attention.self.    4×4    2×2          4 / 4     0.0 %       –",
        "query.weight",
        "  lost no block",
        "encoder.layer.{0..2}.output.       4×4    2×2          2 / 4    50.0 %    52 B",
        "dense.weight ×3",
        "classifier.weight                  4×4      –              –     0.0 %       –",
        "  rule 'classifier*'",
        "5 of 6 layers, blocks                                           41.7 %",  # 10 of 24 blocks of 2×2
        "all prunable weights                                            35.7 %",  # 40 of 112 weights
        "whole model                                                     35.7 %   388 B",
        "×: layers that are alike share a row; --verbose gives each its own",
    ]


def test_every_layer_has_a_row_if_wanted_and_documents_always_have(sapp, encoder, monkeypatch):
    rows = in_terminal(sapp, monkeypatch, 120, encoder, "--verbose")
    assert sum("encoder.layer." in row for row in rows) == 6
    assert not any(" ×" in row for row in rows)
    assert len(sapp("report", encoder, "--json").json["layers"]) == 7
    assert len(sapp("report", encoder, "--csv").out.splitlines()) == 8
    assert sapp("report", encoder, "--markdown").out.count("encoder.layer.") == 6


def test_a_long_name_is_broken_in_a_terminal(sapp, tmp_path, monkeypatch):
    name = f"{'deep.' * 60}weight"
    path = save_floats(tmp_path / "m.safetensors", **{name: np.ones((2, 2))})
    lines = in_terminal(sapp, monkeypatch, 160, path)
    assert max(map(len, lines)) <= 160
    assert "".join(line.split("  ")[0] for line in lines[1:4]) == name


def test_a_narrow_terminal_loses_columns_before_names(sapp, out, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    lines = sapp("report", out).out.splitlines()
    assert (
        max(map(len, (line.replace("\x1b[1m", "").replace("\x1b[2m", "").replace("\x1b[0m", "") for line in lines)))
        <= 60
    )
    assert "first.weight" in "".join(lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--block-size", "0"], "'0' is no block; write 16, or 16x32"),
        (["--block-size", "16x"], "'16x' is no block; write 16, or 16x32"),
        (["--json", "--csv"], "stdout takes one of them"),
        (["--csv", "--against", "x"], "a CSV has no room for a comparison; use --json or --markdown"),
        (["--sort", "colour"], "colour"),
    ],
)
def test_mistakes(sapp, out, arguments, message):
    ran = sapp("report", out, *arguments)
    assert ran.code == 2
    assert ran.out == "" or ran.json["error"]["message"] == message
    assert message in " ".join(ran.err.replace("│", " ").split())


def test_missing_and_damaged_files(sapp, out, tmp_path):
    ran = sapp("report", tmp_path / "none.safetensors")
    assert (ran.code, ran.out, ran.err) == (4, "", f"error: {tmp_path / 'none.safetensors'}: no such file or folder\n")
    (out / "sparsity.json").write_text("[]")
    ran = sapp("report", out)
    assert (ran.code, ran.out, ran.err) == (
        4,
        "",
        f"error: {out / 'sparsity.json'}: the sparsity report is not a JSON object\n",
    )
    (out / "model.safetensors").write_bytes(b"\xff" * 20)
    assert sapp("report", out).code == 4


def test_a_pickle_is_read_too(sapp, tmp_path):
    import torch

    torch.save({"a.weight": torch.eye(4)}, tmp_path / "m.pt")
    document = json.loads(sapp("report", tmp_path / "m.pt", "--block-size", "1x2", "--json").out)
    assert document["layers"][0]["kept_blocks"] == 4
