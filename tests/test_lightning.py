"""Pruning inside Lightning's own loop: the masks of a plain loop, accumulation, and a Trainer of another length."""

import warnings

import pytest
import pytorch_lightning as lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import sapp_cli as sapp
from sapp_cli.errors import UsageError

STEPS = 20
SETTINGS = {"sparsity": 0.75, "block_size": 8, "min_blocks": 8}


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8))
        self.pruner = sapp.Pruner(self, SETTINGS, STEPS)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.cross_entropy(self.layers(x), y)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.pruner.parameter_groups(lr=1e-2))


def rows():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(64, 32, generator=generator), torch.randint(8, (64,), generator=generator)


def fit(module, steps, batch_size=64, **settings):
    trainer = lightning.Trainer(
        max_steps=steps,
        accelerator="cpu",
        callbacks=[sapp.PrunerLightningCallback(module.pruner)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    with warnings.catch_warnings():
        for text in ("does not have many workers", "LeafSpec", "is deprecated"):  # Lightning's own
            warnings.filterwarnings("ignore", f".*{text}.*")
        trainer.fit(module, DataLoader(TensorDataset(*rows()), batch_size=batch_size))


def plain_loop(module):
    x, y = rows()
    optimizer = module.configure_optimizers()
    for t in range(STEPS):
        module.pruner.step(t, optimizer)
        optimizer.zero_grad()
        module.training_step((x, y), t).backward()
        optimizer.step()
    return module


@pytest.mark.parametrize("accumulated", [1, 4])
def test_the_weights_and_masks_are_those_of_a_plain_loop(accumulated):
    module, plain = Module(), plain_loop(Module())
    fit(module, STEPS, 64 // accumulated, accumulate_grad_batches=accumulated)
    assert module.pruner.sparsity == 0.75
    for name, keep in plain.pruner.masks.items():
        assert torch.equal(module.pruner.masks[name], keep)
    expected = plain.pruner.fold()
    for name, tensor in module.pruner.fold().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-5)


def test_a_trainer_of_another_length_is_refused():
    with pytest.raises(UsageError) as error:
        fit(Module(), STEPS + 1)
    assert str(error.value) == (
        "the Trainer will run 21 steps, the pruner was made for 20: make it with steps=21, or set max_steps=20 in the Trainer"
    )


class TwoHeads(Module):
    """A second head that the loss does not read."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8))  # without masks
        self.aux = nn.Linear(32, 64)
        self.said = []
        self.pruner = sapp.Pruner(self, SETTINGS, STEPS, notice=self.said.append)


def test_a_layer_that_the_loss_does_not_read_stays_dense():
    module = TwoHeads()
    source = module.aux.weight.detach().clone()
    fit(module, STEPS)
    assert set(module.pruner.masks) == {"layers.0.weight", "layers.2.weight"}
    assert torch.equal(module.pruner.fold()["aux.weight"], source)
    line = (
        "1 layer keeps all its blocks, because nothing ranks them: aux.weight (no gradient from the loss in the first "
    )
    assert module.said == [f"{line}4 steps)"]
