"""``python -m benchmarks [QUESTION ...]``: measures, prints a table a question, writes JSON, draws what is there."""

from __future__ import annotations

import argparse
import importlib
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

QUESTIONS = (
    "step",
    "keras",
    "pytorch",
    "torch_linear",
    "margins",
    "row_pass",
    "bfloat16",
    "memory",
    "blocks",
    "filter",
    "sweep",
    "graph",
    "loop",
    "shards",
    "import_time",
)
ON_A_GPU = ("gpu",)  # asked by name


def main(arguments: list[str] | None = None) -> None:
    """Asks the questions that were named, or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help=f"among {', '.join(QUESTIONS)}; on a GPU: gpu")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"), help="folder for JSON")
    parser.add_argument("--pictures", type=Path, help="folder for the pictures (default: that of JSON)")
    parser.add_argument("--quick", action="store_true", help="tiny shapes: does it run at all?")
    options = parser.parse_args(arguments)
    for question in options.questions:
        if question not in QUESTIONS + ON_A_GPU:
            parser.error(f"QUESTION: expected one of {', '.join(QUESTIONS + ON_A_GPU)}, got {question}")
    from benchmarks import harness

    asked = options.questions or QUESTIONS
    modules = [importlib.import_module(f"benchmarks.{question}") for question in asked]
    minutes = sum(module.MINUTES for module in modules)
    print(harness.caption(harness.machine()))
    if not options.quick:
        where = "a GPU" if set(asked) <= set(ON_A_GPU) else "two slow cores"
        print(f"This takes about {minutes:.0f} minutes on {where}.")
    for n, (question, module) in enumerate(zip(asked, modules, strict=True), start=1):
        about = "" if options.quick else f" (about {module.MINUTES} min)"
        print(f"\n[{n}/{len(asked)}] {question}{about} ...", flush=True)
        module.main(options.output, quick=options.quick)
    if set(asked) - set(ON_A_GPU):
        _draw(options.output, options.pictures or options.output)


def _draw(results: Path, folder: Path) -> None:
    try:
        from benchmarks import figures
    except ModuleNotFoundError as error:
        print(f"\nNo pictures: {error.name} is not installed (pip install '.[bench]')")
        return
    for picture in figures.draw(results, folder):
        print(f"\nDrew {picture}")


if __name__ == "__main__":
    main()
