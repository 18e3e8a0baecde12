"""`sapp report`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sapp_cli.cli.document import print_document
from sapp_cli.cli.options import OUTPUT, JsonOption, QuietOption, VerboseOption, no_block, parse_block_size

if TYPE_CHECKING:
    from sapp_cli.checkpoint.source import Checkpoint
    from sapp_cli.cli.notes import Say
    from sapp_cli.report.comparison import Comparison
    from sapp_cli.report.gallery import Gallery
    from sapp_cli.report.sparsity import SparsityReport


class SortKey(str, Enum):
    """Orders of the layers."""

    NAME = "name"
    SPARSITY = "sparsity"
    SIZE = "size"
    BLOCKS = "blocks"


def _print_schema(wanted: bool) -> None:
    if wanted:
        from sapp_cli.report.schema import sparsity_schema

        print_document(sparsity_schema())
        raise typer.Exit


def report(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="Any checkpoint, an output of sapp or not.", show_default=False)
    ],
    block_size: Annotated[
        str | None,
        typer.Option(
            "--block-size",
            metavar="N|RxC",
            help="See all weights (out × in) in these blocks: 16, or 16x32; else in those of the run or the file, or 16x16.",
        ),
    ] = None,
    sort: Annotated[
        SortKey | None,
        typer.Option(
            "--sort",
            metavar="name|sparsity|size|blocks",
            help="Order of the layers: by name, or the largest value first; else file order.",
        ),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            "--against",
            metavar="OTHER",
            help="Compare with another checkpoint: blocks kept in both, only here, only there, change of the weights.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="One line a layer, for spreadsheets.", rich_help_panel=OUTPUT)
    ] = False,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Tables for a pull request.", rich_help_panel=OUTPUT)
    ] = False,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html",
            metavar="FILE",
            help="Write a page with pictures, in one file.",
            show_default=False,
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    schema: Annotated[
        bool,
        typer.Option(
            "--schema",
            callback=_print_schema,
            is_eager=True,
            help="Print the JSON Schema of --json and sparsity.json, and stop.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Show the sparsity of a checkpoint, layer by layer, as counted in its files.

    \b
    sapp report ./my-model-sparse --sort size
    sapp report any.safetensors --block-size 32 --json
    sapp report ./my-model-sparse --against ./my-model --html report.html
    """
    formats = [name for name, wanted in (("--json", as_json), ("--csv", as_csv), ("--markdown", as_markdown)) if wanted]
    if len(formats) > 1:
        raise typer.BadParameter("stdout takes one of them", param_hint=" and ".join(formats))
    if as_csv and against is not None:
        raise typer.BadParameter("a CSV has no room for a comparison; use --json or --markdown", param_hint="--against")
    block = block_shape(block_size)

    from sapp_cli.checkpoint.given_file import check_given
    from sapp_cli.checkpoint.source import open_checkpoint
    from sapp_cli.cli.notes import describe, sayer
    from sapp_cli.report.inspect import layer_facts, left_out
    from sapp_cli.report.measure import measure
    from sapp_cli.report.wording import printable

    if html is not None:
        from sapp_cli.report.page import PAGE

        check_given(html, PAGE)
    describe(path, quiet, verbose)
    checkpoint = open_checkpoint(path)
    checkpoint.require_weights()
    facts = layer_facts(checkpoint, block)
    say = sayer(quiet)
    for line in left_out(checkpoint, facts):
        say(printable(line))
    gallery = None
    if html is not None:
        from sapp_cli.report.gallery import Gallery

        gallery = Gallery()
    found = measure(checkpoint, facts, gallery.add if gallery else None).ordered(sort.value if sort else None)
    comparison = None
    if against is not None:
        from sapp_cli.report.comparison import compare

        other = open_checkpoint(against)
        comparison = compare(checkpoint, facts, other, layer_facts(other, block))
    if gallery is not None and html is not None:
        _write_page(html, path, checkpoint, found, gallery, comparison, say)
    _print(found, comparison, formats[0] if formats else "table", checkpoint, every_layer=verbose)


def block_shape(text: str | None) -> tuple[int, int] | None:
    """(br, bc) of "16" or "16x32"; raises BadParameter for anything else."""
    block = parse_block_size(text)
    sides = [block, block] if isinstance(block, int) else block
    if sides is None:
        return None
    if min(sides) < 1:
        raise no_block(text)
    return sides[0], sides[1]


def _print(
    found: SparsityReport, comparison: Comparison | None, form: str, checkpoint: Checkpoint, *, every_layer: bool
) -> None:
    if form == "--json":
        document = found.as_json() | ({"against": comparison.as_json()} if comparison else {})
        print_document(document)
    elif form == "--csv":
        from sapp_cli.report.texts import as_csv

        print(as_csv(found), end="")
    elif form == "--markdown":
        from sapp_cli.report.run import home_of, read_run
        from sapp_cli.report.texts import as_markdown

        run = read_run(home_of(checkpoint))
        print(as_markdown(str(checkpoint.path), found, run, comparison), end="")
    else:
        _print_tables(found, comparison, every_layer)


def _print_tables(found: SparsityReport, comparison: Comparison | None, every_layer: bool) -> None:
    from sapp_cli.cli.console import stdout
    from sapp_cli.cli.report_table import comparison_table
    from sapp_cli.cli.tables import print_layers
    from sapp_cli.report.texts import no_gain_text, not_compared, not_counted_text
    from sapp_cli.report.wording import printable

    console = stdout()
    print_layers(console, found, every_layer, "report")
    for note in (not_counted_text(found), no_gain_text(found)):
        if note:
            console.print(note, markup=False)
    if comparison is None:
        return
    console.print()
    console.print(f"against {printable(comparison.path)}")
    console.print(comparison_table(comparison, console.width))
    for problem, layers in not_compared(comparison).items():
        console.print(f"not compared, {printable(problem)}: {', '.join(map(printable, layers))}")
    for where, names in (("here", comparison.only_here), ("there", comparison.only_there)):
        if names:
            console.print(f"layers only {where}: {', '.join(map(printable, names))}")


def _write_page(
    html: Path,
    path: Path,
    checkpoint: Checkpoint,
    found: SparsityReport,
    gallery: Gallery,
    comparison: Comparison | None,
    say: Say,
) -> None:
    from sapp_cli.report.html import write_html
    from sapp_cli.report.run import home_of, read_run
    from sapp_cli.report.speed import BENCH_FILE, read_speed

    home = home_of(checkpoint)
    speed = read_speed(home)
    if speed is not None and home is not None and not speed.is_of(home):
        say(f"{home / BENCH_FILE} was measured on other weights; the page leaves it out")
        speed = None
    write_html(html, path.resolve().name, found, gallery, read_run(home), comparison, speed)
    say(f"wrote {html}")
