"""`sapp check` as a flow of data: open both layouts, count, run the gates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sapp_cli.checkpoint.source import Checkpoint, open_checkpoint
from sapp_cli.report.gates import CheckResult, Gate, Weights, check_drop, check_size, check_sparsity
from sapp_cli.report.inspect import layer_facts, left_out
from sapp_cli.report.integrity import check_agreement, check_hashes, check_kept_blocks
from sapp_cli.report.measure import measure
from sapp_cli.report.run import home_of, read_run

SPARSE_FOLDER = "sparse"


@dataclass(frozen=True)
class Limits:
    """What was asked for; None where nothing was."""

    min_sparsity: float | None = None
    sparsity_of: Weights = "prunable"
    max_size: int | None = None  # bytes
    max_drop: float | None = None
    metric: str | None = None  # None: the manifest's first


def check(path: Path, limits: Limits) -> CheckResult:
    """The gates of the checkpoint at `path`, those asked for first. Raises CheckpointError for damaged files."""
    dense, sparse = _layouts(path)
    checkpoint = dense or sparse
    assert checkpoint is not None  # `_layouts` opens at least one
    checkpoint.require_weights()
    facts = layer_facts(checkpoint, None)
    report = measure(checkpoint, facts)
    home = home_of(checkpoint)
    run = read_run(home)
    gates: list[Gate] = []
    if limits.min_sparsity is not None:
        gates.append(check_sparsity(report, limits.min_sparsity, limits.sparsity_of))
    if limits.max_size is not None:
        smallest = sparse or checkpoint
        layout = "block-sparse" if smallest is sparse else "dense"
        gates.append(check_size([file.path for file in smallest.files], limits.max_size, layout))
    if limits.max_drop is not None:
        gates.append(check_drop(run, limits.max_drop, limits.metric))
    files = [file.path for side in (dense, sparse) if side is not None for file in side.files]
    gates.append(check_agreement(dense, sparse))
    gates.append(check_hashes(home, run, files))
    gates.append(check_kept_blocks(home, report, sparse))
    return CheckResult(str(path), tuple(gates), tuple(left_out(checkpoint, facts)))


def _layouts(path: Path) -> tuple[Checkpoint | None, Checkpoint | None]:
    """The dense and the block-sparse weights at `path`; a folder of an output may have both."""
    first = open_checkpoint(path)
    inner = Path(path).expanduser() / SPARSE_FOLDER
    if first.block_sparse or first.files[0].path.parent == inner:
        return None, first
    if any(inner.glob("*.safetensors")):
        return first, open_checkpoint(inner)
    return first, None
