"""Layers laid over each other, defaults < recipe < `--set` < flags, and where each value came from.

Mappings of the recipe merge with the defaults; everything else replaces what stands below it, and a value of `--set` or
of a flag always does. Relative paths mean the recipe's folder in a recipe, the current folder on the command line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sapp_cli.recipe.document import Document, UnreadableError, parse
from sapp_cli.recipe.keys import marker
from sapp_cli.recipe.names import KeyPath, dotted, key_path
from sapp_cli.recipe.paths import resolve_factory, resolve_path
from sapp_cli.recipe.problem import Layer, Origin, Problem
from sapp_cli.recipe.schema import Recipe
from sapp_cli.visible import stand_in

STEPS: KeyPath = ("train", "steps")
EPOCHS: KeyPath = ("train", "epochs")


@dataclass(frozen=True)
class Flag:
    """A flag of the command line and its plain value; None where it was not given."""

    name: str  # as the user types it: --sparsity
    value: Any


@dataclass(frozen=True)
class Merged:
    """The layers in one: a value for every key, the origin of each that is not a default, problems found on the way."""

    values: Any
    origins: Mapping[KeyPath, Origin]
    problems: tuple[Problem, ...]


def merge(document: Document, name: str, sets: Sequence[str], flags: Mapping[str, Flag]) -> Merged:
    """The recipe read from the file `name` between the defaults and the command line."""
    source = Origin(Layer.RECIPE, name)
    origins = {path: source.at(document.lines[path]) for path in leaves(document.value) if path}
    merged = Merged(_overlaid(defaults(), document.value), origins, tuple(document.problems))
    for assignment in sets:
        merged = _with_set(merged, assignment)
    for key, flag in flags.items():
        if flag.value is not None:
            merged = _with(merged, key_path(key), flag.value, Origin(Layer.FLAG, flag.name))
    return _with_one_length(merged, replace(source, line=document.lines.get(("train",))))


def defaults() -> dict[str, Any]:
    """Every key of the schema with its default."""
    return Recipe.model_construct().model_dump()


def leaves(value: Any) -> Iterator[KeyPath]:
    """The paths of the scalars in `value`, and of its empty mappings and lists."""
    if isinstance(value, dict) and value:
        yield from ((key, *rest) for key, inner in value.items() for rest in leaves(inner))
    elif isinstance(value, list | tuple) and value:
        yield from ((index, *rest) for index, inner in enumerate(value) for rest in leaves(inner))
    else:
        yield ()


def origins_at(path: KeyPath, origins: Mapping[KeyPath, Origin]) -> list[Origin]:
    """The origins of what stands at `path`, below it, or all around it, later layers last; empty for defaults."""
    found = [origin for key, origin in origins.items() if key[: len(path)] == path or path[: len(key)] == key]
    return sorted(found, key=lambda origin: origin.rank)


def _overlaid(below: Any, above: Any) -> Any:
    if isinstance(below, dict) and isinstance(above, dict):
        return {**below, **{key: _overlaid(below.get(key), value) for key, value in above.items()}}
    return above


def _with_set(merged: Merged, assignment: str) -> Merged:
    """`merged` with one `KEY=VALUE`, the value read as YAML."""
    origin = Origin(Layer.SET, "--set")
    key, equals, text = assignment.partition("=")
    path: KeyPath = ()
    try:
        path = key_path(key.strip())
        if not equals:
            raise ValueError("no value; write --set KEY=VALUE")
        document = parse(stand_in(text), origin)
    except (ValueError, UnreadableError) as error:
        return replace(merged, problems=(*merged.problems, Problem(path, str(error), origin)))
    inner = (replace(problem, path=(*path, *problem.path)) for problem in document.problems)
    return _with(replace(merged, problems=(*merged.problems, *inner)), path, document.value, origin)


def _with(merged: Merged, path: KeyPath, value: Any, origin: Origin) -> Merged:
    """`merged` with `value` at `path` in place of what stood there."""
    try:
        values = _placed(merged.values, path, _absolute(path, value), ())
    except ValueError as error:
        return replace(merged, problems=(*merged.problems, Problem(path, str(error), origin)))
    # What stood below the path is gone; so is an empty mapping or a plain value that stood above it.
    kept = {key: known for key, known in merged.origins.items() if key[: len(path)] != path and path[: len(key)] != key}
    return replace(merged, values=values, origins=kept | {(*path, *rest): origin for rest in leaves(value)})


def _placed(node: Any, path: KeyPath, value: Any, walked: KeyPath) -> Any:
    """A copy of `node`, which stands at `walked`, with `value` at `path` in it; an index one past the end appends."""
    if not path:
        return value
    part, rest = path[0], path[1:]
    here = dotted(walked) or "a recipe"
    if isinstance(node, list | tuple):
        if not isinstance(part, int):
            raise ValueError(f"{here} is a list; name an item by its number, such as {here}[0]")
        if part > len(node):
            raise ValueError(f"the next item of {here} is {here}[{len(node)}]")
        inner = node[part] if part < len(node) else None
        return [*node[:part], _placed(inner, rest, value, (*walked, part)), *node[part + 1 :]]
    if isinstance(part, int):
        raise ValueError(f"{here} is not a list; numbers name the items of lists")
    below = node if isinstance(node, dict) else {}
    return {**below, part: _placed(below.get(part), rest, value, (*walked, part))}


def _absolute(path: KeyPath, value: Any) -> Any:
    """`value`, which goes to `path`, with the paths in it made absolute against the current folder."""
    if isinstance(value, dict):
        return {key: _absolute((*path, key), inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_absolute((*path, index), inner) for index, inner in enumerate(value)]
    kind = marker(path) if isinstance(value, str) and value else None
    resolve = {"path": resolve_path, "factory": resolve_factory}
    return resolve[kind](value, {"folder": Path.cwd()}) if kind else value


def _with_one_length(merged: Merged, train_section: Origin) -> Merged:
    """`merged` with steps or epochs: the one of the later layer clears the other, two of one layer are a problem."""
    train = merged.values.get("train")
    if not isinstance(train, dict):
        return merged  # a problem of the schema
    given = [path for path in (STEPS, EPOCHS) if train.get(path[1]) is not None]
    if len(given) == 1:
        return merged
    if not given:
        missing = Problem(("train",), "give steps or epochs, such as `steps: 1000`", train_section)
        return replace(merged, problems=(*merged.problems, missing))
    (earlier, first), (later, last) = sorted(
        ((origins_at(path, merged.origins)[-1], path) for path in given), key=lambda pair: pair[0].rank
    )
    if earlier.layer == later.layer:
        text = f"{dotted(first)} is given too ({earlier}); give one of the two"
        return replace(merged, problems=(*merged.problems, Problem(last, text)))
    values = {**merged.values, "train": {**train, first[1]: None}}
    return replace(merged, values=values, origins={**merged.origins, first: later})
