"""The paper's experiment on MNIST, on Fashion-MNIST: softmax and L-Softmax with margins of 2, 3 and 4.

    python -m examples.paper --data-dir FOLDER [--width 8] [--steps 1200] [--margins 1 2 3 4] [--seeds 3] [--jobs 2] ...

Trains the network of the paper's Table 1, narrowed to --width filters, once for every margin and seed, and prints the
test errors in the form of its Table 2. The curves of its Figure 5 are drawn into --output. Every row is a process
(examples/paper_row.py): of one thread, or, where TensorFlow sees a GPU, on that, one row after the other unless --jobs
tells otherwise. Killed and started again with the same options, it goes on where it was. docs/experiment.md tells what
came out.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from examples import figures
from examples.data import load_idx_folder
from examples.paper_row import BATCH, POINTS, Row, gpus

ROOT = Path(__file__).resolve().parent.parent
NO_DATA = """\
Debian and Ubuntu have Fashion-MNIST as a package, for any system and without installing it:
    apt-get download dataset-fashion-mnist && dpkg -x dataset-fashion-mnist_*.deb .
    python -m examples.paper --data-dir usr/share/datasets/fashion-mnist"""


def run(row: Row, progress: tqdm) -> None:
    """Trains a row in a process of its own.

    Raises:
        RuntimeError: the process failed.
    """
    command = [sys.executable, "-m", "examples.paper_row", json.dumps(dataclasses.asdict(row))]
    log = row.path(".log")
    with (
        log.open("w") as messages,
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=messages, text=True) as process,
    ):
        before = 0
        for line in process.stdout:
            progress.update(int(line) - before)
            before = int(line)
    if process.returncode:
        raise RuntimeError(f"m = {row.margin}, seed {row.seed} failed ({process.returncode}): see {log}")
    progress.update(row.steps - before)


def run_all(rows: list[Row], jobs: int) -> None:
    """Trains all rows, some at a time, those of the first seed first."""
    steps = sum(row.steps for row in rows)
    with (
        tqdm(total=steps, unit="step", smoothing=0.05, mininterval=1) as progress,
        concurrent.futures.ThreadPoolExecutor(jobs) as pool,
    ):
        started = [pool.submit(run, row, progress) for row in sorted(rows, key=lambda row: row.seed)]
        try:
            for one in concurrent.futures.as_completed(started):
                one.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def table(rows: list[Row]) -> str:
    """Returns the test errors in the form of the paper's Table 2, with their spread over the seeds."""
    seeds = list(dict.fromkeys(row.seed for row in rows))
    lines = [f"{'Method':<20}{'Error rate (%)':>16}" + "".join(f"{f'seed {seed}':>9}" for seed in seeds)]
    for margin in dict.fromkeys(row.margin for row in rows):
        errors = [100 * row.result()["curve"][-1]["error"] for row in rows if row.margin == margin]
        lines.append(
            f"{figures.name_of(margin):<20}{figures.spread(errors, 2):>16}"
            + "".join(f"{error:>9.2f}" for error in errors)
        )
    return "\n".join(lines)


def details(rows: list[Row]) -> str:
    """Returns what stands behind the errors: losses, the error on training images, and the angles."""
    columns = ("test loss", "worst class (%)", "training error (%)", "own class at (°)", "in training (°)")
    lines = [" " * 20 + "".join(f"{name:>20}" for name in columns)]
    for margin in dict.fromkeys(row.margin for row in rows):
        results = [row.result() for row in rows if row.margin == margin]
        test, train = [result["curve"][-1] for result in results], [result["train"] for result in results]
        values = (
            figures.spread([one["loss"] for one in test], 3),
            figures.spread([100 * one["worst_class_error"] for one in test], 1),
            figures.spread([100 * one["error"] for one in train], 2),
            figures.spread([one["angle"] for one in test], 1),
            figures.spread([one["angle"] for one in train], 1),
        )
        lines.append(f"{figures.name_of(margin):<20}" + "".join(f"{value:>20}" for value in values))
    return "\n".join(lines)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Returns the options; leaves with a message where one is bad."""
    parser = argparse.ArgumentParser(prog="python -m examples.paper", description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True, help="MNIST or Fashion-MNIST as IDX files")
    parser.add_argument("--width", type=int, default=8, help="filters of a convolution (the paper's: 64)")
    parser.add_argument("--steps", type=int, default=1200, help=f"optimizer steps, {BATCH} images each (18000)")
    parser.add_argument("--margins", type=int, nargs="+", default=[1, 2, 3, 4], help="1 is softmax")
    parser.add_argument("--seeds", type=int, default=3, help="networks a margin")
    parser.add_argument("--rate", type=float, default=0.1, help="learning rate to begin with (0.1)")
    parser.add_argument("--minimum", type=float, default=5.0, help="where lambda stops falling (0)")
    parser.add_argument("--images", type=int, help="training images, the first ones (all)")
    parser.add_argument("--mixed", action="store_true", help="compute in bfloat16 (mixed_bfloat16), for a GPU")
    parser.add_argument("--jobs", type=int, help="rows at a time (2, a thread each; on a GPU 1)")
    parser.add_argument("--output", type=Path, default=Path("paper-output"), help="folder for results and the picture")
    options = parser.parse_args(arguments)
    if options.jobs is None:
        options.jobs = 1 if gpus() else 2
    for margin in options.margins:
        if not 1 <= margin <= 64:
            parser.error(f"--margins: expected integers from 1 to 64, got {margin}")
    for name in ("width", "seeds", "jobs"):
        if getattr(options, name) < 1:
            parser.error(f"--{name}: expected a positive integer, got {getattr(options, name)}")
    if options.images is not None and options.images < 1:
        parser.error(f"--images: expected a positive integer, got {options.images}")
    if options.steps < 1 or (options.steps > POINTS and options.steps % POINTS):
        parser.error(f"--steps: expected 1 to {POINTS}, or a multiple of {POINTS}, got {options.steps}")
    if not 0 < options.rate < np.inf:
        parser.error(f"--rate: expected a positive number, got {options.rate}")
    if not 0 <= options.minimum <= 1000:
        parser.error(f"--minimum: expected a number from 0 to 1000, got {options.minimum}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Trains what has not been trained yet, prints the tables and draws the curves; returns the exit status."""
    options = parse(arguments)
    folders = {"data_dir": str(options.data_dir.resolve()), "output": str(options.output.resolve())}
    settings = {name: getattr(options, name) for name in ("width", "steps", "rate", "minimum", "images", "mixed")}
    rows = [
        Row(**folders, margin=margin, seed=seed, **settings)
        for margin in dict.fromkeys(options.margins)
        for seed in range(options.seeds)
    ]
    try:
        data = load_idx_folder(options.data_dir)
        missing = [row for row in rows if not row.done()]
    except FileNotFoundError as error:
        print(f"{error}\n\n{NO_DATA}", file=sys.stderr)
        return 2
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    options.output.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    if missing:
        run_all(missing, options.jobs)
    print(f"\n{data.name}: {len(data.test_labels)} test images; width {options.width}, {options.steps} steps\n")
    print(f"{table(rows)}\n\n{details(rows)}")
    print(f"\nTrained {len(missing)} of {len(rows)} rows in {(time.perf_counter() - began) / 60:.0f} minutes. Picture:")
    curves = {margin: [row.result()["curve"] for row in rows if row.margin == margin] for margin in options.margins}
    print(f"  {figures.draw_convergence(curves, data.name, options.output / 'experiment.png')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
