"""How much memory does a training step with the margin need at its peak, beside one without?

Measured is the peak of the resident memory during the steps, data included, less what the process held before any data
was made; each peer has a process of its own. Freed memory goes back to the system at once, so that the peak is the
step's own.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import harness
from benchmarks.batches import SHAPES, TINY, Shape, name

MINUTES = 0.8
TARGETS = {SHAPES[2]: 0.75}
BLOCK = 4096
STEPS = 2
GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}  # the freed memory, at once
Case = tuple[str, int | None, Shape]  # a peer, its class_block_size, and N, D, C


def main(output: Path | None, quick: bool = False) -> None:
    """Measures the peaks of every peer."""
    shapes = [TINY] if quick else SHAPES
    columns = {peer: (peer, None) for peer in ("plain", "ours", "logits", "pure TF")} | {"blocks": ("ours", BLOCK)}
    measured = peaks([(*column, shape) for shape in shapes for column in columns.values()])
    rows = []
    for i, shape in enumerate(shapes):
        peak = dict(zip(columns, measured[i * len(columns) :], strict=False))
        rows.append(
            {
                "N,D,C": name(shape),
                "plain MB": peak["plain"] / 1e6,
                "ours MB": peak["ours"] / 1e6,
                "ours/plain": peak["ours"] / peak["plain"],
                "target": TARGETS.get(shape, ""),
                f"B={BLOCK}/plain": peak["blocks"] / peak["plain"],
                "logits/plain": peak["logits"] / peak["plain"],
                "pure TF/plain": peak["pure TF"] / peak["plain"],
            }
        )
    harness.report("memory", __doc__.splitlines()[0], rows, output)


def peaks(cases: list[Case]) -> list[int]:
    """Returns the peak of each case's step, in bytes, each measured in a process of its own."""
    answer = harness.child(
        sys.executable,
        "-m",
        "benchmarks.memory",
        json.dumps(cases),
        **GIVES_BACK,
    )
    return json.loads(answer.splitlines()[-1])


def _measure(cases: list[Case]) -> Iterator[int]:
    """Yields the peak of each case in a fork of its own, made when TensorFlow is imported and not yet at work."""
    from benchmarks import margin_peers, peers  # noqa: F401

    fork = multiprocessing.get_context("fork")
    for case in cases:
        receiver, sender = fork.Pipe(duplex=False)
        process = fork.Process(target=lambda sender=sender, case=case: sender.send(_peak(*case)))
        process.start()
        sender.close()
        yield receiver.recv()  # EOFError if the fork has died
        process.join()


def _peak(peer: str, class_block_size: int | None, shape: Shape) -> int:
    from benchmarks import margin_peers, peers

    losses = peers.LOSSES | margin_peers.LOSSES
    loss = losses[peer] if class_block_size is None else peers.fused(class_block_size)

    def step(*shape: int) -> Callable[[], tuple]:
        return peers.step(loss, *peers.arguments(*shape))

    step(64, 32, 48)()  # whatever TensorFlow and its thread pools set up once
    gc.collect()
    before = resident("VmRSS")
    measured = step(*shape)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts afresh
    for _ in range(STEPS):
        measured()
    return max(resident("VmHWM") - before, 1)


def resident(field: str) -> int:
    """Returns a field of this process's status, VmRSS or its peak VmHWM, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}")


if __name__ == "__main__":
    print(json.dumps(list(_measure(json.loads(sys.argv[1])))))
