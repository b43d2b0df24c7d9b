"""``python -m benchmarks [QUESTION ...]``: measures, prints a table a question, writes JSON."""

from __future__ import annotations

import argparse
import importlib
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

QUESTIONS = ("step", "memory", "graph", "loop", "import_time")


def main(arguments: list[str] | None = None) -> None:
    """Asks the questions that were named, or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help=f"among {', '.join(QUESTIONS)}")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"), help="folder for JSON")
    parser.add_argument("--quick", action="store_true", help="tiny shapes: does it run at all?")
    options = parser.parse_args(arguments)
    for question in options.questions:
        if question not in QUESTIONS:
            parser.error(f"QUESTION: expected one of {', '.join(QUESTIONS)}, got {question}")
    from benchmarks import harness

    machine = harness.machine()
    print(f"{machine['cpu']}, {machine['cores']} cores, TensorFlow {machine['tensorflow']}")
    asked = options.questions or QUESTIONS
    for n, question in enumerate(asked, start=1):
        print(f"\n[{n}/{len(asked)}] {question} ...", flush=True)
        module = importlib.import_module(f"benchmarks.{question}")
        module.main(options.output, quick=options.quick)


if __name__ == "__main__":
    main()
