"""`sapp plan`: what one example would take, dense and block-sparse, measured with a model of its own."""

from __future__ import annotations

from pathlib import Path

import torch

from sapp_cli.checkpoint.source import open_checkpoint
from sapp_cli.errors import SappError
from sapp_cli.inputs.models import load_model
from sapp_cli.pipeline.evaluate import bench_inputs
from sapp_cli.recipe.load import STARTER, LoadedRecipe
from sapp_cli.recipe.located import located
from sapp_cli.runtime.expected_latency import ExpectedLatency, NotMeasured, expect_latency
from sapp_cli.training.footprint import free_bytes

COPIES = 4  # of the weights, at most: both forms, and both in channels-last memory


@located
def latency(recipe: LoadedRecipe, checkpoint_path: Path) -> ExpectedLatency | NotMeasured:
    """That of the recipe's blocks, left out at random: of a row of its data, without a recipe of a random example."""
    settings = recipe.recipe
    checkpoint = open_checkpoint(checkpoint_path)
    if free_bytes() < COPIES * checkpoint.bytes:
        return NotMeasured("too little memory is free for the model in both forms")
    inputs = None
    if recipe.path == STARTER:
        loaded = load_model(checkpoint, settings.model)
    else:
        loaded, inputs = bench_inputs(recipe, checkpoint_path, (1,))
    on_gpu = settings.train.device != "cpu" and torch.cuda.is_available()
    try:
        return expect_latency(loaded, settings.prune, torch.device("cuda" if on_gpu else "cpu"), inputs)
    except SappError as error:
        return NotMeasured(str(error))
    except Exception as error:  # whatever the user's model raises
        return NotMeasured((str(error).splitlines() or [type(error).__name__])[0])
