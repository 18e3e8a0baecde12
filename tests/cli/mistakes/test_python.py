"""What only Python can ask for, and how it is told: the type and the whole message, as in table/ for commands."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning
import torch
from safetensors.numpy import save_file
from torch import nn
from transformers import Trainer, TrainingArguments

import sapp_cli as sapp
from sapp_cli.checkpoint.source import open_checkpoint
from sapp_cli.checkpoint.statistics import block_statistics
from sapp_cli.codegen import support
from sapp_cli.codegen.isa import host_isas
from sapp_cli.errors import CheckpointError, SappError, SettingError, TrainingError, UsageError
from sapp_cli.grid import BlockGrid, MatrixLayout
from sapp_cli.passes.block_passes import block_passes
from sapp_cli.runtime.linear import BlockSparseLinear

HERE = "HERE"  # the folder that lies ready, where a message names it


@dataclass(frozen=True)
class Call:
    """A call in a folder with a small checkpoint net.safetensors, and how it ends."""

    name: str
    call: Callable[[Path], object]
    error: type[SappError]
    message: str


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 4))


def pruner(steps: int = 20, **settings) -> sapp.Pruner:
    return sapp.Pruner(network(), {"block_size": 4, "min_blocks": 1, "method": "magnitude", **settings}, steps)


def checkpoint(folder: Path):
    return open_checkpoint(folder / "net.safetensors")


def cut_while_read(folder: Path) -> None:
    path = folder / "net.safetensors"
    file = open_checkpoint(path).files[0]
    name = next(iter(file.tensors))
    with file.reading(name) as read:
        os.truncate(path, 8)
        read(0, np.empty(file.tensors[name].nbytes, np.uint8))


def statistics(folder: Path) -> object:
    return block_statistics(checkpoint(folder), "waves", MatrixLayout("linear", (4, 4)), BlockGrid((4, 4), (2, 2)))


def last_steps_without_gradients(folder: Path) -> None:
    shy = pruner(
        40,
        method="gradual-magnitude",
        score="fisher",
        phases={"dense": 0.5, "rounds": 1, "last_round": 0.25, "final_sparse": 0.25},
    )
    shy.step(0)
    shy.step(shy.schedule.phases[1].stop - 1)


def weights_that_become_infinite(folder: Path) -> None:
    phases = {"dense": 0.25, "rounds": 1, "last_round": 0.5, "final_sparse": 0.25}
    lost = pruner(40, method="gradual-magnitude", phases=phases)
    lost.step(10)
    with torch.no_grad():
        lost.attached["0.weight"].theta[0, 0] = torch.inf
    lost.step(29)


def blocks_that_do_not_fit(folder: Path) -> object:
    crow, col = torch.tensor([0, 1, 2], dtype=torch.int32), torch.tensor([0, 9], dtype=torch.int32)
    return BlockSparseLinear((4, 8), torch.ones(2, 2, 4), crow, col)


def passes_for_another_cpu(folder: Path) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAPP_ISA", "avx1024")
        return block_passes(BlockGrid((4, 8), (4, 4)))


def kernels_without_llvm(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAPP_ISA", "avx2")
        patch.setattr(support, "kernels_work", lambda: False)
        support.require_instruction_set()


def a_model_of_another_shape(folder: Path) -> object:
    return sapp.load(nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 4)), folder / "net.safetensors")


def a_report_that_is_none(folder: Path) -> object:
    (folder / "out").mkdir()
    shutil.copy(folder / "net.safetensors", folder / "out/model.safetensors")
    (folder / "out/sparsity.json").write_text('{"layers": 1}')
    return sapp.load(network(), folder / "out")


def a_buffer_without_values(folder: Path) -> object:
    with torch.device("meta"):
        model = network()
        model.register_buffer("scale", torch.ones(4), persistent=False)
    return sapp.load(model, folder / "net.safetensors")


def a_head_without_values(folder: Path) -> object:
    with torch.device("meta"):
        model = network().append(nn.Linear(4, 2))
    model.base_model_prefix = "0"
    return sapp.load(model, folder / "net.safetensors")


def a_longer_trainer(folder: Path) -> None:
    arguments = TrainingArguments(str(folder / "run"), max_steps=30, report_to=[], use_cpu=True, disable_tqdm=True)
    model = network()
    rows = [{"input": torch.ones(16), "labels": torch.ones(4)}] * 4
    callback = sapp.PrunerCallback(sapp.Pruner(model, {"block_size": 4, "min_blocks": 1, "method": "magnitude"}, 20))
    Trainer(model, arguments, train_dataset=rows, callbacks=[callback]).train()


def a_longer_trainer_of_lightning(folder: Path) -> None:
    class Module(pytorch_lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.inner = network()

        def training_step(self, batch, index):
            return self.inner(batch).sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    module = Module()
    callback = sapp.PrunerLightningCallback(
        sapp.Pruner(module, {"block_size": 4, "min_blocks": 1, "method": "magnitude"}, 20)
    )
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = pytorch_lightning.Trainer(
        max_steps=30, accelerator="cpu", default_root_dir=folder, callbacks=[callback], **quiet
    )
    trainer.fit(module, torch.utils.data.DataLoader(torch.ones(40, 16)))


CALLS = [
    Call(
        "a file that is cut while it is read",
        cut_while_read,
        CheckpointError,
        "HERE/net.safetensors: '0.bias': the file became shorter while it was read",
    ),
    Call(
        "a tensor that no file has",
        lambda folder: checkpoint(folder).file("nothing"),
        CheckpointError,
        "HERE/net.safetensors: 'nothing': no such tensor in this checkpoint",
    ),
    Call(
        "a tensor that a file lacks",
        lambda folder: checkpoint(folder).files[0].info("nothing"),
        CheckpointError,
        "HERE/net.safetensors: 'nothing': no such tensor in this file",
    ),
    Call(
        "a weight that is dense",
        lambda folder: checkpoint(folder).matrix("0.weight"),
        CheckpointError,
        "HERE/net.safetensors: '0.weight': is not stored block-sparse",
    ),
    Call(
        "complex numbers as floats",
        lambda folder: checkpoint(folder).float32("waves"),
        CheckpointError,
        "HERE/net.safetensors: 'waves': complex numbers (C64) are not supported",
    ),
    Call(
        "blocks of complex numbers",
        statistics,
        CheckpointError,
        "HERE/net.safetensors: 'waves': complex numbers (C64) are not supported",
    ),
    Call(
        "Fisher scores without gradients",
        last_steps_without_gradients,
        UsageError,
        "score fisher: no gradient was seen yet; call pruner.step(step, optimizer) before each forward, or "
        "pruner.observe(step) after each backward",
    ),
    Call(
        "weights that become infinite",
        weights_that_become_infinite,
        TrainingError,
        "scores of the blocks of 0.weight are not finite in step 30: training diverged; lower the learning rate",
    ),
    Call(
        "multiply-adds of a model nobody measured",
        lambda folder: pruner(allocation="multiply-adds"),
        SettingError,
        "prune.allocation: multiply-adds has to be measured first: give the Pruner `costs`, from sapp_cli.costs",
    ),
    Call(
        "an instruction set that this CPU does not have",
        passes_for_another_cpu,
        UsageError,
        f"SAPP_ISA: avx1024, expected an instruction set of this CPU ({', '.join(isa.name for isa in host_isas())}); "
        "set one of these, or none",
    ),
    Call(
        "an instruction set where no kernel works",
        kernels_without_llvm,
        UsageError,
        "SAPP_ISA: avx2, but no kernels can be generated on this machine; unset it",
    ),
    Call(
        "blocks outside of a weight",
        blocks_that_do_not_fit,
        CheckpointError,
        "a 4×8 weight in blocks of 2×4: bsr_col_indices[1] is 9; there are 2 block columns",
    ),
    Call(
        "a checkpoint of another model",
        a_model_of_another_shape,
        CheckpointError,
        "HERE/net.safetensors does not fit this Sequential:\n"
        "  '0.bias' is (16,), the model wants (8,)\n"
        "  '0.weight' is (16, 16), the model wants (8, 16)\n"
        "  '1.weight' is (4, 16), the model wants (4, 8)",
    ),
    Call(
        "a checkpoint alone that is no folder of Hugging Face",
        lambda folder: sapp.load(folder / "net.safetensors"),
        UsageError,
        "HERE/net.safetensors: no Hugging Face config.json, expected one that says how to build the model; build it yourself "
        "and call sapp.load(model, OUT)",
    ),
    Call(
        "a model without a checkpoint",
        lambda folder: sapp.load(network()),
        UsageError,
        "sapp.load: a model alone, expected where its weights are; call sapp.load(model, OUT)",
    ),
    Call(
        "a folder in the place of a model",
        lambda folder: sapp.load("OUT", folder),
        UsageError,
        "sapp.load: the model is 'OUT', expected a torch.nn.Module; call sapp.load(model, OUT)",
    ),
    Call(
        "a buffer on the meta device that no file has",
        a_buffer_without_values,
        CheckpointError,
        "HERE/net.safetensors has no scale, which this Sequential on the meta device has without values: expected values from "
        "its constructor; build the model without torch.device('meta')",
    ),
    Call(
        "a head on the meta device that the checkpoint lacks",
        a_head_without_values,
        CheckpointError,
        "HERE/net.safetensors has no 2.weight, 2.bias: expected all weights of a Sequential on the meta device; take the class "
        "that belongs to the checkpoint, or build the model on a CPU, where its head starts at random",
    ),
    Call(
        "an output with a report that is none",
        a_report_that_is_none,
        CheckpointError,
        "HERE/out/sparsity.json: is no report of sapp; remove it",
    ),
    Call(
        "a Trainer of other steps",
        a_longer_trainer,
        UsageError,
        "the Trainer will run 30 steps, the pruner was made for 20: make it with steps=30, or "
        "set max_steps=20 in TrainingArguments",
    ),
    Call(
        "a Trainer of Lightning of other steps",
        a_longer_trainer_of_lightning,
        UsageError,
        "the Trainer will run 30 steps, the pruner was made for 20: make it with steps=30, or set max_steps=20 in the Trainer",
    ),
]
SAID_BY_PYTHON = [call.message for call in CALLS]


@pytest.mark.filterwarnings("ignore")  # of Lightning, about itself and what it uses
@pytest.mark.parametrize("case", CALLS, ids=lambda case: case.name)
def test_a_call(case: Call, tmp_path):
    tensors = {"0.weight": (16, 16), "0.bias": (16,), "1.weight": (4, 16), "1.bias": (4,)}
    waves = {"waves": np.ones((4, 4), np.complex64)} if "complex" in case.name else {}
    save_file(
        {name: np.ones(shape, np.float32) for name, shape in tensors.items()} | waves, tmp_path / "net.safetensors"
    )
    with pytest.raises(case.error) as caught:
        case.call(tmp_path)
    assert type(caught.value) is case.error
    assert str(caught.value).replace(str(tmp_path), HERE) == case.message
