"""Whether model and data go together, seen before the first step."""

import inspect
import random

import numpy as np
import pytest
import torch
from torch import nn, tensor
from torch.utils.data import Dataset

from sapp_cli.errors import DataError, UsageError
from sapp_cli.inputs.rows import DataSets, Targets, stack_rows
from sapp_cli.training.objectives import check_fits
from tests.training.objectives.answers import Layers, metrics, objective


class Rows(Dataset):
    def __init__(self, rows, labels=None):
        self.rows = rows
        self.targets = None if labels is None else Targets(tensor(labels), range(10, 10 + len(labels)), "train.csv")

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


def sets(rows, labels=None):
    return DataSets(Rows(rows, labels), Rows(rows), stack_rows, "")


def test_what_fits_leaves_no_trace():

    class Noise(nn.Module):
        def forward(self, x):
            return x + torch.rand(()) + float(np.random.rand()) + random.random()

    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(), Noise())
    model[2].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state, others = (
        torch.get_rng_state(),
        (np.random.get_state()[1].tolist(), np.random.get_state()[2], random.getstate()),
    )
    rows = [{"inputs": torch.ones(2), "targets": tensor(label)} for label in (0, 2)]
    check_fits(objective("classification", model, distill={"weight": 0.5}), model, sets(rows, [0, 2]))
    assert all(before[name].equal(value) for name, value in model.state_dict().items())
    assert torch.get_rng_state().equal(state)
    assert (np.random.get_state()[1].tolist(), np.random.get_state()[2], random.getstate()) == others
    assert (model.training, model[1].training, model[2].training) == (True, True, False)
    assert all(parameter.grad is None for parameter in model.parameters())


class LongInTraining(nn.Linear):
    """Like models of sound that blank out spans of time while they train."""

    def forward(self, x):
        if self.training and x.shape[1] < 4:
            raise ValueError("spans are longer than the sound")
        return super().forward(x)


def test_what_only_training_asks_of_the_data_is_asked_before_it():
    model = LongInTraining(2, 3)
    rows = sets([{"inputs": torch.ones(2), "targets": tensor(1)}] * 2, [1, 1])
    check_fits(objective("classification", model), model, rows, trains=False)
    with pytest.raises(UsageError) as error:
        check_fits(objective("classification", model), model, rows)
    line = inspect.getsourcelines(LongInTraining.forward)[1] + 2
    assert str(error.value) == (
        "the model does not take the data in training: ValueError: spans are longer than the sound "
        f"(test_fit.py:{line})\n"
        "  a batch holds inputs (2, 2) float32, targets (2,) int64; LongInTraining.forward takes x"
    )
    assert model.training


@pytest.mark.parametrize("label", [3, -1])
def test_a_label_the_model_has_no_class_for(label):
    model = nn.Linear(2, 3)
    rows = [{"inputs": torch.ones(2), "targets": tensor(label)}] * 2
    with pytest.raises(DataError) as error:
        check_fits(objective("classification", model), model, sets(rows, [2, label]))
    assert str(error.value) == (
        f"train.csv: row 11 (counted from 0) has label {label}, but the model has 3 classes, 0 to 2"
    )


def test_inputs_the_model_does_not_take():
    model = Layers(1, 1)
    row = {"input_ids": tensor([1]), "token_type_ids": tensor([0]), "targets": tensor(0)}
    check_fits(objective("classification", model), model, sets([row]))  # a tokenizer makes more than some models take
    with pytest.raises(DataError) as error:
        check_fits(objective("classification", model), model, sets([row | {"lenghts": tensor(3)}]))
    assert str(error.value) == (
        "the rows have 'lenghts', which Layers.forward does not take; it takes: attention_mask, input_ids, labels, "
        "output_hidden_states"
    )


def test_a_batch_of_one_row_is_tried_as_one():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    rows = sets([{"inputs": torch.ones(2), "targets": tensor(1)}] * 2, [1, 1])
    check_fits(objective("classification", model), model, rows, batch_size=2)
    with pytest.raises(UsageError, match="in training: ValueError: Expected more than 1 value per channel"):
        check_fits(objective("classification", model), model, rows, batch_size=1)


def test_inputs_of_another_shape():
    model = nn.Linear(2, 3)
    with pytest.raises(UsageError) as error:
        check_fits(objective("classification", model), model, sets([{"inputs": torch.ones(5), "targets": tensor(0)}]))
    assert str(error.value).splitlines() == [
        "the model does not take the data: RuntimeError: mat1 and mat2 shapes cannot be multiplied (1x5 and 2x3)",
        "  a batch holds inputs (1, 5) float32, targets (1,) int64; Linear.forward takes input",
    ]


def test_rows_without_targets():
    model = nn.Linear(2, 3)
    with pytest.raises(DataError) as error:
        check_fits(objective("classification", model), model, sets([{"inputs": torch.ones(2)}]))
    assert str(error.value) == "the rows have no 'targets'; they have: inputs"


def test_a_lone_input_needs_no_name():
    """Images come as `pixel_values`, and modules that are no Hugging Face models call them something else."""
    model = nn.Conv2d(3, 2, 4)
    asked = objective("regression", model)
    batch = {"pixel_values": torch.ones(2, 3, 4, 4), "targets": torch.zeros(2, 2)}
    expected = model(batch["pixel_values"]).detach().square().mean().item()
    assert metrics(asked, batch, model=model)["mse"] == pytest.approx(expected)


def test_finish_of_nothing():
    """No token was predicted anywhere: not a number, and no division by zero."""
    assert np.isnan(objective("masked-lm").finish({"loss": (0.0, 0.0)})["loss"])
