"""Names that wrappers add to those of a model's weights: DataParallel, torch.compile, FSDP, a LightningModule.

A checkpoint that was saved from a wrapped model holds `module._orig_mod.head.weight` for the model's `head.weight`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

COMPILED = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
"""Parts of names that only wrappers make, wherever they stand."""
PARALLEL = "module"
"""What DataParallel and DistributedDataParallel add."""
OWNERS = ("model", "net")
"""First parts of names in a module that holds the model, such as a LightningModule."""
MOST_OUTER = 3


def without_wrappers(name: str, outer: int = 0, anywhere: bool = False) -> str:
    """The name without what torch.compile and FSDP add, and without `outer` first parts that others add.

    `anywhere`: without DataParallel's part in the middle as well, where a part of the model is wrapped.
    """
    parts = [part for part in name.split(".") if part not in COMPILED and not (anywhere and part == PARALLEL)]
    while outer and len(parts) > 1 and parts[0] in (PARALLEL, *OWNERS):
        parts, outer = parts[1:], outer - 1
    return ".".join(parts)


def unwrapped(names: Iterable[str], knows: Callable[[str], bool]) -> dict[str, str]:
    """{name in the checkpoint: the same without wrappers}, as little taken away as makes the model know most of the names.

    A name that would collide with another one stays as it is.
    """
    names = list(names)
    best = {name: name for name in names}
    most = sum(map(knows, names))
    for anywhere in (False, True):
        for outer in range(MOST_OUTER + 1):
            found = _distinct({name: without_wrappers(name, outer, anywhere) for name in names})
            known = sum(map(knows, found.values()))
            if known > most:
                best, most = found, known
    return best


def may_be_wrapped(names: Iterable[str]) -> bool:
    """True if a name has a part that a wrapper could have added."""
    return any(without_wrappers(name, outer=1, anywhere=True) != name for name in names)


def wrapper_of(names: dict[str, str]) -> str | None:
    """What stands before the first name that has a wrapper, for a line about it; None if none has."""
    name, plain = next(((name, plain) for name, plain in names.items() if name != plain), ("", ""))
    return (name.removesuffix(plain) if name.endswith(plain) else name) or None


def _distinct(names: dict[str, str]) -> dict[str, str]:
    taken = {name for name, plain in names.items() if name == plain}
    found = {}
    for name, plain in names.items():
        found[name] = plain if name == plain or plain not in taken else name
        taken.add(found[name])
    return found
