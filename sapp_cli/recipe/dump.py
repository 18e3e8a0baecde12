"""A recipe as YAML that any reader of YAML, 1.1 or 1.2, reads as the same values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from sapp_cli.recipe.document import RESOLVERS, parse
from sapp_cli.recipe.merge import leaves
from sapp_cli.recipe.names import KeyPath
from sapp_cli.recipe.problem import Layer, Origin
from sapp_cli.recipe.schema import Recipe

_WIDEST = 40  # columns; an origin beside a longer line follows it after two spaces


def dump(recipe: Recipe, origins: Mapping[KeyPath, Origin] | None) -> str:
    """Every key of the recipe; with `origins`, the origin of each value as a comment, `default` where it has none.

    Beside a null that stands for something else stands what: `default: fisher`.
    """
    values = recipe.model_dump()
    text = yaml.dump(values, Dumper=_Dumper, allow_unicode=True, sort_keys=False, width=float("inf"))
    prune = recipe.prune
    stands_for: dict[KeyPath, str] = {}
    if prune.score is None:
        stands_for["prune", "score"] = prune.resolved_score
    if prune.allocation is None:
        stands_for["prune", "allocation"] = prune.resolved_allocation
    if recipe.optimizer.lr == "auto":
        stands_for["optimizer", "lr"] = "searched before the run"
    return text if origins is None else _annotated(text, values, origins, stands_for)


def _annotated(
    text: str, values: dict[str, Any], origins: Mapping[KeyPath, Origin], stands_for: Mapping[KeyPath, str]
) -> str:
    lines = text.splitlines()
    line_of = parse(text, Origin(Layer.RECIPE, "")).lines
    comments: dict[int, list[str]] = {}
    for path in leaves(values):
        origin = next((origins[path[:n]] for n in range(len(path), 0, -1) if path[:n] in origins), None)
        comment = [str(origin or "default"), *([stands_for[path]] if path in stands_for else [])]
        comments.setdefault(line_of[path] - 1, []).append(": ".join(comment))
    width = max(len(lines[number]) for number in comments if len(lines[number]) <= _WIDEST)
    for number, names in comments.items():
        lines[number] = f"{lines[number]:<{width}}  # {', '.join(dict.fromkeys(names))}"
    return "".join(f"{line}\n" for line in lines)


class _Dumper(yaml.SafeDumper):
    """Block style, lists without mappings on one line, no anchors; quotes around all that reads as more than text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:
        return super().represent_sequence(tag, sequence, not any(isinstance(item, dict) for item in sequence))

    def represent_mapping(self, tag: str, mapping: Any, flow_style: bool | None = None) -> yaml.MappingNode:
        return super().represent_mapping(tag, mapping, False)

    def represent_str(self, data: str) -> yaml.ScalarNode:
        # One line for one value, so that a comment can stand beside it.
        return self.represent_scalar("tag:yaml.org,2002:str", data, None if data.isprintable() else '"')


_Dumper.add_representer(str, _Dumper.represent_str)
for _tag, _pattern, _first in RESOLVERS:  # beside those of YAML 1.1, which quote yes, on and dates
    _Dumper.add_implicit_resolver(_tag, _pattern, list(_first))
