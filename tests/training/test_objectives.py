import math

import numpy as np
import pytest
import torch
from torch import nn, tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from sapp_cli.errors import DataError, UsageError
from sapp_cli.inputs.rows import DataSets, Targets, stack_rows
from sapp_cli.recipe.schema import ObjectiveSection
from sapp_cli.training.objectives import check_fits, make_objective

LN2 = math.log(2)


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


def test_the_gradient_of_the_log_loss():
    batch = {"inputs": tensor([math.log(3)]), "targets": tensor([1])}
    torch.testing.assert_close(loss_and_gradient(objective("binary"), batch)[1], tensor([-0.25]))  # σ(z) − y


# Language models


def tokens(*rows):
    """Logits (rows, tokens, 2) from the probability of token 1 at each place."""
    return tensor([[[math.log(1 - p), math.log(p)] for p in row] for row in rows])


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


# What models take and answer


def test_hugging_face_models_get_what_they_take_and_no_labels():
    from transformers import BertConfig, BertForSequenceClassification

    size = {
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "vocab_size": 20,
    }
    torch.manual_seed(0)
    model, teacher = (BertForSequenceClassification(BertConfig(**size, num_labels=3)).eval() for _ in range(2))
    batch = {
        "input_ids": tensor([[2, 5, 3], [2, 3, 0]]),
        "attention_mask": tensor([[1, 1, 1], [1, 1, 0]]),
        "token_type_ids": torch.zeros(2, 3, dtype=torch.int64),
        "targets": tensor([2, 0]),
    }
    inputs = {key: value for key, value in batch.items() if key != "targets"}
    ours, theirs = (each(**inputs, output_hidden_states=True) for each in (model, teacher))
    asked = objective("classification", model, distill={"weight": 0.5, "temperature": 1.0, "hidden_states": 0.1})
    result = asked.loss(model, batch, teacher)
    torch.testing.assert_close(result.parts["task"], F.cross_entropy(ours.logits, batch["targets"]))
    divergence = F.kl_div(ours.logits.log_softmax(-1), theirs.logits.softmax(-1), reduction="batchmean")
    torch.testing.assert_close(result.parts["distill"], divergence)
    weights = batch["attention_mask"][..., None]
    distances = [
        ((h - t) ** 2 * weights).sum() / (t**2 * weights).sum()
        for h, t in zip(ours.hidden_states, theirs.hidden_states, strict=True)
    ]
    assert len(distances) == 3  # embeddings and two layers
    torch.testing.assert_close(result.parts["hidden_states"], torch.stack(distances).mean())


@pytest.mark.parametrize("task", ["causal-lm", "masked-lm"])
def test_tokens_are_weighed_as_hugging_face_does(task):
    from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    if task == "causal-lm":
        model = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=2)).eval()
    else:
        size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        model = BertForMaskedLM(BertConfig(**size, vocab_size=20)).eval()
    batch = {"input_ids": torch.arange(16).view(2, 8), "attention_mask": torch.ones(2, 8, dtype=torch.int64)}
    targets = tensor([[3, -100, 5, 6, 7, -100, 1, 2], [4, 4, 4, -100, -100, -100, -100, -100]])
    result = objective(task, model).loss(model, batch | {"targets": targets})
    torch.testing.assert_close(result.loss, model(**batch, labels=targets).loss)
    assert result.count == (targets[:, 1:] if task == "causal-lm" else targets).ne(-100).sum()


@pytest.mark.parametrize(
    ("answer", "fits"),
    [
        (lambda x: x, True),
        (lambda x: (x, "more"), True),
        (lambda x: {"logits": x}, True),
        (lambda x: {"pooled": x}, False),
        (lambda x: ("first", x), False),
    ],
)
def test_logits_are_found_in_what_a_model_returns(answer, fits):
    class Model(nn.Module):
        def forward(self, x, scale=None):
            return answer(x * scale)

    batch = {"inputs": tensor([[0.0, 1.0]]), "scale": tensor(3.0), "unasked": tensor(1.0), "labels": tensor([1])}
    asked = objective("classification", Model())
    if fits:
        assert metrics(asked, batch, model=Model())["accuracy"] == 1.0
        return
    with pytest.raises(
        UsageError, match=r"^objective\.task: the model returns a (dict of pooled|tuple), which has no logits; take"
    ):
        asked.evaluate(Model(), batch)


def test_half_precision_logits_are_lifted():
    batch = {"inputs": tensor([[0.0, 8.0]], dtype=torch.bfloat16), "targets": tensor([0])}
    result, _ = loss_and_gradient(objective("classification"), batch)
    assert result.loss.dtype == torch.float32
    assert result.loss.item() == pytest.approx(8 + math.log1p(math.exp(-8)))


@pytest.mark.parametrize(
    ("task", "inputs", "targets", "message"),
    [
        (
            "classification",
            torch.zeros(2, 3, 4),
            tensor([0, 1]),
            "objective.task: classification takes logits (rows, classes) and one label a row, not (2, 3, 4) and (2,)",
        ),
        (
            "regression",
            torch.zeros(2, 1),
            torch.zeros(2, 3),
            "objective.task: regression takes as many targets as the model gives numbers; of a batch the model gives "
            "(2, 1), the targets are (2, 3)",
        ),
        (
            "binary",
            torch.zeros(2, 3),
            tensor([0.0, 1.0]),
            "objective.task: binary takes one logit or two and one target a row, not (2, 3) and (2,)",
        ),
        (
            "causal-lm",
            torch.zeros(2, 3),
            tensor([0, 1]),
            "objective.task: causal-lm takes logits (rows, tokens, vocabulary) and one target a token, not (2, 3) and (2,)",
        ),
    ],
)
def test_shapes_that_do_not_go_together(task, inputs, targets, message):
    with pytest.raises(UsageError) as error:
        objective(task).loss(Answer(), {"inputs": inputs, "targets": targets})
    assert str(error.value) == message


# A callable of the user's

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
        "objective.distill: a factory makes the whole loss, distillation included; leave it out"
    )


# Do model and data go together?


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
            return x + torch.rand(())

    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(), Noise())
    model[2].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    rows = [{"inputs": torch.ones(2), "targets": tensor(label)} for label in (0, 2)]
    check_fits(objective("classification", model, distill={"weight": 0.5}), model, sets(rows, [0, 2]))
    assert all(before[name].equal(value) for name, value in model.state_dict().items())
    assert torch.get_rng_state().equal(state)
    assert (model.training, model[1].training, model[2].training) == (True, True, False)
    assert all(parameter.grad is None for parameter in model.parameters())


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


def test_inputs_of_another_shape():
    model = nn.Linear(2, 3)
    with pytest.raises(DataError) as error:
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
