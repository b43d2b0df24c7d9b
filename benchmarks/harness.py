"""Honest measuring: peers interleaved in one process, medians, and the machine that it was.

Every repeat runs every peer once, in an order that rotates; a ratio is the median over the repeats of the ratio within
one repeat, so that whatever slows the machine for a while slows both sides.
"""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any


def wall_clock(function: Callable[[], Any]) -> float:
    """Returns the seconds that one call takes."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def interleave(
    peers: dict[str, Callable[[], Any]],
    repeats: int,
    warm_up: int = 2,
    clock: Callable[[Callable[[], Any]], float] = wall_clock,
) -> dict[str, list[float]]:
    """Returns the seconds of every repeat of every peer."""
    for function in peers.values():
        for _ in range(warm_up):
            function()
    names = list(peers)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(repeats):
        turn = repeat % len(names)
        for name in names[turn:] + names[:turn]:
            seconds[name].append(clock(peers[name]))
    return seconds


def in_a_row(peers: dict[str, Callable[[], Any]], clock: Callable[..., float]) -> Callable[..., float]:
    """Returns the clock over ten calls in a row; over fewer, where ten of the slowest peer would take over 50 ms."""
    slowest = max(clock(function, 1) for function in peers.values() for _ in range(2))
    return partial(clock, calls=max(1, min(10, int(0.05 / slowest))))


def ratio(ours: list[float], theirs: list[float]) -> float:
    """Returns the median of the ratios within one repeat."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def spread(ours: list[float], theirs: list[float]) -> list[float]:
    """Returns the first and the third quartile of the ratios within one repeat."""
    quartiles = statistics.quantiles([a / b for a, b in zip(ours, theirs, strict=True)], n=4)
    return [quartiles[0], quartiles[2]]


def milliseconds(seconds: list[float]) -> float:
    """Returns the median, in milliseconds."""
    return 1e3 * statistics.median(seconds)


def progress(text: str) -> None:
    """Says what is being measured."""
    print(f"    {text}", file=sys.stderr, flush=True)


def has(instructions: str) -> bool:
    """Does the processor have these instructions, as /proc/cpuinfo spells them?"""
    return instructions in _cpu_info("flags").split()


def machine() -> dict[str, Any]:
    """Returns what was measured on."""
    import lsoftmax_op

    try:
        import tensorflow as tf
    except ImportError:  # what the kernels do for PyTorch is measured without
        tf = None
    vectors = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if has(name)]
    return {
        "cpu": " ".join([_cpu_info("model name") or platform.processor(), *(v.upper() for v in vectors[-1:])]),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "python": platform.python_version(),
        "tensorflow": tf and tf.__version__,
        "lsoftmax_op": {k: v for k, v in lsoftmax_op.build_info().items() if k != "library"},
    }


def child(*command: str, **environment: str) -> str:
    """Returns what a process prints; if it fails, what it says."""
    finished = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with status {finished.returncode}:\n{finished.stderr}")
    return finished.stdout


def caption(machine: dict[str, Any]) -> str:
    """Returns the machine in one line."""
    return f"{machine['cpu']}, {machine['cores']} cores, TensorFlow {machine['tensorflow'] or 'is not here'}"


def report(question: str, title: str, rows: list[dict[str, Any]], output: Path | None) -> None:
    """Prints the rows as a table, and writes them with the machine as JSON."""
    print(f"\n{title}\n")
    texts = [{key: _text(value) for key, value in row.items()} for row in rows]
    widths = {key: max(len(key), *(len(text[key]) for text in texts)) for key in rows[0]}
    print("  ".join(key.rjust(width) for key, width in widths.items()))
    for text in texts:
        print("  ".join(text[key].rjust(width) for key, width in widths.items()))
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        document = {"question": title, "machine": machine(), "rows": rows}
        (output / f"{question}.json").write_text(json.dumps(document, indent=1) + "\n")


def _cpu_info(field: str) -> str:
    info = Path("/proc/cpuinfo").read_text() if os.path.exists("/proc/cpuinfo") else ""
    found = re.search(rf"^{field}\s*: (.*)", info, re.MULTILINE)
    return found.group(1) if found else ""


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " to ".join(map(_text, value))
    return (
        f"{value:.3g}"
        if isinstance(value, float) and value >= 100
        else f"{value:.3f}"
        if isinstance(value, float)
        else str(value)
    )
