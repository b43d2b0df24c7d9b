"""How long does ``import lsoftmax_op`` take, beside starting Python?"""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks import harness

MINUTES = 0.2
TARGET = 60.0


def main(output: Path | None, quick: bool = False) -> None:
    """Measures whole processes."""
    seconds = harness.interleave(
        {
            name: lambda code=code: subprocess.run([sys.executable, "-c", code], check=True)
            for name, code in (("pass", "pass"), ("import", "import lsoftmax_op"))
        },
        3 if quick else 41,
    )
    extra = statistics.median(i - p for i, p in zip(seconds["import"], seconds["pass"], strict=True))
    row = {
        "pass ms": harness.milliseconds(seconds["pass"]),
        "import ms": harness.milliseconds(seconds["import"]),
        "more ms": 1e3 * extra,
        "target": f"<= {TARGET:.0f}",
    }
    harness.report("import_time", __doc__, [row], output)
