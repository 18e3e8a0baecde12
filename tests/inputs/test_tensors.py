import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sapp_cli.errors import DataError, UsageError
from sapp_cli.inputs.data import load_data
from sapp_cli.recipe.data_section import DataSection
from sapp_cli.recipe.schema import ObjectiveSection


def load(train, validation=None, task="classification", **settings):
    files = {"train": train if isinstance(train, list) else str(train)}
    if validation is not None:
        files["validation"] = str(validation)
    data = DataSection(source="tensors", files=files, **settings)
    return load_data(data, ObjectiveSection(task=task), None, None, seed=0)


def npz(path, **arrays):
    np.savez(path, **arrays)
    return path


@pytest.fixture
def rows(tmp_path):
    inputs = np.arange(40, dtype=np.float64).reshape(20, 2)
    return npz(tmp_path / "rows.npz", inputs=inputs, targets=(np.arange(20) % 3).astype(np.int32))


def test_rows_are_in_the_dtypes_of_training(rows):
    sets = load(rows, rows)
    assert len(sets.train) == len(sets.validation) == 20
    batch = sets.collate([sets.train[3], sets.train[4]])
    assert batch["inputs"].tolist() == [[6.0, 7.0], [8.0, 9.0]]
    assert batch["inputs"].dtype == torch.float32
    assert batch["targets"].tolist() == [0, 1]
    assert batch["targets"].dtype == torch.int64
    assert sets.description == f"training: 20 rows of {rows}; validation: 20 rows of {rows}"


def test_the_same_rows_are_held_out_of_either_kind_of_file(rows, tmp_path):
    """float64 and int32 in one, float32 and int64 and another order in the other."""
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    with np.load(rows) as arrays:
        inputs, targets = (torch.from_numpy(arrays[name])[order] for name in ("inputs", "targets"))
    save_file({"inputs": inputs.float(), "targets": targets.long()}, tmp_path / "rows.safetensors")
    first, second = load(rows, validation_share=0.25), load(tmp_path / "rows.safetensors", validation_share=0.25)
    assert len(first.validation) == 5
    assert len(first.train) == 15
    held = [sorted(row["inputs"][0].item() for row in sets.validation) for sets in (first, second)]
    assert held[0] == held[1]
    assert not set(held[0]) & {row["inputs"][0].item() for row in first.train}


def test_several_files_are_one_after_the_other(tmp_path):
    one = npz(tmp_path / "1.npz", inputs=np.float32([[1], [2]]), targets=np.int64([0, 1]))
    two = npz(tmp_path / "2.npz", inputs=np.float32([[3]]), targets=np.int64([1]))
    sets = load([str(one), str(two)], one)
    assert [row["inputs"].item() for row in sets.train] == [1, 2, 3]
    assert sets.train.targets.values.tolist() == [0, 1, 1]
    assert sets.train.targets.origin == f"{one} and 1 more"


def test_targets_of_other_tasks(tmp_path):
    path = npz(tmp_path / "x.npz", inputs=np.int64([[1, 2], [3, 4]]), targets=np.int64([0, 1]))
    for task in ("regression", "binary"):
        assert load(path, path, task).train[1]["targets"].dtype == torch.float32
    assert "targets" not in load(path, path, "embedding-distillation").train[0]
    bare = npz(tmp_path / "bare.npz", inputs=np.int32([[1, 2], [3, 4]]))
    assert load(bare, bare, "causal-lm").train[1]["targets"].tolist() == [3, 4]


def wrong(name, message, task="classification", **arrays):
    return pytest.param(arrays, task, message, id=name)


@pytest.mark.parametrize(
    ("arrays", "task", "message"),
    [
        wrong("inputs", "{path} has no array 'inputs'; it has: targets", targets=np.int64([1])),
        wrong(
            "targets",
            "{path} has no array 'targets'; it has: inputs, target; nearest: 'target'",
            inputs=np.float32([[1]]),
            target=np.int64([1]),
        ),
        wrong(
            "counts",
            "{path}: arrays differ in rows: inputs 2, targets 3",
            inputs=np.zeros((2, 1)),
            targets=np.zeros(3, np.int64),
        ),
        wrong("rows", "{path} has no rows", inputs=np.zeros((0, 2)), targets=np.zeros(0, np.int64)),
        wrong(
            "scalar",
            "{path}: 'temperature' is a single number; every array has one entry a row",
            inputs=np.zeros((2, 1)),
            targets=np.zeros(2, np.int64),
            temperature=np.float32(3),
        ),
        wrong(
            "nan",
            "{path}: 'inputs' is NaN in row 1 (counted from 0)",
            inputs=np.float32([[0, 0], [0, np.nan]]),
            targets=np.int64([0, 1]),
        ),
        wrong(
            "infinite target",
            "{path}: 'targets' is infinite in row 1 (counted from 0)",
            task="regression",
            inputs=np.zeros((2, 1)),
            targets=np.float32([0, np.inf]),
        ),
        wrong(
            "float labels",
            "{path}: 'targets' is floating-point; objective.task classification takes integers; for numbers to be met set "
            "objective.task regression",
            inputs=np.zeros((2, 1)),
            targets=np.float32([0, 1]),
        ),
        wrong(
            "one-hot labels",
            "{path}: 'targets' has shape (2, 2); objective.task classification takes one label a row: the "
            "number of its class",
            inputs=np.zeros((2, 1)),
            targets=np.int64([[0, 1], [1, 0]]),
        ),
        wrong(
            "binary",
            "{path}: 'targets' has values outside of 0 to 1, which objective.task binary takes",
            task="binary",
            inputs=np.zeros((2, 1)),
            targets=np.int64([-1, 1]),
        ),
        wrong(
            "complex",
            "{path}: 'inputs' is complex; a model takes real numbers",
            inputs=np.zeros((2, 1), np.complex64),
            targets=np.int64([0, 1]),
        ),
    ],
)
def test_what_cannot_be_trained_on(tmp_path, arrays, task, message):
    path = npz(tmp_path / "x.npz", **arrays)
    with pytest.raises(DataError) as error:
        load(path, path, task)
    assert str(error.value) == message.format(path=path)


def test_objects_are_never_unpickled(tmp_path):
    path = npz(tmp_path / "x.npz", inputs=np.array([{"a": 1}], dtype=object), targets=np.int64([0]))
    with pytest.raises(DataError) as error:
        load(path)
    assert str(error.value) == (
        f"{path}: 'inputs' holds Python objects, which are not read; save one array of numbers, its rows of equal length"
    )


@pytest.mark.parametrize("name", ["x.npz", "x.safetensors"])
def test_damaged_files(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK\x03\x04 nothing more")
    with pytest.raises(DataError) as error:
        load(tmp_path / name)
    assert str(error.value).startswith(f"{tmp_path / name} cannot be read: ")


def test_other_endings_and_tasks(tmp_path, rows):
    (tmp_path / "x.csv").write_text("a")
    with pytest.raises(DataError) as error:
        load(tmp_path / "x.csv")
    assert str(error.value) == (
        f"{tmp_path}/x.csv: data.source tensors reads .safetensors and .npz files; for tables use data.source datasets"
    )
    with pytest.raises(UsageError) as error:
        load(rows, task="masked-lm")
    assert str(error.value) == (
        "objective.task: masked-lm masks tokens itself and needs the tokenizer; use data.source: datasets"
    )


def test_validation_rows_are_like_training_rows(tmp_path, rows):
    other = npz(tmp_path / "other.npz", inputs=np.zeros((2, 3)), targets=np.int64([0, 1]))
    with pytest.raises(DataError) as error:
        load(rows, other)
    assert str(error.value) == f"{other}: a row of 'inputs' is (3,) float32; in the first file (2,) float32"
    named = npz(tmp_path / "named.npz", x=np.zeros((2, 2)), targets=np.int64([0, 1]))
    with pytest.raises(DataError) as error:
        load(rows, named)
    assert str(error.value) == f"{named} has the arrays targets, x; the first file has inputs, targets"
