"""Models whose answers are known, and what an objective makes of them."""

import math

import torch
from torch import nn, tensor

from sapp_cli.recipe.schema import ObjectiveSection
from sapp_cli.training.objectives import make_objective


class Answer(nn.Module):
    """A model that answers with what it is asked, plus a parameter."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))

    def forward(self, inputs):
        return inputs + self.shift


class Fixed(nn.Module):
    """A teacher with an answer of its own."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, inputs):
        assert not self.training
        assert not torch.is_grad_enabled()
        return self.answer


class Layers(nn.Module):
    """A model in the manner of Hugging Face: two hidden states (rows, tokens, 1), the logits their last mean."""

    def __init__(self, first, second, classes=2):
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(tensor(float(first))), nn.Parameter(tensor(float(second)))])
        self.classes = classes

    def forward(self, input_ids, attention_mask=None, labels=None, output_hidden_states=False):
        assert labels is None
        states = [input_ids.float()[..., None] * weight for weight in self.weights]
        logits = states[-1].mean(1).expand(-1, self.classes)
        return {"logits": logits, **({"hidden_states": tuple(states)} if output_hidden_states else {})}


def objective(task, model=None, **settings):
    return make_objective(ObjectiveSection(task=task, **settings), model or Answer())


def loss_and_gradient(asked, batch, teacher=None):
    """The loss of a batch for the model `Answer`, and its gradient with respect to the batch's inputs."""
    batch = batch | {"inputs": batch["inputs"].clone().requires_grad_()}
    result = asked.loss(Answer(), batch, teacher)
    result.loss.backward()
    return result, batch["inputs"].grad


def metrics(asked, *batches, model=None, teacher=None):
    """Metrics over several batches, reduced as the loop does it."""
    totals = {}
    for batch in batches:
        for name, (total, count) in asked.evaluate(model or Answer(), batch, teacher).items():
            assert total.dtype == count.dtype == torch.float64
            assert not total.requires_grad
            before = totals.get(name, (0.0, 0.0))
            totals[name] = (before[0] + total.cpu(), before[1] + count.cpu())
    found = asked.finish({name: (total.tolist(), count.tolist()) for name, (total, count) in totals.items()})
    assert list(found) == list(asked.metrics)
    return found


def tokens(*rows):
    """Logits (rows, tokens, 2) from the probability of token 1 at each place."""
    return tensor([[[math.log(1 - p), math.log(p)] for p in row] for row in rows])
