"""A step of arrays.loss_grad, beside cross-entropies in PyTorch, with and without a margin (below 1: it is faster).

Forward and backward of the mean loss, in features and weights. The peers: torch.nn.functional.cross_entropy of x @ w,
the same and L-Softmax in PyTorch's own operations under torch.compile, pytorch-metric-learning, Liger's fused linear
cross-entropy, and the three bare products.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import harness, on_torch
from lsoftmax_op import arrays

TITLE = __doc__.splitlines()[0]
sees_gpu = on_torch.sees_gpu
WANTED = [
    (4096, 512, 10_000, torch.bfloat16),
    (4096, 512, 10_000, torch.float32),
    (1024, 512, 100_000, torch.bfloat16),
    (256, 128, 10, torch.float32),
    (8192, 2048, 65_536, torch.bfloat16),
]
MARGIN, LAMBDA = 4, 5.0
Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]  # features, weights, labels -> []


def plain(x: torch.Tensor, w: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Cross-entropy, no margin."""
    return torch.nn.functional.cross_entropy(x @ w, y)


def in_operations(x: torch.Tensor, w: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """L-Softmax, m = 4, in PyTorch's own operations: what lsoftmax-pytorch (amirhfarzaneh) computes."""
    rows = torch.arange(len(y), device=x.device)
    logits = x @ w
    norms = x.float().norm(dim=1) * w[:, y].float().norm(dim=0)
    cos = (logits[rows, y].float() / norms.clamp_min(1e-12)).clamp(-1, 1)
    k = (torch.acos(cos) * MARGIN / torch.pi).floor().detach()
    psi = (1 - 2 * (k % 2)) * (8 * cos**4 - 8 * cos**2 + 1) - 2 * k
    target = (LAMBDA * norms * cos + norms * psi) / (1 + LAMBDA)
    return torch.nn.functional.cross_entropy(logits.index_put((rows, y), target.to(logits.dtype)), y)


def metric_learning(x: torch.Tensor, w: torch.Tensor) -> tuple[Loss, list[torch.Tensor]]:
    """Returns pytorch-metric-learning's loss, and what it is derived by."""
    from pytorch_metric_learning.losses import LargeMarginSoftmaxLoss

    loss = LargeMarginSoftmaxLoss(w.shape[1], w.shape[0], margin=MARGIN, scale=1).to(x.device, x.dtype)
    loss.W.data = w.detach().clone()
    return lambda x, _, y: loss(x, y), [x, loss.W]


def liger(x: torch.Tensor, w: torch.Tensor) -> tuple[Loss, list[torch.Tensor]]:
    """Returns Liger's loss, without a margin, and what it is derived by."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss, by_class = LigerFusedLinearCrossEntropyLoss(), w.detach().T.contiguous().requires_grad_()  # [C, D]
    return lambda x, _, y: loss(by_class, x, y), [x, by_class]


def steps(n: int, d: int, c: int, dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
    """Returns the peers that are here; ours first."""
    x, w, y = on_torch.batch(n, d, c, dtype)
    mean = torch.full((n,), 1 / n, device=on_torch.DEVICE, dtype=dtype)
    grad = torch.rand(n, c, device=on_torch.DEVICE, dtype=dtype)
    leaves = [x.clone().requires_grad_(), w.clone().requires_grad_()]

    def step(loss: Loss, by: list[torch.Tensor]) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(loss(*leaves, y), by)

    peers: dict[str, Callable[[], Any]] = {
        "ours": lambda: arrays.loss_grad(mean, x, w, y, margin=MARGIN, lam=LAMBDA),
        "products": lambda: (x @ w, grad @ w.T, x.T @ grad),
        "cross_entropy": step(plain, leaves),
        "cross_entropy, compiled": step(torch.compile(plain, dynamic=False), leaves),
        "in operations, compiled": step(torch.compile(in_operations, dynamic=False), leaves),
    }
    for name, make in (("metric-learning", metric_learning), ("Liger", liger)):
        with contextlib.suppress(ImportError):
            peers[name] = step(*make(*leaves))
    return peers


def rows(wanted: tuple[int, int, int, torch.dtype], quick: bool) -> list[dict[str, Any]]:
    """Measures one shape in one data type; a peer that does not run there says so."""
    torch._dynamo.reset()
    n, d, c, dtype = (8, 4, 6, wanted[3]) if quick else wanted
    peers = steps(n, d, c, dtype)
    results: dict[str, Any] = dict.fromkeys(("products", *list(peers)[2:]), "-")
    for name in list(peers)[1:]:
        try:
            peers[name]()
        except Exception as error:
            harness.progress(f"{name}: {type(error).__name__}: {error}"[:200])
            results[name] = type(error).__name__
            del peers[name]
    clock = harness.in_a_row(peers, on_torch.step_clock)
    seconds = harness.interleave(peers, 3 if quick else 15, warm_up=3, clock=clock)
    results |= {peer: harness.ratio(seconds["ours"], seconds[peer]) for peer in peers if peer != "ours"}
    return [
        {
            "N, D, C": f"{n}, {d}, {c}",
            "dtype": on_torch.name(dtype),
            "ms": harness.milliseconds(seconds["ours"]),
            **{f"over {peer}": value for peer, value in results.items()},
            "peak MB": on_torch.peak_megabytes(peers["ours"]),
            "of cross_entropy": on_torch.peak_megabytes(peers["cross_entropy"]),
        }
    ]
