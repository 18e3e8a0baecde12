"""Classification, regression, one logit: the loss and the metrics by hand and by scikit-learn."""

import math

import pytest
import torch
from torch import tensor

from tests.training.objectives.answers import loss_and_gradient, metrics, objective

LN2 = math.log(2)


# Classification


def test_cross_entropy_by_hand():
    """Softmax of (0, ln 3) is (1/4, 3/4)."""
    batch = {"inputs": tensor([[0.0, math.log(3)], [0.0, math.log(3)]]), "targets": tensor([0, 1])}
    result, gradient = loss_and_gradient(objective("classification"), batch)
    assert result.loss.item() == pytest.approx((math.log(4) + math.log(4 / 3)) / 2)
    assert result.count == 2
    assert list(result.parts) == ["task"]
    torch.testing.assert_close(gradient, tensor([[-3 / 8, 3 / 8], [1 / 8, -1 / 8]]))


def test_label_smoothing_is_of_the_loss_and_not_of_the_metric():
    """With ε = 0.2 and two classes the targets are 0.9 and 0.1."""
    batch = {"inputs": tensor([[0.0, math.log(3)]]), "targets": tensor([1])}
    asked = objective("classification", label_smoothing=0.2)
    assert loss_and_gradient(asked, batch)[0].loss.item() == pytest.approx(0.9 * math.log(4 / 3) + 0.1 * math.log(4))
    assert metrics(asked, batch)["loss"] == pytest.approx(math.log(4 / 3))


def test_accuracy_counts_rows_whatever_the_batches():
    rows = {"inputs": tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 2.0]]), "targets": tensor([0, 1, 1])}
    parts = [{key: value[:1] for key, value in rows.items()}, {key: value[1:] for key, value in rows.items()}]
    asked = objective("classification")
    assert asked.metrics == {"accuracy": True, "loss": False}
    assert metrics(asked, *parts) == pytest.approx(metrics(asked, rows))
    assert metrics(asked, *parts)["accuracy"] == pytest.approx(2 / 3)


def test_classification_against_scikit_learn():
    from sklearn.metrics import accuracy_score, log_loss

    logits, labels = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)), torch.arange(50) % 7
    found = metrics(objective("classification"), {"inputs": logits, "targets": labels})
    probabilities = logits.double().softmax(-1)
    assert found["loss"] == pytest.approx(log_loss(labels, probabilities))
    assert found["accuracy"] == accuracy_score(labels, logits.argmax(-1))


# Regression


def test_squared_error_by_hand():
    batch = {"inputs": tensor([[3.0], [1.0]]), "targets": tensor([1.0, 1.5])}
    result, gradient = loss_and_gradient(objective("regression"), batch)
    assert result.loss.item() == pytest.approx((4 + 0.25) / 2)
    torch.testing.assert_close(gradient, tensor([[2.0], [-0.5]]))
    assert metrics(objective("regression"), batch) == pytest.approx({"mse": 2.125, "mae": 1.25})


def test_several_numbers_a_row():
    batch = {"inputs": tensor([[1.0, 2.0], [3.0, 4.0]]), "targets": tensor([[1.0, 0.0], [3.0, 4.0]])}
    result, _ = loss_and_gradient(objective("regression"), batch)
    assert (result.loss.item(), result.count) == (1.0, 2)


# Binary


@pytest.mark.parametrize(
    "inputs",
    [tensor([0.0, math.log(3)]), tensor([[0.0], [math.log(3)]]), tensor([[5.0, 5.0], [1.0, 1.0 + math.log(3)]])],
)
def test_log_loss_by_hand(inputs):
    """σ(0) = 1/2, σ(ln 3) = 3/4; two logits are worth their difference."""
    batch = {"inputs": inputs, "targets": tensor([1.0, 0.0])}
    result, _ = loss_and_gradient(objective("binary"), batch)
    assert result.loss.item() == pytest.approx((LN2 + math.log(4)) / 2)
    found = metrics(objective("binary"), batch)
    assert found == pytest.approx({"logloss": (LN2 + math.log(4)) / 2, "auc": 0.0, "accuracy": 0.0})
    assert objective("binary").metrics == {"logloss": False, "auc": True, "accuracy": True}


def test_the_area_under_the_curve_is_scikit_learns():
    from sklearn.metrics import roc_auc_score

    generator = torch.Generator().manual_seed(0)
    targets = (torch.rand(500, generator=generator) < 0.25).float()
    logits = 2 * torch.randn(500, generator=generator) + targets
    batches = [{"inputs": logits[rows], "targets": targets[rows]} for rows in torch.arange(500).split(130)]
    found = metrics(objective("binary"), *batches)["auc"]
    assert found == pytest.approx(roc_auc_score(targets.numpy(), logits.numpy()), abs=5e-4)  # pairs within one bin
    # Equal logits: half of each pair. One class alone: nothing to tell apart.
    for one_label in (tensor([0.0, 1.0]), tensor([1.0, 1.0])):
        assert metrics(objective("binary"), {"inputs": tensor([3.0, 3.0]), "targets": one_label})["auc"] == 0.5


def test_several_labels_a_row_are_questions_of_their_own():
    """σ(±ln 3) = 3/4 and 1/4: losses ln 4/3, ln 4, ln 2, ln 4/3; of four answers, one (p = 1/4 for a 1) is wrong."""
    third = math.log(3)
    batch = {"inputs": tensor([[third, -third], [0.0, -third]]), "targets": tensor([[1, 1], [0, 0]])}
    result, gradient = loss_and_gradient(objective("binary"), batch)
    assert (result.loss.item(), result.count) == (pytest.approx((2 * math.log(4 / 3) + math.log(4) + LN2) / 4), 2)
    torch.testing.assert_close(gradient, tensor([[-0.25, -0.75], [0.5, 0.25]]) / 4)  # (σ(z) − y) / 4
    found = metrics(objective("binary"), batch)
    assert found["accuracy"] == 0.75
    # Ones have ln 3 and −ln 3, zeros 0 and −ln 3: pairs 1, 1, 0 and one half of four.
    assert found["auc"] == 2.5 / 4


def test_the_gradient_of_the_log_loss():
    batch = {"inputs": tensor([math.log(3)]), "targets": tensor([1])}
    torch.testing.assert_close(loss_and_gradient(objective("binary"), batch)[1], tensor([-0.25]))  # σ(z) − y
