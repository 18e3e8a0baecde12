"""The teacher's term: logits, hidden states, embeddings."""

import math

import pytest
import torch
from torch import nn, tensor
from torch.nn import functional as F

from sapp_cli.errors import UsageError
from sapp_cli.training.objectives.forward import pooled
from tests.training.objectives.answers import Answer, Fixed, Layers, loss_and_gradient, metrics, objective

LN2 = math.log(2)


# Distillation


def test_distillation_by_hand():
    """Teacher (1/4, 3/4), student (1/2, 1/2) at temperature 1: KL = 1/4·ln 1/2 + 3/4·ln 3/2; the task's loss is ln 2."""
    batch = {"inputs": tensor([[0.0, 0.0]]), "targets": tensor([0])}
    teacher = Fixed(tensor([[0.0, math.log(3)]]))
    asked = objective("classification", distill={"weight": 0.25, "temperature": 1.0})
    assert asked.needs_teacher
    result, gradient = loss_and_gradient(asked, batch, teacher)
    divergence = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert result.parts["task"].item() == pytest.approx(LN2)
    assert result.parts["distill"].item() == pytest.approx(divergence)
    assert result.loss.item() == pytest.approx(0.75 * LN2 + 0.25 * divergence)
    # 3/4·(softmax − one-hot) + 1/4·(softmax − teacher)
    torch.testing.assert_close(gradient, 0.75 * tensor([[-0.5, 0.5]]) + 0.25 * tensor([[0.25, -0.25]]))


def test_the_temperature_divides_both_and_its_square_multiplies():
    """Divided by 2, the logits 2·ln 3 are those of the test above, and the term is four times as large."""
    batch = {"inputs": tensor([[0.0, 0.0]]), "targets": tensor([0])}
    asked = objective("classification", distill={"weight": 1.0, "temperature": 2.0})
    result, _ = loss_and_gradient(asked, batch, Fixed(tensor([[0.0, 2 * math.log(3)]])))
    assert result.loss.item() == pytest.approx(4 * (0.25 * math.log(0.5) + 0.75 * math.log(1.5)))


def test_one_logit_is_distilled_as_two_classes():
    batch = {"inputs": tensor([0.0, 1.0]), "targets": tensor([1.0, 0.0])}
    two = {"inputs": tensor([[0.0, 0.0], [0.0, 1.0]]), "targets": tensor([1, 0])}
    settings = {"distill": {"weight": 0.6, "temperature": 3.0}}
    one_result, _ = loss_and_gradient(objective("binary", **settings), batch, Fixed(tensor([2.0, -1.0])))
    teacher = Fixed(tensor([[0.0, 2.0], [0.0, -1.0]]))
    two_result, _ = loss_and_gradient(objective("classification", **settings), two, teacher)
    torch.testing.assert_close(one_result.loss, two_result.loss)


def test_regression_is_distilled_by_squared_error():
    batch = {"inputs": tensor([[1.0], [2.0]]), "targets": tensor([1.0, 1.0])}
    asked = objective("regression", distill={"weight": 0.5})
    result, _ = loss_and_gradient(asked, batch, Fixed(tensor([[3.0], [2.0]])))
    assert result.loss.item() == pytest.approx(0.5 * 0.5 + 0.5 * 2.0)


@pytest.mark.parametrize(("task", "counted"), [("causal-lm", [(0, 0), (1, 0)]), ("masked-lm", [(0, 1), (1, 1)])])
def test_language_models_are_distilled_where_tokens_are_predicted(task, counted):
    generator = torch.Generator().manual_seed(2)
    student, teacher = torch.randn(2, 2, 3, 4, generator=generator)
    batch = {"inputs": student, "targets": tensor([[-100, 1, -100], [-100, 2, -100]])}
    asked = objective(task, distill={"weight": 1.0, "temperature": 1.0})
    result, _ = loss_and_gradient(asked, batch, Fixed(teacher))
    expected = [
        F.kl_div(student[place].log_softmax(-1), teacher[place].softmax(-1), reduction="sum") for place in counted
    ]
    assert result.count == 2
    torch.testing.assert_close(result.loss, torch.stack(expected).mean())


def test_a_teacher_with_other_classes():
    batch = {"inputs": torch.zeros(2, 3), "targets": tensor([0, 1])}
    asked = objective("classification", distill={"weight": 0.5})
    with pytest.raises(UsageError) as error:
        asked.loss(Answer(), batch, Fixed(torch.zeros(2, 4)))
    assert str(error.value) == (
        "objective.distill.teacher: the teacher gives logits (2, 4), the model (2, 3); take a teacher with the same classes"
    )


def test_hidden_states_by_hand():
    """Layer 1: (2 − 1)²/1² of the teacher's size; layer 2: (1 − 2)²/2². Padding, which would change nothing, is 0 in both."""
    batch = {
        "input_ids": tensor([[1, 3], [2, 50]]),
        "attention_mask": tensor([[1, 1], [1, 0]]),
        "targets": tensor([0, 1]),
    }
    model = Layers(2, 1)
    asked = objective("classification", model, distill={"hidden_states": 4.0})
    result = asked.loss(model, batch, Layers(1, 2))
    assert result.parts["hidden_states"].item() == pytest.approx((1 + 1 / 4) / 2)
    assert result.loss.item() == pytest.approx(LN2 + 4 * 0.625)
    result.loss.backward()
    # d/dw of (w − 1)² at 2, and of (w − 2)²/4 at 1, each times 4 and halved for two layers
    assert [weight.grad.item() for weight in model.weights] == pytest.approx([4.0, -1.0])


def test_padding_has_no_hidden_states():
    """The teacher disagrees in the padded token alone."""

    class Other(Layers):
        def forward(self, input_ids, attention_mask, **options):
            return super().forward(input_ids + 100 * (1 - attention_mask), attention_mask, **options)

    batch = {
        "input_ids": tensor([[1, 3], [2, 50]]),
        "attention_mask": tensor([[1, 1], [1, 0]]),
        "targets": tensor([0, 1]),
    }
    asked = objective("classification", Layers(1, 1), distill={"hidden_states": 1.0})
    assert asked.loss(Layers(1, 1), batch, Other(1, 1)).parts["hidden_states"].item() == 0


def test_models_without_hidden_states():
    class Bare(nn.Module):
        def forward(self, inputs, output_hidden_states=False):
            return {"logits": inputs}

    asked = objective("classification", Bare(), distill={"hidden_states": 1.0})
    with pytest.raises(UsageError) as error:
        asked.loss(Bare(), {"inputs": torch.zeros(1, 2), "targets": tensor([0])}, Bare())
    assert str(error.value) == (
        "objective.distill.hidden_states: the model returns a dict of logits, which has no hidden_states; set it to 0"
    )


# Embeddings


class Embeds(nn.Module):
    def __init__(self, states):
        super().__init__()
        self.states = nn.Parameter(states)

    def forward(self, input_ids, attention_mask=None):
        return {"last_hidden_state": self.states[: len(input_ids)]}


STATES = tensor([[[1.0, 0.0], [0.0, 1.0], [9.0, -9.0]]])
IDS = {"input_ids": tensor([[1, 2, 3]]), "attention_mask": tensor([[1, 1, 0]])}


def test_embeddings_by_hand():
    """The mean over the two tokens that are no padding is (1/2, 1/2); its cosine with (1, 0) is 1/√2."""
    model, teacher = Embeds(STATES), Embeds(tensor([[[1.0, 0.0]] * 3]))
    asked = objective("embedding-distillation", model)
    assert asked.needs_teacher
    assert asked.metrics == {"cosine": True}
    result = asked.loss(model, IDS, teacher)
    assert (result.loss.item(), result.count) == (pytest.approx(1 - math.sqrt(0.5)), 1)
    result.loss.backward()
    assert model.states.grad[0, 2].abs().max() == 0
    assert teacher.states.grad is None
    assert metrics(asked, IDS, model=model, teacher=teacher) == pytest.approx({"cosine": math.sqrt(0.5)})
    assert metrics(asked, IDS, model=model, teacher=model) == pytest.approx({"cosine": 1.0})


def test_the_first_token_as_embedding():
    asked = objective("embedding-distillation", Embeds(STATES), pooling="cls")
    result = asked.loss(Embeds(STATES), IDS, Embeds(tensor([[[0.0, 1.0]] * 3])))
    assert result.loss.item() == pytest.approx(1.0)


def test_embeddings_of_models_that_have_none():
    asked = objective("embedding-distillation", Layers(1, 1))
    with pytest.raises(UsageError) as error:
        asked.loss(Layers(1, 1), IDS, Layers(1, 1))
    assert str(error.value) == (
        "objective.task: embedding-distillation: the model returns a dict of logits, which has no last_hidden_state; take "
        "the bare model, without a head"
    )
    asked = objective("embedding-distillation", Embeds(STATES))
    with pytest.raises(UsageError) as error:
        asked.loss(Embeds(STATES), IDS, Embeds(torch.ones(1, 3, 5)))
    assert str(error.value) == (
        "objective.distill.teacher: the teacher's embeddings have 5 numbers, the model's 2; take a teacher of "
        "the same width"
    )
    with pytest.raises(UsageError) as error:
        objective("embedding-distillation", distill={"weight": 0.5})
    assert str(error.value) == "objective.distill.weight: embedding-distillation is distillation already; leave it 0"


@pytest.mark.parametrize(
    ("pooling", "vectors"),
    [
        ("mean", [[2.0, 3.0], [5.0, 1.0]]),
        ("cls", [[1.0, 4.0], [5.0, 1.0]]),
        ("max", [[3.0, 4.0], [5.0, 1.0]]),
        ("last", [[3.0, 2.0], [5.0, 1.0]]),
        ("weighted-mean", [[7 / 3, 8 / 3], [5.0, 1.0]]),
    ],
)
def test_token_vectors_become_one_by_hand(pooling, vectors):
    """Two tokens (1, 4), (3, 2) and one (5, 1); what stands in the padding, 9, counts nowhere."""
    states = tensor([[[1.0, 4.0], [3.0, 2.0], [9.0, 9.0]], [[5.0, 1.0], [9.0, 9.0], [9.0, 9.0]]])
    batch = {"attention_mask": tensor([[1, 1, 0], [1, 0, 0]])}
    torch.testing.assert_close(pooled({"last_hidden_state": states}, batch, pooling), tensor(vectors))
