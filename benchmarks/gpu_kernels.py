"""Every kernel of a step of arrays.loss_grad, as the profiler sees it: launches and microseconds a step."""

from __future__ import annotations

import re
from typing import Any

import torch

from benchmarks import on_torch
from lsoftmax_op import arrays

TITLE = __doc__.splitlines()[0]
sees_gpu = on_torch.sees_gpu
SHAPES = ((4096, 512, 10_000), (256, 512, 1000), (65_536, 256, 100))
WANTED = [(*shape, dtype) for shape in SHAPES for dtype in (torch.bfloat16, torch.float32)]
_OTHERS = "PyTorch's: the products and what stands beside them"


def rows(wanted: tuple[int, int, int, torch.dtype], quick: bool) -> list[dict[str, Any]]:
    """Profiles one shape in one data type."""
    n, d, c, dtype = (8, 4, 6, wanted[3]) if quick else wanted
    batch, steps = on_torch.batch(n, d, c, dtype), 2 if quick else 20
    grad = torch.full((n,), 1 / n, device=on_torch.DEVICE, dtype=dtype)
    on_device = on_torch.DEVICE == "cuda"
    activity = torch.profiler.ProfilerActivity.CUDA if on_device else torch.profiler.ProfilerActivity.CPU

    def step() -> None:
        arrays.loss_grad(grad, *batch, margin=4, lam=5.0)

    for _ in range(3):
        step()
    with torch.profiler.profile(activities=[activity]) as profile:
        for _ in range(steps):
            step()
        if on_device:
            torch.cuda.synchronize()
    launches: dict[str, int] = {}
    microseconds: dict[str, float] = {}
    for event in profile.events():
        if on_device and event.device_type != torch.autograd.DeviceType.CUDA:
            continue
        name = _short(event.name)
        launches[name] = launches.get(name, 0) + 1
        microseconds[name] = microseconds.get(name, 0) + event.time_range.elapsed_us()
    return [
        {
            "N, D, C": f"{n}, {d}, {c}",
            "dtype": on_torch.name(dtype),
            "kernel": name,
            "launches": launches[name] / steps,
            "us": microseconds[name] / steps,
        }
        for name in sorted(launches, key=lambda name: (name == _OTHERS, -microseconds[name]))
    ]


def _short(name: str) -> str:
    """Returns the name of a kernel of ours, without its namespaces and arguments; one name for all others."""
    found = re.search(r"lsoftmax::(?:\w+::)*(\w+)\s*[<(]", name.replace("(anonymous namespace)::", ""))
    return found.group(1) if found else _OTHERS
