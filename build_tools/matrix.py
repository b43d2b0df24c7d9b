"""Installs the wheels of dist/ into fresh environments, beside each TensorFlow and CPython, and tests them there.

A cell of the matrix is
1. an environment with TensorFlow, and the Keras and NumPy that fit it, from PyPI (by uv, as that takes seconds);
2. the wheel, by `pip install`, from dist/ alone;
3. its own checks: `python -m lsoftmax_op`, in an empty folder;
4. the fast tests, in a folder that holds what they read of this clone, but not the package (--tests: not everywhere).

A cell that fails does not stop the others; the exit status tells. build/matrix/ has what was said in each (*.log), the
results (results.json) and the table (table.md). uv caches every TensorFlow, 2 GB each; UV_NO_CACHE=1 has it not do so.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matrix_table
import pythons
from matrix_cells import NEWEST, NEWEST_PYTHON, OLDEST_NUMPY, ROOT, cells, once, package_version, wheel_for
from matrix_run import RESULTS, Run

PAGE = ROOT / "docs" / "install.md"
WIDTHS = (12, 8, 8, 9, 25, 8, 0)  # of the columns, as they are printed


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Returns the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    several = {"action": "append", "default": []}
    parser.add_argument(
        "--tensorflow", choices=[*NEWEST_PYTHON], help="a minor version; repeatable; default: all", **several
    )
    parser.add_argument("--python", help=f"{pythons.NAMED}; repeatable; default: all that are found", **several)
    parser.add_argument(
        "--numpy",
        choices=[NEWEST, OLDEST_NUMPY],
        help="repeatable; default: 1.26 with the oldest CPython alone",
        **several,
    )
    parser.add_argument("--package", default="tensorflow", help="who brings TensorFlow, such as tensorflow-cpu")
    parser.add_argument(
        "--tests",
        choices=["every", "once", "none"],
        default="every",
        help="run the fast tests in every cell (the default), once beside each TensorFlow, or not at all",
    )
    parser.add_argument("--jobs", type=int, default=1, help="cells side by side; default: 1, its tests on all cores")
    parser.add_argument("--keep", action="store_true", help="keep the environments, in build/matrix")
    parser.add_argument("--dist", type=Path, default=ROOT / "dist", help="where the wheels are; default: dist")
    parser.add_argument("--page", action="store_true", help="run nothing; show the last results in docs/install.md")
    options = parser.parse_args(arguments)
    if options.jobs < 1:
        parser.error(f"--jobs: expected 1 or more, got {options.jobs}")
    return options


def plan(options: argparse.Namespace) -> list[Run]:
    """Returns what is to be run.

    Raises:
        ValueError: there is nothing to run, or a CPython that was asked for has no wheel.
    """
    if importlib.util.find_spec("uv") is None:
        raise ValueError(f"uv makes the environments and is not installed: {sys.executable} -m pip install uv")
    executables, version = pythons.chosen(options.python), package_version()
    wheels = {python: wheel_for(python, options.dist, version) for python in executables}
    without = [python for python, wheel in wheels.items() if wheel is None]
    if without and (options.python or len(without) == len(wheels)):
        raise ValueError(
            f"{options.dist} has no wheel of lsoftmax_op {version} for CPython {', '.join(without)}: make wheels"
        )
    if without:
        print(f"CPython {', '.join(without)} is here, but {options.dist} has no wheel for it.", file=sys.stderr)
    with_wheel = [python for python in executables if python not in without]
    some = cells(options.tensorflow or [*NEWEST_PYTHON], with_wheel, options.numpy, options.package)
    if not some:
        raise ValueError("No TensorFlow that was asked for has a wheel for a CPython that was, with that NumPy.")
    tested = {"every": some, "once": once(some), "none": []}[options.tests]
    return [
        Run(cell, executables[cell.python], wheels[cell.python].resolve(), options, cell in tested) for cell in some
    ]


def show(texts: Sequence[str]) -> None:
    """Prints a line of the table."""
    print("".join(f"{text:<{width}}" for text, width in zip(texts, WIDTHS, strict=True)), flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Runs the matrix; returns 0 where nothing failed."""
    options = parse(arguments)
    try:
        if options.page:
            matrix_table.show_on(PAGE, matrix_table.markdown(matrix_table.load(RESULTS)))
            return 0
        runs = plan(options)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    show(matrix_table.COLUMNS)
    rows = []
    with ThreadPoolExecutor(options.jobs) as pool:
        for run, row in zip(runs, pool.map(Run.results, runs), strict=True):
            rows.append(row)
            show(matrix_table.line(row))
            if matrix_table.failed(row):
                again = f"python build_tools/matrix.py {run.cell.options} --keep"
                print(f"    {row['error']}\n    again: {again}\n    all that was said: {run.log}", flush=True)
            matrix_table.save(rows, RESULTS)
    bad = sum(map(matrix_table.failed, rows))
    print(f"{len(rows) - bad} of {len(rows)} cells passed; the table: {RESULTS / 'table.md'}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
