"""What `sapp plan` predicts against what runs then use: peak memory, and with --time their duration.

    python -m scripts.check_predictions --out runs/predictions.json
    python -m scripts.check_predictions --case bert --case digits

Small networks of four kinds with random weights and data, with distillation and without, each planned and pruned in processes
of their own. Used memory is the greatest resident set of the run (getrusage), time what the run itself reports; nothing else
should run meanwhile. Exit code 1 if a prediction is off by more than a quarter of what was used.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ALLOWED = 0.25
FEW_STEPS = 20  # are enough to hold all that a run ever does
DISTILL = {"distill": {"weight": 0.5}}


@dataclass(frozen=True)
class Case:
    """A network, its data and the recipe's sections that differ from the defaults."""

    network: str
    rows: dict[str, Any]
    objective: dict[str, Any]
    batch_size: int
    steps: int
    train: dict[str, Any] = field(default_factory=dict)


BERT = {"kind": "text", "length": 64, "vocabulary": 30_522}
GPT2 = {"kind": "tokens", "length": 128, "vocabulary": 8_000}
IMAGES = {"kind": "images", "length": 64}
CASES = {
    "digits": Case("mlp", {"kind": "digits", "count": 1437}, {}, 64, 600, {"evaluate_every": 100}),
    "digits-distilled": Case("mlp", {"kind": "digits", "count": 1437}, DISTILL, 64, 600),
    "mlp-wide": Case("wide", {"kind": "digits", "count": 512}, {}, 256, 60),
    "bert": Case("bert", BERT, {}, 16, 40),
    "bert-distilled": Case("bert", BERT, DISTILL, 8, 40, {"accumulate": 2}),
    "bert-checkpointed": Case("bert", BERT, {}, 32, 24, {"gradient_checkpointing": True}),
    "gpt2": Case("gpt2", GPT2, {"task": "causal-lm"}, 8, 40, {"evaluate_every": 20}),
    "gpt2-distilled": Case("gpt2", GPT2, {"task": "causal-lm", **DISTILL}, 8, 40),
    "resnet": Case("resnet", IMAGES, {}, 32, 40),
    "resnet-distilled": Case("resnet", IMAGES, DISTILL, 32, 40),
}


@dataclass(frozen=True)
class Outcome:
    case: str
    what: str  # "memory", in bytes, or "training" and "total", in seconds
    predicted: float
    used: float

    @property
    def error(self) -> float:
        """Share of what was used, positive where too much was predicted."""
        return self.predicted / self.used - 1


class RandomRows:
    """A map-style dataset of random rows, each a function of its number."""

    def __init__(self, count: int, kind: str, length: int, vocabulary: int) -> None:
        self.count, self.kind, self.length, self.vocabulary = count, kind, length, vocabulary

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        import torch

        generator = torch.Generator().manual_seed(index)
        label = torch.randint(0, 10, (), generator=generator)
        if self.kind == "digits":
            return {"inputs": torch.rand(self.length, generator=generator), "targets": label}
        if self.kind == "images":
            return {"pixel_values": torch.rand(3, self.length, self.length, generator=generator), "targets": label}
        ids = torch.randint(0, self.vocabulary, (self.length,), generator=generator)
        return {"input_ids": ids, "targets": label if self.kind == "text" else ids}


def rows(kind: str, count: int = 256, length: int = 64, vocabulary: int = 0) -> dict[str, Any]:
    """The factory of the recipes' data."""
    return {name: RandomRows(count, kind, length, vocabulary) for name in ("train", "validation")}


def network(kind: str = "mlp") -> Any:
    """The factory of the recipes' models that are no Hugging Face ones."""
    from torch import nn

    widths = {"mlp": (64, 512, 512, 10), "wide": (64, 2048, 4096, 4096, 10)}[kind]
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def save(kind: str, folder: Path) -> Path:
    """A checkpoint with random weights; what a run starts from."""
    import torch

    torch.manual_seed(0)
    path = folder / kind
    if path.exists() or path.with_suffix(".safetensors").exists():
        return path if path.exists() else path.with_suffix(".safetensors")
    if kind in ("mlp", "wide"):
        from safetensors.torch import save_file

        save_file(network(kind).state_dict(), path.with_suffix(".safetensors"))
        return path.with_suffix(".safetensors")
    import transformers

    if kind == "bert":  # as MiniLM-L6
        sizes = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
        transformers.BertForSequenceClassification(transformers.BertConfig(**sizes, num_labels=10)).save_pretrained(
            path
        )
    elif kind == "gpt2":
        config = transformers.GPT2Config(vocab_size=8_000, n_positions=256, n_embd=384, n_layer=4, n_head=6)
        transformers.GPT2LMHeadModel(config).save_pretrained(path)
    else:
        shape = {"embedding_size": 32, "hidden_sizes": [64, 128, 256], "depths": [2, 2, 2], "layer_type": "basic"}
        transformers.ResNetForImageClassification(transformers.ResNetConfig(**shape, num_labels=10)).save_pretrained(
            path
        )
    return path


def recipe(case: Case) -> dict[str, Any]:
    here = Path(__file__).resolve()
    known = {"factory": f"{here}:network", "kwargs": {"kind": case.network}} if case.network in ("mlp", "wide") else {}
    return {
        "model": known,
        "data": {"source": "factory", "factory": f"{here}:rows", "kwargs": case.rows, "batch_size": case.batch_size},
        "objective": case.objective,
        "train": {"steps": case.steps, **case.train},
        "prune": {"block_size": 16, "min_blocks": 1 if case.network == "mlp" else 100},
    }


def run(name: str, folder: Path, timed: bool = True) -> list[Outcome]:
    """Plan the case, prune it, compare."""
    case = CASES[name]
    path = folder / f"{name}.json"  # JSON is YAML
    path.write_text(json.dumps(recipe(case if timed else replace(case, steps=min(case.steps, FEW_STEPS)))))
    made = [sys.executable, "-m", "scripts.check_predictions", "--save", case.network, "--folder", str(folder)]
    checkpoint = subprocess.run(made, check=True, capture_output=True, text=True).stdout.strip()
    sapp = [sys.executable, "-m", "sapp_cli"]
    planned, _ = _measured([*sapp, "plan", checkpoint, "-r", str(path), "--json", "--quiet", *(["--time"] * timed)])
    out = folder / f"{name}-out"
    used, peak = _measured([*sapp, "prune", checkpoint, "-r", str(path), "-o", str(out), "--json", "--quiet"])
    memory = Outcome(name, "memory", planned["memory"]["total"], peak)
    if not timed:
        return [memory]
    training = json.loads((out / "manifest.json").read_text())["seconds"]["training"]
    return [
        memory,
        Outcome(name, "training", planned["time"]["training"], training),
        Outcome(name, "total", planned["time"]["total"], used["seconds"]),
    ]


def _measured(command: list[str]) -> tuple[dict[str, Any], int]:
    """(the JSON a command prints, the greatest resident set of its process in bytes)."""
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        text = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
    return json.loads(text), usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def line(outcome: Outcome) -> str:
    """One row of the table."""
    scale, unit = (1e-6, "MB") if outcome.what == "memory" else (1, "s")
    figures = f"{outcome.predicted * scale:9,.1f} {unit} predicted {outcome.used * scale:9,.1f} {unit} used"
    return f"{outcome.case:<18} {outcome.what:<9} {figures}   {outcome.error:+.0%}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, action="append", help="only this one; may be repeated")
    parser.add_argument("--memory", action="store_true", help="memory only")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--save", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.save:  # in a process of its own: this one must stay small, for a child's peak counts its parent's
        print(save(arguments.save, arguments.folder))
        return 0
    found: list[Outcome] = []
    with TemporaryDirectory(prefix="sapp-predictions-") as folder:
        for name in arguments.case or CASES:
            for outcome in run(name, Path(folder), not arguments.memory):
                found.append(outcome)
                print(line(outcome), flush=True)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        rows = [{**asdict(outcome), "error": outcome.error} for outcome in found]
        arguments.out.write_text(json.dumps({"outcomes": rows}, indent=2) + "\n")
    off = [outcome for outcome in found if abs(outcome.error) > ALLOWED]
    print(f"{len(found) - len(off)} of {len(found)} predictions within {ALLOWED:.0%}")
    return 1 if off else 0


if __name__ == "__main__":
    sys.exit(main())
