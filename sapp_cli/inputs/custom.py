"""`source: factory`: datasets a callable of the user's returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from sapp_cli.errors import SourceError
from sapp_cli.inputs.files import hint
from sapp_cli.inputs.rows import Batch, Collate, DataSets, Row, describe_batch, stack_rows
from sapp_cli.recipe.data_section import DataSection
from sapp_cli.recipe.factory import call_factory

KEY = "data.factory"
PARTS = ("train", "validation")


class OwnRows(Dataset[Row]):
    """The rows of somebody's dataset, one by one; SourceError, naming the row, for one that cannot be read or is no row."""

    def __init__(self, dataset: Any, where: str) -> None:
        self._dataset = dataset
        self._where = where

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Row:
        try:
            row = self._dataset[index]
        except MemoryError:
            raise
        except Exception as error:
            text = f"{self._where}: row {index} cannot be read: {type(error).__name__}: {error}"
            raise SourceError([(KEY, text)]) from error
        if not isinstance(row, dict):
            text = f"{self._where}: row {index} is a value of type {type(row).__name__}, not a dict of tensors"
            raise SourceError([(KEY, text)])
        odd = [
            f"{key} is of type {type(value).__name__}" for key, value in row.items() if not isinstance(value, Tensor)
        ]
        if odd:
            raise SourceError([(KEY, f"{self._where}: row {index} is not a dict of tensors: {', '.join(odd)}")])
        return row

    def set_epoch(self, epoch: int) -> None:
        """Handed on to a dataset that wants to know."""
        announce = getattr(self._dataset, "set_epoch", None)
        if announce is not None:
            announce(epoch)


@dataclass(frozen=True)
class OwnCollate:
    """A collate function of the user's; SourceError, with the shapes of the rows, if it raises or returns no batch."""

    function: Collate
    where: str

    def __call__(self, rows: list[Row]) -> Batch:
        try:
            batch = self.function(rows)
        except MemoryError:
            raise
        except Exception as error:
            shown = "; ".join(describe_batch(row) for row in rows[:2]) + ("; …" if len(rows) > 2 else "")
            text = f"{self.where}: failed: {type(error).__name__}: {error}; {len(rows)} rows: {shown}"
            raise SourceError([(KEY, text)]) from error
        if not isinstance(batch, dict) or not all(isinstance(value, Tensor) for value in batch.values()):
            text = f"{self.where}: returned a value of type {type(batch).__name__}, expected a dict of tensors"
            raise SourceError([(KEY, text)])
        return batch


def load_custom_data(data: DataSection) -> DataSets:
    """What `data.factory` returns for `data.kwargs`, checked as far as its first rows tell; the others as they are read.

    Raises SettingError where the factory cannot be imported, SourceError where it returns something else than {"train":
    Dataset, "validation": Dataset} of rows that are dicts of tensors; a "collate" function may be among them.
    """
    assert data.factory is not None, "the schema asks for one"
    made = call_factory(data.factory, data.kwargs, KEY)
    place = f"'{data.factory}'"
    if not isinstance(made, dict) or not set(PARTS) <= made.keys():
        kind = type(made).__name__
        what = (
            f"a dict of {', '.join(map(str, made)) or 'nothing'}"
            if isinstance(made, dict)
            else f"a value of type {kind}"
        )
        text = f'{place}: returned {what}; it has to return {{"train": Dataset, "validation": Dataset}}'
        raise SourceError([(KEY, text)])
    unknown = [str(key) for key in made if key not in (*PARTS, "collate")]
    if unknown:
        near = hint(unknown[0], (*PARTS, "collate"))
        raise SourceError([(KEY, f"{place}: returned '{unknown[0]}', which means nothing here{near}")])
    train, validation = (_rows(made[part], f"{place}: '{part}'") for part in PARTS)
    collate = made.get("collate", stack_rows)
    if not callable(collate):
        text = f"{place}: 'collate' is a value of type {type(collate).__name__}, not a function of a list of rows"
        raise SourceError([(KEY, text)])
    description = f"training: {len(train):,} rows of {data.factory}; validation: {len(validation):,} rows of it"
    if collate is not stack_rows:
        collate = OwnCollate(collate, f"{place}: 'collate'")
    return DataSets(train, validation, collate, description)


def _rows(dataset: Any, where: str) -> OwnRows:
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        kind = type(dataset).__name__
        text = f"{where} is of type {kind}; it needs len() and [index], as torch.utils.data.Dataset has them"
        raise SourceError([(KEY, text)])
    rows = OwnRows(dataset, where)
    if not len(rows):
        raise SourceError([(KEY, f"{where} has no rows")])
    rows[0]
    return rows
