"""The two networks of recipes/digits.yaml, for 8×8 grey images that come as rows of 64 numbers from 0 to 1."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn


def mlp(width: int = 512, classes: int = 10) -> nn.Module:
    """A multilayer perceptron 64–width–width–classes: (N, 64) -> logits (N, classes)."""
    return nn.Sequential(
        OrderedDict(
            hidden1=nn.Linear(64, width),
            relu1=nn.ReLU(),
            hidden2=nn.Linear(width, width),
            relu2=nn.ReLU(),
            output=nn.Linear(width, classes),
        )
    )


def cnn(channels: int = 64, classes: int = 10) -> nn.Module:
    """Three 3×3 convolutions, 8×8 then 4×4 places: (N, 64) -> logits (N, classes)."""
    return nn.Sequential(
        OrderedDict(
            image=nn.Unflatten(1, (1, 8, 8)),
            conv1=nn.Conv2d(1, channels, 3, padding=1),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(channels, channels, 3, padding=1),
            relu2=nn.ReLU(),
            halve=nn.MaxPool2d(2),
            conv3=nn.Conv2d(channels, channels, 3, padding=1),
            relu3=nn.ReLU(),
            flatten=nn.Flatten(),
            output=nn.Linear(16 * channels, classes),
        )
    )
