"""What one example takes on this machine, dense and with blocks left out at random: an estimate before any training.

The whole model is timed in both forms, as `sapp bench --random-mask` does, with few turns.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from typing import Any

import torch

from sapp_cli.inputs.models import LoadedModel
from sapp_cli.recipe.prune_section import PruneSection
from sapp_cli.runtime.bench_forms import check_outputs, faster_forms, main_output, time_pair
from sapp_cli.runtime.bench_results import RandomMask
from sapp_cli.runtime.example_inputs import BenchInputs, generated_inputs
from sapp_cli.runtime.heap import keep_freed_memory
from sapp_cli.runtime.machine import Machine, this_machine
from sapp_cli.runtime.random_mask import mask_at_random, replace_masked

TOKENS = 128  # of an example, or as many as the model takes
SECONDS = 1.0
FEW_TURNS = 3


@dataclass(frozen=True)
class ExpectedLatency:
    """Median seconds of one example in fp32."""

    dense: float
    block_sparse: float
    layers: int  # computed block-sparse
    example: str
    machine: Machine

    @property
    def speedup(self) -> float:
        return self.dense / self.block_sparse

    def as_json(self) -> dict[str, Any]:
        machine = {**asdict(self.machine), "text": self.machine.text}
        return {**vars(self), "speedup": self.speedup, "reason": None, "machine": machine}


@dataclass(frozen=True)
class NotMeasured:
    """Why there is no latency."""

    reason: str

    def as_json(self) -> dict[str, Any]:
        unknown = dict.fromkeys(("dense", "block_sparse", "layers", "example", "machine", "speedup"))
        return {**unknown, "reason": self.reason}


@torch.inference_mode()
def expect_latency(
    loaded: LoadedModel, section: PruneSection, device: torch.device, inputs: BenchInputs | None = None
) -> ExpectedLatency | NotMeasured:
    """The times of both forms; without `inputs` of random ones, as the configuration of a Hugging Face model asks for.

    Sets blocks of the given model to zero. On a CPU the process keeps freed memory from now on.
    Raises UsageError if there is no example, and whatever the model raises.
    """
    inputs = inputs or _random_inputs(loaded)
    keeps = device.type == "cpu" and keep_freed_memory()
    dense = loaded.model.to(device).eval()
    masked = mask_at_random(dense, RandomMask(), section, loaded.stored_names)
    sparse, kept_dense = replace_masked(copy.deepcopy(dense), masked)
    replaced = len(masked) - len(kept_dense)
    if not replaced:
        why = next(iter(kept_dense.values()), "none of them is a Linear or convolution of its own")
        return NotMeasured(f"no pruned layer is computed block-sparse: {why}")
    given = next(inputs.given(dense)).prepared(device, torch.float32)
    forms = faster_forms(dense, sparse, given, SECONDS / 5, FEW_TURNS)
    check_outputs(main_output(forms["dense"].run()), main_output(forms["block_sparse"].run()), "the model")
    times = time_pair({name: form.run for name, form in forms.items()}, SECONDS, given, FEW_TURNS)
    example = f"{given.sequence_length:,} tokens" if given.sequence_length else inputs.description
    machine = this_machine(device, keeps_freed_memory=keeps)
    return ExpectedLatency(times.dense.median, times.sparse.median, replaced, example, machine)


def _random_inputs(loaded: LoadedModel) -> BenchInputs:
    longest = getattr(getattr(loaded.model, "config", None), "max_position_embeddings", None) or TOKENS
    return generated_inputs(loaded.model, (1,), (min(TOKENS, longest) if longest > 0 else TOKENS,))
