"""How much memory does a training step with the margin need at its peak, beside one without?

Each side runs in a process of its own; measured is the peak of the resident memory during the steps, data included,
less what TensorFlow held before any data was made. Freed memory goes back to the system at once, so the peak is the
step's own.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks import harness
from benchmarks.step import SHAPES

TARGET = 1.05


def main(output: Path | None, quick: bool = False) -> None:
    """Measures the peak of both sides, a process each."""
    rows = []
    for shape in [(8, 4, 6)] if quick else SHAPES:
        peaks = {"plain": [], "ours": []}
        for _ in range(1 if quick else 3):
            for name, values in peaks.items():
                values.append(_peak(name, shape))
        plain, ours = (statistics.median(peaks[name]) for name in ("plain", "ours"))
        rows.append(
            {
                "N,D,C": ",".join(map(str, shape)),
                "plain MB": plain / 1e6,
                "ours MB": ours / 1e6,
                "ours/plain": ours / plain,
                "target": TARGET,
            }
        )
    harness.report("memory", __doc__.splitlines()[0], rows, output)


def _peak(name: str, shape: tuple[int, ...]) -> int:
    finished = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", name, *map(str, shape)],
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(finished.stdout.split()[-1])


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}")


def _measure(name: str, shape: list[int]) -> int:
    from benchmarks import peers

    def steps(*sizes: int) -> None:
        step = peers.step(getattr(peers, name), *peers.arguments(*sizes))
        for _ in range(4):
            step()

    steps(64, 32, 48)  # whatever TensorFlow and its thread pools set up once
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts afresh
    steps(*shape)
    return max(_resident("VmHWM") - before, 1)


if __name__ == "__main__":
    print(_measure(sys.argv[1], [int(size) for size in sys.argv[2:]]))
