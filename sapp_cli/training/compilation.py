"""torch.compile of the training step: `--compile`. Masks, logits and schedule move without anything being compiled anew."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import cast

import torch
from accelerate import Accelerator
from torch import nn

from sapp_cli.errors import SettingError
from sapp_cli.recipe.schema import TrainSection
from sapp_cli.training.device import shards

COMPILERS = {"linux": "g++", "darwin": "clang++", "win32": "cl"}
"""What torch calls on a CPU, unless CXX names another."""


def require_compiler(settings: TrainSection, accelerator: Accelerator) -> None:
    """Raise SettingError where `train.compile` is asked for and this machine has nothing to compile with."""
    if not settings.compile:
        return
    if shards(settings, accelerator):
        raise SettingError([("train.compile", "does not go with train.shard; leave one of the two out")])
    if accelerator.device.type == "cuda":
        if find_spec("triton") is None:
            problem = "torch.compile needs the package triton on CUDA; install it, or leave it out"
            raise SettingError([("train.compile", problem)])
        return
    compiler = os.environ.get("CXX") or COMPILERS.get(sys.platform, "g++")
    if shutil.which(compiler) is None:
        problem = (
            f"torch.compile needs a C++ compiler on a CPU, and there is no '{compiler}'; install one, name it in the "
            "environment as CXX, or leave it out"
        )
        raise SettingError([("train.compile", problem)])


def compiled(model: nn.Module) -> nn.Module:
    """The model with a compiled forward and backward; parameters and names are the model's own."""
    return cast("nn.Module", torch.compile(model))


@contextmanager
def compile_errors(settings: TrainSection) -> Iterator[None]:
    """SettingError, in one line, where torch cannot compile the model after all; it does so in the first step."""
    if not settings.compile:
        yield
        return
    from torch._dynamo.exc import TorchDynamoException

    try:
        yield
    except TorchDynamoException as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        problem = f"torch cannot compile this model ({reason.strip()}); leave it out"
        raise SettingError([("train.compile", problem)]) from error
