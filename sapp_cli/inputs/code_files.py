"""The Python files that a factory is made of: its own and the modules beside it, found by reading imports."""

from __future__ import annotations

import ast
import site
import sys
import sysconfig
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path


def code_files(factory: str) -> dict[str, Path]:
    """{name below the folder of its modules: file} of `file.py:callable`, or of `package.module:callable` once imported.

    No code is run. An import counts wherever it stands in a file, if a module of that name lies in the folder. A module that
    is named only while the code runs, as by `importlib.import_module(name)`, is not found.
    """
    place = factory.rpartition(":")[0]
    if place.endswith(".py"):
        first = Path(place).absolute()
        folder = first.parent
    else:
        origin = getattr(sys.modules.get(place), "__file__", None)
        if origin is None or not origin.endswith(".py"):
            return {}
        first = Path(origin).absolute()
        above = place.count(".") + (first.name == "__init__.py")
        folder = first.parents[above]
    found: dict[Path, None] = {}
    waiting = [first, *_packages_around(first, folder)]
    while waiting:
        file = waiting.pop()
        if file not in found and file.is_file():
            found[file] = None
            waiting += _imported(file, folder)
    return {file.relative_to(folder).as_posix(): file for file in sorted(found)}


def installed_version(module: str) -> str | None:
    """`NAME VERSION` of the package that an imported module belongs to; None for a module that is not installed but a source.

    A package in editable mode is a source: its code changes while its version stays.
    """
    package = module.partition(".")[0]
    origin = getattr(sys.modules.get(module), "__file__", None)
    paths = sysconfig.get_paths()
    if origin is None or _is_below(
        origin, [paths["stdlib"], paths["platstdlib"]], [paths["purelib"], paths["platlib"]]
    ):
        return f"Python {sys.version.partition(' ')[0]}"
    if package != "sapp_cli" and not _is_below(
        origin, [paths["purelib"], paths["platlib"], site.getusersitepackages()]
    ):
        return None
    for name in metadata.packages_distributions().get(package, ()):
        return f"{name} {metadata.version(name)}"
    return f"{package} of no known version"


def _is_below(file: str, folders: list[str], but_for: list[str] | None = None) -> bool:
    path = Path(file).absolute()
    return any(map(path.is_relative_to, folders)) and not any(map(path.is_relative_to, but_for or []))


def _packages_around(file: Path, folder: Path) -> Iterator[Path]:
    """The `__init__.py` of each package that a file lies in: importing it runs these."""
    for parent in file.parents:
        if parent == folder:
            return
        yield parent / "__init__.py"


def _imported(file: Path, folder: Path) -> Iterator[Path]:
    """Files in `folder` that the imports of a file may mean."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _modules(folder, alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            base = file.parents[node.level - 1] if 0 < node.level <= len(file.parents) else folder
            if base.is_relative_to(folder):
                named = node.module.split(".") if node.module else []
                for alias in node.names:
                    yield from _modules(base, [*named, alias.name])


def _modules(base: Path, parts: list[str]) -> Iterator[Path]:
    """The files of a dotted name: of each package on the way, and of the module."""
    for end in range(1, len(parts) + 1):
        path = base.joinpath(*parts[:end])
        yield path / "__init__.py"
        yield path.with_name(f"{path.name}.py")
