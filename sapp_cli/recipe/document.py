"""Text to plain values, and the line each of them stands on: YAML without its surprises.

Only `true` and `false` are booleans, `3e-4` is a number, dates are text. What a recipe never needs is refused, each
with one clear problem: tags, merge keys, keys given twice, aliases that explode, several documents, more than 1 MB.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import yaml

from sapp_cli.errors import RecipeError
from sapp_cli.recipe.names import KeyPath, shown
from sapp_cli.recipe.problem import Layer, Origin, Problem
from sapp_cli.visible import stand_in

MAX_BYTES = 1_000_000
MAX_VALUES = 10_000  # after aliases are followed; a recipe has some eighty
MAX_DEPTH = 32
MAX_DIGITS = 18  # fits 64 bits

_NULL, _BOOL, _INT, _FLOAT = (f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float"))
_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
RESOLVERS = (
    (_NULL, re.compile(r"^(~|null|Null|NULL|)$"), ("~", "n", "N", "")),
    (_BOOL, re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), tuple("tTfF")),
    (_INT, re.compile(r"^[-+]?[0-9][0-9_]*$"), tuple("-+0123456789")),
    (_FLOAT, re.compile(r"^[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?$"), tuple("-+.0123456789")),
)
"""A tag, the plain texts that have it, their first characters; everything else is text."""


@dataclass(frozen=True)
class Document:
    """Values of plain Python, the line (from 1) of each key and item, and problems that left the rest readable."""

    value: Any
    lines: dict[KeyPath, int]
    problems: list[Problem]


class UnreadableError(Exception):
    """Text that cannot be read to its end, at a line counted from 1."""

    def __init__(self, text: str, line: int) -> None:
        self.line = line
        super().__init__(text)


def read_document(data: bytes, name: str) -> Document:
    """The document, a mapping, in the bytes of the file `name`; raises RecipeError where none can be read."""
    if len(data) > MAX_BYTES:
        raise RecipeError([f"{name}: larger than 1 MB; a recipe is a few kilobytes of YAML"])
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise RecipeError([f"{name}:{line}: not UTF-8 text; save the file in that encoding"]) from error
    try:
        document = parse(text, Origin(Layer.RECIPE, name))
    except UnreadableError as error:
        raise RecipeError([f"{name}:{error.line}: {error}"]) from error
    if document.value is None:
        raise RecipeError([f"{name}: empty; a recipe needs at least data, and train.steps or train.epochs"])
    if not isinstance(document.value, dict):
        kind = "a list" if isinstance(document.value, list) else shown(document.value)
        raise RecipeError([f"{name}: holds {kind}, not sections with keys, such as train: {{steps: 1000}}"])
    return document


def parse(text: str, source: Origin) -> Document:
    """The one YAML document in `text`, which came from `source`; raises UnreadableError."""
    loader: _Loader | None = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        raise _explained(error) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UnreadableError("holds a control character; is this a text file?", line) from error
    except (ValueError, OverflowError) as error:  # "\UFFFFFFFF": PyYAML hands it to chr() unchecked
        line = loader.line + 1 if loader else 1
        raise UnreadableError("not valid YAML: an escape that is no character", line) from error
    reading = _Reading(source)
    value = None if node is None else reading.value_of(node, ())
    return Document(value, reading.lines, reading.problems)


class _Loader(yaml.SafeLoader):
    """Composes nodes only, with our own idea of what plain text means, and stops early at what no recipe has."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - the base's name and type
    depth = 0
    nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        line = event.start_mark.line + 1
        if getattr(event, "tag", None):
            tag = shown(event.tag.replace("tag:yaml.org,2002:", "!!"))
            raise UnreadableError(f"the tag {tag} is not allowed; a recipe holds plain values only", line)
        self.depth += 1
        self.nodes += 1
        _hold_limits(self.depth, self.nodes, line)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


for _tag, _pattern, _first in RESOLVERS:
    _Loader.add_implicit_resolver(_tag, _pattern, list(_first))


class _Reading:
    """Nodes to values, in one pass that follows aliases."""

    def __init__(self, source: Origin) -> None:
        self.source = source
        self.lines: dict[KeyPath, int] = {}
        self.problems: list[Problem] = []
        self.values = 0

    def value_of(self, node: yaml.Node, path: KeyPath, depth: int = 1) -> Any:
        self.values += 1
        _hold_limits(depth, self.values, _line(node))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, depth)
        if isinstance(node, yaml.SequenceNode):
            items = []
            for index, item in enumerate(node.value):
                place = (*path, index)
                self.lines[place] = _line(item)
                items.append(self.value_of(item, place, depth + 1))
            return items
        return _scalar(node)

    def _mapping(self, node: yaml.MappingNode, path: KeyPath, depth: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = _scalar(key_node) if isinstance(key_node, yaml.ScalarNode) else None
            place = (*path, key) if isinstance(key, str) else path
            problem = _key_problem(key_node, key)
            if problem is None and key in values:
                problem = f"given twice, first on line {self.lines[place]}; keep one of the two"
            if problem is not None:
                self.problems.append(Problem(place, problem, self.source.at(_line(key_node))))
                continue
            self.lines[place] = _line(key_node)
            values[str(key)] = self.value_of(value_node, place, depth + 1)
        return values


def _key_problem(node: yaml.Node, key: Any) -> str | None:
    """Why the node cannot be a key, if it cannot."""
    if not isinstance(node, yaml.ScalarNode):
        return "a key in brackets; put text that begins with { or [ in quotes"
    if not isinstance(key, str):
        return f"the key {node.value} is not text; put it in quotes" if node.value else "a key is missing before ':'"
    if key == "<<" and node.style is None:
        return "merge keys are not supported; write the keys out"
    return None


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _hold_limits(depth: int, values: int, line: int) -> None:
    if depth > MAX_DEPTH:
        raise UnreadableError(f"nested more than {MAX_DEPTH} levels deep, or an alias inside itself", line)
    if values > MAX_VALUES:
        raise UnreadableError(f"more than {MAX_VALUES} values, those that aliases repeat included", line)


def _joined(pair: re.Match[str]) -> str:
    return pair[0].encode("utf-16", "surrogatepass").decode("utf-16")


def _scalar(node: yaml.Node) -> Any:
    """None, a bool, an int, a finite float or text."""
    text = str(node.value)
    digits = text.replace("_", "")
    if node.tag == _NULL:
        return None
    if node.tag == _BOOL:
        return text.lower() == "true"
    if node.tag == _INT:
        if len(digits.lstrip("+-")) > MAX_DIGITS:
            raise UnreadableError(
                f"{text[:24]}… has more than {MAX_DIGITS} digits; put it in quotes if it is text", _line(node)
            )
        return int(digits)
    if node.tag == _FLOAT:
        if not math.isfinite(float(digits)):
            raise UnreadableError(f"{text[:24]} is too large for a number; put it in quotes if it is text", _line(node))
        return float(digits)
    try:  # JSON writes one character beyond U+FFFF as two escapes, which PyYAML leaves in halves
        return stand_in(_PAIR.sub(_joined, text)).encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError as error:
        raise UnreadableError("text with half of a surrogate pair; write the character itself", _line(node)) from error


_EXPLANATIONS = (
    (r"found character '\\t'", "a tab; YAML is indented with spaces"),
    (r"found character (\S+) that cannot start", r"a value cannot begin with \1; put it in quotes"),
    (
        r"while scanning an alias|found undefined alias",
        "a value that begins with * is an alias; put a pattern in quotes",
    ),
    (r"while scanning an anchor", "a value that begins with & is an anchor; put text in quotes"),
    (r"mapping values are not allowed", "a ': ' where none can stand; see the line above, or put the value in quotes"),
    (r"could not find expected ':'", "a key without ': '; a line reads `key: value`"),
    (r"expected <block end>", "does not fit what stands above; check indentation, quotes and brackets"),
    (r"found unexpected end of stream|while scanning a quoted", "a quote that is not closed"),
    (r"while parsing a flow", "a bracket that is not closed, or a comma is missing"),
    (r"expected a single document", "a second document (---) begins; a recipe is one document"),
)


def _explained(error: yaml.MarkedYAMLError) -> UnreadableError:
    """PyYAML's words about the grammar in words about the file, at the line where the mistake began."""
    wording = f"{error.context or ''} {error.problem or ''}"
    begins_earlier = re.search("not find expected ':'|quoted|while parsing a flow", wording) and error.context_mark
    mark = error.context_mark if begins_earlier else error.problem_mark
    line = mark.line + 1 if mark else 1
    for pattern, explanation in _EXPLANATIONS:
        if match := re.search(pattern, wording):
            return UnreadableError(match.expand(explanation), line)
    return UnreadableError(f"not valid YAML: {error.problem}", line)
