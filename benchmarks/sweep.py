"""How do time and memory of a step grow with the classes and with the batch?"""

from __future__ import annotations

from pathlib import Path

from benchmarks import harness, memory
from benchmarks.batches import TINY, Shape, name

MINUTES = 4
BLOCK = 4096
MANY = 100_000  # classes, from which on blocks are worth a look
CLASSES = tuple((128, 128, 10**n) for n in range(1, 7))
ROWS = tuple((n, 128, 10_000) for n in (16, 64, 256, 1024, 4096))
PEERS = ("plain", "pure TF", "ours")
BLOCKS = f"ours, B={BLOCK}"


def main(output: Path | None, quick: bool = False) -> None:
    """Measures every peer at every shape: times interleaved, peaks of memory as in memory.py."""
    shapes = [TINY] if quick else sorted({*CLASSES, *ROWS}, key=lambda s: s[0] * s[2])
    wide = [shape for shape in shapes if quick or shape[2] >= MANY]
    seconds = {}
    for shape in shapes:
        harness.progress(name(shape))
        repeats = 3 if quick else max(3, min(51, 2 * 10**8 // (shape[0] * shape[2])))
        seconds[shape] = _times(shape, shape in wide, repeats)
    harness.progress("memory")
    cases = {(peer, shape): (peer, None, shape) for peer in PEERS for shape in shapes}
    cases |= {(BLOCKS, shape): ("ours", BLOCK, shape) for shape in wide}
    peaks = dict(zip(cases, memory.peaks(list(cases.values())), strict=True))
    rows = [
        {
            "N,D,C": name(shape),
            **{f"{peer} ms": _milliseconds(seconds[shape].get(peer)) for peer in (*PEERS, BLOCKS)},
            "ours/plain": harness.ratio(seconds[shape]["ours"], seconds[shape]["plain"]),
            **{f"{peer} MB": peaks[peer, shape] / 1e6 if (peer, shape) in peaks else "" for peer in (*PEERS, BLOCKS)},
        }
        for shape in shapes
    ]
    harness.report("sweep", __doc__, rows, output)


def _times(shape: Shape, in_blocks: bool, repeats: int) -> dict[str, list[float]]:
    from benchmarks import peers

    batch = peers.arguments(*shape)
    steps = {peer: peers.step(peers.LOSSES[peer], *batch) for peer in PEERS}
    if in_blocks:
        steps[BLOCKS] = peers.step(peers.fused(BLOCK), *batch)
    return harness.interleave(steps, repeats, warm_up=1 if repeats < 5 else 2)


def _milliseconds(seconds: list[float] | None) -> float | str:
    return "" if seconds is None else harness.milliseconds(seconds)
