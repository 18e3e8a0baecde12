"""`sparse/` as a folder that transformers opens once sapp is imported: what lies beside its weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from sapp_cli.checkpoint.export import SPARSE_FOLDER
from sapp_cli.checkpoint.json_text import CONFIG_LIMIT, read_object
from sapp_cli.checkpoint.output import write_json
from sapp_cli.checkpoint.quantization_entry import with_entry
from sapp_cli.checkpoint.source import Checkpoint
from sapp_cli.checkpoint.write import disk_errors
from sapp_cli.outputs.card import auto_class, blocks_text
from sapp_cli.outputs.card_metadata import SOURCE_CARD, card_head
from sapp_cli.report.sparsity import SparsityReport
from sapp_cli.report.texts import markdown_code, markdown_text
from sapp_cli.report.wording import printable

CARD = "README.md"
CONFIG = "config.json"


def finish_sparse_folder(
    out: Path,
    name: str,
    report: SparsityReport,
    source: Checkpoint,
    architecture: str | None,
    companions: Sequence[str],
) -> list[str]:
    """Copy the companions of OUT into its `sparse/`, config.json with our entry, and write a card of its own.

    The card of the source is not repeated. `out`: the folder that will be OUT; `name`: what it will be called. Returns the
    paths below `out`, none if there is no `sparse/`, or the source is not of transformers.
    """
    folder = out / SPARSE_FOLDER
    if not (folder.is_dir() and source.is_hugging_face and (out / CONFIG).is_file()):
        return []
    written = []
    with disk_errors(out):
        for companion in companions:
            if companion in (CONFIG, SOURCE_CARD) or companion.startswith(f"{SPARSE_FOLDER}/"):
                continue
            (folder / companion).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(out / companion, folder / companion)
            written.append(f"{SPARSE_FOLDER}/{companion}")
    write_json(folder / CONFIG, with_entry(read_object(out / CONFIG, "the configuration", CONFIG_LIMIT, unique=False)))
    with disk_errors(out):
        (folder / CARD).write_text(_card(out, name, report, architecture), encoding="utf-8")
    return [*written, f"{SPARSE_FOLDER}/{CONFIG}", f"{SPARSE_FOLDER}/{CARD}"]


def _card(out: Path, name: str, report: SparsityReport, architecture: str | None) -> str:
    environment = Environment(
        loader=PackageLoader("sapp_cli", "outputs"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters.update(
        code=markdown_code,
        literal=lambda value: printable(json.dumps(value, ensure_ascii=False)),
        text=lambda value: markdown_text(str(value)),
    )
    loads_with = auto_class(architecture or "")
    return environment.get_template("sparse.md.j2").render(
        head=card_head(out, name, loads_with, bool(report.pruned), {}),
        name=name,
        path=f"{name}/{SPARSE_FOLDER}",
        blocks=blocks_text(report),
        report=report,
        auto_class=loads_with,
        sentences=(out / "modules.json").is_file(),
    )
