"""Steps in PyTorch, forward and backward: a linear layer and cross-entropy, and LSoftmaxLinear with several margins."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

from benchmarks import batches
from lsoftmax_op.margins import ArcFace
from lsoftmax_op.torch import LSoftmaxLinear

MARGINS = {"no margin": 1, "L-Softmax": 4, "ArcFace": ArcFace(batches.ARCFACE, batches.SCALE)}
LAMBDA = 5.0
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def steps(*shape: int) -> dict[str, Callable[[], tuple]]:
    """Returns the steps, each of loss and gradients, on as many threads as there are cores for us."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    features, weights, labels = (torch.from_numpy(array) for array in batches.batch(*shape))
    features.requires_grad_()
    _, depth, classes = shape

    def step(layer: torch.nn.Linear, loss_of: Loss) -> Callable[[], tuple]:
        layer.weight.data = weights.T.contiguous()

        def run() -> tuple:
            loss = loss_of(features, labels)
            return loss.detach(), *torch.autograd.grad(loss, (features, layer.weight))

        return run

    linear = torch.nn.Linear(depth, classes, bias=False)
    found = {"plain": step(linear, lambda x, y: torch.nn.functional.cross_entropy(linear(x), y))}
    for name, margin in MARGINS.items():
        head = LSoftmaxLinear(depth, classes, margin=margin, lam=LAMBDA if name == "L-Softmax" else 0.0)
        found[name] = step(head, head.loss)
    head = LSoftmaxLinear(depth, classes, margin=4, lam=LAMBDA)
    found["L-Softmax, logits"] = step(head, lambda x, y: torch.nn.functional.cross_entropy(head(x, y), y))
    return found
