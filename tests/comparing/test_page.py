"""The page of a comparison: the figures of the JSON, both plots in it, nothing fetched; judged in a browser for its looks."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from sapp_cli.comparing.cells import Budget, Cell, Variant
from sapp_cli.comparing.figures import PLOTS, draw_plots
from sapp_cli.comparing.files import NAMES, check_files, write_files
from sapp_cli.comparing.page import command_line, html_comparison
from sapp_cli.comparing.results import with_best
from sapp_cli.comparing.table import Failure, Result, Row, Table
from sapp_cli.errors import UsageError
from tests.report.pages import Page, assert_self_contained

BUDGET = Budget(Path("nets/my net"), "digits", ("optimizer.lr=1e-3",), {"train.steps": ("--steps", 60)})
NORM = Variant("magnitude", "magnitude")
FISHER = Variant("fisher", "magnitude", ("prune.score=fisher",))
CELLS = [Cell(variant, block, 0.9, seed) for seed in (0, 1) for block in ("8", "16x32") for variant in (NORM, FISHER)]
WRONG = "the loss is <b>nan</b> in step 3\nlower optimizer.lr"


def result(value, kept):
    return Result(0.97, value, True, 60, 0.88, 1_200_000, 145_000, 300_000, kept)


@pytest.fixture(scope="module")
def table():
    rows = [
        Row("magnitude", "8", 0.9, {0: result(0.90, 30_000), 1: result(0.92, 30_001)}, ()),
        Row("fisher", "8", 0.9, {0: result(0.95, 20_000), 1: result(0.97, 20_000)}, ()),
        Row("magnitude", "16x32", 0.9, {0: result(0.8, 10_000)}, (Failure(1, 6, WRONG),)),
        Row("fisher", "16x32", 0.9, {}, (Failure(0, 6, WRONG), Failure(1, None, ""))),
    ]
    return Table("accuracy", True, (0, 1), 60, 0.97, 1_200_000, 300_000, tuple(with_best(rows, True)))


@pytest.fixture(scope="module")
def text(table):
    return html_comparison(table, draw_plots(table), CELLS, BUDGET, "out")


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def test_the_table_as_it_is_read(page):
    assert page.rows == [
        ["method", "block", "sparsity", "accuracy", "zeros", "multiply-adds", "size"],
        ["dense", "–", "–", "0.9700", "–", "300 k", "1.20 MB"],
        *(
            [
                "magnitude",
                "8×8",
                "90.0 %",
                "0.9100 ± 0.01410.9000, 0.9200",
                "88.0 %",
                "30.0 k10.0× fewer",
                "145 kB8.3× smaller",
            ],
            [
                "fisher *",
                "8×8",
                "90.0 %",
                "0.9600 ± 0.01410.9500, 0.9700",
                "88.0 %",
                "20.0 k15.0× fewer",
                "145 kB8.3× smaller",
            ],
            [
                "magnitude",
                "16×32",
                "90.0 %",
                "0.8000 (1 diverged)",
                "88.0 %",
                "10.0 k30.0× fewer",
                "145 kB8.3× smaller",
            ],
            ["fisher", "16×32", "90.0 %", "diverged", "–", "–", "–"],
        ),
    ]


def test_its_figures_are_those_of_the_json(table, page):
    cells = [attributes.get("data-value") for tag, attributes in page.tags if tag in ("td", "th")]
    found = [cells[start : start + 7] for start in range(7, len(cells), 7)]  # without the heads
    document = json.loads(json.dumps(table.as_json()))
    dense, *rows = found
    assert [float(dense[3]), int(dense[5]), int(dense[6])] == [
        *(document["dense"][key] for key in ("value", "multiply_adds", "bytes")),
    ]
    for cells, row in zip(rows, document["rows"], strict=True):
        assert (cells[0], float(cells[2])) == (row["method"], row["sparsity"])
        if row["mean"] is None:
            assert (cells[3], cells[5], cells[6]) == ("-Infinity", "-1", "-1")
            continue
        assert (float(cells[3]), float(cells[4])) == (row["mean"], row["prunable_sparsity"])
        assert (int(cells[5]), int(cells[6])) == (row["kept_multiply_adds"], row["bytes_sparse"])


def test_headline_notes_and_failures(page):
    words = "".join(page.text.split())
    for text in (
        "2 methods, 2 block sizes, 1 sparsity, 2 seeds; 60 steps each",
        "dense accuracy (higher is better) 0.9700",
        "runs with a result 5 of 8 2 diverged, 1 not run",
        "*: ahead of every other method by more than the two's pooled standard deviation.",
        "magnitude, 16x32, 90.0 %, seed 1: diverged: the loss is <b>nan</b> in step 3",
    ):
        assert "".join(text.split()) in words
    assert not page.all("b")


def test_the_command_is_the_one_that_has_these_cells(text, page):
    words = shlex.split(page.of["pre"])
    assert words == command_line(CELLS, BUDGET, "out")
    assert words == [
        *("sapp", "compare", "nets/my net", "-r", "digits", "-o", "out", "--methods", "magnitude,fisher=magnitude"),
        *(
            "--block-size",
            "8,16x32",
            "--sparsity",
            "0.9",
            "--seeds",
            "0,1",
            "--method-set",
            "fisher:prune.score=fisher",
        ),
        *("--set", "optimizer.lr=1e-3", "--steps", "60"),
    ]


def test_nothing_is_fetched_and_the_plots_take_the_colours_of_the_page(text, page):
    assert_self_contained(text, page)
    assert len(page.all("svg")) == 2
    for drawing in page.all("svg"):
        assert set(drawing["aria-labelledby"].split()) <= page.ids
    assert "8×8 blocks" in page.of["svg"]
    assert "16×32 blocks" in page.of["svg"]
    drawn = "".join(re.findall("<svg.*?</svg>", text, re.DOTALL))
    assert not re.findall("#333333|#cccccc|#ffffff", drawn)
    assert "var(--ink)" in drawn


def test_the_front_is_in_words_too(page):
    words = "".join(page.text.split())
    for text in (
        # all of one size: the best of them
        "By size: fisher 8×8 at 90.0 % (0.9600, 145 kB).",
        "By multiply-adds: magnitude 16×32 at 90.0 % (0.8000, 10.0 k), fisher 8×8 at 90.0 % (0.9600, 20.0 k).",
    ):
        assert "".join(text.split()) in words


def test_files_are_written_once(table, tmp_path):
    assert write_files(tmp_path, table, CELLS, BUDGET) == NAMES
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*NAMES, "cells"])
    page = tmp_path / "comparison.html"
    plots = {name: (tmp_path / name).read_bytes() for name in PLOTS}
    assert page.read_text() == html_comparison(table, plots, CELLS, BUDGET, str(tmp_path))
    before = page.stat().st_mtime_ns
    write_files(tmp_path, table, CELLS, BUDGET)
    assert page.stat().st_mtime_ns == before
    page.unlink()  # as of a sapp that made none
    write_files(tmp_path, table, CELLS, BUDGET)
    assert page.is_file()


def test_a_file_that_somebody_changed_is_not_replaced(table, tmp_path):
    write_files(tmp_path, table, CELLS, BUDGET)
    more = replace(table, seeds=(0, 1, 2))  # another table, whose files differ
    for name in ("comparison.md", "comparison.html"):
        with (tmp_path / name).open("a") as file:
            file.write("my own words\n")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for act in (lambda: check_files(tmp_path), lambda: write_files(tmp_path, more, CELLS, BUDGET)):
        with pytest.raises(UsageError) as error:
            act()
        assert str(error.value) == (
            f"{tmp_path}: comparison.md, comparison.html changed since `sapp compare` wrote them and would be replaced; "
            "move that elsewhere first"
        )
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    for name in ("comparison.md", "comparison.html"):
        (tmp_path / name).unlink()
    write_files(tmp_path, more, CELLS, BUDGET)
    assert json.loads((tmp_path / "comparison.json").read_text())["seeds"] == [0, 1, 2]
    check_files(tmp_path)


def test_files_of_a_version_without_a_record_are_ours(table, tmp_path):
    write_files(tmp_path, table, CELLS, BUDGET)
    (tmp_path / "cells" / "files.json").unlink()
    write_files(tmp_path, replace(table, seeds=(0, 1, 2)), CELLS, BUDGET)
    check_files(tmp_path)
