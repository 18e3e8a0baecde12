"""Which of the mappings in a pickled file is the model's state dict, and what lies beside it.

A training script saves the model under some key, beside an optimizer, an average of the weights, counters and metrics.
The state dict is the mapping with the most floating-point entries. Of mappings within 1 % of it, such as a model and the
average of its weights, the first by PREFERRED is taken, and averages come last.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sapp_cli.checkpoint.damage import quoted

PREFERRED = ("state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "params", "weights")
"""Keys under which training scripts put the weights; the order decides between mappings of one size."""
AVERAGES = re.compile(r"(^|_)(ema|avg|averaged?|shadow|swa|teacher)(_|$)", re.IGNORECASE)
NOT_WEIGHTS = re.compile(
    r"(^|_)(optimizer|optim(_|$)|.*scheduler|scaler|rng|callbacks$|loops$|extra_state$)", re.IGNORECASE
)
DEEPEST = 4
AS_LARGE = 0.99
MOST_NAMES = 8


@dataclass(frozen=True)
class StateDict:
    """A mapping with tensors in it."""

    path: tuple[str, ...]  # keys that lead to it
    tensors: Mapping[str, Any]  # name -> torch.Tensor
    others: Mapping[str, str]  # every other entry -> the name of its type

    @property
    def floats(self) -> int:
        return sum(_entries(tensor) for tensor in self.tensors.values() if tensor.is_floating_point())

    @property
    def size(self) -> tuple[int, int]:
        """(floating-point entries, all entries)."""
        return self.floats, sum(map(_entries, self.tensors.values()))

    @property
    def order(self) -> tuple[bool, tuple[int, ...]]:
        """Less where this is more likely the model that was trained."""
        places = {key: place for place, key in enumerate(PREFERRED)}
        return any(map(AVERAGES.search, self.path)), tuple(places.get(key, len(places)) for key in self.path)

    @property
    def place(self) -> str:
        return quoted(".".join(self.path))

    @property
    def names(self) -> list[str]:
        """Of the tensors that could be meant as weights."""
        return [name for name in self.tensors if not NOT_WEIGHTS.search(name)]

    @property
    def summary(self) -> str:
        count, size = (
            len(self.tensors),
            sum(_entries(tensor) * tensor.element_size() for tensor in self.tensors.values()),
        )
        return f"{count:,} tensor{'s'[: count != 1]}, {size:,} bytes"

    @property
    def description(self) -> str:
        """As a line names what it ignores: a state dict by its place and size, loose tensors by their names."""
        if self.path:
            return f"{self.place} ({self.summary})"
        more = f" and {len(self.names) - MOST_NAMES:,} more" if len(self.names) > MOST_NAMES else ""
        return ", ".join(map(quoted, self.names[:MOST_NAMES])) + more


@dataclass(frozen=True)
class Choice:
    """The state dict of a file, and the other mappings and tensors that it holds."""

    chosen: StateDict
    rest: tuple[StateDict, ...]

    def note(self, file: str) -> str | None:
        """One line for the reader of the file; None if there is nothing else that could be meant."""
        rest = [other for other in self.rest if other.path or other.names]
        if not rest:
            return None
        here = f"the tensors at its top level ({self.chosen.summary})"
        if self.chosen.path:
            here = f"the tensors under {self.chosen.place} ({self.chosen.summary})"
        ignored = "; ".join(other.description for other in rest[:MOST_NAMES])
        text = f"{file}: reads {here}; ignores {ignored}"
        rival = next((other for other in rest if other.path and _as_large(other, self.chosen)), None)
        if rival is None:
            return text
        keys = "".join(f"[{key!r}]" for key in rival.path)
        return f"{text}. To take {rival.place} instead: torch.save(torch.load({file!r}){keys}, 'weights.pt')"


def choose_state_dict(loaded: Any, tensor_type: type) -> Choice | None:
    """The state dict in what a file holds; None if no mapping in it has a tensor under a text as its key."""
    found = list(_state_dicts(loaded, tensor_type, (), set()))
    if not found:
        return None
    # Loose tensors beside or above a state dict are counters and metrics, however large they are.
    known = [other.path for other in found if any(key in PREFERRED for key in other.path)]
    fit = [one for one in found if not any(_is_above(one.path, path) for path in known)]
    largest = max(fit, key=lambda candidate: candidate.size)
    chosen = min(
        (candidate for candidate in fit if _as_large(candidate, largest)), key=lambda candidate: candidate.order
    )
    return Choice(chosen, tuple(candidate for candidate in found if candidate is not chosen))


def keys_of(loaded: Any) -> str:
    """What a file without a state dict holds, for its error."""
    if not isinstance(loaded, Mapping):
        return f"a {type(loaded).__name__}"
    keys = [quoted(key) for key in loaded]
    more = f" and {len(keys) - MOST_NAMES} more" if len(keys) > MOST_NAMES else ""
    return f"the keys {', '.join(keys[:MOST_NAMES])}{more}" if keys else "no keys"


def _state_dicts(value: Any, tensor_type: type, path: tuple[str, ...], seen: set[int]) -> Iterator[StateDict]:
    if not isinstance(value, Mapping) or id(value) in seen or len(path) > DEEPEST or "param_groups" in value:
        return
    seen.add(id(value))  # a pickle may hold one mapping many times, and in itself
    tensors = {key: item for key, item in value.items() if isinstance(key, str) and isinstance(item, tensor_type)}
    if tensors:
        others = {str(key): type(item).__name__ for key, item in value.items() if key not in tensors}
        yield StateDict(path, tensors, others)
    for key, item in value.items():
        if isinstance(key, str) and not NOT_WEIGHTS.search(key.rpartition(".")[2]):
            yield from _state_dicts(item, tensor_type, (*path, key), seen)


def _is_above(outer: tuple[str, ...], path: tuple[str, ...]) -> bool:
    """True if a mapping at `outer` holds the one at `path` behind one of the usual keys."""
    return path[: len(outer)] == outer and any(key in PREFERRED for key in path[len(outer) :])


def _as_large(one: StateDict, other: StateDict) -> bool:
    if not other.floats:
        return one.size == other.size
    return one.floats >= AS_LARGE * other.floats


def _entries(tensor: Any) -> int:
    """Entries that are really stored: a stride of 0 makes terabytes of one number."""
    try:
        return min(int(tensor.numel()), int(tensor.untyped_storage().nbytes()) // max(1, int(tensor.element_size())))
    except (RuntimeError, NotImplementedError):  # sparse and meta tensors have no storage
        return int(tensor.numel())
