"""Write the network of recipes/criteo.yaml, untrained as the paper starts from it, or trained dense as its baseline.

    python scripts/train_criteo.py --out runs/criteo                     # OUT/untrained.safetensors
    python scripts/train_criteo.py --out runs/criteo --epochs 25         # also OUT/dense.safetensors, from OUT/train.txt

Training is the paper's: Adam without weight decay, a rate that falls exponentially from 2e-2 to 3e-4, batches of 32768. The
data are those of scripts/make_criteo.py, or real ones put in their place.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from sapp_cli.inputs.criteo import load_criteo_data
from sapp_cli.inputs.criteo_network import criteo_network
from sapp_cli.inputs.data import DataSets
from sapp_cli.recipe.data_section import DataSection
from sapp_cli.recipe.schema import ObjectiveSection
from sapp_cli.training.batches import BatchPlan, training_batches
from sapp_cli.training.evaluation import evaluate
from sapp_cli.training.objectives import make_objective

FIRST_RATE, LAST_RATE = 2e-2, 3e-4


def train(model: nn.Module, data: DataSets, epochs: int, batch_size: int, seed: int, device: torch.device) -> None:
    plan = BatchPlan(len(data.train), batch_size, seed)  # type: ignore[arg-type]
    steps = epochs * plan.batches_per_epoch
    optimizer = torch.optim.Adam(model.parameters(), lr=FIRST_RATE)
    stream = training_batches(data, plan, workers=0)
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = FIRST_RATE * (LAST_RATE / FIRST_RATE) ** (step / max(1, steps - 1))
        batch = {key: value.to(device) for key, value in next(stream).items()}
        loss = F.binary_cross_entropy_with_logits(model(batch["numbers"], batch["categories"]), batch["targets"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % max(1, steps // 20) == 0:
            print(f"step {step + 1}/{steps}: log loss {loss.item():.4f}", flush=True)


def main(command_line: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/criteo"), help="folder to write to (default: %(default)s)"
    )
    parser.add_argument("--train", help="files or pattern; else OUT/train.txt*")
    parser.add_argument("--validation", help="files or pattern; else OUT/validation.txt*")
    parser.add_argument("--epochs", type=int, default=0, help="of dense training (default: none)")
    parser.add_argument("--batch-size", type=int, default=32768)
    parser.add_argument("--buckets", type=int, default=100_000, help="as data.criteo.buckets of the recipe")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(command_line)

    torch.manual_seed(arguments.seed)
    model = criteo_network(arguments.buckets)
    arguments.out.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), arguments.out / "untrained.safetensors")
    print(f"{arguments.out / 'untrained.safetensors'}: {sum(p.numel() for p in model.parameters()):,} parameters")
    if not arguments.epochs:
        return
    files = {
        "train": arguments.train or str(arguments.out / "train.txt*"),
        "validation": arguments.validation or str(arguments.out / "validation.txt*"),
    }
    data = load_criteo_data(DataSection(source="criteo", files=files, criteo={"buckets": arguments.buckets}))
    print(data.description)
    accelerator = Accelerator()
    model.to(accelerator.device)
    train(model, data, arguments.epochs, arguments.batch_size, arguments.seed, accelerator.device)
    save_file({name: tensor.cpu() for name, tensor in model.state_dict().items()}, arguments.out / "dense.safetensors")
    found = evaluate(model, make_objective(ObjectiveSection(task="binary"), model), data, 32768, accelerator)
    print(
        f"{arguments.out / 'dense.safetensors'}: " + ", ".join(f"{name} {value:.4f}" for name, value in found.items())
    )


if __name__ == "__main__":
    main()
