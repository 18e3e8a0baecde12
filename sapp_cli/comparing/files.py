"""The table and its plots as files: comparison.json, .csv, .md and .html, sparsity.png and .svg, cost.png and .svg."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from sapp_cli.checkpoint.json_text import CONFIG_LIMIT, json_text, read_object
from sapp_cli.checkpoint.ownership import FileRecord
from sapp_cli.checkpoint.write import disk_errors, replacing
from sapp_cli.comparing.cells import CELLS_FOLDER, Budget, Cell
from sapp_cli.comparing.figures import PLOTS, draw_plots
from sapp_cli.comparing.page import html_comparison
from sapp_cli.comparing.table import Table
from sapp_cli.errors import UsageError

JSON_FILE, CSV_FILE, MARKDOWN_FILE, HTML_FILE = (f"comparison.{ending}" for ending in ("json", "csv", "md", "html"))
NAMES = (CSV_FILE, MARKDOWN_FILE, HTML_FILE, JSON_FILE, *PLOTS)


RECORD = f"{CELLS_FOLDER}/files.json"
"""{name: {bytes, sha256}} of the files as they were written; earlier versions have none, and their files count as ours."""


def check_files(folder: Path) -> None:
    """Raise UsageError if files with our names lie in a folder in which nothing was compared yet, or were changed since."""
    taken = [name for name in NAMES if os.path.lexists(folder / name)]
    if taken and not (folder / CELLS_FOLDER).is_dir():
        raise UsageError(
            f"{folder}: holds {', '.join(taken)}, which no `sapp compare` wrote there; give another folder with -o"
        )
    records = _records(folder)
    changed = [name for name in taken if name in records and not records[name].matches(folder / name)]
    if changed:
        raise UsageError(
            f"{folder}: {', '.join(changed)} changed since `sapp compare` wrote {'them' if len(changed) > 1 else 'it'} and "
            "would be replaced; move that elsewhere first"
        )


def _records(folder: Path) -> dict[str, FileRecord]:
    if not (folder / RECORD).is_file():
        return {}
    entries = read_object(folder / RECORD, "the list of written files", CONFIG_LIMIT)
    return {
        name: FileRecord(entry.get("sha256"), entry.get("bytes"))
        for name, entry in entries.items()
        if isinstance(entry, dict)
    }


def _record(folder: Path, records: Mapping[str, FileRecord]) -> None:
    text = json_text({name: record.as_json() for name, record in records.items()}) + "\n"
    with disk_errors(folder), replacing(folder / RECORD) as write:
        write(text.encode())


def write_files(folder: Path, table: Table, cells: Sequence[Cell], budget: Budget) -> tuple[str, ...]:
    """Write them into the folder, each whole or not at all; their names.

    Raises ResourceError if the disk is full, UsageError if one of them was changed by somebody else meanwhile.
    """
    document = json_text(table.as_json()) + "\n"
    before = folder / JSON_FILE
    if all((folder / name).is_file() for name in NAMES) and before.read_bytes() == document.encode():
        return NAMES  # plots take seconds
    plots = draw_plots(table)
    check_files(folder)
    (folder / CELLS_FOLDER).mkdir(exist_ok=True)
    files = {
        **plots,
        CSV_FILE: table.as_csv().encode(),
        MARKDOWN_FILE: table.as_markdown().encode(),
        HTML_FILE: html_comparison(table, plots, cells, budget, str(folder)).encode(),
        JSON_FILE: document.encode(),  # last: where it is up to date, the others are
    }
    _record(folder, {})  # a run that is killed in between leaves no file that counts as somebody else's
    for name, content in files.items():
        with disk_errors(folder), replacing(folder / name) as write:
            write(content)
    _record(folder, {name: FileRecord.of(folder / name) for name in files})
    return NAMES
