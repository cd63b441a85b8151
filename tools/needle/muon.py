"""The optimiser: Muon for the matrices inside layers, AdamW for embeddings, output and norms."""

from __future__ import annotations

import torch
from torch import Tensor

from model import NeedleModel

MATRIX_RATE = 0.008
OTHER_RATE = 1.5e-3
MOMENTUM = 0.95
# Coefficients of the quintic iteration that pushes singular values towards one.
QUINTIC = (3.4445, -4.7750, 2.0315)


class MuonWithAdamW:
    """One `step` updates every parameter of the model from its gradient and clears the gradients."""

    def __init__(self, model: NeedleModel) -> None:
        self.matrices: list[Tensor] = []
        others: list[Tensor] = []
        for name, parameter in model.named_parameters():
            inside_layers = parameter.dim() == 2 and "embed" not in name and "lm_head" not in name
            (self.matrices if inside_layers else others).append(parameter)
        self.momenta = [torch.zeros_like(matrix) for matrix in self.matrices]
        self.adamw = torch.optim.AdamW(others, lr=OTHER_RATE, betas=(0.9, 0.95), weight_decay=0.0)

    def step(self, rate: float) -> None:
        """`rate` scales both learning rates."""
        with torch.no_grad():
            for matrix, momentum in zip(self.matrices, self.momenta):
                momentum.mul_(MOMENTUM).add_(matrix.grad)
                update = orthogonalise(matrix.grad + MOMENTUM * momentum)
                tallness = max(1, matrix.shape[0] / matrix.shape[1])
                matrix.add_(update, alpha=-MATRIX_RATE * rate * tallness**0.5)
                matrix.grad = None
        for group in self.adamw.param_groups:
            group["lr"] = OTHER_RATE * rate
        self.adamw.step()
        self.adamw.zero_grad()


def orthogonalise(gradient: Tensor, iterations: int = 5) -> Tensor:
    """The nearest matrix to `gradient` whose singular values are all about one (Newton-Schulz)."""
    linear, cubic, quintic = QUINTIC
    x = gradient / (gradient.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    for _ in range(iterations):
        square = x @ x.T
        x = linear * x + (cubic * square + quintic * square @ square) @ x
    return x.T if tall else x
