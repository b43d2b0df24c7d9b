"""What do kernels and steps cost on a GPU, beside a copy, plain softmax and other libraries?

    row_pass     the pass over the N x C products, as a share of the speed of a copy
    kernels      every kernel of a step
    tensorflow   a step of TensorFlow, uncompiled and under XLA, beside plain softmax
    keras        a step of Keras' fit
    pytorch      a step of PyTorch, beside cross-entropies with and without a margin

Each table is made by a process of its own, one after the other, as PyTorch and TensorFlow each want the whole device;
and each in a limited time, after which the shapes that are left are not measured: together they take four minutes.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import harness

MINUTES = 4
# Each: seconds, beside what a process takes to start. The longest shape may go beyond them once it has begun.
TABLES = {"row_pass": 20, "kernels": 15, "tensorflow": 70, "keras": 30, "pytorch": 55}


def main(output: Path | None, quick: bool = False) -> None:
    """Makes the tables, one after the other; one that fails says why, and the others are made all the same."""
    if device() is None and not quick:
        harness.report("gpu", __doc__.splitlines()[0], [{"result": "nvidia-smi finds no GPU here"}], output)
        return
    tables = []
    for name, seconds in TABLES.items():
        began = time.perf_counter()
        title, rows = table(name, seconds, quick)
        harness.report(f"gpu-{name}", title, rows, output)
        tables.append({"table": name, "rows": len(rows), "seconds": round(time.perf_counter() - began)})
    harness.report("gpu", f"{__doc__.splitlines()[0]} {device() or ''}".strip(), tables, output)


def device() -> str | None:
    """Returns GPU and driver as nvidia-smi tells them, None where there is none."""
    try:
        command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None


def table(name: str, seconds: float, quick: bool) -> tuple[str, list[dict[str, Any]]]:
    """Returns title and rows of a table, made by a process of its own."""
    harness.progress(f"{name}: {seconds} s")
    command = [sys.executable, "-m", "benchmarks.gpu", name, str(seconds), *(["--quick"] if quick else [])]
    try:
        title, rows = json.loads(harness.child(*command).splitlines()[-1])
    except RuntimeError as error:
        title, rows = name, [{"result": str(error).strip().splitlines()[-1]}]
    return title, rows or [{"result": "nothing was measured"}]


def in_time(seconds: float, wanted: list[Any]) -> Iterator[Any]:
    """Returns what is wanted, one after the other, as long as there is time."""
    end = time.perf_counter() + seconds
    for number, one in enumerate(wanted):
        if time.perf_counter() > end:
            harness.progress(f"time is up: {len(wanted) - number} of {len(wanted)} are not measured")
            return
        harness.progress(str(one))
        yield one


def _make(name: str, seconds: float, quick: bool) -> None:
    module = importlib.import_module(f"benchmarks.gpu_{name}")
    if not quick and not module.sees_gpu():
        sys.exit(f"{name}: no GPU is seen by what it measures")
    wanted = module.WANTED[:1] if quick else module.WANTED
    rows = [row for one in in_time(seconds, list(wanted)) for row in module.rows(one, quick)]
    print(json.dumps([module.TITLE, rows]))


if __name__ == "__main__":
    _make(sys.argv[1], float(sys.argv[2]), "--quick" in sys.argv)
