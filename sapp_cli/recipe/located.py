"""What only the checkpoint or the data shows to be wrong, said with the file and line of the setting that is to blame."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from sapp_cli.errors import DataError, RecipeError, SettingError, SourceError
from sapp_cli.recipe.load import LoadedRecipe

P = ParamSpec("P")
T = TypeVar("T")


def located(function: Callable[Concatenate[LoadedRecipe, P], T]) -> Callable[Concatenate[LoadedRecipe, P], T]:
    """The function, whose first argument is the recipe, with places in its errors: `vit.yaml:12: prune.rules[1].match: …`.

    A SettingError becomes a RecipeError and a SourceError a DataError, so that each is located once; others pass.
    """

    @wraps(function)
    def with_places(recipe: LoadedRecipe, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(recipe, *args, **kwargs)
        except SettingError as error:
            raise RecipeError([f"{recipe.where(key)}: {text}" for key, text in error.problems]) from error
        except SourceError as error:
            raise DataError(
                "\n".join(f"{recipe.where(key)}: {text}{recipe.to_give(key)}" for key, text in error.problems)
            ) from error

    return with_places
