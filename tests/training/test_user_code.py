"""Errors of the user's own code: one line with step, phase, batch and row, whatever calls it."""

import json
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from sapp_cli.errors import TrainingError
from sapp_cli.training.user_code import UserCode, is_of_user
from tests.training.objectives.answers import objective

MODELS = """
import torch
from torch import nn


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.e, self.h, self.out = nn.Embedding(50, 64), nn.Linear(64, 128), nn.Linear(128, 4)

    def forward(self, inputs):
        return self.out(self.h(self.e(inputs).mean(1)).relu())


class Extra(nn.Module):
    def __init__(self):
        super().__init__()
        self.h, self.out = nn.Linear(64, 128), nn.Linear(128, 4)

    def get_extra_state(self):
        return {"k": 1}

    def set_extra_state(self, state):
        self.k = state

    def forward(self, inputs):
        return self.out(self.h(inputs).relu())


class Norm(nn.Module):
    def __init__(self):
        super().__init__()
        self.h, self.bn, self.out = nn.Linear(64, 128), nn.BatchNorm1d(128), nn.Linear(128, 4)

    def forward(self, inputs):
        return self.out(self.bn(self.h(inputs)).relu())


def lazy():
    return nn.Sequential(nn.LazyLinear(128), nn.ReLU(), nn.LazyLinear(4))


def called_twice(model, batch, seen=[]):
    seen.append(1)
    if len(seen) > 4:
        raise RuntimeError("no more")
    loss = nn.functional.cross_entropy(model(batch["inputs"]), batch["targets"])
    return {"loss": loss}
"""
RECIPE = """
model: {{factory: models.py:{name}}}
data: {{source: tensors, files: {{train: data.npz, validation: held.npz}}, batch_size: {batch}}}
objective: {{task: {task}}}
train: {{steps: 30}}
prune: {{block_size: 8, sparsity: 0.7, min_blocks: 16, rules: [{{match: "out*", dense: true}}]}}
"""


@pytest.fixture
def run(sapp, tmp_path, monkeypatch):
    """A short `sapp prune` of a class of MODELS."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models.py").write_text(MODELS)

    def prune(name, *, words=False, batch=32, task="classification"):
        torch.manual_seed(0)
        namespace = {}
        exec(compile(MODELS, "models.py", "exec"), namespace)
        model = namespace[name]()
        x = torch.randint(0, 50, (200, 6)) if words else torch.randn(200, 64)
        if words:
            x[40, 2] = 50  # the embedding has no entry for it
        if name == "lazy":
            model(x[:2])
        y = torch.arange(200) % 4
        np.savez("data.npz", inputs=x.numpy(), targets=y.numpy())
        np.savez("held.npz", inputs=x[:20].numpy(), targets=y[:20].numpy())
        torch.save(model.state_dict(), "in.pt")
        (tmp_path / "r.yaml").write_text(RECIPE.format(name=name, batch=batch, task=task))
        return sapp("prune", "in.pt", "-r", "r.yaml", "-o", "out", "-q")

    return prune


def test_a_bad_row_is_named_with_step_and_phase(run, tmp_path):
    ran = run("Words", words=True)
    assert ran.code == 6
    assert re.fullmatch(
        r"error: step \d+ of 30 \(\w+\): IndexError: index out of range in self \(models.py:12\); row 40 of the data raises it "
        r"by itself; the batch holds inputs \(32, 6\) int64, targets \(32,\) int64\n",
        ran.err,
    )
    assert not (tmp_path / "out").exists()


def test_extra_state_is_not_a_weight(run):
    assert run("Extra").code == 0
    assert set(load_file("out/model.safetensors")) == {"h.weight", "h.bias", "out.weight", "out.bias"}


def test_layers_without_a_shape_are_named(run, tmp_path):
    ran = run("lazy")
    assert ran.code == 2
    assert ran.err == (
        f"error: r.yaml:2: model.factory: '{tmp_path}/models.py:lazy': '0.weight' has no shape yet, as in nn.LazyLinear; "
        "call the model once in the factory, on an example, before it is returned\n"
    )


def test_a_batch_of_one_row_and_batch_norm(run):
    ran = run("Norm", batch=1)
    assert ran.code == 2
    assert ran.err.startswith(
        "error: the model does not take the data in training: ValueError: Expected more than 1 value per channel when "
        "training, got input size torch.Size([1, 128]) (models.py:36)\n"
    )


def test_a_loss_that_fails_after_the_first_steps(run):
    ran = run("Extra", task="factory, factory: models.py:called_twice")
    assert ran.code in (2, 6)
    assert "models.py" in ran.err
    assert "RuntimeError: no more" in ran.err
    assert "bug" not in ran.err


def test_an_error_of_sapp_is_not_the_users():
    def ours():
        from sapp_cli.grid import BlockGrid

        BlockGrid((2, 2), (0, 1))

    with pytest.raises(AssertionError) as error:
        ours()
    assert not is_of_user(error.value)
    with pytest.raises(json.JSONDecodeError) as error:
        json.loads("{")
    assert is_of_user(error.value)


def test_a_row_is_only_named_if_it_fails_by_itself():
    class Picky(nn.Module):
        def forward(self, x):
            if len(x) > 1:
                raise ValueError("one at a time")
            return x

    guarded = UserCode(Picky(), objective("regression"))
    batch = {"inputs": torch.ones(3, 1), "targets": torch.ones(3, 1)}

    def step():
        with guarded.at("step 1 of 2 (dense)"):
            guarded.looks_at(0, batch)
            Picky()(batch["inputs"])

    with pytest.raises(TrainingError) as error:
        step()
    assert "by itself" not in str(error.value)
    assert str(error.value).startswith("step 1 of 2 (dense): ValueError: one at a time (test_user_code.py:")
