"""Activations that are computed again: the same gradients from less memory, or a clear refusal."""

import copy

import pytest
import torch

import sapp_cli as sapp
from sapp_cli.inputs.hugging_face import offline_transformers
from sapp_cli.training.activations import checkpoint_gradients
from scripts.make_checkpoints import make_bert


@pytest.fixture
def bert(tmp_path):
    with offline_transformers() as transformers:
        return transformers.AutoModelForSequenceClassification.from_pretrained(make_bert(tmp_path / "bert"))


def gradients(model):
    """(bytes kept between forward and backward, {parameter: its gradient}) of one masked step with dropout."""
    settings = {"sparsity": 0.5, "block_size": 8, "min_blocks": 50, "score": "effective-norm"}
    pruner = sapp.Pruner(model, settings, 20)
    pruner.step(0)
    for t in range(1, 4):  # into the sparsification: some blocks are gone
        pruner.step(t)
    assert 0 < pruner.sparsity < 0.5
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    model.train()
    ids = torch.arange(5, 5 + 4 * 64).view(4, 64) % 100
    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(input_ids=ids, labels=torch.tensor([0, 1, 2, 0])).loss
    loss.backward()
    return sum(kept.values()), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_gradients_are_the_same_and_fewer_activations_are_kept(bert):
    again = copy.deepcopy(bert)
    checkpoint_gradients(again)
    memory, plain = gradients(bert)
    less, recomputed = gradients(again)
    assert plain.keys() == recomputed.keys()
    assert any(name.endswith("parametrizations.weight.0.logits") for name in plain)
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, rtol=1e-5, atol=1e-7)
    assert less < memory / 2


def test_a_run_with_recomputed_activations(sapp, bert, tmp_path):
    rows = "".join(f'{{"text": "text number {number}", "label": {number % 3}}}\n' for number in range(8))
    (tmp_path / "train.jsonl").write_text(rows)
    ran = sapp(
        *("prune", tmp_path / "bert", "-r", "text-classification", "-o", tmp_path / "out", "--steps", 4),
        *(
            "--set",
            f"data.files.train={tmp_path / 'train.jsonl'}",
            "--set",
            f"data.files.validation={tmp_path / 'train.jsonl'}",
        ),
        *("--set", "prune.min_blocks=36", "--set", "data.batch_size=2", "--set", "train.gradient_checkpointing=true"),
        *("--set", "prune.allocation=uniform"),
        *("--set", "prune.phases={dense: 0.25, rounds: 1, last_round: 0.5, final_sparse: 0.25}"),
    )
    assert ran.code == 0, ran.err


def test_a_model_that_cannot_is_refused(sapp, digits, tmp_path):
    settings = ["--set", "train.gradient_checkpointing=true", "-o", tmp_path / "out"]
    ran = sapp("prune", digits / "dense.safetensors", "-r", digits / "recipe.yaml", *settings)
    assert ran.code == 2
    assert ran.err.splitlines()[-1] == (
        "error: --set: train.gradient_checkpointing: Sequential has no gradient checkpointing; set it to false and lower "
        "data.batch_size instead"
    )
