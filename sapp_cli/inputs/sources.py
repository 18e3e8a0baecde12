"""What a recipe names, looked for before anything is read: no checkpoint of gigabytes is loaded for a typing error."""

from __future__ import annotations

from sapp_cli.checkpoint.locate import locate
from sapp_cli.errors import CheckpointError, SettingError, SourceError
from sapp_cli.inputs.files import find_files
from sapp_cli.recipe.factory import load_factory
from sapp_cli.recipe.schema import Recipe


def require_sources(recipe: Recipe) -> None:
    """Import the recipe's callables and look for its files.

    Raises, with all problems at once, SettingError if a callable is among them, else SourceError.
    """
    settings: list[tuple[str, str]] = []
    sources: list[tuple[str, str]] = []
    for key, factory in factories_in_use(recipe).items():
        try:
            load_factory(factory, key)
        except SettingError as error:
            settings += error.problems
    for key, files in files_in_use(recipe).items():
        try:
            find_files(files, key)
        except SettingError as error:
            settings += error.problems
        except SourceError as error:
            sources += error.problems
    teacher = recipe.objective.distill.teacher
    if teacher is not None:
        try:
            locate(teacher)
        except CheckpointError as error:
            sources.append(("objective.distill.teacher", str(error)))
    if settings:
        raise SettingError([*settings, *sources])
    if sources:
        raise SourceError(sources)


def factories_in_use(recipe: Recipe) -> dict[str, str]:
    """{key: factory} of those in use."""
    named = {
        "model.factory": recipe.model.factory,
        "data.factory": recipe.data.factory if recipe.data.source == "factory" else None,
        "objective.factory": recipe.objective.factory,
    }
    return {key: factory for key, factory in named.items() if factory is not None}


def files_in_use(recipe: Recipe) -> dict[str, str | list[str] | None]:
    """{key: files} of those in use; training files are always needed."""
    if recipe.data.source == "factory":
        return {}
    files = recipe.data.files
    return {
        "data.files.train": files.train,
        **({"data.files.validation": files.validation} if files.validation else {}),
    }
