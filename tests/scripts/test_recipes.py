"""The shipped recipes: each fits the checkpoints it is for, and prunes what its heading says."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from sapp_cli.layers import Layer, decide_layers
from sapp_cli.recipe.prune_section import PruneSection
from sapp_cli.recipe.schema import Recipe

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
NAMES = sorted(file.stem for file in RECIPES.glob("*.yaml"))


def load(name: str) -> Recipe:
    text = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
    return Recipe.model_validate(yaml.safe_load(text), context={"folder": RECIPES})


def decide(model_class: type[PreTrainedModel], config: object, settings: PruneSection) -> list[Layer]:
    with torch.device("meta"):
        return decide_layers(model_class(config), settings)


def overall(layers: list[Layer], sparsity_of: Callable[[Layer], float]) -> float:
    """Sparsity in % over all prunable weights, given that of each pruned layer; the others are dense."""
    gone = sum(layer.parameters * sparsity_of(layer) for layer in layers if layer.pruned)
    return 100 * gone / sum(layer.parameters for layer in layers if layer.prunable)


def target(layer: Layer) -> float:
    assert layer.sparsity is not None
    return float(layer.sparsity)


def of_blocks(layer: Layer) -> float:
    assert layer.grid is not None
    return 1 - layer.kept_count / layer.grid.count


def test_all_of_them_are_here() -> None:
    assert NAMES == [
        "causal-lm",
        "criteo",
        "digits",
        "image-classification",
        "imagenet-resnet50",
        "sentence-embedding",
        "text-classification",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_it_follows_the_schema_and_opens_with_a_title_and_what_to_change(name: str) -> None:
    recipe = load(name)
    _, title, blank, *rest = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    head = rest[: rest.index("")]
    assert title.startswith("# ")
    assert f"{recipe.prune.sparsity:.0%}".replace("%", " %") in title
    assert f"{recipe.prune.block_size}×{recipe.prune.block_size} blocks" in title
    assert blank == "#"
    assert any(line.startswith("# What to change first: ") for line in head)
    assert any(
        line.startswith("#     sapp prune ") and f"-r {name}.yaml" in line.replace("recipes/", "") for line in head
    )


@pytest.mark.parametrize(
    ("network", "pruned"),
    [("mlp", ["hidden1.weight", "hidden2.weight"]), ("cnn", ["conv2.weight", "conv3.weight"])],
)
def test_digits_prunes_two_layers_of_either_network(network: str, pruned: list[str]) -> None:
    recipe = load("digits")
    assert recipe.model.factory == f"{RECIPES / 'digits.py'}:mlp"
    model: nn.Module = runpy.run_path(str(RECIPES / "digits.py"))[network]()
    assert model(torch.zeros(2, 64)).shape == (2, 10)
    layers = decide_layers(model, recipe.prune)
    assert [layer.name for layer in layers if layer.pruned] == pruned


@pytest.mark.parametrize(("block_size", "aimed", "table"), [(32, 87.5, 88), (64, 74.3, 74)])
def test_imagenet_resnet50_reaches_the_papers_sparsity(block_size: int, aimed: float, table: int) -> None:
    settings = load("imagenet-resnet50").prune.model_copy(update={"block_size": block_size})
    layers = decide(ResNetForImageClassification, ResNetConfig(num_labels=1000), settings)
    assert overall(layers, target) == pytest.approx(aimed, abs=0.05)
    assert round(overall(layers, of_blocks)) == table  # whole blocks: up to a block more of each layer
    assert layers[-1].name == "classifier.1.weight"
    assert layers[-1].pruned


def test_sentence_embedding_prunes_the_encoder_and_not_the_pooler_it_does_not_train() -> None:
    config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    layers = decide(BertModel, config, load("sentence-embedding").prune)
    assert len([layer for layer in layers if layer.pruned]) == 6 * 6
    assert all(layer.name.startswith("encoder.layer.") for layer in layers if layer.pruned)
    assert {layer.sparsity for layer in layers if layer.pruned} == {Fraction(4, 5)}


@pytest.mark.parametrize(
    ("name", "model_class", "config", "dense"),
    [
        ("text-classification", BertForSequenceClassification, BertConfig(num_hidden_layers=1), "classifier.weight"),
        ("causal-lm", GPT2LMHeadModel, GPT2Config(n_layer=1), "transformer.wte.weight"),  # the head is tied to it
        ("causal-lm", LlamaForCausalLM, LlamaConfig(num_hidden_layers=1), "lm_head.weight"),
        ("image-classification", ViTForImageClassification, ViTConfig(num_hidden_layers=1), "classifier.weight"),
        ("image-classification", ResNetForImageClassification, ResNetConfig(), "classifier.1.weight"),
    ],
)
def test_it_leaves_the_output_layer_dense(
    name: str, model_class: type[PreTrainedModel], config: object, dense: str
) -> None:
    layers = {layer.name: layer for layer in decide(model_class, config, load(name).prune)}
    assert not layers[dense].pruned
    assert sum(layer.pruned for layer in layers.values()) >= 4
