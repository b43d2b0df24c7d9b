"""``python -m benchmarks.gpu``: what the margin costs on a GPU, beside a plain dense layer, with PyTorch's products.

A second table is of the fused loss: its pass over the N x C products, as a share of the copy bandwidth if each product
were read once and written once, and beside others' cross-entropies, forward and backward; then the whole step, products
included.

Times are CUDA events around one call, warm, peers interleaved, medians. The ceilings, copy bandwidth and matrix
product, are measured in the same run. Needs PyTorch and a GPU, no TensorFlow.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import harness
from lsoftmax_op import arrays, build_info

SHAPES = ((4096, 512, 10_000), (1024, 512, 100_000), (256, 512, 1000))
LOSS_SHAPES = ((4096, 512, 10_000), (1024, 512, 100_000), (256, 512, 1_000_000))
DTYPES = (torch.float32, torch.bfloat16)


def cuda_clock(function: Callable[[], Any]) -> float:
    """Returns the seconds between two events around one call."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    function()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def formula(x: torch.Tensor, w: torch.Tensor, y: torch.Tensor, lam: float) -> torch.Tensor:
    """Margin logits, m = 4, in PyTorch's own operations: what lsoftmax-pytorch (amirhfarzaneh) computes."""
    rows = torch.arange(len(y), device=x.device)
    logits = x @ w
    norms = x.float().norm(dim=1) * w[:, y].float().norm(dim=0)
    cos = (logits[rows, y].float() / norms.clamp_min(1e-12)).clamp(-1, 1)
    k = (torch.acos(cos) * 4 / torch.pi).floor().detach()
    psi = (1 - 2 * (k % 2)) * (8 * cos**4 - 8 * cos**2 + 1) - 2 * k
    target = (lam * norms * cos + norms * psi) / (1 + lam)
    return logits.index_put((rows, y), target.to(logits.dtype))


def measure(shape: tuple[int, int, int], dtype: torch.dtype, repeats: int = 50) -> dict[str, Any]:
    """Returns one row of the table."""
    n, d, c = shape
    torch.manual_seed(0)
    x, w = torch.randn(n, d, device="cuda", dtype=dtype), 0.05 * torch.randn(d, c, device="cuda", dtype=dtype)
    y, g = torch.randint(0, c, (n,), device="cuda"), torch.randn(n, c, device="cuda", dtype=dtype) / c
    layer, products = arrays._Layer(x, w, y, None, 4, 5.0, None), x @ w
    leaves = [x.clone().requires_grad_(True), w.clone().requires_grad_(True)]
    source, copy = torch.empty(2, 2**28, device="cuda", dtype=torch.uint8)

    def patch() -> None:
        layer.run("logits", geometry=layer.geometry(), logits=products)

    def plain() -> None:
        x @ w
        g @ w.T
        x.T @ g

    def ours() -> None:
        arrays.logits(x, w, y, margin=4, lam=5.0)
        arrays.logits_grad(g, x, w, y, margin=4, lam=5.0)

    def in_pytorch() -> None:
        torch.autograd.grad(formula(*leaves, y, 5.0), leaves, g)

    peers = {
        "product": lambda: x @ w,
        "patch": patch,
        "plain": plain,
        "ours": ours,
        "pytorch": in_pytorch,
        "copy": lambda: copy.copy_(source),
    }
    seconds = harness.interleave(peers, repeats, warm_up=10, clock=cuda_clock)
    first, second = (arrays.logits_grad(g, x, w, y, margin=4, lam=5.0) for _ in range(2))
    product = statistics.median(seconds["product"])
    return {
        "N, D, C": f"{n}, {d}, {c}",
        "dtype": str(dtype).removeprefix("torch."),
        "X W ms": harness.milliseconds(seconds["product"]),
        "TFLOP/s": 2 * n * d * c / product / 1e12,
        "copy TB/s": 2 * copy.numel() / statistics.median(seconds["copy"]) / 1e12,
        "patch / X W": harness.ratio(seconds["patch"], seconds["product"]),
        "step / plain": harness.ratio(seconds["ours"], seconds["plain"]),
        "step / pytorch": harness.ratio(seconds["ours"], seconds["pytorch"]),
        "same bits": all(torch.equal(a, b) for a, b in zip(first[:2], second[:2], strict=True)),
    }


def liger_cross_entropy() -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None:
    """Returns liger-kernel's cross-entropy, which writes the gradient over the logits, or None where it is missing."""
    with contextlib.suppress(ImportError):
        from liger_kernel.transformers import LigerCrossEntropyLoss

        return LigerCrossEntropyLoss()
    return None


def measure_loss(shape: tuple[int, int, int], dtype: torch.dtype, repeats: int = 30) -> dict[str, Any]:
    """Returns one row of the loss's table."""
    n, d, c = shape
    torch.manual_seed(0)
    x, w = torch.randn(n, d, device="cuda", dtype=dtype), 0.05 * torch.randn(d, c, device="cuda", dtype=dtype)
    y, g = torch.randint(0, c, (n,), device="cuda"), torch.full((n,), 1 / n, device="cuda", dtype=dtype)
    layer = arrays._Layer(x, w, y, None, 4, 5.0, None)
    state = layer.loss()
    # The row pass again and again, out of place, so that it always reads products: no other bytes than in place.
    products, gradient = x @ w, state.pop("products_grad")
    workspace = torch.empty(layer.array_library.kernels.loss_workspace(n, d, c), device="cuda", dtype=torch.uint8)
    leaves = [x.clone().requires_grad_(True), w.clone().requires_grad_(True)]
    logits = products.clone().requires_grad_(True)
    source, copy = torch.empty(2, 2**30, device="cuda", dtype=torch.uint8)
    liger = liger_cross_entropy()

    def in_pytorch(logits: torch.Tensor, inputs: list[torch.Tensor]) -> None:
        loss = torch.nn.functional.cross_entropy(logits, y, reduction="none")
        torch.autograd.grad(loss, inputs, g)

    peers = {
        "ours": lambda: layer.run("loss", products=products, products_grad=gradient, workspace=workspace, **state),
        "pytorch": lambda: in_pytorch(logits, [logits]),
        "step": lambda: arrays.loss_grad(g, x, w, y, margin=4, lam=5.0),
        "plain step": lambda: in_pytorch(leaves[0] @ leaves[1], leaves),
        "copy": lambda: copy.copy_(source),
    }
    if liger is not None:
        scratch = products.clone().requires_grad_(
            True
        )  # soon a gradient's gradient: its time does not depend on values
        peers["liger"] = lambda: torch.autograd.grad(liger(scratch, y), scratch)
    seconds = harness.interleave(peers, repeats, warm_up=5, clock=cuda_clock)
    first, second = (arrays.loss_grad(g, x, w, y, margin=4, lam=5.0) for _ in range(2))
    at_copy_speed = [t * products.numel() * products.element_size() / copy.numel() for t in seconds["copy"]]
    return {
        "N, D, C": f"{n}, {d}, {c}",
        "dtype": str(dtype).removeprefix("torch."),
        "row pass ms": harness.milliseconds(seconds["ours"]),
        "of copy speed": harness.ratio(at_copy_speed, seconds["ours"]),
        "/ pytorch": harness.ratio(seconds["ours"], seconds["pytorch"]),
        "/ liger": harness.ratio(seconds["ours"], seconds["liger"]) if liger is not None else "-",
        "step ms": harness.milliseconds(seconds["step"]),
        "step / plain": harness.ratio(seconds["step"], seconds["plain step"]),
        "same bits": all(torch.equal(a, b) for a, b in zip(first, second, strict=True) if a is not None),
    }


def main() -> None:
    """Prints the tables."""
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, CUDA kernels {build_info()['cuda']}")
    rows = [measure(shape, dtype) for shape in SHAPES for dtype in DTYPES]
    harness.report("gpu", "What the margin costs on a GPU, beside a plain dense layer", rows, None)
    rows = [measure_loss(shape, dtype) for shape in LOSS_SHAPES for dtype in DTYPES]
    harness.report("gpu-loss", "The fused loss on a GPU, beside cross-entropies without a margin", rows, None)


if __name__ == "__main__":
    main()
