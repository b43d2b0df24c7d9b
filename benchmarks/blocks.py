"""Which class_block_size for a million classes: what do blocks cost in time, and save in memory?"""

from __future__ import annotations

from pathlib import Path

from benchmarks import harness, memory
from benchmarks.batches import TINY, WIDEST, name

MINUTES = 3
SIZES = (1024, 4096, 16_384, 65_536)
TARGETS = 1.4, 300.0  # over the one-pass form; MB over W + dW


def main(output: Path | None, quick: bool = False) -> None:
    """Measures the one-pass form and every block size, interleaved; the peaks of memory as in memory.py."""
    from benchmarks import peers

    shape, sizes = (TINY, (2, 4)) if quick else (WIDEST, SIZES)
    harness.progress(name(shape))
    batch = peers.arguments(*shape)
    steps = {size: peers.step(peers.fused(size), *batch) for size in (None, *sizes)}
    seconds = harness.interleave(steps, 3, warm_up=1)
    needed = 2 * 4 * shape[1] * shape[2]  # W and dW
    for size, values in seconds.items():
        harness.progress(f"block size {size}: {harness.milliseconds(values):.0f} ms, and its memory ...")
    peaks = memory.peaks([("ours", size, shape) for size in seconds])
    rows = [
        {
            "N,D,C": name(shape),
            "block size": size or "one pass",
            "ms": harness.milliseconds(values),
            "over one pass": harness.ratio(values, seconds[None]),
            "target": TARGETS[0] if size else "",
            "peak MB": peak / 1e6,
            "over W + dW MB": (peak - needed) / 1e6,
            "its target": TARGETS[1] if size else "",
        }
        for (size, values), peak in zip(seconds.items(), peaks, strict=True)
    ]
    harness.report("blocks", __doc__, rows, output)
