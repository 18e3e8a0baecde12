"""Train a small causal language model on plain text: a checkpoint with something to lose, for recipes/causal-lm.yaml.

    python scripts/build_sentences.py --out runs/sentences
    python scripts/train_language_model.py --text runs/sentences --out runs/language-model

reads TEXT/train.txt and TEXT/validation.txt, one sentence a line, and writes a Hugging Face folder: a byte-level BPE tokenizer
of 2,048 tokens made from the training text, and a GPT-2 of 4 layers, 192 wide. Some ten minutes on one core; one seed, one
number of threads and one text give the same bytes.
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from transformers.utils import logging

END = "<|endoftext|>"
LENGTH = 128  # tokens of a piece


def make_tokenizer(text: Path, vocabulary: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train([str(text)], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=LENGTH, bos_token=END, eos_token=END, pad_token=END
    )


def pieces(tokenizer: PreTrainedTokenizerFast, text: Path) -> Tensor:
    """int64 (N, LENGTH): all lines one after the other, an end after each, cut into pieces; the last, short one is left out."""
    lines = [line for line in text.read_text(encoding="utf-8").splitlines() if line]
    tokens = [token for ids in tokenizer(lines).input_ids for token in (*ids, tokenizer.eos_token_id)]
    whole = len(tokens) // LENGTH * LENGTH
    return torch.tensor(tokens[:whole]).view(-1, LENGTH)


def train(model: GPT2LMHeadModel, rows: Tensor, steps: int, batch_size: int, lr: float) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=steps, pct_start=0.1)
    model.train()
    order = torch.empty(0, dtype=torch.int64)
    for step in range(steps):
        if len(order) < batch_size:
            order = torch.randperm(len(rows))
        batch, order = rows[order[:batch_size]], order[batch_size:]
        loss = model(batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % max(1, steps // 10) == 0:
            print(f"step {step + 1}/{steps}: loss {loss.item():.3f}", flush=True)


@torch.no_grad()
def loss_of(model: GPT2LMHeadModel, rows: Tensor) -> float:
    """Mean cross-entropy of a token, nats."""
    model.eval()
    sums = [float(model(batch, labels=batch).loss) * len(batch) for batch in rows.split(32)]
    return sum(sums) / len(rows)


def main(command_line: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, default=Path("runs/sentences"), help="folder (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/language-model"), help="folder (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--vocabulary", type=int, default=2048)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(command_line)
    logging.disable_progress_bar()
    torch.manual_seed(arguments.seed)
    tokenizer = make_tokenizer(arguments.text / "train.txt", arguments.vocabulary)
    rows, held_out = (pieces(tokenizer, arguments.text / f"{name}.txt") for name in ("train", "validation"))
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=LENGTH,
        n_embd=arguments.width,
        n_layer=arguments.layers,
        n_head=max(1, arguments.width // 32),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = GPT2LMHeadModel(config)
    train(model, rows, arguments.steps, arguments.batch_size, arguments.lr)
    model.save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"{arguments.out}: {parameters:,} parameters, loss {loss_of(model, held_out):.3f} on {len(held_out):,} held-out "
        f"pieces of {LENGTH} tokens after {arguments.steps:,} steps"
    )


if __name__ == "__main__":
    main()
