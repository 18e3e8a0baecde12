"""scripts/train_digits.py: the data and the dense network the demo starts from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from scripts.train_digits import main


@pytest.fixture(scope="module", autouse=True)
def threads() -> Iterator[None]:
    """The script computes on one thread; the tests after it get theirs back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    main(["--out", str(folder)])
    return folder


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_the_network_reads_96_percent_of_the_validation_digits(demo: Path) -> None:
    weights = load_file(demo / "dense.safetensors")
    rows = np.load(demo / "data" / "validation.npz")
    x = rows["inputs"]
    for layer in ("hidden1", "hidden2", "output"):
        x = x @ weights[f"{layer}.weight"].T + weights[f"{layer}.bias"]
        x = x if layer == "output" else np.maximum(x, 0)
    assert (x.argmax(1) == rows["targets"]).mean() >= 0.96


def test_the_split_is_80_to_20_in_every_class_and_shares_no_row(demo: Path) -> None:
    train, validation = (np.load(demo / "data" / f"{name}.npz") for name in ("train", "validation"))
    assert train["inputs"].shape == (1437, 64)
    assert validation["inputs"].shape == (360, 64)
    for rows in (train, validation):
        assert rows["inputs"].dtype == np.float32
        assert rows["targets"].dtype == np.int64
        assert (rows["inputs"].min(), rows["inputs"].max()) == (0, 1)
    counts = [np.bincount(rows["targets"], minlength=10) for rows in (train, validation)]
    assert np.abs(counts[1] - 0.2 * (counts[0] + counts[1])).max() < 1
    pictures = [{row.tobytes() for row in rows["inputs"]} for rows in (train, validation)]
    assert not pictures[0] & pictures[1]


def test_one_seed_gives_the_same_bytes_again_and_another_does_not(demo: Path, tmp_path: Path) -> None:
    main(["--out", str(tmp_path / "again")])
    main(["--out", str(tmp_path / "other"), "--seed", "1", "--epochs", "1"])
    for name in ("dense.safetensors", "data/train.npz", "data/validation.npz"):
        assert sha256(tmp_path / "again" / name) == sha256(demo / name)
    assert sha256(tmp_path / "other" / "data" / "train.npz") == sha256(demo / "data" / "train.npz")
    assert sha256(tmp_path / "other" / "dense.safetensors") != sha256(demo / "dense.safetensors")


def test_it_says_what_it_reached(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--out", str(tmp_path), "--network", "cnn", "--epochs", "1"])
    first, _, rest = capsys.readouterr().out.partition(", ")
    assert first == f"{tmp_path / 'dense.safetensors'}: cnn"
    assert rest.endswith("% of 360 validation digits right after 1 epochs\n")
