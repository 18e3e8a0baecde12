"""Criteo's files: lines to numbers by hand, errors with their place, any batch found again."""

import gzip
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sapp_cli.errors import DataError
from sapp_cli.inputs import criteo_files
from sapp_cli.inputs.criteo import CriteoRows, load_criteo_data
from sapp_cli.inputs.criteo_files import Lines, count_lines
from sapp_cli.inputs.criteo_text import Chunk
from sapp_cli.recipe.data_section import DataSection
from sapp_cli.training.batches import BatchPlan, evaluation_batches, training_batches
from scripts import make_criteo

NUMBERS = ["1", "-2", "", "0", "1382", *[""] * 8]
WORDS = ["68fd1e64", "", "a", *["b"] * 23]


def line(label="0", numbers=NUMBERS, words=WORDS):
    return "\t".join([label, *numbers, *words])


def chunk(*lines):
    data = "".join(f"{text}\n" for text in lines).encode()
    return Chunk(np.frombuffer(data, np.uint8), lambda number: f"day_0:{number + 1}")


def fnv(column, text, buckets):
    """The hash as the documentation has it, a byte at a time."""
    value = 0xCBF29CE484222325
    for byte in bytes([column]) + text.encode():
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return 1 + (value ^ value >> 32) % 2**32 % (buckets - 1)


def test_a_line_by_hand():
    columns = chunk(line("1"), line("0", ["7"] * 13, ["c"] * 26)).columns(np.array([1, 0]), 1000)
    assert columns.labels.tolist() == [0.0, 1.0]
    np.testing.assert_allclose(columns.numbers[0], math.log(8), rtol=1e-6)
    first = columns.numbers[1]
    np.testing.assert_allclose(first[[0, 1, 3, 4]], [math.log(2), -math.log(3), 0, math.log(1383)], rtol=1e-6)
    assert np.isnan(first[[2, *range(5, 13)]]).all()
    words = columns.categories[1].tolist()
    assert words[:3] == [fnv(0, "68fd1e64", 1000), 0, fnv(2, "a", 1000)]
    assert words[3:] == [fnv(column, "b", 1000) for column in range(3, 26)]
    assert len(set(words[3:])) > 20  # one text in two columns is two values


def test_windows_line_ends_and_no_last_newline(tmp_path):
    path = tmp_path / "log"
    path.write_bytes((line("1") + "\r\n" + line("0")).encode())
    rows = CriteoRows(Lines([count_lines(path)]), 0, 2, 1000, 10)
    assert torch.equal(rows[0]["categories"], rows[1]["categories"])
    assert [float(rows[index]["targets"]) for index in (0, 1)] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (line() + "\tx", "41 fields, not 40: label, 13 numbers and 26 categories with tabs between them"),
        (line()[2:], "39 fields, not 40: is this the challenge's test file, which has no labels?"),
        ("", "1 fields, not 40: label, 13 numbers and 26 categories with tabs between them"),
        (line("2"), "label '2' is no label; it has to be 0 or 1"),
        (line(""), "label '' is no label; it has to be 0 or 1"),
        (line("10"), "label '10' is no label; it has to be 0 or 1"),
        (line(numbers=["1", "1.5", *[""] * 11]), "I2 '1.5' is no whole number"),
        (line(numbers=["1", "-", *[""] * 11]), "I2 '-' is no whole number"),
        (line(words=["x" * 65, *WORDS[1:]]), f"C1 '{'x' * 64}' has 65 characters; at most 64 are read"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(text, message):
    with pytest.raises(DataError) as caught:
        chunk(line(), line(), text, line()).columns(np.arange(4), 10)
    assert str(caught.value) == f"day_0:3: {message}"


def test_the_place_is_that_of_the_right_file(tmp_path):
    for name, texts in (("a", [line()] * 3), ("b", [line(), line("x")])):
        (tmp_path / name).write_text("\n".join(texts) + "\n")
    rows = CriteoRows(Lines([count_lines(tmp_path / name) for name in "ab"]), 0, 5, 10, 100)
    with pytest.raises(DataError, match=rf"^{tmp_path}/b:2: label 'x' is no label"):
        rows.take(range(5), None)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "empty").touch()
    with pytest.raises(DataError, match="the file has no lines"):
        count_lines(tmp_path / "empty")
    with pytest.raises(DataError, match="cannot be read: No such file"):
        count_lines(tmp_path / "none")
    whole = gzip.compress(b"\n".join([line().encode()] * 50))
    (tmp_path / "cut.gz").write_bytes(whole[:-20])
    with pytest.raises(DataError, match=r"cut\.gz: cannot be read: "):
        count_lines(tmp_path / "cut.gz")
    (tmp_path / "log").write_text("a\nb\nc\n")
    lines = Lines([count_lines(tmp_path / "log")])
    (tmp_path / "log").write_text("a\n")
    with pytest.raises(DataError, match="has become shorter since the run began"):
        lines.read(1, 2)


texts = st.lists(st.text("ab", max_size=6), min_size=1, max_size=30)


@given(st.lists(st.tuples(texts, st.booleans(), st.booleans()), min_size=1, max_size=3), st.data())
def test_any_piece_of_any_files(tmp_path_factory, files, data):
    """Lines against a plain list, with places noted every 4 lines and 7 bytes read at a time."""
    folder = tmp_path_factory.mktemp("lines")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(criteo_files, "STRIDE", 4)
        patch.setattr(criteo_files, "PIECE", 7)
        wanted, indices = [], []
        for number, (rows, zipped, ended) in enumerate(files):
            # An empty last line without its newline would be none.
            text = ("\n".join(rows) + ("\n" if ended or not rows[-1] else "")).encode()
            path = folder / str(number)
            path.write_bytes(gzip.compress(text) if zipped else text)
            wanted += [row.encode() + b"\n" for row in rows]
            indices.append(count_lines(path))
        lines = Lines(indices)
        assert len(lines) == len(wanted)
        for _ in range(data.draw(st.integers(1, 4))):
            first = data.draw(st.integers(0, len(wanted) - 1))
            count = data.draw(st.integers(1, len(wanted) - first))
            assert bytes(lines.read(first, count)) == b"".join(wanted[first : first + count])
            lines = pickle.loads(pickle.dumps(lines)) if data.draw(st.booleans()) else lines


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    folder = tmp_path_factory.mktemp("criteo")
    make_criteo.main(["--out", str(folder), "--rows", "1000", "--gzip"])
    return folder


def datasets(folder, **settings):
    files = {"train": str(folder / "train.txt.gz"), "validation": str(folder / "validation.txt.gz")}
    data = DataSection(source="criteo", files=files, criteo={"buckets": 50, "shuffle_rows": 128, **settings})
    return load_criteo_data(data)


def same(a, b):
    return all(torch.equal(a[key].nan_to_num(-9.0), b[key].nan_to_num(-9.0)) for key in a)


def test_any_batch_is_found_again(log):
    """Batches lie across windows of 128 lines; a run may start anywhere, with workers or without."""
    plan = BatchPlan(900, 50, seed=3)
    stream = training_batches(datasets(log), plan, workers=0)
    batches = [next(stream) for _ in range(40)]  # two epochs of 18, and some
    for start, workers in ((0, 0), (7, 0), (20, 0), (17, 2)):
        again = training_batches(datasets(log), plan, workers, start)
        assert all(same(next(again), batch) for batch in batches[start:]), (start, workers)
    first, second = (torch.cat([batch["categories"] for batch in batches[i : i + 18]]) for i in (0, 18))
    assert not torch.equal(first, second)
    assert torch.equal(first.sort(0).values, second.sort(0).values)  # another order of the same rows


def test_processes_share_every_batch(log):
    whole = next(training_batches(datasets(log), BatchPlan(900, 60, 0), 0))
    parts = [next(training_batches(datasets(log), BatchPlan(900, 20, 0, rank, 3), 0)) for rank in range(3)]
    for rank, part in enumerate(parts):
        assert same(part, {key: value[rank::3] for key, value in whole.items()})


def test_evaluation_reads_every_row_in_order(log):
    data = datasets(log, shuffle_rows=32)
    batches = list(evaluation_batches(data, 30))
    assert [len(batch["targets"]) for batch in batches] == [30, 30, 30, 10]
    rows = [data.validation[index] for index in range(100)]
    assert same({key: torch.cat([batch[key] for batch in batches]) for key in rows[0]}, data.collate(rows))
    some = list(evaluation_batches(data, 30, rows=10))
    assert same(some[0], data.collate(rows[::10]))


def test_the_last_lines_are_held_out(log):
    section = DataSection(source="criteo", files={"train": str(log / "train.txt.gz")}, validation_share=0.25)
    data = load_criteo_data(section)
    assert (len(data.train), len(data.validation)) == (675, 225)
    whole = DataSection(source="criteo", files={"train": str(log / "train.txt.gz")}, validation_share=0.01)
    assert same(data.validation.take(range(200), None), load_criteo_data(whole).train.take(range(675, 875), None))
    assert data.description == f"training: 675 rows of {log / 'train.txt.gz'}; validation: 225 rows"
