"""The pass over the N x C products that makes the loss and its gradient, beside a copy.

1 is the time in which the device copies as many bytes as the pass reads and writes, each product once, at the speed of
a copy of 1 GB. `copy us` is that of the products themselves, which for small ones is slower, or faster: they may stay
in the cache.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch

from benchmarks import harness, on_torch
from lsoftmax_op._array_layer import Layer
from lsoftmax_op._array_libraries import library_of

TITLE = __doc__.splitlines()[0]
sees_gpu = on_torch.sees_gpu
SHAPES = (
    (4096, 10_000),
    (4096, 10_001),  # rows that do not begin on 16 bytes
    (16_384, 2000),
    (1024, 100_000),
    (256, 1_000_000),
    (4096, 1000),
    (65_536, 100),
)
WANTED = [(*shape, dtype) for shape in SHAPES for dtype in (torch.float32, torch.bfloat16)]
DEPTH = 32
_LARGE = 2**30


def rows(wanted: tuple[int, int, torch.dtype], quick: bool) -> list[dict[str, Any]]:
    """Measures one shape in one data type."""
    n, c, dtype = (8, 6, wanted[2]) if quick else wanted
    batch = on_torch.batch(n, DEPTH, c, dtype)
    layer = Layer(library_of(batch[0], None), *batch, None, 4, 5.0)
    state = layer.loss()
    # Again and again from one array into another, so that it always reads products: no other bytes than in place.
    gradient, products = state.pop("products_grad"), layer.features @ layer.weights
    kernels = layer.array_library.kernels
    workspace = torch.empty(kernels.loss_workspace(n, DEPTH, c), device=on_torch.DEVICE, dtype=torch.uint8)

    def row_pass() -> None:
        layer.run("loss", products=products, products_grad=gradient, workspace=workspace, **state)

    row_pass()
    first = gradient.clone()
    large = torch.empty(2, 100 if quick else _LARGE, device=on_torch.DEVICE, dtype=torch.uint8)
    copied = torch.empty_like(products)
    peers = {
        "pass": row_pass,
        "copy": lambda: copied.copy_(products),
        "large copy": lambda: large[0].copy_(large[1]),
    }
    seconds = harness.interleave(peers, 3 if quick else 30, warm_up=3, clock=on_torch.kernel_clock)
    at_copy_speed = [t * products.nbytes / large[0].nbytes for t in seconds["large copy"]]
    return [
        {
            "N, C": f"{n}, {c}",
            "dtype": on_torch.name(dtype),
            "us": 1e3 * harness.milliseconds(seconds["pass"]),
            "of copy speed": harness.ratio(at_copy_speed, seconds["pass"]),
            "copy us": 1e3 * harness.milliseconds(seconds["copy"]),
            "TB/s of a copy": 2 * large[0].nbytes / statistics.median(seconds["large copy"]) / 1e12,
            "same bits": "yes" if torch.equal(first, gradient) else "NO",
        }
    ]
