"""Large-Margin Softmax and the other margins in PyTorch: functions with a gradient, and a layer.

The kernels are those of `lsoftmax_op.arrays`, on the CPU and on a CUDA device; here they are operators of PyTorch
(`torch.library`), which autograd, ``torch.compile``, ``torch.export`` and fake tensors know::

    layer = LSoftmaxLinear(512, 10_000, margin=4, lam=5.0)
    loss = layer.loss(features, labels)
    loss.backward()

The matrix products stay PyTorch's. Importing this imports no TensorFlow.
"""

from __future__ import annotations

try:
    import torch  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ImportError(
        "lsoftmax_op.torch needs PyTorch 2.5 or later, which is not installed: https://pytorch.org/get-started"
    ) from error

from lsoftmax_op.torch.annealing import LambdaScheduler
from lsoftmax_op.torch.functions import (
    lsoftmax_logits,
    lsoftmax_loss,
    margin_softmax_logits,
    margin_softmax_loss,
)
from lsoftmax_op.torch.linear import LSoftmaxLinear

__all__ = [
    "LSoftmaxLinear",
    "LambdaScheduler",
    "lsoftmax_logits",
    "lsoftmax_loss",
    "margin_softmax_logits",
    "margin_softmax_loss",
]
