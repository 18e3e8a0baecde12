"""README.md of an output: what was done, the numbers, how to load it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from sapp_cli.checkpoint.source import Checkpoint
from sapp_cli.outputs.card_metadata import card_head
from sapp_cli.report.sparsity import SparsityReport
from sapp_cli.report.texts import markdown_code, markdown_text, work_markdown
from sapp_cli.report.wording import count_text, printable, size_text

AUTO_CLASSES = {
    "ForCausalLM": "AutoModelForCausalLM",
    "LMHeadModel": "AutoModelForCausalLM",
    "ForMaskedLM": "AutoModelForMaskedLM",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForImageClassification": "AutoModelForImageClassification",
}


@dataclass(frozen=True)
class FileSizes:
    """Bytes of the weight files: of the source, and of each layout that was written (0 for one that was not)."""

    source: int
    dense: int
    sparse: int

    @classmethod
    def of(cls, source: Checkpoint, folder: Path, files: Sequence[Path]) -> FileSizes:
        """Of the weight `files` of an output, the dense ones of which lie in `folder` itself."""
        return cls(
            source=sum(file.path.stat().st_size for file in source.files),
            dense=sum(file.stat().st_size for file in files if file.parent == folder),
            sparse=sum(file.stat().st_size for file in files if file.parent != folder),
        )


def write_card(
    folder: Path,
    name: str,
    report: SparsityReport,
    manifest: Mapping[str, Any],
    sizes: FileSizes,
    architecture: str | None,
    companions: Sequence[str],
) -> None:
    """Write the card into `folder`, where the companions are already. `manifest`: manifest.json; `architecture`: of
    config.json, None without one.
    """
    environment = Environment(
        loader=PackageLoader("sapp_cli", "outputs"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters.update(
        code=markdown_code,
        count=count_text,
        literal=_literal,
        size=size_text,
        text=lambda value: markdown_text(str(value)),
    )
    loads_with = auto_class(architecture) if architecture else None
    text = environment.get_template("card.md.j2").render(
        head=card_head(folder, name, loads_with, bool(report.pruned), manifest["metrics"]),
        name=name,
        report=report,
        manifest=manifest,
        blocks=blocks_text(report),
        sizes=sizes,
        auto_class=loads_with,
        sharded=any(folder.glob("*.index.json")),
        companions=companions,
        work=work_markdown(report),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def _literal(name: str) -> str:
    """The name as text in a line of Python."""
    return printable(json.dumps(name, ensure_ascii=False))


def auto_class(architecture: str) -> str:
    """The Auto class of transformers that loads an architecture: "GPT2LMHeadModel" -> "AutoModelForCausalLM"."""
    return next((auto for ending, auto in AUTO_CLASSES.items() if architecture.endswith(ending)), "AutoModel")


def blocks_text(report: SparsityReport) -> str:
    """The block shapes of the pruned layers, most frequent first: "16×16", or "16×16 and 8×32"."""
    shapes = [layer.block for layer in report.pruned if layer.block]
    ordered = sorted(set(shapes), key=lambda shape: (-shapes.count(shape), shape))
    return " and ".join(f"{rows}×{columns}" for rows, columns in ordered)
