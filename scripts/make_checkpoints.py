"""Build random Hugging Face checkpoints from a configuration, for tests and try-outs; nothing is downloaded.

    python scripts/make_checkpoints.py --kind llama --out runs/llama --dtype bf16

    bert              encoder with a classification head of three classes
    bert-mlm          the same encoder with a masked-LM head tied to its embedding
    gpt2              `Conv1D` weights, stored in × out; output layer tied to the embedding
    llama             two shards; grouped-query attention; output layer of its own
    llama-tied        the same, output layer tied to the embedding
    vit               image classifier, 32×32 pixels, ten classes
    resnet            the real ResNet-50: 25.6 million parameters, 1,000 classes
    resnet-untrained  the same as transformers initializes it, to train from scratch (recipes/imagenet-resnet50.yaml)

All but ResNet-50 are tiny. Biases, normalization weights and batch-norm statistics are moved off their usual zeros and
ones, so that a tensor that ends up in the wrong place changes the output. One seed gives the same bytes every time.
Text models come with a tokenizer over bytes, image models with a preprocessor.
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    BertConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.utils import logging

SPECIAL_TOKENS = ("[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]")
ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # [CLS] and [SEP] serve causal models too
VOCABULARY = len(SPECIAL_TOKENS) + 256


def make_bert(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    *,
    head: str = "ForSequenceClassification",
) -> Path:
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=192,
        max_position_embeddings=128,
        num_labels=3,
    )
    _save(getattr(transformers, f"Bert{head}"), config, folder, dtype, seed)
    return _save_tokenizer(folder, "input_ids", "token_type_ids", "attention_mask")


def make_wide_bert(folder: Path, dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    """Six layers 1,024 wide, of a real size: to measure."""
    config = BertConfig(
        hidden_size=1024,
        num_hidden_layers=6,
        num_attention_heads=16,
        intermediate_size=4096,
        max_position_embeddings=512,
    )
    _save(transformers.BertModel, config, folder, dtype, seed)
    return folder


def make_gpt2(folder: Path, dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=128, n_embd=96, n_layer=2, n_head=4, **ENDS)
    _save(GPT2LMHeadModel, config, folder, dtype, seed)
    return _save_tokenizer(folder, "input_ids", "attention_mask")


def make_llama(folder: Path, dtype: torch.dtype = torch.float32, seed: int = 0, *, tied: bool = False) -> Path:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=192,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        **ENDS,
    )
    _save(LlamaForCausalLM, config, folder, dtype, seed, shards=2)
    return _save_tokenizer(folder, "input_ids", "attention_mask")


def make_vit(folder: Path, dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    config = ViTConfig(
        image_size=32,
        patch_size=8,
        hidden_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=192,
        num_labels=10,
    )
    _save(ViTForImageClassification, config, folder, dtype, seed)
    size = {"height": 32, "width": 32}
    return _save_preprocessor(folder, image_processor_type="ViTImageProcessor", size=size, resample=2)


def make_resnet(folder: Path, dtype: torch.dtype = torch.float32, seed: int = 0, *, untrained: bool = False) -> Path:
    config = ResNetConfig(num_labels=1000)  # the other defaults are ResNet-50
    _save(ResNetForImageClassification, config, folder, dtype, seed, move=not untrained)
    size = {"shortest_edge": 224}  # of the square that is cut out; crop_pct of what the image is resized to
    return _save_preprocessor(
        folder, image_processor_type="ConvNextImageProcessor", size=size, crop_pct=0.875, resample=3
    )


def _save(
    model_class: type[PreTrainedModel],
    config: Any,
    folder: Path,
    dtype: torch.dtype,
    seed: int,
    *,
    shards: int = 1,
    move: bool = True,
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config)
        if move:
            _move_vectors(model)
    model.to(dtype)
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    # A shard is closed where the next tensor would not fit; a fifth of room keeps the rest from spilling into one more.
    model.save_pretrained(folder, max_shard_size=int(1.2 * size / shards))


@torch.no_grad()
def _move_vectors(model: nn.Module) -> None:
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.add_(0.05 * torch.randn(parameter.shape))
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.add_(0.05 * torch.randn(buffer.shape))
        elif name.endswith("running_var"):
            buffer.mul_(0.9 + 0.2 * torch.rand(buffer.shape))


def _save_tokenizer(folder: Path, *inputs: str) -> Path:
    """A byte a token: no text is unknown to it, and there is nothing to train."""
    vocabulary = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(vocabulary)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=128,
        model_input_names=list(inputs),
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        unk_token="[UNK]",
        bos_token="[CLS]",
        eos_token="[SEP]",
    ).save_pretrained(folder)
    return folder


def _save_preprocessor(folder: Path, **settings: Any) -> Path:
    """Written by hand: transformers' own classes for it differ with its version and with torchvision being there."""
    common = {
        "do_resize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings | common, indent=2) + "\n")
    return folder


KINDS: dict[str, Callable[[Path, torch.dtype, int], Path]] = {
    "bert": make_bert,
    "bert-wide": make_wide_bert,
    "bert-mlm": lambda *common: make_bert(*common, head="ForMaskedLM"),
    "gpt2": make_gpt2,
    "llama": make_llama,
    "llama-tied": lambda *common: make_llama(*common, tied=True),
    "vit": make_vit,
    "resnet": make_resnet,
    "resnet-untrained": lambda *common: make_resnet(*common, untrained=True),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def main(command_line: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=KINDS, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(command_line)
    logging.disable_progress_bar()
    folder = KINDS[arguments.kind](arguments.out, DTYPES[arguments.dtype], arguments.seed)
    print(f"{folder}: {', '.join(sorted(file.name for file in folder.iterdir()))}")


if __name__ == "__main__":
    main()
