"""Where PyTorch computes, and its clocks; on the CPU, too, so that the tables of a GPU can be tried without one."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
_ASLEEP = 1_000_000  # clock ticks of the device, more than half a millisecond


def sees_gpu() -> bool:
    """Returns whether there is one."""
    return DEVICE == "cuda"


def batch(rows: int, depth: int, classes: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns random features [N, D], weights [D, C] and labels [N]."""
    torch.manual_seed(0)
    features = torch.randn(rows, depth, device=DEVICE, dtype=dtype)
    weights = 0.05 * torch.randn(depth, classes, device=DEVICE, dtype=dtype)
    return features, weights, torch.randint(0, classes, (rows,), device=DEVICE)


def kernel_clock(function: Callable[[], Any]) -> float:
    """Returns the seconds that the device takes for one call: it sleeps until the host has queued all of it."""
    return _between_events(function, 1, asleep=True)


def step_clock(function: Callable[[], Any], calls: int) -> float:
    """Returns the seconds of a call among several in a row, the host's share included where it is the slower one."""
    return _between_events(function, calls, asleep=False) / calls


def _between_events(function: Callable[[], Any], calls: int, asleep: bool) -> float:
    if DEVICE == "cpu":
        began = time.perf_counter()
        for _ in range(calls):
            function()
        return time.perf_counter() - began
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    if asleep:
        torch.cuda._sleep(_ASLEEP)
    begin.record()
    for _ in range(calls):
        function()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def peak_megabytes(function: Callable[[], Any]) -> float | str:
    """Returns by how much a call raises PyTorch's memory on the device at its highest."""
    if DEVICE == "cpu":
        return "-"
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def name(dtype: torch.dtype) -> str:
    """Returns what the tables call a data type."""
    return str(dtype).removeprefix("torch.")
