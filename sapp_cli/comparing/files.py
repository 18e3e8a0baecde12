"""The table and its plots as files: comparison.json, .csv, .md and .html, sparsity.png and .svg, cost.png and .svg."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from sapp_cli.checkpoint.json_text import json_text
from sapp_cli.checkpoint.write import disk_errors, replacing
from sapp_cli.comparing.cells import CELLS_FOLDER, Budget, Cell
from sapp_cli.comparing.figures import PLOTS, draw_plots
from sapp_cli.comparing.page import html_comparison
from sapp_cli.comparing.table import Table
from sapp_cli.errors import UsageError

JSON_FILE, CSV_FILE, MARKDOWN_FILE, HTML_FILE = (f"comparison.{ending}" for ending in ("json", "csv", "md", "html"))
NAMES = (CSV_FILE, MARKDOWN_FILE, HTML_FILE, JSON_FILE, *PLOTS)


def check_files(folder: Path) -> None:
    """Raise UsageError if files with our names lie in a folder in which nothing was compared yet."""
    taken = [name for name in NAMES if os.path.lexists(folder / name)]
    if taken and not (folder / CELLS_FOLDER).is_dir():
        raise UsageError(
            f"{folder}: holds {', '.join(taken)}, which no `sapp compare` wrote there; give another folder with -o"
        )


def write_files(folder: Path, table: Table, cells: Sequence[Cell], budget: Budget) -> tuple[str, ...]:
    """Write them into the folder, each whole or not at all; their names. Raises ResourceError where the disk is full."""
    document = json_text(table.as_json()) + "\n"
    before = folder / JSON_FILE
    if all((folder / name).is_file() for name in NAMES) and before.read_bytes() == document.encode():
        return NAMES  # plots take seconds
    plots = draw_plots(table)
    files = {
        **plots,
        CSV_FILE: table.as_csv().encode(),
        MARKDOWN_FILE: table.as_markdown().encode(),
        HTML_FILE: html_comparison(table, plots, cells, budget, str(folder)).encode(),
        JSON_FILE: document.encode(),  # last: where it is up to date, the others are
    }
    for name, content in files.items():
        with disk_errors(folder), replacing(folder / name) as write:
            write(content)
    return NAMES
