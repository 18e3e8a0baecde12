"""`source: factory`: datasets a callable of the user's returns."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sapp_cli.errors import DataError
from sapp_cli.inputs.files import hint
from sapp_cli.inputs.rows import DataSets, rows_in, stack_rows
from sapp_cli.recipe.factory import call_factory
from sapp_cli.recipe.schema import DataSection

PARTS = ("train", "validation")


def load_custom_data(data: DataSection) -> DataSets:
    """What `data.factory` returns for `data.kwargs`, checked as far as its first rows tell.

    Raises UsageError where the factory cannot be imported, DataError where it returns something else than {"train":
    Dataset, "validation": Dataset} of rows that are dicts of tensors; a "collate" function may be among them.
    """
    assert data.factory is not None, "the schema asks for one"
    made = call_factory(data.factory, data.kwargs, "data.factory")
    where = f"data.factory {data.factory}"
    if not isinstance(made, dict) or not set(PARTS) <= made.keys():
        what = f"a dict of {', '.join(map(str, made)) or 'nothing'}" if isinstance(made, dict) else type(made).__name__
        raise DataError(f'{where} returned {what}; it has to return {{"train": Dataset, "validation": Dataset}}')
    unknown = [str(key) for key in made if key not in (*PARTS, "collate")]
    if unknown:
        raise DataError(
            f"{where} returned '{unknown[0]}', which means nothing here{hint(unknown[0], (*PARTS, 'collate'))}"
        )
    for part in PARTS:
        _require_rows(made[part], f"{where}: '{part}'")
    collate = made.get("collate", stack_rows)
    if not callable(collate):
        raise DataError(f"{where}: 'collate' is a {type(collate).__name__}, not a function of a list of rows")
    train, validation = (made[part] for part in PARTS)
    description = f"training: {rows_in(train)} rows of {data.factory}; validation: {rows_in(validation)} rows of it"
    return DataSets(train, validation, collate, description)


def _require_rows(dataset: Any, where: str) -> None:
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise DataError(
            f"{where} is a {type(dataset).__name__}; it needs len() and [index], as torch.utils.data.Dataset has them"
        )
    if not len(dataset):
        raise DataError(f"{where} has no rows")
    try:
        row = dataset[0]
    except Exception as error:
        raise DataError(f"{where}: row 0 cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: a row has to be a dict of tensors, not a {type(row).__name__}")
    odd = [f"{key} is a {type(value).__name__}" for key, value in row.items() if not isinstance(value, Tensor)]
    if odd:
        raise DataError(f"{where}: a row has to be a dict of tensors; {', '.join(odd)}")
