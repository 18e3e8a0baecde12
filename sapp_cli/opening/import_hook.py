"""Registering with other libraries at the moment when they are imported, and not before: `import sapp_cli` stays light.

Nothing of the standard library is imported here but what the interpreter itself consists of: with `python -m sapp_cli` the
current folder still comes first on the path.
"""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType


def _register_quantizer(module: "ModuleType") -> None:
    from sapp_cli.opening.registration import register_quantizer

    register_quantizer(module)


def _register_lora(module: "ModuleType") -> None:
    from sapp_cli.opening.lora import register_lora

    register_lora(module)


ON_IMPORT: "dict[str, Callable[[ModuleType], None]]" = {
    "transformers.quantizers.auto": _register_quantizer,
    "peft.tuners.lora.model": _register_lora,
}
"""Module -> what is called with it right after its own code has run. All calls may be repeated."""


class _Finder:
    """First of `sys.meta_path`; finds a module as the others do, and has its loader call us when it is done."""

    @staticmethod
    def find_spec(
        name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        if name not in ON_IMPORT:
            return None  # almost always
        for finder in sys.meta_path:
            if isinstance(finder, _Finder) or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                _call_after(spec)
                return spec
        return None


def _call_after(spec: "ModuleSpec") -> None:
    """The spec's loader stays what it is, for those that look at it, with one method of this one object replaced."""
    loader = spec.loader
    execute = getattr(loader, "exec_module", None)
    if execute is None:
        return

    def exec_module(module: "ModuleType") -> None:
        execute(module)
        if module.__name__ == spec.name:  # a loader may serve several modules
            _call(module)

    try:
        loader.exec_module = exec_module  # type: ignore[union-attr, method-assign]
    except AttributeError:  # a loader without attributes of its own
        return


def _call(module: "ModuleType") -> None:
    """What fails here must not keep the user from importing a library: it is said, and the format stays unknown there."""
    try:
        ON_IMPORT[module.__name__](module)
    except Exception as error:
        import warnings

        warnings.warn(f"sapp cannot register with {module.__name__}: {error}", RuntimeWarning, stacklevel=2)


def install() -> None:
    """Register with what is imported already, and with the rest when it is imported.

    The finder is there first, so that nothing is missed of what another thread imports meanwhile; a module that is being
    imported right now is waited for.
    """
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _Finder())
    for name in ON_IMPORT:
        if name in sys.modules:
            __import__(name)
            _call(sys.modules[name])
