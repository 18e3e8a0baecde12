"""SequentialAttention++ a second time, in NumPy and float64, from the paper's text alone: for test_literal.py.

Nothing is frozen, remembered or hidden here: the formulas are applied as they stand, to kept and pruned blocks alike. It
shares no code with `reference.py`, which has the deviations of docs/method.md, and is written another way: blocks are slices,
the softmax's Jacobian is a matrix.

The network: tanh(x Ŵ₁ᵀ) Ŵ₂ᵀ under the mean squared error.  n: blocks of a layer, in row-major order.
"""

from __future__ import annotations

import numpy as np


class Layer:
    """W, one logit a block, and which blocks the mask lets through."""

    def __init__(self, weight, block, sparsity, clip):
        self.W = weight.astype(np.float64)
        rows, columns = weight.shape
        self.blocks = [
            (slice(top, min(top + block[0], rows)), slice(left, min(left + block[1], columns)))
            for top in range(0, rows, block[0])
            for left in range(0, columns, block[1])
        ]
        self.n = len(self.blocks)
        self.L = np.zeros(self.n)
        self.mask = np.ones(self.n)
        self.sparsity = sparsity
        self.final = self.n - int(np.ceil(sparsity * self.n))  # blocks that stay
        self.clip = clip

    def attention(self, logits=None):
        """A = n·softmax(L), n numbers."""
        exponentials = np.exp(self.L if logits is None else logits)
        return self.n * exponentials / exponentials.sum()

    def scale(self):
        """What multiplies each block (App. C.1: A is clipped), n numbers."""
        density = 1 - self.sparsity
        A = np.clip(self.attention(), density, 1 / density) if self.clip else self.attention()
        return A * self.mask

    def effective(self):
        product = np.zeros_like(self.W)
        for block, factor in zip(self.blocks, self.scale(), strict=True):
            product[block] = self.W[block] * factor
        return product

    def gradients(self, outer):
        """Of W and L, from `outer`, which is dLoss/dŴ."""
        dW, dA = np.zeros_like(self.W), np.zeros(self.n)
        for b, (block, factor) in enumerate(zip(self.blocks, self.scale(), strict=True)):
            dW[block] = factor * outer[block]
            dA[b] = self.mask[b] * (outer[block] * self.W[block]).sum()
        A = self.attention()
        if self.clip:
            density = 1 - self.sparsity
            dA = np.where(np.clip(A, density, 1 / density) == A, dA, 0)
        jacobian = np.diag(A) - np.outer(A, A) / self.n  # dA_i/dL_j
        return dW, jacobian.T @ dA

    def keep_best(self, count, scores):
        """The `count` blocks of greatest score among those that the mask lets through. Returns how clear the choice is."""
        there = np.flatnonzero(self.mask)
        best_first = there[np.argsort(-scores[there], kind="stable")]
        kept, gone = best_first[:count], best_first[count:]
        self.mask = np.zeros(self.n)
        self.mask[kept] = 1
        return scores[kept].min() / scores[gone].max() - 1 if len(gone) else np.inf


class Run:
    """A run over `phases`, a list of (kind, first step, step after the last). `sees`: which A ends a dense phase."""

    def __init__(self, weights, block, sparsity, phases, optimizer, clip=True, sees="after-update"):
        self.layers = [Layer(weight, block, sparsity, clip) for weight in weights]
        self.phases = phases
        self.optimizer = optimizer
        self.sees = sees
        self.state = {}
        self.before = [layer.L for layer in self.layers]
        self.least_gap = np.inf

    def move_masks(self, step):
        index = next(i for i, (_, start, stop) in enumerate(self.phases) if start <= step < stop)
        kind, start, stop = self.phases[index]
        if step == start:
            self.state = {}  # "crucial", App. C.1
        ends_dense = step == start and self.phases[index - 1][0] == "dense"
        for layer, before in zip(self.layers, self.before, strict=True):
            A = layer.attention(before) if ends_dense and self.sees == "before-update" else layer.attention()
            if kind == "dense":
                layer.mask = np.ones(layer.n)
            elif kind == "sparse" and ends_dense:
                self.least_gap = min(self.least_gap, layer.keep_best(layer.final, A))
            elif kind == "sparsification":
                u = (step - start + 1) / (stop - start)
                reached = layer.sparsity * (1 - np.exp(-4 * u)) / (1 - np.exp(-4))
                count = layer.final if step == stop - 1 else layer.n - int(np.floor(reached * layer.n))
                self.least_gap = min(self.least_gap, layer.keep_best(max(count, layer.final), A))

    def step(self, step, x, y):
        """The loss of the step, and the parameters after it."""
        self.move_masks(step)
        self.before = [layer.L.copy() for layer in self.layers]
        first, second = self.layers
        hidden = np.tanh(x @ first.effective().T)
        error = hidden @ second.effective().T - y
        dout = 2 * error / error.size
        dhidden = (dout @ second.effective()) * (1 - hidden**2)
        found = first.gradients(dhidden.T @ x), second.gradients(dout.T @ hidden)
        for number, (layer, (dW, dL)) in enumerate(zip(self.layers, found, strict=True)):
            layer.W = self.moved(layer.W, dW, ("W", number))
            layer.L = self.moved(layer.L, dL, ("L", number))
        return float((error**2).mean())

    def moved(self, value, gradient, name):
        """The value after one step of the optimizer: one rate, one decay and one momentum for weights and logits."""
        kind, rate, decay = self.optimizer
        state = self.state.setdefault(name, {"t": 0, "m": np.zeros_like(value), "v": np.zeros_like(value)})
        state["t"] += 1
        if kind == "sgd":
            state["m"] = 0.9 * state["m"] + gradient + decay * value
            return value - rate * state["m"]
        if kind == "adam":
            gradient = gradient + decay * value
        else:  # adamw: decay apart from the gradient
            value = value - rate * decay * value
        state["m"] = 0.9 * state["m"] + 0.1 * gradient
        state["v"] = 0.999 * state["v"] + 0.001 * gradient**2
        m, v = state["m"] / (1 - 0.9 ** state["t"]), state["v"] / (1 - 0.999 ** state["t"])
        return value - rate * m / (np.sqrt(v) + 1e-8)
