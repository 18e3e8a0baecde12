"""`source: datasets`: local files as tables of Hugging Face datasets, and which of their columns are meant."""

from __future__ import annotations

import glob
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from sapp_cli.errors import DataError, SettingError, SourceError
from sapp_cli.inputs.files import hint, place
from sapp_cli.inputs.holdout import digest
from sapp_cli.inputs.offline import offline_datasets
from sapp_cli.recipe.data_section import ColumnsSection

ENDINGS = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".txt": "text",
    ".text": "text",
}
PACKED = (".gz", ".bz2", ".xz", ".zst")
TEXTS = ("string", "large_string")
"""How Arrow calls a column of texts."""
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


@dataclass(frozen=True)
class Table:
    """Rows of local files; images are left undecoded, as {"bytes", "path"}."""

    data: datasets.Dataset
    origin: str  # where it comes from, for messages
    classes: tuple[str, ...] | None = None  # subfolders of images in the order of their numbers

    @property
    def names(self) -> list[str]:
        return list(self.data.column_names)

    def __len__(self) -> int:
        return len(self.data)

    def only(self, names: Sequence[str]) -> datasets.Dataset:
        """The rows with the named columns alone: reading one decodes nothing else."""
        return self.data.select_columns(list(names))

    def digests(self, names: Sequence[str]) -> list[bytes]:
        """SHA-256 of every row: of each named column its JSON, of an image its file."""
        return [digest((name, _canonical(row[name])) for name in names) for row in self.only(names)]


@dataclass(frozen=True)
class Columns:
    """The columns in use; exactly one of `text` and `image` is set."""

    text: str | None
    text_pair: str | None
    image: str | None
    label: str | None

    @property
    def names(self) -> list[str]:
        return [name for name in (self.text, self.text_pair, self.image, self.label) if name is not None]

    @property
    def texts(self) -> list[str]:
        """The text, or the two texts of a pair."""
        return [name for name in (self.text, self.text_pair) if name is not None]


def file_format(setting: str | None, paths: Sequence[Path], key: str) -> str:
    """The builder that reads the files: the setting, else what their endings say; SettingError where they say nothing."""
    if setting is not None:
        return setting
    found = {path: _format_of(path) for path in paths}
    unknown = [str(path) for path, name in found.items() if name is None]
    if unknown:
        raise SettingError([(key, f"{unknown[0]} has no ending that tells its format; set data.format")])
    if len(set(found.values())) > 1:
        formats = ", ".join(sorted({str(name) for name in found.values()}))
        raise SettingError([(key, f"mixes formats ({formats}); use one")])
    return str(found[paths[0]])


def read_table(paths: Sequence[Path], format_name: str) -> Table:
    """The rows of all files, one after the other. Raises DataError where they cannot be read or have none.

    Tables are kept as Arrow files in the cache of the datasets library (HF_DATASETS_CACHE) and mapped, not loaded.
    """
    origin = place(paths)
    if format_name == "imagefolder":
        return _read_image_folders(paths, origin)
    for path in paths:
        if path.is_dir():
            raise DataError(f"{path} is a folder; for {format_name} files in it write {path}/*.{format_name}")
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty")
    names = [glob.escape(str(path.resolve())) for path in paths]  # the library takes names for patterns
    options = {"sep": "\t"} if all(".tsv" in path.suffixes for path in paths) else {}
    try:
        with offline_datasets():
            builder = datasets.load_dataset_builder(format_name, data_files={"train": names}, **options)
            builder.download_and_prepare()
            data = builder.as_dataset(split="train") if builder.info.splits["train"].num_examples else None
    except Exception as error:  # each builder raises what its parser raises
        for path in paths:
            _require_text(path, format_name)
        reason = str(error.__cause__ or error) or type(error).__name__
        raise DataError(f"{origin} cannot be read as {format_name}: {reason}") from error
    if data is None:
        raise DataError(f"{origin} has no rows")
    if not _is_utf8(data):  # Arrow's own parser of JSON takes any bytes
        for path in paths:
            _require_text(path, format_name)
        raise DataError(f"{origin} holds texts that are not UTF-8; save it in that encoding")
    for name, feature in data.features.items():
        if isinstance(feature, datasets.Image):
            data = data.cast_column(name, datasets.Image(decode=False))
    return Table(data, origin)


def _is_utf8(data: datasets.Dataset) -> bool:
    """True if every text in the table can be decoded."""
    for name, feature in data.features.items():
        if getattr(feature, "dtype", None) in TEXTS:
            try:
                data.data.column(name).validate(full=True)
            except ValueError:  # ArrowInvalid is one
                return False
    return True


def _require_text(path: Path, format_name: str) -> None:
    """Raise DataError, with the line, for a file of text that is not UTF-8."""
    if format_name not in ("csv", "json", "text") or path.suffix in PACKED:
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8-sig")
            except UnicodeDecodeError:
                raise DataError(f"{path}:{number}: not UTF-8 text; save the file in that encoding") from None


def choose_columns(table: Table, setting: ColumnsSection, needs_label: bool) -> Columns:
    """The columns the setting names, else the usual ones the table has. Raises SourceError naming those there are."""
    wrong = [
        (f"data.columns.{key}", f"{table.origin} has no column '{name}'{hint(name, table.names)}")
        for key, name in setting.model_dump().items()
        if name is not None and name not in table.names
    ]
    if wrong:
        raise SourceError(_with_columns(wrong, table))
    if setting.image is not None and setting.text is not None:
        raise SettingError([("data.columns", "text and image are both set; a row is a text or an image")])
    image = setting.image
    if image is None and setting.text is None:
        image = next((name for name in _usual(table, "image") if _is_image(table, name)), None)
    text = None if image is not None else setting.text or _first(table, "text", "sentence", "sentence1", "content")
    pair = setting.text_pair or (_first(table, "sentence2", "text_pair") if text == "sentence1" else None)
    label = setting.label or _first(table, "label", "labels", "target")
    missing = [
        (f"data.columns.{key}", f"{table.origin} has no column that is usually the {key}; name the right one")
        for key, absent in (("text", text is None and image is None), ("label", needs_label and label is None))
        if absent
    ]
    if missing:
        raise SourceError(_with_columns(missing, table))
    return Columns(text, pair if text is not None else None, image, label if needs_label else None)


def require_columns(table: Table, columns: Columns) -> None:
    """Raise DataError unless the table has the columns chosen from another, and texts and images are such."""
    missing = [name for name in columns.names if name not in table.names]
    if missing:
        near = hint(missing[0], table.names)
        what = f"{table.origin} has no column '{missing[0]}', which the training rows have{near}"
        raise DataError(f"{what}\n{_what_there_is(table)}")
    for name in (columns.text, columns.text_pair):
        kind = None if name is None else table.data.features[name]
        if name is not None and getattr(kind, "dtype", None) not in TEXTS:
            raise DataError(f"{table.origin}: column '{name}' holds {_kind(kind)}, not text")
    if columns.image is not None and not _is_image(table, columns.image):
        kind = _kind(table.data.features[columns.image])
        raise DataError(f"{table.origin}: column '{columns.image}' holds {kind}, not images")


def require_filled(table: Table, name: str) -> None:
    """Raise DataError naming the first row whose cell is empty."""
    column = table.data.data.column(name)
    if column.null_count:
        row = column.is_null().to_pylist().index(True)
        raise DataError(f"{table.origin}: column '{name}' is empty in row {row} (counted from 0)")


def _format_of(path: Path) -> str | None:
    if path.is_dir():
        return "imagefolder"
    endings = [ending.lower() for ending in path.suffixes if ending.lower() not in PACKED]
    return ENDINGS.get(endings[-1]) if endings else None


def _read_image_folders(folders: Sequence[Path], origin: str) -> Table:
    """Image files and the names of the subfolders they lie in.

    The library's own builder is not used: it takes a class named `train` or `test` for a split.
    """
    paths: list[str] = []
    labels: list[str] = []
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"{folder} is no folder; an image folder has one subfolder a class")
        found = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in IMAGES and path.is_file()]
        if not found:
            raise DataError(f"{folder} has no images ({', '.join(IMAGES)}) in it")
        stray = next((path for path in found if path.parent == folder), None)
        if stray is not None:
            raise DataError(f"{stray} lies in no subfolder of {folder}; an image folder has one subfolder a class")
        paths += [str(path) for path in found]
        labels += [path.relative_to(folder).parts[0] for path in found]
    features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.Value("string")})
    data = datasets.Dataset.from_dict({"image": paths, "label": labels}, features=features)
    return Table(data, origin, tuple(sorted(set(labels))))


def _usual(table: Table, *names: str) -> list[str]:
    return [name for name in names if name in table.names]


def _first(table: Table, *names: str) -> str | None:
    return next(iter(_usual(table, *names)), None)


def _is_image(table: Table, name: str) -> bool:
    return isinstance(table.data.features[name], datasets.Image)


def _kind(feature: Any) -> str:
    return str(getattr(feature, "dtype", None) or type(feature).__name__.lower())


def _what_there_is(table: Table) -> str:
    columns = f"  its columns: {', '.join(table.names)}"
    joined = next((sign for sign in ";|" if len(table.names) == 1 and sign in table.names[0]), None)
    return (
        columns if joined is None else f"{columns} (are they separated by '{joined}'? A .csv has commas, a .tsv tabs)"
    )


def _with_columns(problems: list[tuple[str, str]], table: Table) -> list[tuple[str, str]]:
    """The problems, with the columns that there are on a line below the last."""
    *others, (key, text) = problems
    return [*others, (key, f"{text}\n{_what_there_is(table)}")]


def _canonical(value: Any) -> bytes:
    if isinstance(value, Mapping) and value.keys() == {"bytes", "path"}:  # an undecoded image
        try:
            return value["bytes"] if value["bytes"] is not None else Path(value["path"]).read_bytes()
        except OSError as error:
            raise DataError(f"{value['path']} cannot be read: {error.strerror}") from error
    return json.dumps(value, sort_keys=True, default=str).encode()
