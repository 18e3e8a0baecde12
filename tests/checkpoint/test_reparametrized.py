"""Weights that torch stores in parts: masked ones are read as their product, the others are named."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import parametrizations, prune

from sapp_cli.checkpoint.source import open_checkpoint


def masked(tied: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 128), nn.Linear(128, 128))
    if tied:
        model[1] = model[0]
    prune.l1_unstructured(model[0], "weight", 0.75)
    prune.random_unstructured(model[0], "bias", 0.5)
    return model


def permanent(model: nn.Sequential) -> dict[str, torch.Tensor]:
    """The state dict as torch itself makes it."""
    for name in ("weight", "bias"):
        prune.remove(model[0], name)
    return model.state_dict()


@pytest.mark.parametrize("form", ["pt", "safetensors", "shards"])
def test_a_masked_weight_is_read_as_torch_makes_it_permanent(tmp_path: Path, form: str) -> None:
    model, place = masked(), tmp_path / f"mask.{form}"
    state = model.state_dict()
    if form == "pt":
        torch.save({"model": state}, place)
    elif form == "safetensors":
        save_file(state, place)
    else:  # a mask in another file than its weight
        place.mkdir()
        masks = {name: tensor for name, tensor in state.items() if name.endswith("_mask")}
        save_file(
            {name: state[name] for name in state if name not in masks}, place / "model-00001-of-00002.safetensors"
        )
        save_file(masks, place / "model-00002-of-00002.safetensors")
    checkpoint, expected = open_checkpoint(place), permanent(model)
    assert set(checkpoint.dense_names()) == set(expected)
    for name, tensor in expected.items():
        assert np.array_equal(checkpoint.array(name), tensor.numpy()), name
        assert [rows.tolist() for _, rows in checkpoint.slabs(name, 1)] == [[row] for row in tensor.tolist()], name
    assert checkpoint.notes == (
        f"{place}: '0.bias', '0.weight': masked by torch.nn.utils.prune; reads the product of '0.bias_orig' and "
        "'0.bias_mask', as torch.nn.utils.prune.remove saves it",
    )


def test_the_zeros_of_a_mask_are_not_those_of_the_model(sapp, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    layer = nn.Linear(128, 128)
    prune.l1_unstructured(layer, "weight", 0.75)
    torch.save(layer.state_dict(), tmp_path / "mask.pt")
    ran = sapp("report", tmp_path / "mask.pt", "--json")
    assert [(each["name"], each["sparsity"]) for each in ran.json["layers"]] == [("weight", 0.75)]  # of 16,384
    assert (ran.json["model"]["parameters"], ran.json["model"]["prunable_sparsity"]) == (16_512, 0.75)
    assert sapp("check", tmp_path / "mask.pt", "--min-sparsity", 0.7501).code == 3
    assert sapp("check", tmp_path / "mask.pt", "--min-sparsity", 0.75).code == 0


def test_an_export_makes_a_mask_permanent(sapp, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    model = masked()
    torch.save(model.state_dict(), tmp_path / "mask.pt")
    assert sapp("export", tmp_path / "mask.pt", "-o", tmp_path / "out", "--layout", "dense").code == 0
    found, expected = load_file(tmp_path / "out" / "model.safetensors"), permanent(model)
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_tied_weight_with_one_mask(tmp_path: Path) -> None:
    model = masked(tied=True)
    torch.save(model.state_dict(), tmp_path / "mask.pt")
    checkpoint = open_checkpoint(tmp_path / "mask.pt")
    expected = permanent(model)
    assert checkpoint.tied == {"1.weight": "0.weight", "1.bias": "0.bias"}
    assert np.array_equal(checkpoint.dense_array("1.weight"), expected["0.weight"].numpy())


def test_a_weight_tied_to_another_mask_stays_in_parts(tmp_path: Path) -> None:
    weight, keep = torch.ones(2, 2), torch.eye(2)
    parts = {"a.weight_orig": weight, "b.weight_orig": weight, "a.weight_mask": keep, "b.weight_mask": 1 - keep}
    torch.save(parts, tmp_path / "mask.pt")
    checkpoint = open_checkpoint(tmp_path / "mask.pt")
    assert checkpoint.dense_names() == ["a.weight_orig", "a.weight_mask", "b.weight_mask"]
    assert checkpoint.notes == ()


def test_what_the_table_leaves_out_is_named(sapp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about the age of the first and third
        model = nn.ModuleDict(
            {
                "old": nn.utils.weight_norm(nn.Linear(4, 8)),
                "new": parametrizations.weight_norm(nn.Linear(4, 8)),
                "spectral": nn.utils.spectral_norm(nn.Linear(4, 8)),
                "rnn": nn.LSTM(4, 8),
                "plain": nn.Linear(4, 8),
            }
        )
    torch.save(model.state_dict(), "norm.pt")
    counted = sum(tensor.numel() for tensor in model.state_dict().values())
    lines = [
        "norm.pt: not in the table: 'rnn.weight_ih_l0', 'rnn.weight_hh_l0', whose names do not end in 'weight': 384 of "
        f"{counted} parameters",
        "norm.pt: stored as the parts of weight_norm: 'old.weight'; for plain weights call "
        "torch.nn.utils.remove_weight_norm(module) and save again",
        "norm.pt: stored as the parts of a parametrization: 'new.weight'; for plain weights call "
        "torch.nn.utils.parametrize.remove_parametrizations(module, 'weight') and save again",
        "norm.pt: stored as the parts of spectral_norm: 'spectral.weight'; for plain weights call "
        "torch.nn.utils.remove_spectral_norm(module) and save again",
    ]
    ran = sapp("report", "norm.pt", "--json")
    assert [layer["name"] for layer in ran.json["layers"]] == ["plain.weight"]
    assert ran.err.splitlines() == lines
    assert sapp("check", "norm.pt").err.splitlines() == lines
    assert sapp("report", "norm.pt", "--json", "-q").err == ""
