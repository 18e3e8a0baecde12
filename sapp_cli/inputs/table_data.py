"""`source: datasets`: files -> tables -> the columns in use -> targets -> rows of tokens or pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from sapp_cli.errors import SettingError
from sapp_cli.inputs.classes import Classes, classes_of, recipes_classes
from sapp_cli.inputs.files import find_files
from sapp_cli.inputs.holdout import hold_out
from sapp_cli.inputs.images import ImageRows, read_transform
from sapp_cli.inputs.labels import read_labels
from sapp_cli.inputs.masking import MaskedText
from sapp_cli.inputs.positions import require_positions
from sapp_cli.inputs.rows import Collate, DataSets, Row, rows_in, stack_rows
from sapp_cli.inputs.tables import (
    Columns,
    Table,
    choose_columns,
    file_format,
    read_table,
    require_columns,
    require_filled,
)
from sapp_cli.inputs.tokens import TextRows, load_tokenizer, pack, padding
from sapp_cli.recipe.data_section import DataSection
from sapp_cli.recipe.schema import ObjectiveSection

LABELLED = ("classification", "regression", "binary")
CLASSES = ("classification", "binary")
LANGUAGE = ("causal-lm", "masked-lm")

Rows = tuple[Dataset[Row], Dataset[Row], Collate]
"""Training rows, validation rows, and how they become a batch."""


@dataclass(frozen=True)
class Part:
    """The training rows, or the validation rows: some rows of a table."""

    table: Table
    targets: Tensor | None  # of the whole table
    numbers: Sequence[int]  # the rows in use


def load_table_data(
    data: DataSection, objective: ObjectiveSection, *, folder: Path | None, config: Mapping[str, Any], seed: int
) -> DataSets:
    """Training and validation rows of `data.files`; arguments and errors as those of `load_data`."""
    if data.labels and objective.task not in CLASSES:
        problem = f"{objective.task} has no classes; leave it out, or set objective.task classification or binary"
        raise SettingError([("data.labels", problem)])
    train = _read(data, "train")
    validation = _read(data, "validation") if data.files.validation else None
    columns = choose_columns(train, data.columns, needs_label=objective.task in LABELLED)
    model = classes_of(config, str((folder or Path()) / "config.json"))
    *parts, note = _parts(data, objective, model, columns, train=train, validation=validation)
    if columns.image is not None:
        rows = _image_rows(parts, columns.image, objective, folder, config)
    else:
        rows = _text_rows(parts, columns, data, objective, folder=folder, config=config, seed=seed)
    kind = "pieces" if objective.task == "causal-lm" else "rows"
    held = "held out of them" if validation is None else f"of {validation.origin}"
    counts = [f"{rows_in(dataset)} {kind}" for dataset in rows[:2]]
    description = f"training: {counts[0]} of {train.origin}; validation: {counts[1]} {held}"
    return DataSets(*rows, description, () if note is None else (note,))


def _read(data: DataSection, part: str) -> Table:
    key = f"data.files.{part}"
    files = find_files(getattr(data.files, part), key)
    return read_table(files, file_format(data.format, files, key))


def _parts(
    data: DataSection,
    objective: ObjectiveSection,
    model: Classes | None,
    columns: Columns,
    *,
    train: Table,
    validation: Table | None,
) -> tuple[Part, Part, str | None]:
    """Both parts with their targets, and a note of how names were numbered, which the training rows may decide."""
    require_columns(train, columns)
    targets = theirs = note = classes = None
    if columns.label is not None:
        classes = recipes_classes(data.labels, model) if data.labels else model
        labels = read_labels(train, columns.label, objective.task, classes)
        targets, classes, note = labels.targets, labels.classes, labels.note
    if validation is None:
        kept, held_out = hold_out(train.digests(columns.names), data.validation_share, train.origin)
        return Part(train, targets, kept), Part(train, targets, held_out), note
    require_columns(validation, columns)
    if columns.label is not None:
        others = read_labels(validation, columns.label, objective.task, classes)
        theirs, note = others.targets, note or others.note
    return Part(train, targets, range(len(train))), Part(validation, theirs, range(len(validation))), note


def _image_rows(
    parts: Sequence[Part], column: str, objective: ObjectiveSection, folder: Path | None, config: Mapping[str, Any]
) -> Rows:
    if objective.task in LANGUAGE:
        problem = f"{objective.task} needs texts, and the rows are images (column '{column}')"
        raise SettingError([("objective.task", problem)])
    transform = read_transform(folder, config)
    for part in parts:
        require_filled(part.table, column)
    train, validation = (ImageRows(part.table, column, transform, part.targets, part.numbers) for part in parts)
    return train, validation, stack_rows


def _text_rows(
    parts: Sequence[Part],
    columns: Columns,
    data: DataSection,
    objective: ObjectiveSection,
    *,
    folder: Path | None,
    config: Mapping[str, Any],
    seed: int,
) -> Rows:
    require_positions(data.max_length, config)
    tokenizer = load_tokenizer(folder)
    collate = padding(tokenizer, config, data.max_length, labelled=objective.task in LABELLED)
    if objective.task == "causal-lm":
        assert columns.text is not None, "a row that is no image has a text"
        pieces = [pack(part.table, columns.text, tokenizer, data.max_length, part.numbers) for part in parts]
        return pieces[0], pieces[1], collate
    for part in parts:
        for column in columns.texts:
            require_filled(part.table, column)
    masked = objective.task == "masked-lm"
    train, validation = (
        TextRows(
            part.table,
            columns.texts,
            tokenizer,
            max_length=data.max_length,
            values=part.targets,
            numbers=part.numbers,
            mark_special=masked,
        )
        for part in parts
    )
    if not masked:
        return train, validation, collate
    share = objective.mask_probability
    return MaskedText(train, share, seed, part=0), MaskedText(validation, share, seed, part=1), collate
