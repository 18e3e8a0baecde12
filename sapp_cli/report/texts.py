"""The report as CSV and as Markdown: for spreadsheets and for pull requests."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import fields

from sapp_cli.report.comparison import Comparison, LayerComparison
from sapp_cli.report.run import RunRecord
from sapp_cli.report.sparsity import OPTIONAL_KEYS, WORK_KEYS, LayerSparsity, ModelSparsity, SparsityReport
from sapp_cli.report.wording import by, count_text, counted, metric_text, percent, printable, size_text, times_smaller

MARKUP = frozenset('\\`*_{}[]()<>&|~#!"$=+@^')  # what Markdown and HTML may read as more than a letter
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet computes begins so
FOLDED_FROM = 20  # rows: a longer table of layers is folded in Markdown


def as_csv(report: SparsityReport) -> str:
    """One line a layer under the keys of sparsity.json; shapes as 512x64, nothing for what is unknown."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    has_work = report.has_work
    keys = [field.name for field in fields(LayerSparsity) if field.name not in OPTIONAL_KEYS]
    writer.writerow([*keys, *(WORK_KEYS if has_work else ())])
    for layer in report.layers:
        work = (layer.multiply_adds, layer.kept_multiply_adds, report.share(layer)) if has_work else ()
        writer.writerow([_cell(value) for value in (*(getattr(layer, key) for key in keys), *work)])
    return text.getvalue()


def as_markdown(name: str, report: SparsityReport, run: RunRecord | None, comparison: Comparison | None) -> str:
    """The totals and the layers of the checkpoint `name`, for a comment under a pull request."""
    model = report.model
    smaller = times_smaller(model.bytes_dense, model.bytes_sparse)
    totals = [
        (f"blocks removed in {targeted_text(report)}", reached_text(report)),
        ("zeros in all prunable weights", percent(model.prunable_sparsity)),
        ("zeros in the whole model", percent(model.sparsity)),
        ("weights, dense", size_text(model.bytes_dense)),
        ("weights, block-sparse", size_text(model.bytes_sparse) + (f" ({smaller})" if smaller else "")),
    ]
    if model.multiply_adds is not None:
        totals.append(("multiply-adds of an example", work_text(model)))
    elif report.has_work:
        totals.append(("multiply-adds of an example", markdown_text(not_counted_text(report).partition(": ")[2])))
    for metric, value in (run.metrics if run else {}).items():
        better = "higher" if value.higher_is_better else "lower"
        change = f"{metric_text(value.dense)} → {metric_text(value.pruned)}"
        totals.append((f"{markdown_text(metric)} ({better} is better)", change))
    parts = [f"**Sparsity of {markdown_code(name)}**", _table([("", ""), *totals], "lr")]
    if no_gain := no_gain_text(report):
        parts.append(markdown_text(no_gain))
    heads = ("mult-adds", "share") if report.has_work else ()
    layers = _table(
        [("layer", "shape", "block", "kept / blocks", "sparsity", "target", "dense", "block-sparse", *heads)]
        + [
            (markdown_code(layer.name), *layer_cells(layer), *(work_cells(layer, report) if heads else ()))
            for layer in report.layers
        ],
        "l" + "r" * (7 + len(heads)),
    )
    parts.append(_folded(f"{len(report.layers)} layers", layers) if len(report.layers) > FOLDED_FROM else layers)
    if comparison is not None:
        parts.append(_comparison(comparison))
    return "\n\n".join(parts) + "\n"


def work_markdown(report: SparsityReport) -> str:
    """A table of the layers' multiply-adds, dense and kept, and what share of the model's each has; "" where not known."""
    if not report.has_work:
        return ""
    rows = [("layer", "kept / blocks", "sparsity", "multiply-adds of an example", "share")]
    for layer in report.layers:
        _, _, kept, sparsity, *_ = layer_cells(layer)
        rows.append((markdown_code(layer.name), kept, sparsity, work_text(layer), work_cells(layer, report)[1]))
    rows.append(("all layers", "", "", work_text(report.model), ""))
    table = _table(rows, "lrrrr")
    return _folded(f"{len(report.layers)} layers", table) if len(report.layers) > FOLDED_FROM else table


def layer_cells(layer: LayerSparsity) -> tuple[str, ...]:
    """What tables show of a layer, after its name: shape, block, kept / blocks, sparsity, target, dense, sparse."""
    return (
        by(layer.shape),
        by(layer.block),
        f"{layer.kept_blocks:,} / {layer.blocks:,}" if layer.blocks is not None else "–",
        percent(layer.shown_sparsity),
        percent(layer.target) if layer.target is not None else "–",
        size_text(layer.bytes_dense),
        size_text(layer.bytes_sparse) if layer.pruned else "–",
    )


def targeted_text(report: SparsityReport) -> str:
    """As in "72 pruned layers", or "70 of 72 layers" if some of those with a target lost no block."""
    pruned, targeted = len(report.pruned), len(report.targeted)
    return counted(pruned, "pruned layer") if pruned == targeted else f"{pruned} of {counted(targeted, 'layer')}"


def reached_text(report: SparsityReport) -> str:
    """As in "80.1 % (80.0 % requested)"; the share alone if no record says what was requested."""
    reached, requested = percent(report.pruned_block_sparsity), report.requested_sparsity
    return reached if requested is None else f"{reached} ({percent(requested)} requested)"


def budgets_text(report: SparsityReport) -> str:
    """As in "99.8 % of the parameters and 97.1 % of the multiply-adds that uniform targets take"; "" without targets."""
    parts = [f"{percent(budget.share)} of the {name.replace('_', '-')}" for name, budget in report.budgets.items()]
    return f"{' and '.join(parts)} that uniform targets take" if parts else ""


def not_counted_text(report: SparsityReport) -> str:
    """Why the table has no total of multiply-adds; "" if it has one, or no such column."""
    names = report.not_counted
    if not names:
        return ""
    others = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"multiply-adds: no total and no shares, since those of {printable(names[0])}{others} could not be counted"


def no_gain_text(report: SparsityReport) -> str:
    """How many pruned layers are not faster block-sparse, and what becomes of them; "" if there is none."""
    names = [layer.name for layer in report.pruned if layer.no_gain]
    if not names:
        return ""
    others = f" and {len(names) - 1} more" if len(names) > 1 else ""
    layers = "1 pruned layer is" if len(names) == 1 else f"{len(names)} pruned layers are"
    return (
        f"{layers} not faster block-sparse: {printable(names[0])}{others}; pruning makes the file smaller, the multiply-adds "
        "stay those of the dense weight"
    )


def work_cells(layer: LayerSparsity, report: SparsityReport) -> tuple[str, str]:
    """Multiply-adds left for one example, and the layer's share of those of the model."""
    share = report.share(layer)
    if layer.kept_multiply_adds is None:
        return "–", "–"
    return count_text(layer.kept_multiply_adds), percent(share) if share is not None else "–"


def work_text(part: LayerSparsity | ModelSparsity) -> str:
    """Multiply-adds for one example, of the dense weights and of the kept blocks: "1.20 M → 120 k"; "–" where not known."""
    if part.multiply_adds is None or part.kept_multiply_adds is None:
        return "–"
    return f"{count_text(part.multiply_adds)} → {count_text(part.kept_multiply_adds)}"


def _comparison(comparison: Comparison) -> str:
    rows = [("layer", "kept in both", "only here", "only there", "change of the weights")]
    rows += [(markdown_code(layer.name), *comparison_cells(layer)) for layer in comparison.layers]
    parts = [f"**Against {markdown_code(comparison.path)}**", _table(rows, "lrrrr")]
    parts += [
        f"Not compared, {markdown_text(problem)}: {', '.join(map(markdown_code, layers))}"
        for problem, layers in not_compared(comparison).items()
    ]
    for where, names in (("here", comparison.only_here), ("there", comparison.only_there)):
        if names:
            parts.append(f"Layers only {where}: {', '.join(map(markdown_code, names))}")
    return "\n\n".join(parts)


def not_compared(comparison: Comparison) -> dict[str, list[str]]:
    """The layers that both have and that cannot be compared, by the reason."""
    found: dict[str, list[str]] = {}
    for layer in comparison.layers:
        if layer.problem is not None:
            found.setdefault(layer.problem, []).append(layer.name)
    return found


def comparison_cells(layer: LayerComparison) -> tuple[str, str, str, str]:
    """Kept in both, only here, only there, relative change; a dash where the layer cannot be compared."""
    if layer.problem is not None:
        return "–", "–", "–", "–"
    counts = [f"{count:,}" for count in (layer.kept_in_both or 0, layer.only_here or 0, layer.only_there or 0)]
    return counts[0], counts[1], counts[2], f"{layer.change:.4g}" if layer.change is not None else "not finite"


def _cell(value: object) -> object:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return csv_text(value)
    return "x".join(map(str, value)) if isinstance(value, tuple) else value


def _table(rows: Iterable[Sequence[str]], alignment: str) -> str:
    header, *body = rows
    rule = ["---:" if side == "r" else "---" for side in alignment]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *body))


def _folded(summary: str, table: str) -> str:
    return f"<details><summary>{summary}</summary>\n\n{table}\n\n</details>"


def csv_text(text: str) -> str:
    """A text as a cell of a CSV file. One that a spreadsheet would compute as a formula has an apostrophe before it."""
    return printable(f"'{text}" if text.startswith(FORMULA) else text)


def markdown_text(name: str) -> str:
    """A text of one line, nothing in it read as Markdown or HTML."""
    return "".join(f"&#{ord(c)};" if c in MARKUP else c for c in printable(name))


def markdown_code(name: str) -> str:
    """A name in code type. Names with a backtick or a bar in them cannot be a code span of a table cell."""
    shown = printable(name)
    if "`" in shown or "|" in shown or not shown.strip():
        return f"<code>{markdown_text(shown)}</code>"
    return f"`{shown}`"
