"""An objective of the user's."""

import pytest
import torch
from torch import nn, tensor

from sapp_cli.errors import UsageError
from tests.training.objectives.answers import Answer, loss_and_gradient, metrics, objective

FACTORY = """
import torch

def loss(model, batch):
    error = (model(batch["inputs"]) - batch["targets"]).abs()
    return {"loss": error.mean(), "metrics": {"close": ((error < 1).sum(), len(error)), "worst": (error.max(), 1)}}

def number(model, batch):
    return 3.0

def odd(model, batch):
    return {"loss": model(batch["inputs"]).sum(), "metrics": {"close": 3.0}}
"""


@pytest.fixture
def factory(tmp_path):
    (tmp_path / "objective.py").write_text(FACTORY)
    return str(tmp_path / "objective.py")


BATCH = {"inputs": tensor([1.0, 5.0]), "targets": tensor([1.5, 3.0])}


def test_an_objective_of_the_users(factory):
    asked = objective("factory", factory=f"{factory}:loss", higher_is_better={"close": True, "worst": False})
    result, gradient = loss_and_gradient(asked, BATCH)
    assert (result.loss.item(), result.count, gradient.tolist()) == (1.25, 2, [-0.5, 0.5])
    assert list(asked.metrics) == ["close", "worst"]
    assert metrics(asked, BATCH, BATCH) == {"close": 0.5, "worst": 2.0}


def test_without_metrics_the_loss_is_one(factory):
    asked = objective("factory", factory=f"{factory}:loss")
    short = {key: value[:1] for key, value in BATCH.items()}
    assert asked.metrics == {"loss": False}
    assert metrics(asked, BATCH, short) == pytest.approx({"loss": (2.5 + 0.5) / 3})


def test_objectives_that_return_something_else(factory):
    place = f"objective.factory: '{factory}"
    with pytest.raises(UsageError) as error:
        objective("factory", factory=f"{factory}:number").loss(Answer(), BATCH)
    assert str(error.value) == (
        f"{place}:number': has to return "
        '{"loss": scalar tensor, "metrics": {name: (sum, count)}}, not a value of type float'
    )
    with pytest.raises(UsageError) as error:
        objective("factory", factory=f"{factory}:odd", higher_is_better={"close": True}).evaluate(Answer(), BATCH)
    assert str(error.value) == f"{place}:odd': metric 'close' has to be (sum, count), two numbers, not 3.0"
    with pytest.raises(UsageError) as error:
        objective("factory", factory=f"{factory}:loss", higher_is_better={"auc": True}).evaluate(Answer(), BATCH)
    assert str(error.value) == f"{place}:loss': returned no metric 'auc', named in objective.higher_is_better"
    with pytest.raises(UsageError) as error:
        objective("factory", factory=f"{factory}:loss", distill={"weight": 0.1})
    assert str(error.value) == (
        f"objective.distill: '{factory}:loss' has no parameter 'teacher'; add one, or leave objective.distill out"
    )


def test_a_loss_with_a_teacher_gets_it_in_eval_mode(tmp_path):
    (tmp_path / "taught.py").write_text(
        "def loss(model, batch, teacher):\n"
        "    assert not teacher.training\n"
        "    return {'loss': (model(batch['inputs']) - teacher(batch['inputs'])).square().mean()}\n"
    )
    asked = objective("factory", factory=f"{tmp_path / 'taught.py'}:loss", distill={"weight": 0.5})
    assert asked.needs_teacher
    student, teacher = nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)
    nn.init.constant_(student.weight, 1.0)
    nn.init.constant_(teacher.weight, 3.0)
    batch = {"inputs": torch.ones(4, 2), "targets": torch.zeros(4)}
    assert asked.loss(student, batch, teacher.train()).loss == 16.0  # 2·1 against 2·3
    named = objective("factory", factory=f"{tmp_path / 'taught.py'}:loss", distill={"teacher": "dense.safetensors"})
    assert named.needs_teacher
    with pytest.raises(UsageError, match="missing a required argument: 'teacher'"):
        objective("factory", factory=f"{tmp_path / 'taught.py'}:loss")
