"""docs/architecture.md and the imports of the package say the same."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
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


@cache
def imported(file: Path, *, lazy: bool = True) -> tuple[str, ...]:
    """The dotted names of all that a file imports; without `lazy` only what it imports when it is imported itself."""
    found: list[str] = []
    pending: list[ast.AST] = [ast.parse(file.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: write imports in full"
            assert node.module
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        for child in ast.iter_child_nodes(node):
            is_function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            for_types = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
            if lazy or not (is_function or for_types):
                pending.append(child)
    return tuple(found)


def rooms_of(module: str) -> set[str]:
    """The room a module of ours belongs to."""
    first, *rest = module.split(".")
    return {rest[0]} if first == "sapp_cli" and rest else set()


def test_every_room_is_in_the_table() -> None:
    assert {room_of(file) for file in FILES} == set(ROOMS)


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
    found = {room_of(file) for file in FILES for module in imported(file) if top(module) == library}
    assert found == LIBRARIES[library]


def test_of_the_checkpoint_room_only_state_dicts_need_torch() -> None:
    users = [file.name for file in (PACKAGE / "checkpoint").glob("*.py") if "torch" in map(top, imported(file))]
    assert users == ["state_dict.py"]
    assert "torch" not in map(top, imported(PACKAGE / "checkpoint" / "state_dict.py", lazy=False))


def is_ours(name: str) -> bool:
    return name.startswith("sapp_cli.")


def module_of(name: str) -> str:
    """The module of ours that a dotted name is, or is in."""
    path = REPOSITORY.joinpath(*name.split("."))
    is_module = path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()
    return name if is_module else name.rpartition(".")[0]


def top(module: str) -> str:
    return module.partition(".")[0]


@pytest.mark.parametrize("verb", ["main", "report", "check", "export"])
def test_help_report_check_and_export_do_not_import_torch(verb: str) -> None:
    lines = [f"import sapp_cli.cli.{verb}, sys"]
    # What a verb imports inside itself, it imports when it runs.
    lines += [f"import {module_of(name)}" for name in imported(PACKAGE / "cli" / f"{verb}.py") if is_ours(name)]
    lines += ["print([name for name in ('torch', 'transformers', 'accelerate') if name in sys.modules])"]
    code = "\n".join(lines)
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert ran.stdout == "[]\n"


def test_no_room_is_called_by_an_empty_word() -> None:
    assert not {"utils", "util", "common", "helpers", "base", "misc"} & {file.stem for file in FILES}
