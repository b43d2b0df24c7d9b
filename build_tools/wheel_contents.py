"""What is in a wheel: its size, the systems that it serves, its op libraries; and what a released one must not be.

usage: python build_tools/wheel_contents.py WHEEL...     a table, and 1 as exit status where one has a problem
"""

from __future__ import annotations

import json
import re
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import find_tensorflow

MOST_BYTES = 25 * 10**6
NEWEST_GLIBC = (2, 34)  # that of RHEL 9; Ubuntu 22.04 and Debian 12 have a newer one


class Contents(NamedTuple):
    """What a wheel says of itself."""

    python: str
    platform: str
    size: int
    files: list[str]
    tensorflows: dict[str, dict[str, object]]  # the folder of each, with its _build_info.json
    cuda: dict[str, object] | None


def read(wheel: Path) -> Contents:
    """Returns what is in a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        files = archive.namelist()
        infos = {name: json.loads(archive.read(name)) for name in files if name.endswith("/_build_info.json")}
    general = infos.pop("lsoftmax_op/_build_info.json", {})
    tensorflows = {name.split("/")[1]: info for name, info in infos.items()}
    python, _, platform = wheel.stem.split("-")[-3:]
    return Contents(python, platform, wheel.stat().st_size, files, tensorflows, general.get("cuda"))


def problems(wheel: Path, minors: Iterable[str]) -> list[str]:
    """Returns in sentences what is wrong with a wheel that serves these minor versions of TensorFlow, for people."""
    contents = read(wheel)
    found = []
    if contents.size > MOST_BYTES:
        found.append(f"it has {contents.size / 1e6:.1f} MB, where {MOST_BYTES / 1e6:.0f} are the most")
    glibc = [(int(major), int(minor)) for major, minor in re.findall(r"manylinux_(\d+)_(\d+)", contents.platform)]
    if not glibc or min(glibc) > NEWEST_GLIBC:
        newest = "manylinux_{}_{}".format(*NEWEST_GLIBC)
        found.append(
            f"its platform is {contents.platform}, where {newest} or an older one was expected (auditwheel show)"
        )
    parts = ["_core.", "_lsoftmax_core.so", "reference."] + (["_cuda.", "_lsoftmax_cuda.so"] if contents.cuda else [])
    parts += [
        f"{folder}/{name}" for folder in contents.tensorflows for name in ("_lsoftmax_ops.so", "_lsoftmax_xla.so")
    ]
    for part in parts:
        if not any(name.startswith(f"lsoftmax_op/{part}") for name in contents.files):
            found.append(f"lsoftmax_op/{part} is missing")
    lacking = [minor for minor in minors if f"tf-{minor}" not in contents.tensorflows]
    if lacking:
        found.append(f"there is no op library for TensorFlow {', '.join(lacking)} in it")
    foreign = [name for name in contents.files if "_on_cpu" in name or ".libs/" in name]
    if foreign:
        found.append(f"it should not hold {', '.join(foreign)}")
    return [f"{wheel.name}: {problem}." for problem in found]


def table(wheels: list[Path]) -> str:
    """Returns a table of wheels, in Markdown."""
    rows = [["wheel of", "MB", "platform", "TensorFlow", "CUDA"]]
    for wheel in wheels:
        contents = read(wheel)
        versions = sorted((str(info["tensorflow"]) for info in contents.tensorflows.values()), key=_numbers)
        cuda = f"{contents.cuda['nvcc']}: {' '.join(contents.cuda['architectures'])}" if contents.cuda else "none"
        rows.append([contents.python, f"{contents.size / 1e6:.1f}", contents.platform, ", ".join(versions), cuda])
    rows.insert(1, ["---"] * len(rows[0]))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(f"| {' | '.join(map(str.ljust, row, widths))} |" for row in rows)


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]


def main(arguments: list[str]) -> int:
    """Prints the table, and what is wrong."""
    wheels = [Path(argument) for argument in arguments]
    print(table(wheels))
    found = [problem for wheel in wheels for problem in problems(wheel, find_tensorflow.supported_minors())]
    print("\n".join(found), end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
