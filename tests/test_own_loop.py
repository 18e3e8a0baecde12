"""Pruning in a loop of one's own: plain PyTorch, and the Hugging Face Trainer."""

import copy

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

import sapp_cli as sapp
from sapp_cli.core.masks import as_blocks, as_matrix
from sapp_cli.errors import UsageError
from sapp_cli.inputs.hugging_face import offline_transformers
from scripts.make_checkpoints import make_bert

STEPS = 20


def test_three_lines_in_a_plain_loop():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8))
    untouched = copy.deepcopy(model)
    x, y = torch.randn(64, 32), torch.randint(8, (64,))

    pruner = sapp.Pruner(model, {"sparsity": 0.75, "block_size": 8, "min_blocks": 8}, STEPS)
    optimizer = torch.optim.AdamW(pruner.parameter_groups(lr=1e-2, weight_decay=0.01))
    for t in range(STEPS):
        pruner.step(t, optimizer)
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    state = pruner.fold()

    untouched.load_state_dict(state)
    torch.testing.assert_close(untouched(x), model(x))
    first = untouched[0].weight.detach().view(8, 8, 4, 8).abs().amax((1, 3)) > 0
    second = untouched[2].weight.detach().view(1, 8, 8, 8).abs().amax((1, 3)) > 0
    assert int(first.sum()) + int(second.sum()) == (32 + 8) // 4  # one budget for both
    logits = next(group for group in optimizer.param_groups if group["name"] == "logits")
    assert logits["lr"] == 0.03  # in a run this short not the 3 / (STEPS / 2) of a long one


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        ids = torch.randint(5, 200, (12,), generator=generator)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.sum() % 3}


def trainer_for(folder, steps, pruner_steps, **changes):
    with offline_transformers() as transformers:
        model = transformers.AutoModelForSequenceClassification.from_pretrained(make_bert(folder / "bert"))
    untouched = copy.deepcopy(model)
    settings = {
        "sparsity": 0.5,
        "block_size": 8,
        "min_blocks": 50,
        "allocation": "uniform",
        "rules": [{"match": "classifier", "dense": True}],
    }
    pruner = sapp.Pruner(model, {**settings, **changes}, pruner_steps)
    optimizer = torch.optim.AdamW(pruner.parameter_groups(lr=1e-3))
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"),
        max_steps=steps,
        per_device_train_batch_size=8,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    callback = sapp.PrunerCallback(pruner)
    trainer = Trainer(model, arguments, train_dataset=Rows(), callbacks=[callback], optimizers=(optimizer, None))
    return trainer, pruner, model, untouched


def test_the_hugging_face_trainer(tmp_path):
    trainer, pruner, model, untouched = trainer_for(tmp_path, STEPS, STEPS)
    trainer.train()
    assert all(int(keep.sum()) == keep.numel() // 2 for keep in pruner.masks.values())
    untouched.load_state_dict(pruner.fold())
    row = Rows()[0]
    inputs = {key: row[key][None] for key in ("input_ids", "attention_mask")}
    model.eval()
    untouched.eval()
    torch.testing.assert_close(untouched(**inputs).logits, model(**inputs).logits)
    untouched.save_pretrained(tmp_path / "out")
    saved = sapp.load_state_dict(tmp_path / "out")["bert.encoder.layer.0.attention.self.query.weight"]
    assert (saved.view(12, 8, 12, 8).abs().amax((1, 3)) == 0).sum() == 72


def test_the_trainer_leaves_pruned_blocks_to_training_if_wanted(tmp_path):
    """With `literal` the Trainer's AdamW moves weights and logits behind the mask; what is exported is zero there."""
    attention = {"score": "attention", "pruned": "literal"}
    trainer, pruner, _, _ = trainer_for(tmp_path, STEPS, STEPS, attention=attention)
    noted = {}

    class Noting(TrainerCallback):
        def on_step_begin(self, args, state, control, **others):
            if state.global_step == STEPS - 5:  # in the final sparse phase
                noted.update({name: layer.masked.logits.detach().clone() for name, layer in pruner.attached.items()})

    trainer.add_callback(Noting())
    trainer.train()
    state = pruner.fold()
    for name, layer in pruner.attached.items():
        gone = ~layer.masked.keep
        assert (layer.masked.logits.detach()[gone] != noted[name][gone]).any()
        weight = as_blocks(as_matrix(state[name], layer.masked.layout), layer.masked.grid)
        assert int((weight != 0).any(3).any(1).sum()) == int(layer.masked.keep.sum()) == gone.numel() // 2


def test_the_callback_shows_the_pruner_the_gradients(tmp_path):
    trainer, pruner, *_ = trainer_for(tmp_path, STEPS, STEPS, score="fisher", allocation="parameters")
    trainer.train()
    assert set(pruner.fisher.blocks) == set(pruner.masks)
    assert all(bool((gathered > 0).any()) for gathered in pruner.fisher.blocks.values())
    kept = [int(keep.sum()) for keep in pruner.masks.values()]
    assert sum(kept) == sum(
        keep.numel() // 2 for keep in pruner.masks.values()
    )  # one size of blocks: one budget of blocks
    assert any(count != keep.numel() // 2 for count, keep in zip(kept, pruner.masks.values(), strict=True))


class TwoHeads(nn.Module):
    """A second head that the loss does not read, and a frozen layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.used, self.frozen, self.head, self.aux = (nn.Linear(16, 16) for _ in range(4))
        self.frozen.weight.requires_grad_(False)

    def forward(self, x, labels):
        logits = self.head(self.frozen(self.used(x).relu()))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


@pytest.mark.parametrize("score", ["fisher", "norm"])
def test_the_trainer_prunes_neither_frozen_weights_nor_what_the_loss_does_not_read(tmp_path, score):
    model, said = TwoHeads(), []
    settings = {"sparsity": 0.5, "block_size": 4, "min_blocks": 1, "score": score, "allocation": "uniform"}
    pruner = sapp.Pruner(model, settings, STEPS, notice=said.append)
    rows = [{"x": torch.randn(16), "labels": number % 16} for number in range(32)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=STEPS,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    optimizer = torch.optim.AdamW(pruner.parameter_groups(lr=1e-3))
    Trainer(
        model, arguments, train_dataset=rows, callbacks=[sapp.PrunerCallback(pruner)], optimizers=(optimizer, None)
    ).train()
    assert {name: int(keep.sum()) for name, keep in pruner.masks.items()} == {"used.weight": 8, "head.weight": 8}
    state, source = pruner.fold(), TwoHeads().state_dict()
    assert all(torch.equal(state[name], source[name]) for name in ("frozen.weight", "aux.weight"))
    line = (
        "1 layer keeps all its blocks, because nothing ranks them: aux.weight (no gradient from the loss in the first "
    )
    assert said == [f"{line}{'4 steps' if score == 'fisher' else 'step'})"]


def test_a_trainer_of_another_length_is_refused(tmp_path):
    trainer, *_ = trainer_for(tmp_path, STEPS, STEPS + 1)
    with pytest.raises(UsageError, match="the Trainer will run 20 steps, the pruner was made for 21"):
        trainer.train()
