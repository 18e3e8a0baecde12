"""CSV and Markdown, whole."""

import csv
import io

import numpy as np

from sapp_cli.checkpoint.source import open_checkpoint
from sapp_cli.report.comparison import compare
from sapp_cli.report.inspect import layer_facts
from sapp_cli.report.measure import measure
from sapp_cli.report.run import read_run
from sapp_cli.report.texts import as_csv, as_markdown, work_markdown
from sapp_cli.visible import printable
from tests.checkpoint.files import save_floats
from tests.report.outputs import count_work, write_output

HOSTILE = 'a|b`<img src=x onerror=alert(1)>\n## "weight'


def report_of(path):
    checkpoint = open_checkpoint(path)
    facts = layer_facts(checkpoint, None)
    return checkpoint, facts, measure(checkpoint, facts)


def test_csv(tmp_path):
    _, _, report = report_of(write_output(tmp_path / "out"))
    assert as_csv(report) == (
        "name,shape,layout,block,blocks,kept_blocks,block_sparsity,sparsity,target,bytes_dense,bytes_sparse,prunable,pruned,reason\n"
        "first.weight,4x6,linear,2x2,6,2,0.6666666666666666,0.6666666666666666,0.65,96,52,true,true,pruned\n"
        "second.weight,3x4,linear,,,,,0.0,,48,48,true,false,rule 'second*'\n"
    )


def test_markdown_of_an_output(tmp_path):
    out = write_output(tmp_path / "out")
    _, _, report = report_of(out)
    assert as_markdown("out", report, read_run(out), None) == (
        "**Sparsity of `out`**\n"
        "\n"
        "|  |  |\n"
        "| --- | ---: |\n"
        "| blocks removed in 1 pruned layer | 66.7 % (65.0 % requested) |\n"
        "| zeros in all prunable weights | 44.4 % |\n"
        "| zeros in the whole model | 43.6 % |\n"
        "| weights, dense | 156 B |\n"
        "| weights, block-sparse | 112 B (1.4× smaller) |\n"
        "| accuracy (higher is better) | 0.9700 → 0.9600 |\n"
        "| loss (lower is better) | 0.5000 → 0.4500 |\n"
        "\n"
        "| layer | shape | block | kept / blocks | sparsity | target | dense | block-sparse |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        "| `first.weight` | 4×6 | 2×2 | 2 / 6 | 66.7 % | 65.0 % | 96 B | 52 B |\n"
        "| `second.weight` | 3×4 | – | – | 0.0 % | – | 48 B | – |\n"
    )


def test_multiply_adds_where_the_run_knows_them(tmp_path):
    _, _, report = report_of(count_work(write_output(tmp_path / "out")))
    heads, first, second = csv.reader(io.StringIO(as_csv(report)))
    assert heads[-3:] == ["multiply_adds", "kept_multiply_adds", "multiply_adds_share"]
    assert (first[-3:], second[-3:]) == (["240", "80", "0.4"], ["120", "120", "0.6"])
    assert "| multiply-adds of an example | 360 → 200 |\n" in as_markdown("out", report, None, None)
    assert work_markdown(report) == (
        "| layer | kept / blocks | sparsity | multiply-adds of an example | share |\n"
        "| --- | ---: | ---: | ---: | ---: |\n"
        "| `first.weight` | 2 / 6 | 66.7 % | 240 → 80 | 40.0 % |\n"
        "| `second.weight` | – | 0.0 % | 120 → 120 | 60.0 % |\n"
        "| all layers |  |  | 360 → 200 |  |"
    )


def test_names_cannot_break_out_of_csv_or_markdown(tmp_path):
    _, _, report = report_of(save_floats(tmp_path / "m.safetensors", **{HOSTILE: np.ones((2, 2))}))
    assert list(csv.reader(io.StringIO(as_csv(report))))[1][0] == printable(HOSTILE)
    text = as_markdown("m", report, None, None)
    line = text.splitlines()[-1]
    assert line == (
        "| <code>a&#124;b&#96;&#60;img src&#61;x onerror&#61;alert&#40;1&#41;&#62;&#92;n&#35;&#35; &#34;weight</code>"
        " | 2×2 | 16×16 | 1 / 1 | 0.0 % | – | 16 B | – |"
    )


def test_markdown_folds_many_layers(tmp_path):
    tensors = {f"{index}.weight": np.ones((2, 2)) for index in range(21)}
    _, _, report = report_of(save_floats(tmp_path / "m.safetensors", **tensors))
    text = as_markdown("m", report, None, None)
    assert "<details><summary>21 layers</summary>\n\n| layer |" in text
    assert text.endswith("| `20.weight` | 2×2 | 16×16 | 1 / 1 | 0.0 % | – | 16 B | – |\n\n</details>\n")


def test_markdown_of_a_comparison(tmp_path):
    here, facts, report = report_of(write_output(tmp_path / "out"))
    other = save_floats(
        tmp_path / "other.safetensors", **{"first.weight": np.zeros((4, 6)), "third.weight": np.ones((2, 2))}
    )
    there = open_checkpoint(other)
    text = as_markdown("out", report, None, compare(here, facts, there, layer_facts(there, None)))
    assert text.partition("**Against")[2] == (
        f" `{other}`**\n"
        "\n"
        "| layer | kept in both | only here | only there | change of the weights |\n"
        "| --- | ---: | ---: | ---: | ---: |\n"
        "| `first.weight` | 0 | 2 | 0 | not finite |\n"
        "\n"
        "Layers only here: `second.weight`\n"
        "\n"
        "Layers only there: `third.weight`\n"
    )
