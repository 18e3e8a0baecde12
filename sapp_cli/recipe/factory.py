"""The one place where code that a recipe names is run."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

from sapp_cli.errors import SappError, SettingError
from sapp_cli.recipe.names import nearest


def load_factory(factory: str, key: str = "factory") -> Callable[..., Any]:
    """The callable that `file.py:callable` or `package.module:callable` names. Raises SettingError, about `key`.

    A file may import the modules that lie beside it: its folder becomes the last place Python looks for modules, so
    that it hides nothing that is installed. Other modules have to be installed, or be on PYTHONPATH. What it prints goes
    to stderr: stdout is for data.
    """
    place, _, name = factory.rpartition(":")
    with redirect_stdout(sys.stderr):
        module = _from_file(factory, key) if place.endswith(".py") else _from_package(factory, key)
    if not hasattr(module, name):
        near = nearest(name, (known for known in vars(module) if not known.startswith("_")))
        hint = f"; nearest: '{near}'" if near else ""
        raise SettingError([(key, f"'{factory}': {place} has no '{name}'{hint}")])
    found = getattr(module, name)
    if not callable(found):
        kind = type(found).__name__
        text = f"'{factory}': '{name}' is a value of type {kind}; a factory is a function or a class"
        raise SettingError([(key, text)])
    return found  # type: ignore[no-any-return]


def call_factory(factory: str, kwargs: Mapping[str, Any], key: str) -> Any:
    """What the callable returns; SettingError, with the last line of the user's own that ran, where it fails."""
    function = load_factory(factory, key)
    try:
        inspect.signature(function).bind(**kwargs)
    except TypeError as error:
        section = key.rpartition(".")[0]
        raise SettingError([(key, f"'{factory}': {error}; {section}.kwargs holds its arguments")]) from error
    except ValueError:
        pass  # a callable written in C says nothing of its arguments
    try:
        with redirect_stdout(sys.stderr):
            return function(**kwargs)
    except SappError:
        raise
    except (Exception, SystemExit) as error:
        raise failed(factory, key, error) from error


def failed(factory: str, key: str, error: BaseException, more: str = "") -> SettingError:
    """What stands for an error of the callable: `'model.py:mlp': failed: model.py:12: NameError: …`, `more` on a line below."""
    folder = Path(factory.rpartition(":")[0]).parent if ".py:" in factory else None
    below = f"\n  {more}" if more else ""
    return SettingError([(key, f"'{factory}': failed: {_reason(error, folder)}{below}")])


def _from_file(factory: str, key: str) -> ModuleType:
    file = Path(factory.rpartition(":")[0]).absolute()
    if not file.is_file():
        raise SettingError([(key, f"'{factory}': there is no such file{_near(file)}")])
    # Named by its place: two recipes may each have a model.py, and one file named twice is one module.
    name = f"sapp_factory_{hashlib.sha256(os.fsencode(file)).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec, "a path that ends in .py has a spec"
    assert spec.loader, "and a loader"
    module = importlib.util.module_from_spec(spec)
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    sys.modules[name] = module  # dataclasses and pickle look their module up by name
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        text = f"'{factory}': cannot be imported: {_reason(error, file.parent)}"
        raise SettingError([(key, text)]) from error
    return module


def _near(file: Path) -> str:
    """`; nearest: 'model.py'`, where the folder has a Python file of a name like it; else nothing."""
    near = nearest(file.name, (path.name for path in file.parent.glob("*.py")))
    return f"; nearest: '{near}'" if near else ""


def _from_package(factory: str, key: str) -> ModuleType:
    place = factory.rpartition(":")[0]
    try:
        return importlib.import_module(place)
    except (Exception, SystemExit) as error:
        text = f"'{factory}': cannot be imported: {_reason(error)}"
        if isinstance(error, ModuleNotFoundError) and f"{place}.".startswith(f"{error.name}."):
            text = (
                f"'{factory}': there is no module '{error.name}'; install it, or name a file beside the recipe: "
                "file.py:callable"
            )
        raise SettingError([(key, text)]) from error


def _reason(error: BaseException, folder: Path | None = None) -> str:
    """`model.py:12: NameError: name 'x' is not defined`: the last line that was run, of the user's folder if known."""
    if isinstance(error, SyntaxError):
        place, text = f"{Path(error.filename or '').name}:{error.lineno}", error.msg
    else:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
        of_user = [frame for frame in frames if Path(frame.filename).parent == folder]
        last = (of_user or frames)[-1]
        place, text = f"{Path(last.filename).name}:{last.lineno}", str(error)
    first_line = (text.splitlines() or [""])[0]
    return f"{place}: {type(error).__name__}: {first_line}"
