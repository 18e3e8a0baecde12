import json
import socket
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from sapp_cli.errors import DataError, UsageError
from sapp_cli.inputs.data import load_data
from sapp_cli.inputs.rows import StreamedRows
from sapp_cli.recipe.data_section import DataSection
from sapp_cli.recipe.schema import ObjectiveSection


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Any attempt to look a host up or to connect fails the test, even if the library swallows the error."""
    attempts = []

    connect = socket.socket.connect

    def refuse(*arguments, **_):
        attempts.append(arguments)
        raise OSError("no network in this test")

    def connect_here(self, address):
        return connect(self, address) if self.family == socket.AF_UNIX else refuse(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_here)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield
    assert not attempts


def load(data, task, folder=None, config=None, seed=0, **objective):
    return load_data(DataSection(**data), ObjectiveSection(task=task, **objective), folder, config, seed)


@pytest.fixture
def reviews(tmp_path):
    path = tmp_path / "reviews.jsonl"
    letters = "abcdefghijklmnopqrst"
    rows = [{"text": " ".join(letters[i : i + 1 + i % 5]), "label": ["bad", "good"][i % 2]} for i in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"files": {"train": str(path)}}


def test_classification_of_text(reviews, bert):
    config = {"label2id": {"good": 0, "bad": 1}, "vocab_size": 26}
    sets = load(reviews, "classification", bert, config)
    assert (len(sets.train), len(sets.validation)) == (18, 2)
    path = reviews["files"]["train"]
    assert sets.description == f"training: 18 rows of {path}; validation: 2 rows held out of them"
    batch = sets.collate([sets.train[index] for index in range(4)])
    assert {key: tuple(value.shape) for key, value in batch.items()} == {
        "input_ids": (4, 8),
        "token_type_ids": (4, 8),
        "attention_mask": (4, 8),
        "targets": (4,),
    }
    for row in (*sets.train, *sets.validation):
        letter = row["input_ids"][1].item() - 6  # bad at even places, good at odd ones
        assert row["targets"].item() == (letter + 1) % 2


def test_validation_rows_of_their_own(reviews, bert, tmp_path):
    (tmp_path / "dev.csv").write_text("text,label\na b,good\n")
    sets = load({"files": {**reviews["files"], "validation": str(tmp_path / "dev.csv")}}, "classification", bert)
    assert len(sets.train) == 20
    assert sets.validation[0]["targets"].item() == 1  # bad 0, good 1: the order of the training rows' names
    assert sets.description.endswith(f"validation: 1 rows of {tmp_path}/dev.csv")


def test_regression_and_binary(tmp_path, bert):
    (tmp_path / "x.csv").write_text("sentence1,sentence2,target\na,b,1\nc,d,0\ne,f,1\n")
    for task in ("regression", "binary"):
        sets = load({"files": {"train": str(tmp_path / "x.csv")}}, task, bert)
        batch = sets.collate(list(sets.train))
        assert batch["targets"].dtype == torch.float32
        assert batch["token_type_ids"][0].tolist() == [0, 0, 0, 1, 1, 0, 0, 0]


def test_causal_lm(reviews, gpt):
    """20 texts of 1 to 5 letters, cut short at t: 18 are packed, 2 held out, an end behind each."""
    sets = load({**reviews, "max_length": 16}, "causal-lm", gpt)
    tokens = torch.cat([row["input_ids"] for row in sets.train])
    assert (tokens == 5).sum().item() in (17, 18)  # the very last end may be a piece of its own, which is dropped
    assert all(len(row["input_ids"]) == 16 for row in list(sets.train)[:-1])
    batch = sets.collate(list(sets.validation))
    assert batch["targets"].shape == batch["input_ids"].shape
    assert batch["targets"][batch["attention_mask"] == 0].eq(-100).all()
    assert "pieces" in sets.description


def test_masked_lm(reviews, bert):
    sets = load(reviews, "masked-lm", bert, mask_probability=0.5)
    before, validation = ([row["targets"].tolist() for row in part] for part in (sets.train, sets.validation))
    sets.set_epoch(1)
    assert [row["targets"].tolist() for row in sets.train] != before
    assert [row["targets"].tolist() for row in sets.validation] == validation
    sets.set_epoch(0)
    assert [row["targets"].tolist() for row in sets.train] == before
    batch = sets.collate([sets.train[0], sets.train[3]])
    assert "special_tokens_mask" not in batch
    assert batch["targets"][batch["attention_mask"] == 0].eq(-100).all()


def test_training_and_validation_masks_differ(tmp_path, bert):
    (tmp_path / "x.txt").write_text("a b c d e f g h\n" * 3)
    files = {"train": str(tmp_path / "x.txt"), "validation": str(tmp_path / "x.txt")}
    sets = load({"files": files}, "masked-lm", bert, mask_probability=0.5)
    train, validation = ([row["targets"].tolist() for row in part] for part in (sets.train, sets.validation))
    assert train != validation


def test_embeddings_need_no_labels(tmp_path, bert):
    (tmp_path / "x.txt").write_text("a b\nc\nd e f\n")
    sets = load({"files": {"train": str(tmp_path / "x.txt")}}, "embedding-distillation", bert)
    assert set(sets.train[0]) == {"input_ids", "token_type_ids", "attention_mask"}
    sets.set_epoch(3)  # means nothing to rows without chance


def test_worker_processes_make_the_same_batches(reviews, bert):
    sets = load(reviews, "masked-lm", bert, mask_probability=0.5)
    sets.set_epoch(2)
    batches = [
        list(DataLoader(sets.train, batch_size=5, collate_fn=sets.collate, num_workers=workers)) for workers in (0, 2)
    ]
    for alone, shared in zip(*batches, strict=True):
        assert alone.keys() == shared.keys()
        assert all(alone[key].equal(shared[key]) for key in alone)


@pytest.fixture
def pictures(tmp_path):
    for name, shade in (("cat", 10), ("dog", 200)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(5):
            pixels = np.full((6, 8, 3), shade + number, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.png")
    return tmp_path / "images"


def test_images(pictures):
    config = {"image_size": 4, "label2id": {"dog": 0, "cat": 1}}
    sets = load({"files": {"train": str(pictures)}}, "classification", None, config)
    assert (len(sets.train), len(sets.validation)) == (9, 1)
    batch = sets.collate(list(sets.train))
    assert batch["pixel_values"].shape == (9, 3, 4, 4)
    dark = batch["pixel_values"][:, 0, 0, 0] < 0
    assert batch["targets"].tolist() == dark.long().tolist()
    with pytest.raises(UsageError) as error:
        load({"files": {"train": str(pictures)}}, "causal-lm", None, config)
    assert str(error.value) == "objective.task: causal-lm needs texts, and the rows are images (column 'image')"


def test_the_same_images_in_a_table(pictures, tmp_path):
    """Held out by what is in them: the same rows whether they lie in a folder or in a parquet file."""
    import datasets

    folder = load({"files": {"train": str(pictures)}}, "classification", None, {"image_size": 4})
    paths = sorted(pictures.rglob("*.png"), reverse=True)
    features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.Value("string")})
    columns = {
        "image": [{"bytes": path.read_bytes(), "path": None} for path in paths],
        "label": [path.parent.name for path in paths],
    }
    datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "images.parquet")
    table = load({"files": {"train": str(tmp_path / "images.parquet")}}, "classification", None, {"image_size": 4})
    assert table.validation[0]["pixel_values"].equal(folder.validation[0]["pixel_values"])
    assert table.validation[0]["targets"].equal(folder.validation[0]["targets"])


@pytest.mark.parametrize(
    ("text", "task", "message"),
    [
        ("text,label\na,0\n,1\n", "classification", "column 'text' is empty in row 1 (counted from 0)"),
        ("text,label\na,0\nb,\n", "classification", "column 'label' is empty in row 1 (counted from 0)"),
    ],
)
def test_empty_cells(tmp_path, bert, text, task, message):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(DataError) as error:
        load({"files": {"train": str(tmp_path / "x.csv")}}, task, bert)
    assert str(error.value) == f"{tmp_path}/x.csv: {message}"


def test_no_files():
    for source in ("datasets", "tensors"):
        with pytest.raises(UsageError) as error:
            load({"source": source}, "classification")
        assert str(error.value) == (
            "data.files.train: missing; name the file with the rows, a list of files or a pattern"
        )


def test_a_package_that_is_not_installed(reviews, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UsageError) as error:
        load(reviews, "classification")
    assert str(error.value) == "data.source: datasets needs the package PIL: pip install 'sapp-cli[hf]'"


FACTORY = """
import torch
from torch.utils.data import Dataset

class Squares(Dataset):
    def __init__(self, count):
        self.count = count
    def __len__(self):
        return self.count
    def __getitem__(self, index):
        return {"inputs": torch.tensor([float(index)]), "targets": torch.tensor(float(index**2))}
    def take(self, count):
        return list(range(count))  # as datasets of Hugging Face have it: not the method of rows that are streamed

def data(count):
    return {"train": Squares(count), "validation": Squares(2)}

def collated():
    return {**data(3), "collate": lambda rows: {"inputs": torch.zeros(len(rows))}}

def no_dict():
    return Squares(1), Squares(1)

def other_names():
    return {"train": Squares(1), "valid": Squares(1)}

def too_much():
    return {**data(3), "colate": print}

def no_rows():
    return data(0)

def a_stream():
    return {"train": iter([]), "validation": Squares(1)}

def pairs():
    return {"train": [(torch.zeros(1), 3)], "validation": Squares(1)}

def numbers():
    return {"train": [{"inputs": torch.zeros(1), "targets": 3}], "validation": Squares(1)}

def no_function():
    return {**data(3), "collate": 3}
"""


@pytest.fixture
def factory(tmp_path):
    (tmp_path / "rows.py").write_text(FACTORY)
    return str(tmp_path / "rows.py")


def test_rows_of_a_factory(factory):
    sets = load({"source": "factory", "factory": f"{factory}:data", "kwargs": {"count": 4}}, "regression")
    assert sets.collate([sets.train[2], sets.train[3]])["targets"].tolist() == [4.0, 9.0]
    assert sets.description == f"training: 4 rows of {factory}:data; validation: 2 rows of it"
    assert not isinstance(sets.train, StreamedRows)
    collated = load({"source": "factory", "factory": f"{factory}:collated"}, "regression")
    assert collated.collate([collated.train[1]])["inputs"].tolist() == [0.0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_dict", ': returned a value of type tuple; it has to return {{"train": Dataset, "validation": Dataset}}'),
        (
            "other_names",
            ': returned a dict of train, valid; it has to return {{"train": Dataset, "validation": Dataset}}',
        ),
        ("too_much", ": returned 'colate', which means nothing here; nearest: 'collate'"),
        ("no_rows", ": 'train' has no rows"),
        (
            "a_stream",
            ": 'train' is of type list_iterator; it needs len() and [index], as torch.utils.data.Dataset has them",
        ),
        ("pairs", ": 'train': row 0 is a value of type tuple, not a dict of tensors"),
        ("numbers", ": 'train': row 0 is not a dict of tensors: targets is of type int"),
        ("no_function", ": 'collate' is a value of type int, not a function of a list of rows"),
    ],
)
def test_factories_that_return_something_else(factory, name, message):
    with pytest.raises(DataError) as error:
        load({"source": "factory", "factory": f"{factory}:{name}"}, "regression")
    assert str(error.value) == f"data.factory: '{factory}:{name}'{message.format()}"
