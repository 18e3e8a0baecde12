"""The messages that the package can end with, read out of its source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sapp_cli import errors
from tests.docs.pages import REPOSITORY

PACKAGE = REPOSITORY / "sapp_cli"
RAISED = {
    name: 0 for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, errors.SappError)
} | {"damaged": 1, "BadParameter": 0, "UnreadableError": 0}
"""What makes an error that a user sees, and which of its arguments is the message."""
LEAST = 12
"""Letters that a text needs before it says which message it is; what lies around it comes from elsewhere."""


@dataclass(frozen=True)
class Message:
    """A message as it stands in the source: the texts between its placeholders."""

    place: str  # file:line
    texts: tuple[str, ...]

    @property
    def longest(self) -> str:
        return max(self.texts, key=len)

    def is_in(self, said: str) -> bool:
        """True if these texts follow one another in what was said."""
        place = 0
        for text in self.texts:
            place = said.find(text, place) + len(text)
            if place < len(text):
                return False
        return True


def messages() -> list[Message]:
    """Every message of the package that has a text of its own."""
    return [message for file in sorted(PACKAGE.rglob("*.py")) for message in _of_file(file)]


def _of_file(file: Path) -> Iterator[Message]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)] or [tree]
    seen: set[tuple[str, ...]] = set()
    for function in functions:
        assigned: dict[str, list[ast.expr]] = {}
        for node in ast.walk(function):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                assigned.setdefault(node.targets[0].id, []).append(node.value)
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and _name(node) in RAISED and len(node.args) > RAISED[_name(node)]:
                for texts in _texts(node.args[RAISED[_name(node)]], assigned):
                    message = Message(f"{file.relative_to(REPOSITORY)}:{node.lineno}", texts)
                    if texts and texts not in seen and len(message.longest) >= LEAST:
                        seen.add(texts)
                        yield message


def _name(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _texts(node: ast.expr, assigned: dict[str, list[ast.expr]]) -> Iterator[tuple[str, ...]]:
    """The texts of each message that an expression may be."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield (node.value,)
    elif isinstance(node, ast.JoinedStr):
        parts = (part.value for part in node.values if isinstance(part, ast.Constant))
        yield tuple(part for part in parts if isinstance(part, str) and part)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        yield next(_texts(node.left, assigned), ()) + next(_texts(node.right, assigned), ())
    elif isinstance(node, ast.IfExp):
        yield from _texts(node.body, assigned)
        yield from _texts(node.orelse, assigned)
    elif isinstance(node, ast.List | ast.Tuple) and node.elts:
        yield from _texts(node.elts[-1], assigned)  # the text of (key, text), the first of a list of problems
    elif isinstance(node, ast.Name):
        for value in assigned.get(node.id, []):
            if not isinstance(value, ast.Name):
                yield from _texts(value, {})
