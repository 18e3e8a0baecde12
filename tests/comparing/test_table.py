"""The table of a comparison, by hand: means, spreads, who is ahead, and its forms as text."""

import json
import re
from dataclasses import replace

import pytest

from sapp_cli.cli.compare import print_table
from sapp_cli.comparing.cells import Cell, Record, Store, Variant
from sapp_cli.comparing.figures import draw_plots, front
from sapp_cli.comparing.results import make_table, with_best
from sapp_cli.comparing.table import Failure, Result, Row, Table, value_text
from sapp_cli.errors import SappError, UsageError
from tests.report.outputs import write_output


def result(value, **changes):
    found = Result(0.97, value, True, 60, 0.88, 1_200_000, 145_000, 300_000, 34_600)
    return replace(found, **changes)


def row(method, *values, sparsity=0.9, failures=(), **changes):
    return Row(method, "8", sparsity, {seed: result(v, **changes) for seed, v in enumerate(values)}, tuple(failures))


DIVERGED = Failure(2, 6, "the loss is nan in step 3 (dense phase): training diverged")


def best(*rows, higher_is_better=True):
    return [row.method for row in with_best(rows, higher_is_better) if row.is_best]


def test_ahead_is_more_than_the_pooled_spread():
    # Means .96 and .94, deviations .01·√2 = .01414 each, pooled .01414: ahead by .02.
    ahead, behind = row("a", 0.95, 0.97), row("b", 0.93, 0.95)
    assert best(ahead, behind) == ["a"]
    assert best(behind, ahead) == ["a"]
    assert best(ahead, behind, higher_is_better=False) == ["b"]
    assert best(ahead, row("b", 0.94, 0.96)) == []  # .01 is less than the spread
    assert best(ahead, behind, row("c", 0.945, 0.965)) == []  # ahead of one, not of the other


def test_the_spread_of_a_wild_rival_counts():
    # Deviations 0 and .1414, pooled .1: ahead by .08 only.
    assert best(row("a", 0.9, 0.9), row("b", 0.72, 0.92)) == []


def test_nobody_is_best_on_one_seed_alone_or_with_a_failure():
    assert best(row("a", 0.99), row("b", 0.5)) == []
    assert best(row("a", 0.95, 0.97)) == []
    assert best(row("a", 0.95, 0.97, failures=[DIVERGED]), row("b", 0.5, 0.51)) == []
    assert best(row("a", 0.95, 0.97), row("b", 0.5, 0.51, failures=[DIVERGED])) == ["a"]
    assert best(row("a", 0.95, 0.97), row("b", 0.5, 0.51), row("c", failures=[DIVERGED])) == ["a"]


def test_each_group_has_a_best_of_its_own():
    rows = [
        row("a", 0.95, 0.97),
        row("b", 0.5, 0.51),
        row("a", 0.1, 0.11, sparsity=0.95),
        row("b", 0.5, 0.51, sparsity=0.95),
    ]
    assert best(*rows) == ["a", "b"]


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (row("a", 0.95, 0.97), "0.9600 ± 0.0141"),
        (row("a", 0.96, 0.9608), "0.9604 ± 0.0006"),
        (row("a", 0.95), "0.9500"),
        (row("a", 0.95, 0.97, failures=[DIVERGED]), "0.9600 ± 0.0141 (1 diverged)"),
        (row("a", failures=[DIVERGED]), "diverged"),
        (row("a", failures=[Failure(0, 5, "disk full")]), "exit code 5"),
        (row("a", failures=[Failure(0, None, "")]), "not run"),
    ],
)
def test_what_a_cell_shows(found, text):
    assert value_text(found) == text


@pytest.fixture
def table():
    rows = [
        row("magnitude", 0.90, 0.92),
        row("fisher", 0.95, 0.97),
        row("magnitude", 0.8, sparsity=0.95, failures=[DIVERGED]),
    ]
    return Table("accuracy", True, (0, 1), 60, 0.97, 1_200_000, 300_000, tuple(with_best(rows, True)))


def test_the_table_in_a_terminal(table, capsys):
    print_table(table)
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == [
        "block  sparsity  method                  accuracy  mult-adds     size",
        "                 dense                     0.9700      300 k  1.20 MB",
        "8×8      90.0 %  magnitude        0.9100 ± 0.0141     34.6 k   145 kB",
        "                 fisher         0.9600 ± 0.0141 *     34.6 k   145 kB",
        "         95.0 %  magnitude    0.8000 (1 diverged)     34.6 k   145 kB",
        "",
        "accuracy, higher is better; mean ± standard deviation of 2 seeds; 60 steps each.",
        "*: ahead of every other method by more than the two's pooled standard deviation.",
        "magnitude, 8, 95.0 %, seed 2: diverged: the loss is nan in step 3 (dense phase): training diverged",
    ]


def test_csv(table):
    assert table.as_csv().splitlines() == [
        "method,block,sparsity,mean,std,best,values,failed_seeds,prunable_sparsity,bytes,multiply_adds",
        "dense,,,0.97,,,,,,1200000,300000",
        f"magnitude,8,0.9,0.91,{table.rows[0].std!r},false,0.9 0.92,,0.88,145000,34600",
        f"fisher,8,0.9,0.96,{table.rows[1].std!r},true,0.95 0.97,,0.88,145000,34600",
        "magnitude,8,0.95,0.8,,false,0.8,2,0.88,145000,34600",
    ]


def test_markdown(table):
    lines = table.as_markdown().splitlines()
    assert lines[4] == "|  |  | fisher | **0.9600 ± 0.0141** | 34.6 k | 145 kB |"
    assert lines[-2].startswith("Bold: ahead of every other method")


def test_json(table):
    document = json.loads(json.dumps(table.as_json()))
    assert document["dense"] == {"value": 0.97, "bytes": 1_200_000, "multiply_adds": 300_000}
    assert [row["best"] for row in document["rows"]] == [False, True, False]
    assert document["rows"][2]["failures"] == [{"seed": 2, "exit_code": 6, "error": DIVERGED.error}]
    assert document["rows"][2]["std"] is None


def priced(method, value, size, work):
    return Row(method, "8", 0.9, {0: Result(0.97, value, True, 60, 0.9, 1000, size, 1000, work)}, ())


def test_the_front_is_what_no_cheaper_row_beats():
    rows = (
        priced("large", 0.96, 400, 10),
        priced("beaten", 0.90, 300, 20),  # larger than the next one, and worse
        priced("middle", 0.92, 200, 30),
        priced("twin", 0.91, 200, 40),  # of the same size, and worse
        priced("equal", 0.96, 500, None),  # no better than the large one
        priced("small", 0.80, 100, 50),
        Row("none", "8", 0.9, {}, ()),
    )
    higher = Table("accuracy", True, (0,), 60, 0.97, 1000, 1000, rows)
    assert [row.method for _, _, row in front(higher, "bytes_sparse")] == ["small", "middle", "large"]
    assert [row.method for _, _, row in front(higher, "kept_multiply_adds")] == ["large"]
    lower = replace(higher, higher_is_better=False)
    assert [(cost, row.method) for cost, _, row in front(lower, "bytes_sparse")] == [(100, "small")]
    assert [row.method for _, _, row in front(lower, "kept_multiply_adds")] == ["large", "beaten", "small"]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_plots_are_as_wide_as_the_page_and_have_no_accuracy_above_one(count):
    rows = tuple(
        Row("magnitude", str(2**index), 0.9, {0: Result(1.0, 0.999, True, 60, 0.9, 1000, 100 + index, None, None)}, ())
        for index in range(count)
    )
    drawn = draw_plots(Table("accuracy", True, (0,), 60, 1.0, 1000, None, rows))
    for name in ("sparsity.svg", "cost.svg"):
        text = drawn[name].decode()
        assert 'width="691.2pt"' in text  # 9.6 inches
        values = [float(value) for value in re.findall(r">(\d\.\d+)</text>", text)]
        assert values and max(values) <= 1
    assert "multiply-adds" not in drawn["cost.svg"].decode()


def test_plots_in_both_formats_and_the_same_each_time(table):
    plots = draw_plots(table)
    assert sorted(plots) == ["cost.png", "cost.svg", "sparsity.png", "sparsity.svg"]
    assert plots["cost.png"].startswith(b"\x89PNG")
    for text in ("accuracy (higher is better)", "8×8 blocks", "magnitude", "fisher", "dense"):
        assert text in plots["sparsity.svg"].decode()
    for text in ("multiply-adds of an example", "size, block-sparse", "front"):
        assert text in plots["cost.svg"].decode()
    assert draw_plots(table) == plots


CELL = Cell(Variant("norm", "magnitude"), "2", 0.5, 0, "hash")


def test_a_table_is_read_from_the_outputs(tmp_path):
    store = Store(tmp_path)
    report = write_output(store.out(CELL)) / "sparsity.json"
    totals = {"prunable_sparsity": 16 / 36, "bytes_dense": 156, "bytes_sparse": 112}
    report.write_text(json.dumps({**json.loads(report.read_text()), "model": totals}))
    store.note(CELL, Record("hash", "", 0))
    failed = replace(CELL, seed=1)
    store.note(failed, Record("hash", "", 6, DIVERGED.error))
    table = make_table([CELL, failed], store, None)
    assert (table.metric, table.dense, table.steps, table.seeds) == ("accuracy", 0.97, 40, (0, 1))
    assert [(found.method, found.mean, found.failures[0].text) for found in table.rows] == [("norm", 0.96, "diverged")]
    assert table.rows[0].average("kept_multiply_adds") is None
    assert make_table([CELL, failed], store, "loss").dense == 0.5
    with pytest.raises(UsageError, match=r"^--metric f1: the runs have accuracy, loss$"):
        make_table([CELL, failed], store, "f1")


def test_records_of_other_settings_do_not_count(tmp_path):
    store = Store(tmp_path)
    store.note(CELL, Record("hash", "", 6, "diverged"))
    assert store.is_settled(CELL)
    assert not store.is_settled(replace(CELL, settings="other"))
    store.note(CELL, Record("hash", "", 5, "disk full"))
    assert not store.is_settled(CELL)  # another time there may be room
    with pytest.raises(SappError) as caught:
        make_table([CELL], store, None)
    assert (caught.value.exit_code, str(caught.value)) == (
        5,
        "no cell has a result; the first one: exit code 5: disk full",
    )
