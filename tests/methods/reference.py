"""Algorithm 1 once more, in NumPy and float64, written from the paper's text alone: for test_reference.py.

One linear layer y = x Ŵᵀ under the mean squared error, SGD with momentum, weight decay on W, a timetable of two rounds.
"""

import math

import numpy as np


def softmax_mask(logits):
    shifted = np.exp(logits - logits.max())
    return logits.size * shifted / shifted.sum()


def expand(per_block, block, shape):
    rows = np.arange(shape[0])[:, None] // block[0]
    columns = np.arange(shape[1])[None, :] // block[1]
    return per_block[rows, columns]


def block_sums(entries, block, size):
    sums = np.zeros(size)
    for (row, column), value in np.ndenumerate(entries):
        sums[row // block[0], column // block[1]] += value
    return sums


def norms(weight, block, size):
    return np.sqrt(block_sums(weight**2, block, size))


class Run:
    """State and one step of the run. `score` and the numbers are those of the recipe."""

    def __init__(self, weight, block, sparsity, kept, steps, bounds, rate, logit_rate, momentum, decay, score, clip):
        self.weight = weight.astype(np.float64)
        self.block = block
        self.size = tuple(-(-side // length) for side, length in zip(weight.shape, block, strict=True))
        self.blocks = self.size[0] * self.size[1]
        self.logits = np.zeros(self.size)
        self.keep = np.ones(self.size, dtype=bool)
        self.sparsity, self.kept, self.steps, self.bounds = sparsity, kept, steps, bounds
        self.rate, self.logit_rate, self.momentum, self.decay = rate, logit_rate, momentum, decay
        self.score, self.clip = score, clip
        self.speed_weight = np.zeros_like(self.weight)
        self.speed_logits = np.zeros(self.size)

    def scores(self):
        attention = softmax_mask(self.logits)
        return attention if self.score == "attention" else attention * norms(self.weight, self.block, self.size)

    def move_masks(self, step):
        kind, start, stop = next(phase for phase in self.bounds if phase[1] <= step < phase[2])
        if step == start:
            self.speed_weight[:] = 0
            self.speed_logits[:] = 0
            if kind == "dense":
                self.keep[:] = True
        if kind == "sparsification":
            progress = (step - start + 1) / (stop - start)
            reached = self.sparsity * (1 - math.exp(-4 * progress)) / (1 - math.exp(-4))
            count = self.kept if progress == 1 else max(self.kept, self.blocks - math.floor(reached * self.blocks))
            scores = np.where(self.keep, self.scores(), -np.inf).flatten()
            best = sorted(range(self.blocks), key=lambda index: (-scores[index], index))[:count]
            keep = np.zeros(self.blocks, dtype=bool)
            keep[best] = True
            self.keep &= keep.reshape(self.size)

    def forward(self, x):
        attention = softmax_mask(self.logits)
        density = 1 - self.sparsity
        clipped = np.clip(attention, density, 1 / density) if self.clip else attention
        scale = expand(clipped * self.keep, self.block, self.weight.shape)
        return x @ (self.weight * scale).T, attention, clipped, scale

    def gradients(self, x, y):
        out, attention, clipped, scale = self.forward(x)
        error = 2 * (out - y) / out.size
        grad_effective = error.T @ x
        grad_mask = block_sums(grad_effective * self.weight, self.block, self.size) * self.keep
        grad_mask = np.where(clipped == attention, grad_mask, 0)
        # dA_i/dL_j = A_i·(1[i = j] − A_j/n)
        grad_logits = attention * (grad_mask - (grad_mask * attention).sum() / self.blocks)
        return grad_effective * scale, np.where(self.keep, grad_logits, 0), float(((out - y) ** 2).mean())

    def step(self, step, x, y):
        self.move_masks(step)
        grad_weight, grad_logits, loss = self.gradients(x, y)
        alive = expand(self.keep, self.block, self.weight.shape)
        self.speed_weight = self.momentum * self.speed_weight + grad_weight + self.decay * self.weight
        self.speed_logits = self.momentum * self.speed_logits + grad_logits
        self.weight = np.where(alive, self.weight - self.rate * self.speed_weight, self.weight)
        self.logits = np.where(self.keep, self.logits - self.logit_rate * self.speed_logits, self.logits)
        return loss
