"""Which weights are pruned, and what is said about those that are not."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as _prune  # noqa: F401 - nn.utils.prune

from sapp_cli.errors import SettingError
from sapp_cli.layers import decide_layers, rule_matches
from sapp_cli.recipe.prune_section import PruneSection


class Expert(nn.Module):
    """A stack of matrices in one parameter, as mixture-of-experts layers have it."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 16, 16))


NO_GAIN = "block-sparse is not faster here: blocks"


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        self.first = nn.Linear(32, 48)
        self.small = nn.Linear(32, 8)
        self.narrow = nn.Linear(32, 2)
        self.conv = nn.Conv2d(4, 16, 3)
        self.up = nn.ConvTranspose2d(8, 8, 3)
        self.experts = Expert()
        self.rnn = nn.GRU(8, 8)
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 50)
        self.head.weight = self.embed.weight


def decide(model=None, **settings):
    section = PruneSection.model_validate({"block_size": 4, "min_blocks": 20, "sparsity": 0.5, **settings})
    return {layer.name: layer for layer in decide_layers(model or Model(), section)}


def test_every_weight_has_a_decision_and_a_reason():
    layers = decide(rules=[{"match": "first.*", "block_size": [8, 4], "sparsity": 0.25}])
    assert {name: (layer.pruned, layer.prunable, layer.reason) for name, layer in layers.items()} == {
        "embed.weight": (False, False, "an embedding, tied to head.weight (prune.embeddings is false)"),
        "first.weight": (True, True, f"rule 'first.*'; {NO_GAIN} of 8 rows gain only where at most 66.7 % are kept"),
        "small.weight": (False, True, "16 blocks, fewer than min_blocks 20"),
        "narrow.weight": (False, True, "a 4×4 block is larger than its 2×32 matrix"),
        "conv.weight": (True, True, f"pruned; {NO_GAIN} of 4 rows gain only where at most 33.3 % are kept"),
        "up.weight": (False, False, "4-d weights of ConvTranspose2d are not supported"),
        "experts.weight": (False, False, "3-d weights of Expert are not supported"),
        "rnn.weight_ih_l0": (False, False, "weights of GRU are not supported"),
        "rnn.weight_hh_l0": (False, False, "weights of GRU are not supported"),
    }
    first = layers["first.weight"]
    assert (first.grid.size, float(first.sparsity), first.kept_count) == ((6, 8), 0.25, 36)
    assert layers["conv.weight"].grid.matrix == (16, 36)


def test_embeddings_are_pruned_when_asked_for_and_ties_count_once():
    layer = decide(embeddings=True)["embed.weight"]
    assert (layer.pruned, layer.aliases, layer.parameters) == (True, ("head.weight",), 1600)


def test_the_first_rule_that_matches_wins():
    rules = [
        {"match": "first.weight", "sparsity": 0.75},
        {"match": "first*", "dense": True},
        {"match": "small", "min_blocks": 1},  # a module's name will do
        {"match": "conv.*", "sparsity": 0},
    ]
    layers = decide(rules=rules)
    assert float(layers["first.weight"].sparsity) == 0.75
    assert layers["small.weight"].pruned
    assert (layers["conv.weight"].pruned, layers["conv.weight"].reason) == (False, "its target sparsity is 0")


def test_rules_say_what_they_match_and_what_was_decided_before():
    patterns = ["first*", "*.weight", "small", "conv.weight", "rnn*"]
    rules = [{"match": pattern, "sparsity": 0.25} for pattern in patterns]
    section = PruneSection.model_validate({"block_size": 4, "min_blocks": 1, "rules": rules})
    found = rule_matches(decide_layers(Model(), section), section)
    # embed (and head with it), first, small, narrow, conv, up and experts are called weight; the GRU has two matrices
    assert [(rule.pattern, rule.weights, rule.taken) for rule in found] == [
        ("first*", 1, 0),
        ("*.weight", 7, 1),
        ("small", 1, 1),
        ("conv.weight", 1, 1),
        ("rnn*", 2, 0),
    ]


def test_rules_may_use_the_names_of_the_checkpoint():
    section = PruneSection(block_size=4, min_blocks=1, rules=[{"match": "body.first.weight", "dense": True}])
    layers = decide_layers(Model(), section, {"first.weight": "body.first.weight"})
    first = next(layer for layer in layers if layer.name == "first.weight")
    assert (first.stored, first.reason) == ("body.first.weight", "rule 'body.first.weight'")


def test_rules_that_match_nothing_are_errors_with_the_nearest_name():
    with pytest.raises(SettingError) as error:
        decide(
            rules=[
                {"match": "firts.weight", "dense": True},
                {"match": "conv.*", "dense": True},
                {"match": "q", "dense": True},
            ]
        )
    assert error.value.problems == (
        ("prune.rules[0].match", "'firts.weight' matches none of 9 weights; nearest: 'first.weight'"),
        ("prune.rules[2].match", "'q' matches none of 9 weights"),
    )


def test_pruning_nothing_is_an_error_that_says_why():
    with pytest.raises(SettingError) as error:
        decide(block_size=16, min_blocks=100)
    assert str(error.value) == (
        "prune: no layer would be pruned: 1 × 6 blocks, fewer than min_blocks 100; 1 × a 16×16 block is larger than its "
        "8×32 matrix; 1 × a 16×16 block is larger than its 2×32 matrix; 1 × 3 blocks, fewer than min_blocks 100; "
        "take a smaller prune.block_size or prune.min_blocks, or change prune.rules"
    )


def test_one_block_stays_where_none_would():
    layer = decide(sparsity=0.999, block_size=4)["first.weight"]
    assert layer.kept_count == 1
    assert layer.reason == "pruned; one block stays: 0.999 of 96 blocks would leave none"


def test_a_module_used_twice_is_one_layer():
    shared = nn.Linear(32, 32)
    layers = decide(nn.ModuleDict({"a": shared, "b": shared}))
    assert [(layer.name, layer.aliases) for layer in layers.values()] == [("a.weight", ("b.weight",))]


def test_resnet50_reaches_the_sparsity_of_the_papers_table():
    # All convolutions and the classifier prunable, layers under 100 blocks dense: 90 % of the blocks are 87.5 % and 74.3 %
    # of the weights with 32×32 and 64×64 blocks (paper, Table 1: 88 and 74).
    from transformers import ResNetConfig, ResNetForImageClassification

    with torch.device("meta"):
        model = ResNetForImageClassification(ResNetConfig(num_labels=1000))
    expected = {32: (68.0, 77.8, 87.5, 92.3), 64: (57.8, 66.0, 74.3, 78.4)}
    for block, sparsity, share in [
        (b, s, e) for b in expected for s, e in zip((0.7, 0.8, 0.9, 0.95), expected[b], strict=True)
    ]:
        layers = decide(model, block_size=block, min_blocks=100, sparsity=sparsity).values()
        prunable = sum(layer.parameters for layer in layers if layer.prunable)
        pruned = [layer for layer in layers if layer.pruned]
        assert round(100 * sparsity * sum(layer.parameters for layer in pruned) / prunable, 1) == share
        for layer in pruned:  # whole blocks: at least the target, and less than one a layer more
            assert 0 <= layer.grid.count - layer.kept_count - sparsity * layer.grid.count < 1


@pytest.mark.filterwarnings("ignore:.*weight_norm")  # of torch, about its age
def test_parts_of_a_weight_name_the_call_that_makes_it_plain():
    model = nn.ModuleDict(
        {
            "plain": nn.Linear(32, 32),
            "old": nn.utils.weight_norm(nn.Linear(32, 32)),
            "new": nn.utils.parametrizations.weight_norm(nn.Linear(32, 32)),
            "spectral": nn.utils.spectral_norm(nn.Linear(32, 32)),
            "masked": nn.utils.prune.identity(nn.Linear(32, 32), "weight"),
        }
    )
    reasons = {name: layer.reason for name, layer in decide(model).items() if name != "plain.weight"}
    old = "a part of weight_norm; torch.nn.utils.remove_weight_norm makes it a plain weight"
    new = "parametrized; torch.nn.utils.parametrize.remove_parametrizations makes it a plain weight"
    orig = "a part of spectral_norm or a mask of torch; remove_spectral_norm or prune.remove makes it a plain weight"
    assert reasons == {
        "old.weight_g": old,
        "old.weight_v": old,
        "new.parametrizations.weight.original0": new,
        "new.parametrizations.weight.original1": new,
        "spectral.weight_orig": orig,
        "masked.weight_orig": orig,
    }
