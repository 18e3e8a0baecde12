"""Train the dense network of the demo on scikit-learn's digits: 1,797 real handwritten digits, 8×8 pixels each.

    python scripts/train_digits.py --out runs/demo

writes what recipes/digits.yaml reads: OUT/dense.safetensors, and OUT/data/{train,validation}.npz with inputs (N, 64) in
[0, 1] and targets (N,). A few seconds on one core; the same bytes every time on one machine.
"""

from __future__ import annotations

import argparse
import runpy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

NETWORKS = Path(__file__).resolve().parents[1] / "recipes" / "digits.py"


@dataclass(frozen=True)
class Split:
    inputs: Tensor  # fp32 (N, 64)
    targets: Tensor  # int64 (N,)

    def save(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, inputs=self.inputs.numpy(), targets=self.targets.numpy())


def digits() -> tuple[Split, Split]:
    """Training and validation rows, 80 to 20 in every class; the split is fixed, whatever the seed of a run."""
    inputs, targets = load_digits(return_X_y=True)
    inputs = (inputs / 16).astype(np.float32)  # pixels are counts from 0 to 16
    rows = train_test_split(inputs, targets.astype(np.int64), test_size=0.2, stratify=targets, random_state=0)
    train_inputs, validation_inputs, train_targets, validation_targets = map(torch.from_numpy, rows)
    return Split(train_inputs, train_targets), Split(validation_inputs, validation_targets)


def train(model: nn.Module, split: Split, epochs: int, batch_size: int = 64, lr: float = 1e-3) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(split.targets)).split(batch_size):
            loss = F.cross_entropy(model(split.inputs[rows]), split.targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()


@torch.no_grad()
def accuracy(model: nn.Module, split: Split) -> float:
    model.eval()
    return float((model(split.inputs).argmax(1) == split.targets).float().mean())


def main(command_line: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder to write to (default: %(default)s)")
    parser.add_argument("--network", choices=["mlp", "cnn"], default="mlp", help="of recipes/digits.py")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(command_line)

    torch.set_num_threads(1)  # sums in one order, so the bytes do not depend on the number of cores
    torch.manual_seed(arguments.seed)
    train_split, validation_split = digits()
    model: nn.Module = runpy.run_path(str(NETWORKS))[arguments.network]()
    train(model, train_split, arguments.epochs)

    train_split.save(arguments.out / "data" / "train.npz")
    validation_split.save(arguments.out / "data" / "validation.npz")
    save_file(model.state_dict(), arguments.out / "dense.safetensors")
    print(
        f"{arguments.out / 'dense.safetensors'}: {arguments.network}, {accuracy(model, validation_split):.1%} of "
        f"{len(validation_split.targets)} validation digits right after {arguments.epochs} epochs"
    )


if __name__ == "__main__":
    main()
