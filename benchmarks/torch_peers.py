"""The same steps in PyTorch: plain cross-entropy, and the L-Softmax of pytorch-metric-learning."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.metadata import version

import torch
from pytorch_metric_learning.losses import LargeMarginSoftmaxLoss

from benchmarks import batches

MARGIN = 4
PLAIN, METRIC_LEARNING = (
    f"PyTorch {version('torch').partition('+')[0]}, plain",
    f"pytorch-metric-learning {version('pytorch-metric-learning')}",
)


def plain(features: torch.Tensor, weights: torch.Tensor, labels: torch.Tensor) -> Callable[[], tuple]:
    """Returns the step of a dense layer and cross-entropy; the weights [C, D], as torch.nn.Linear keeps them."""
    features, weights = (leaf.detach().clone().requires_grad_() for leaf in (features, weights.T.contiguous()))

    def run() -> tuple:
        loss = torch.nn.functional.cross_entropy(torch.nn.functional.linear(features, weights), labels)
        gradients = torch.autograd.grad(loss, (features, weights))
        return loss.detach(), gradients[0], gradients[1].T

    return run


def metric_learning(
    kind: type[LargeMarginSoftmaxLoss],
    margin: float,
    scale: float,
    features: torch.Tensor,
    weights: torch.Tensor,
    labels: torch.Tensor,
) -> Callable[[], tuple]:
    """Returns the step of one of the package's losses, which have no lambda: the full margin."""
    features = features.detach().clone().requires_grad_()
    loss_of = kind(weights.shape[1], weights.shape[0], margin=margin, scale=scale)
    loss_of.W.data = weights.detach().clone()

    def run() -> tuple:
        loss = loss_of(features, labels)
        return loss.detach(), *torch.autograd.grad(loss, (features, loss_of.W))

    return run


def steps(*shape: int) -> dict[str, Callable[[], tuple]]:
    """Returns both steps, on as many threads as there are cores for us."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    batch = [torch.from_numpy(array) for array in batches.batch(*shape)]
    return {PLAIN: plain(*batch), METRIC_LEARNING: metric_learning(LargeMarginSoftmaxLoss, MARGIN, 1, *batch)}
