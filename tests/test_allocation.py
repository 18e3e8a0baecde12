"""`allocation: balanced` on real architectures: what was planned bounds what comes out."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ResNetConfig,
    ResNetForImageClassification,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from sapp_cli.costs import count_layers, multiply_adds_of_blocks
from sapp_cli.layers import decide_layers
from sapp_cli.pruner import Pruner
from sapp_cli.recipe.prune_section import PruneSection
from sapp_cli.report.sparsity import Counts, LayerFacts, expected_counts, make_report

STEPS = 12
SPARSITY = 0.8
TOKENS = {"input_ids": torch.arange(24).view(1, 24)}
IMAGE = {"pixel_values": torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64)}


def one_dimensional():
    """Strided convolutions over a wave: early layers are small and work on long signals."""
    widths = (1, 16, 32, 64, 64)
    layers = [
        part
        for before, after in pairwise(widths)
        for part in (nn.Conv1d(before, after, 9, stride=2, padding=4), nn.ReLU())
    ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(64, 10))


def bert():
    return BertForSequenceClassification(
        BertConfig(vocab_size=50, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128)
    )


def vit():
    return ViTForImageClassification(
        ViTConfig(
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=128,
            image_size=64,
            patch_size=16,
        )
    )


def gpt2():
    return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=32, n_embd=64, n_layer=2, n_head=4))


def llama():
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=50, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
    )


def resnet():
    return ResNetForImageClassification(
        ResNetConfig(embedding_size=16, hidden_sizes=[32, 64, 128], depths=[1, 1, 1], layer_type="basic")
    )


def encoder_decoder():
    return T5ForConditionalGeneration(
        T5Config(vocab_size=50, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, decoder_start_token_id=0)
    )


MODELS = {
    "bert": (bert, TOKENS),
    "vit": (vit, IMAGE),
    "gpt2": (gpt2, TOKENS),
    "llama": (llama, TOKENS),
    "resnet": (resnet, IMAGE),
    "conv1d": (one_dimensional, {"input": torch.linspace(-1, 1, 1024).sin().view(1, 1, 1024)}),
    "encoder-decoder": (encoder_decoder, {**TOKENS, "decoder_input_ids": torch.arange(6).view(1, 6)}),
}


@pytest.mark.parametrize("kind", MODELS)
def test_the_plan_bounds_the_result(kind):
    torch.manual_seed(0)
    make, inputs = MODELS[kind]
    model = make()
    settings = PruneSection(
        block_size=8,
        sparsity=SPARSITY,
        min_blocks=8,
        phases={"dense": 0.2, "rounds": 1, "last_round": 0.5, "final_sparse": 0.3},
    )
    assert settings.resolved_allocation == "balanced"
    layers = decide_layers(model, settings)
    work = count_layers(model, layers, lambda: model(**inputs))
    pruner = Pruner(model, settings, STEPS, costs=multiply_adds_of_blocks(layers, work), notice=lambda _: None)

    def facts(decided):
        return [
            LayerFacts(
                layer.name,
                layer.shape,
                4,
                layer.prunable,
                layer.pruned,
                layer.reason,
                layer.layout,
                layer.grid,
                None if layer.sparsity is None else float(layer.sparsity),
                work[layer.name],
            )
            for layer in decided
        ]

    planned = make_report(facts(layers), expected_counts({x.name: x.kept_count for x in layers if x.pruned}), 0, 0, 0)
    optimizer = torch.optim.AdamW(pruner.parameter_groups(1e-3))
    model.train()
    for step in range(STEPS):
        pruner.step(step, optimizer)
        output = model(**inputs)
        logits = output if isinstance(output, torch.Tensor) else output.logits
        logits.float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    kept = {name: int(keep.sum()) for name, keep in pruner.masks.items()}
    targeted = [layer for layer in pruner.layers if layer.sparsity is not None]
    result = make_report(
        facts(pruner.layers),
        lambda fact: Counts(kept.get(fact.name, fact.grid.count if fact.grid else 0), fact.parameters),
        *(0, 0, 0),
    )

    assert len(targeted) == len(planned.targeted), "every layer has scores here"
    assert result.pruned_block_sparsity >= result.requested_sparsity == SPARSITY
    assert result.model.bytes_sparse <= planned.model.bytes_sparse
    assert result.model.kept_multiply_adds <= planned.model.kept_multiply_adds
    used = {name: budget.share for name, budget in result.budgets.items()}
    assert set(used) == {"parameters", "multiply_adds"}
    assert 0.98 <= max(used.values()) <= 1
    assert any(layer.kept_blocks != layer.target_blocks for layer in result.targeted), "blocks moved between layers"
