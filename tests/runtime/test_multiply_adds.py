"""Multiply-adds of each weight, by hand and as torch counts floating-point operations."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from sapp_cli.runtime.multiply_adds import count_multiply_adds

MODES = [torch.no_grad, torch.inference_mode, torch.enable_grad]


def counted(model, *inputs, mode=torch.no_grad):
    model.eval()
    weights = {name: weight for name, weight in model.named_parameters() if weight.dim() >= 2}
    with mode():
        return count_multiply_adds(weights, lambda: model(*inputs))


@pytest.mark.parametrize("mode", MODES)
def test_recurrent_layers_multiply_both_of_their_weights_at_every_step(mode):
    lstm = counted(nn.LSTM(8, 128, batch_first=True), torch.randn(1, 8, 8), mode=mode)
    assert lstm == {"weight_ih_l0": 8 * 512 * 8, "weight_hh_l0": 8 * 512 * 128}
    gru = counted(nn.GRU(8, 16, 2, bidirectional=True), torch.randn(5, 1, 8), mode=mode)
    assert gru["weight_ih_l0"] == gru["weight_ih_l0_reverse"] == 5 * 48 * 8
    assert gru["weight_ih_l1"] == 5 * 48 * 32
    assert gru["weight_hh_l1_reverse"] == 5 * 48 * 16
    projected = counted(nn.LSTM(8, 16, proj_size=4), torch.randn(5, 1, 8), mode=mode)
    assert projected == {"weight_ih_l0": 5 * 64 * 8, "weight_hh_l0": 5 * 64 * 4, "weight_hr_l0": 5 * 16 * 4}


def test_convolutions_at_each_output_and_transposed_ones_at_each_input():
    # 5×5 images: padding 1 keeps 25 positions; a channel of 4 groups of 8 sees 2 channels.
    assert counted(nn.Conv2d(8, 8, 3, padding=1, groups=4), torch.randn(1, 8, 5, 5)) == {"weight": 25 * 8 * 2 * 9}
    assert counted(nn.Conv1d(8, 6, 3), torch.randn(8, 5)) == {"weight": 3 * 6 * 8 * 3}
    assert counted(nn.ConvTranspose2d(4, 6, 3, stride=2), torch.randn(1, 4, 5, 5)) == {"weight": 25 * 4 * 6 * 9}


class Functions(nn.Module):
    """Weights that no module applies."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(64, 128), nn.Linear(128, 128)
        self.experts = nn.Parameter(torch.randn(4, 128, 8))
        self.positions = nn.Parameter(torch.randn(3, 64))
        self.words = nn.Embedding(10, 64)

    def forward(self, ids):
        hidden = functional.linear(self.words(ids) + self.positions, self.first.weight)  # 3 tokens
        hidden = functional.linear(hidden, self.second.weight) @ self.second.weight.t()
        routed = torch.bmm(hidden.expand(4, 3, 128), self.experts)
        half = torch.einsum("bth,ho->bto", hidden, self.second.weight[:, :64].contiguous())
        return routed, half, torch.mv(self.first.weight, hidden[0, 0, :64])


@pytest.mark.parametrize("mode", MODES)
def test_weights_that_functions_apply_are_seen_views_and_copies_of_them_too(mode):
    assert counted(Functions(), torch.zeros(1, 3, dtype=torch.long), mode=mode) == {
        "first.weight": 3 * 128 * 64 + 128 * 64,
        "second.weight": 3 * (2 * 128 * 128 + 128 * 64),
        "experts": 4 * 3 * 128 * 8,
        "positions": 0,
        "words.weight": 0,
    }


def test_a_normalized_weight_counts_for_the_weight_it_is_made_of():
    model = nn.utils.parametrizations.weight_norm(nn.Linear(16, 8))
    assert counted(model, torch.randn(5, 16)) == {
        "parametrizations.weight.original0": 0,
        "parametrizations.weight.original1": 5 * 16 * 8,
    }


def test_weights_that_lie_in_one_storage_are_told_apart():
    whole = torch.randn(64 + 32)
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 4, bias=False))
    model[0].weight = nn.Parameter(whole[:64].view(8, 8))
    model[1].weight = nn.Parameter(whole[64:].view(4, 8))
    assert counted(model, torch.randn(1, 8)) == {"0.weight": 64, "1.weight": 32}


def test_an_operator_that_is_not_known_is_said_and_not_counted_as_zero():
    assert counted(nn.Sequential(nn.Bilinear(8, 8, 4)).get_submodule("0"), torch.randn(2, 8), torch.randn(2, 8)) == {
        "weight": None
    }


def test_the_sum_is_half_of_the_operations_that_torch_counts():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(2), nn.Linear(36, 12), nn.LSTM(12, 6, batch_first=True)
    ).eval()
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad(), FlopCounterMode(display=False) as operations:
        model[:4](images)
    ours = counted(model, images)
    assert 2 * (ours["0.weight"] + ours["3.weight"]) == operations.get_total_flops()


def test_the_libraries_are_as_they_were():
    before = torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled
    counted(nn.Linear(4, 4), torch.randn(1, 4))
    assert (torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled) == before
