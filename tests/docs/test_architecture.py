"""docs/architecture.md and the imports of the package say the same."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, REPOSITORY, names, table

PACKAGE = REPOSITORY / "sapp_cli"
PAGE = DOCS / "architecture.md"
ROOMS = {names(row[0]).pop(): names(row[2]) for row in table(PAGE.read_text(encoding="utf-8"), "room")}
LIBRARIES = {names(row[0]).pop(): names(row[1]) for row in table(PAGE.read_text(encoding="utf-8"), "library")}
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(file: Path, *, lazy: bool = True) -> Iterator[str]:
    """The dotted names of all modules that a file imports; without `lazy` only those it imports when it is imported."""
    pending: list[ast.AST] = [ast.parse(file.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: write imports in full"
            assert node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            is_function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            for_types = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
            if lazy or not (is_function or for_types):
                pending.append(child)


def rooms_of(module: str) -> set[str]:
    """The room a module of ours belongs to."""
    first, *rest = module.split(".")
    return {rest[0]} if first == "sapp_cli" and rest else set()


def test_every_room_is_in_the_table() -> None:
    assert {room_of(file) for file in FILES} - {"__init__"} == set(ROOMS)
    assert not list(imported(PACKAGE / "__init__.py"))


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_what_the_table_says(room: str) -> None:
    files = [file for file in FILES if room_of(file) == room]
    found = {other: file for file in files for module in imported(file) for other in rooms_of(module) - {room}}
    extra = {other: str(file.relative_to(REPOSITORY)) for other, file in found.items() if other not in ROOMS[room]}
    assert not extra, f"not in docs/architecture.md: {room} imports {extra}"
    unused = ROOMS[room] - set(found)
    assert not unused, f"docs/architecture.md says that {room} imports {unused}, which it does not"


def test_rooms_import_only_from_rooms_above_them() -> None:
    order = list(ROOMS)
    for room, others in ROOMS.items():
        below = [other for other in others if order.index(other) >= order.index(room)]
        assert not below, f"{room} imports {below}, which stand below it"


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_stays_in_its_rooms(library: str) -> None:
    found = {room_of(file) for file in FILES for module in imported(file) if module.split(".")[0] == library}
    assert found == LIBRARIES[library]


def test_of_the_checkpoint_room_only_state_dicts_need_torch() -> None:
    users = [file.name for file in (PACKAGE / "checkpoint").glob("*.py") if "torch" in map(top, imported(file))]
    assert users == ["state_dict.py"]
    assert "torch" not in map(top, imported(PACKAGE / "checkpoint" / "state_dict.py", lazy=False))


def top(module: str) -> str:
    return module.split(".")[0]


@pytest.mark.parametrize("modules", ["sapp_cli.cli.main", "sapp_cli.report.measure, sapp_cli.report.inspect"])
def test_help_and_report_do_not_import_torch(modules: str) -> None:
    code = f"import {modules}, sys; print([m for m in ('torch', 'transformers', 'accelerate') if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert ran.stdout == "[]\n"


def test_no_room_is_called_by_an_empty_word() -> None:
    assert not {"utils", "util", "common", "helpers", "base", "misc"} & {file.stem for file in FILES}
