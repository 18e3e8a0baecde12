"""Which tokens are predicted, and how batches add up."""

import math

import pytest
import torch
from torch import tensor

from tests.training.objectives.answers import loss_and_gradient, metrics, objective, tokens

LN2 = math.log(2)


def test_a_causal_model_predicts_the_next_token():
    """Row 1: 1 from 1/2, then 0 from 1 − 3/4; row 2: 1 from 1/4, then padding."""
    batch = {"inputs": tokens([0.5, 0.75, 0.9], [0.25, 0.9, 0.9]), "targets": tensor([[0, 1, 0], [0, 1, -100]])}
    result, gradient = loss_and_gradient(objective("causal-lm"), batch)
    assert result.count == 3
    assert result.loss.item() == pytest.approx((LN2 + math.log(4) + math.log(4)) / 3)
    torch.testing.assert_close(gradient[0, 0], tensor([0.5, -0.5]) / 3)
    assert gradient[:, 2].abs().max() == 0  # nothing follows the last token
    assert gradient[1, 1].abs().max() == 0  # nor one before padding


def test_a_masked_model_predicts_the_masked_tokens():
    batch = {
        "inputs": tokens([0.5, 0.75, 0.9], [0.25, 0.9, 0.9]),
        "targets": tensor([[-100, 1, -100], [0, -100, -100]]),
    }
    result, gradient = loss_and_gradient(objective("masked-lm"), batch)
    assert result.count == 2
    assert result.loss.item() == pytest.approx(2 * math.log(4 / 3) / 2)
    assert gradient[0, 0].abs().max() == 0


@pytest.mark.parametrize("task", ["causal-lm", "masked-lm"])
def test_perplexity_is_of_all_tokens_and_not_of_batches(task):
    """One batch has three tokens at 1/2, the other a single one at 1/4: e^((3·ln 2 + ln 4)/4) and no mean of means."""
    long = {"inputs": tokens([0.5] * 4), "targets": tensor([[-100, 1, 1, 0]])}
    short = {"inputs": tokens([0.25] * 4), "targets": tensor([[-100, 1, -100, -100]])}
    asked = objective(task)
    assert asked.metrics == {"perplexity": False, "loss": False}
    assert metrics(asked, long, short) == pytest.approx({"perplexity": 2**1.25, "loss": 1.25 * LN2})


@pytest.mark.parametrize("task", ["causal-lm", "masked-lm"])
def test_losses_of_batches_add_up_by_their_counts(task):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(4, 6, 5, generator=generator)
    targets = torch.randint(5, (4, 6), generator=generator)
    targets[1:3, 2:] = -100
    whole, _ = loss_and_gradient(objective(task), {"inputs": inputs, "targets": targets})
    parts = [
        loss_and_gradient(objective(task), {"inputs": inputs[rows], "targets": targets[rows]})[0]
        for rows in (slice(0, 2), slice(2, 4))
    ]
    assert sum(part.count for part in parts) == whole.count
    mean = sum(part.loss * part.count for part in parts) / whole.count
    torch.testing.assert_close(mean, whole.loss)


@pytest.mark.parametrize("task", ["causal-lm", "masked-lm"])
def test_a_batch_without_tokens_to_predict(task):
    batch = {"inputs": tokens([0.5, 0.5]), "targets": tensor([[-100, -100]])}
    result, gradient = loss_and_gradient(objective(task), batch)
    assert (result.loss.item(), result.count) == (0.0, 0)
    assert gradient.abs().max() == 0


def test_perplexity_stays_a_number():
    assert objective("causal-lm").finish({"loss": (1e6, 1.0)}) == {"perplexity": math.exp(700), "loss": 1e6}
