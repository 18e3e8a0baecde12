"""`sapp export --format onnx`: a file for other runtimes, and what is said of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from sapp_cli.cli.document import print_document
from sapp_cli.cli.options import check_order, read_recipe

if TYPE_CHECKING:
    from sapp_cli.portable.export import OnnxResult


def export_onnx(
    path: Path,
    out: Path,
    runtime: str | None,
    opset: int,
    recipe: str | None,
    sets: list[str] | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Write the ONNX file. What is cheap to check comes before torch is imported."""
    from sapp_cli.portable.place import check_place, require_exporter

    if recipe is None and sets:
        raise typer.BadParameter("it changes a recipe; name one with -r", param_hint="--set")
    check_place(out, overwrite)
    require_exporter(opset)
    check_order(path, recipe)
    loaded = None if recipe is None else read_recipe(recipe, sets, {})

    from sapp_cli.cli.notes import describe, sayer
    from sapp_cli.portable.export import OwnModel
    from sapp_cli.portable.export import export_onnx as write_onnx
    from sapp_cli.portable.runtimes import Runtime
    from sapp_cli.portable.signature import BATCH_SIZES

    def own_model() -> OwnModel:
        from sapp_cli.pipeline.evaluate import bench_inputs
        from sapp_cli.pipeline.watcher import Notes

        assert loaded is not None, "called with a recipe only"
        return OwnModel(*bench_inputs(loaded, path, BATCH_SIZES, Notes(say)))

    say = sayer(quiet)
    describe(path, quiet, verbose)
    result = write_onnx(
        path,
        out,
        opset=opset,
        runtime=Runtime(runtime) if runtime else None,
        overwrite=overwrite,
        own=None if loaded is None else own_model,
        say=say,
        progress=sayer(quiet or not verbose),
    )
    if as_json:
        print_document(result.as_json())
    else:
        _print(result)


def _print(result: OnnxResult) -> None:
    """The model, what its layers became, what goes in and out, how it was checked, and the file."""
    from sapp_cli.report.wording import printable, size_text

    print(result.model)
    print(_layers(result))
    past = [given for given in result.signature.inputs if given.name.startswith("past_key_values.")]
    rest = [given for given in result.signature.inputs if given not in past]
    for number, given in enumerate(rest):
        print(f"{'takes' if not number else '':<7}{printable(given.text)}")
    if past:
        print(f"       {past[0].text} and {len(past) - 1} more like it")
    shown = [name for name in result.signature.outputs if not name.startswith("present.")]
    if past:
        shown.append("present.… (the same with the new tokens)")
    print(f"gives  {', '.join(map(printable, shown))}")
    print(
        f"checked in {result.checked_in} with two batches: the largest difference to the model is "
        f"{result.difference:.1e} of the largest output"
    )
    main, *others = result.files
    beside = f", its weights in {printable(others[0].name)}" if others else ""
    print(f"wrote {size_text(result.bytes)} to {printable(str(main))} (ONNX, operator set {result.opset}){beside}")


def _layers(result: OnnxResult) -> str:
    from sapp_cli.report.wording import printable

    blocks = [form for form in result.forms if not form.is_dense]
    dense = [form.name for form in result.forms if form.is_dense] + list(result.left)
    if not blocks and not dense:
        return "no pruned layer: the file holds the dense model"
    how = f"measured in {result.runtime.described}" if result.runtime else "by the rule of docs/onnx.md"
    text = f"{len(blocks)} of {len(blocks) + len(dense)} pruned layers compute with blocks ({how})"
    if blocks:
        multiplied, kept = sum(form.multiplied for form in blocks), sum(form.kept for form in blocks)
        text += f"; {(multiplied - kept) / multiplied:.0%} of what they multiply fills rows up"
    if dense:
        some = ", ".join(f"'{printable(name)}'" for name in dense[:3]) + (", …" if len(dense) > 3 else "")
        text += f"; {len(dense)} stay{'s' if len(dense) == 1 else ''} dense, with zeros: {some}"
    return text
