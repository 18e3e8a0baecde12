"""What models take and answer."""

import math

import pytest
import torch
from torch import nn, tensor
from torch.nn import functional as F

from sapp_cli.errors import UsageError
from tests.training.objectives.answers import Answer, loss_and_gradient, metrics, objective


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
            "objective.task: binary takes one logit or two and one target a row, or as many of each, not (2, 3) and (2,)",
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
