"""A model in its dense and its block-sparse form, each as fast as its memory format lets it be: run, compared, timed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from sapp_cli.errors import UsageError
from sapp_cli.runtime.bench_results import Pair
from sapp_cli.runtime.example_inputs import Given
from sapp_cli.runtime.gpu import wait_for
from sapp_cli.runtime.load import CONVOLUTIONS
from sapp_cli.runtime.timing import Timing, time_in_turns

TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Most that the outputs of both forms may differ, as a share of the largest output."""
CONTIGUOUS, CHANNELS_LAST = "contiguous", "channels-last"


@dataclass(frozen=True)
class Form:
    """The model in one form, and the inputs in the memory format that suits it."""

    model: nn.Module
    given: Given
    memory_format: str

    def run(self) -> Any:
        return self.given.call(self.model)


Forms: TypeAlias = dict[str, Form]
"""{dense, block_sparse}."""


def faster_forms(dense: nn.Module, sparse: nn.Module, given: Given, seconds: float, least_turns: int = 5) -> Forms:
    """Each form as it is, or, with convolutions of images in it, in channels-last memory where that is faster: the dense
    one is not to lose for a reason that has nothing to do with sparsity.
    """
    forms = {}
    for name, model in (("dense", dense), ("block_sparse", sparse)):
        plain = Form(model, given, CONTIGUOUS)
        if not any(type(module) in CONVOLUTIONS[1:] for module in dense.modules()):
            forms[name] = plain
            continue
        converted = copy.deepcopy(model)
        converted.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        last = Form(converted, given.channels_last(), CHANNELS_LAST)
        times = time_all({CONTIGUOUS: plain.run, CHANNELS_LAST: last.run}, seconds, given, least_turns)
        forms[name] = min((plain, last), key=lambda form: times[form.memory_format].median)
    return forms


def time_pair(runs: Mapping[str, Callable[[], Any]], seconds: float, given: Given, least_turns: int = 5) -> Pair:
    timings = time_all(runs, seconds, given, least_turns)
    return Pair(timings["dense"], timings["block_sparse"])


def time_all(
    runs: Mapping[str, Callable[[], Any]], seconds: float, given: Given, least_turns: int = 5
) -> dict[str, Timing]:
    some = next(iter((*given.positional, *given.named.values())))
    return time_in_turns(runs, budget=seconds, least_turns=least_turns, sample=2e-3, finish=lambda: wait_for(some))


def check_outputs(dense: Tensor, sparse: Tensor, where: str) -> float:
    """The largest difference as a share of the largest output; kernels that compute something else are not timed."""
    largest = dense.float().abs().max().item()
    difference = (dense.float() - sparse.float()).abs().max().item() / (largest or 1.0)
    tolerance = TOLERANCES[dense.dtype]
    if not difference <= tolerance:
        raise AssertionError(
            f"{where}: the dense and the block-sparse outputs differ by {difference:.1e} of the largest output; "
            f"{tolerance:.0e} is allowed. This is a bug of sapp, or the outputs are not finite"
        )
    return difference


def main_output(output: Any) -> Tensor:
    """Logits, or whatever tensor of floats comes first in what a model returns."""
    found = next(_floats(output), None)
    if found is None:
        raise UsageError(
            f"the model returns a {type(output).__name__} with no floating tensor in it: nothing to compare"
        )
    return found


def _floats(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping):
        for part in output.values():
            yield from _floats(part)
    elif isinstance(output, list | tuple):
        for part in output:
            yield from _floats(part)
