"""How often a weight is applied to one example, by hand for every kind of layer."""

import pytest
import torch
from torch import nn

from sapp_cli.costs import count_layers, multiply_adds_of_blocks
from sapp_cli.errors import SettingError
from sapp_cli.layers import decide_layers
from sapp_cli.pruner import Pruner
from sapp_cli.recipe.prune_section import PruneSection
from sapp_cli.report.sparsity import Counts, LayerFacts, make_report

EVERYTHING = PruneSection(block_size=2, min_blocks=1, sparsity=0.5)


def applications(model, *inputs, examples=1):
    """{layer: times its weight is multiplied with}; every weight here is used whole."""
    found = work(model, *inputs, examples=examples)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters(remove_duplicate=False)}
    assert all(count % sizes[name] == 0 for name, count in found.items())
    return {name: count // sizes[name] for name, count in found.items()}


def work(model, *inputs, examples=1):
    layers = decide_layers(model, EVERYTHING)
    return count_layers(model, layers, lambda: model(*inputs), examples)


def test_a_linear_sees_tokens_and_a_convolution_positions():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.image = nn.Conv2d(3, 8, 3, stride=2)  # 9×9 -> 4×4
            self.groups = nn.Conv2d(8, 8, 1, groups=4)
            self.tokens = nn.Linear(8, 6)
            self.pooled = nn.Linear(6, 4)
            self.unused = nn.Linear(4, 4)

        def forward(self, x):
            x = self.groups(self.image(x)).flatten(2).mT
            return self.pooled(self.tokens(x).mean(1))

    found = applications(Network(), torch.randn(5, 3, 9, 9), examples=5)
    assert found == {
        "image.weight": 16,
        "groups.weight": 16,
        "tokens.weight": 16,
        "pooled.weight": 1,
        "unused.weight": 0,
    }


@pytest.mark.parametrize("training", [True, False])
def test_attention_and_the_fused_layer_of_torch(training):
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).train(training)
    found = applications(model, torch.randn(1, 7, 8))
    assert found == {
        "self_attn.in_proj_weight": 7,
        "self_attn.out_proj.weight": 7,
        "linear1.weight": 7,
        "linear2.weight": 7,
    }
    assert model.training is training


def test_keys_and_values_of_another_length():
    class Cross(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=4, batch_first=True)

        def forward(self, x, keys, values):
            return self.attention(x, key=keys, value=values)[0]

    found = applications(Cross(), torch.randn(1, 3, 8), torch.randn(1, 5, 6), torch.randn(1, 5, 4))
    assert found == {
        "attention.q_proj_weight": 3,
        "attention.k_proj_weight": 5,
        "attention.v_proj_weight": 5,
        "attention.out_proj.weight": 3,
    }


def test_an_output_layer_tied_to_the_embedding_counts_and_the_look_up_does_not():
    class Speaker(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(20, 8)
            self.layer = nn.Linear(8, 8)
            self.head = nn.Linear(8, 20, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, x):
            return self.head(self.layer(self.layer(self.embedding(x))))

    assert applications(Speaker(), torch.zeros(1, 6, dtype=torch.long)) == {"embedding.weight": 6, "layer.weight": 12}


class Recurrent(nn.Module):
    """Eight steps of eight numbers: field case 7."""

    def __init__(self):
        super().__init__()
        self.rnn, self.h, self.out = nn.LSTM(8, 128, batch_first=True), nn.Linear(128, 128), nn.Linear(128, 4)

    def forward(self, x):
        return self.out(self.h(self.rnn(x.view(-1, 8, 8))[0][:, -1]).relu())


def shares(model, *inputs):
    """{layer: its share of all multiply-adds}, and their sum, as a report has them; None where they are not known."""
    layers = decide_layers(model, EVERYTHING)
    counts = count_layers(model, layers, lambda: model(*inputs))
    facts = [
        LayerFacts(layer.name, layer.shape, 4, False, False, "", multiply_adds=counts[layer.name]) for layer in layers
    ]
    report = make_report(facts, lambda fact: Counts(0, fact.parameters), 0, 0, 0)
    return {layer.name: report.share(layer) for layer in report.layers}, report.model.multiply_adds


def test_recurrent_weights_count_towards_the_whole():
    found, total = shares(Recurrent(), torch.randn(1, 64))
    assert total == 557_056 + 16_384 + 512
    assert found["h.weight"] == 16_384 / total


def test_a_part_that_cannot_be_counted_leaves_no_total_and_no_share():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.both = nn.Linear(8, 8), nn.Bilinear(8, 8, 8)

        def forward(self, x):
            return self.both(self.first(x), x)

    found, total = shares(Pair(), torch.randn(1, 8))
    assert total is None
    assert found == {"first.weight": None, "both.weight": None}


def test_neither_statistics_nor_random_numbers_move():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).train()
    before, state = model[1].running_mean.clone(), torch.get_rng_state()
    applications(model, torch.randn(6, 4, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(model[1].running_mean, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert model[2].training


def test_what_a_block_costs_and_who_has_to_say_so():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    layers = decide_layers(model, EVERYTHING)
    # Half of the blocks of 2 rows: no layer of them is faster than dense, so none saves multiply-adds.
    assert multiply_adds_of_blocks(layers, {"0.weight": 3 * 64, "1.weight": 32}) == {"0.weight": 0, "1.weight": 0}
    sparser = decide_layers(model, EVERYTHING.model_copy(update={"sparsity": 0.9}))
    assert multiply_adds_of_blocks(sparser, {"0.weight": 3 * 64, "1.weight": 32}) == {"0.weight": 12, "1.weight": 4}
    assert multiply_adds_of_blocks(layers, {"0.weight": 3 * 64, "1.weight": None}) is None
    settings = {"block_size": 2, "min_blocks": 1, "allocation": "multiply-adds"}
    with pytest.raises(SettingError) as caught:
        Pruner(model, settings, 20)
    assert str(caught.value) == (
        "prune.allocation: multiply-adds has to be measured first: give the Pruner `costs`, from sapp_cli.costs"
    )
    assert Pruner(model, settings, 20, costs={"0.weight": 12, "1.weight": 4}).costs == {
        "0.weight": (12,),
        "1.weight": (4,),
    }
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    balanced = Pruner(model, {**settings, "allocation": "balanced"}, 20, costs={"0.weight": 12, "1.weight": 4})
    assert balanced.costs == {"0.weight": (4, 12), "1.weight": (4, 4)}  # parameters and multiply-adds of a 2×2 block
    assert balanced.named_costs == {
        "0.weight": {"parameters": 4, "multiply_adds": 12},
        "1.weight": {"parameters": 4, "multiply_adds": 4},
    }
