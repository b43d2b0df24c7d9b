"""Peers that cannot share a process take turns: each process holds its own, warm, and sleeps while another measures.

PyTorch and TensorFlow in one process would fight over threads. A round asks every process once for the median of a
few steps; a ratio is the median over the rounds of the ratio within one round.
"""

from __future__ import annotations

import importlib
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.batches import Shape, name

ROOT = Path(__file__).resolve().parent.parent


class Process:
    """A process that holds the steps of one module, of one shape."""

    def __init__(self, python: str, module: str, shape: Shape) -> None:
        self._complaints = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed with the process)
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.turns", module, *map(str, shape)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            text=True,
            cwd=ROOT,
        )
        self.losses: dict[str, float] = self._answer()

    def medians(self, repeats: int) -> dict[str, float]:
        """Returns the median seconds of a few steps of every peer."""
        self._process.stdin.write(f"{repeats}\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """Lets the process end."""
        self._process.stdin.close()
        self._process.wait()
        self._complaints.close()

    def _answer(self) -> dict[str, float]:
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            self._complaints.seek(0)
            raise RuntimeError(f"a process of peers ended with status {status}:\n{self._complaints.read()}")
        return json.loads(line)


def take(processes: list[Process], rounds: int, repeats: int) -> dict[str, list[float]]:
    """Returns the median of every peer in every round."""
    seconds: dict[str, list[float]] = {}
    for _ in range(rounds):
        for process in processes:
            for peer, median in process.medians(repeats).items():
                seconds.setdefault(peer, []).append(median)
    return seconds


def row(shape: Shape, peer: str, losses: dict[str, float], seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Returns what a table says of a peer: its loss, its time, and that over the plain step's.

    Args:
        shape: that of the batch.
        peer: its name.
        losses: of every peer.
        seconds: of every peer, as `take` returns them.
    """
    return {
        "N,D,C": name(shape),
        "step": peer,
        "loss": losses[peer],
        "ms": harness.milliseconds(seconds[peer]),
        "over plain": harness.ratio(seconds[peer], seconds["plain"]),
    }


def _serve(module: str, shape: list[int]) -> None:
    steps = importlib.import_module(module).steps(*shape)
    print(json.dumps({peer: float(step()[0]) for peer, step in steps.items()}), flush=True)
    for line in sys.stdin:
        seconds = harness.interleave(steps, int(line), warm_up=1)
        print(json.dumps({peer: statistics.median(values) for peer, values in seconds.items()}), flush=True)


if __name__ == "__main__":
    _serve(sys.argv[1], [int(size) for size in sys.argv[2:]])
