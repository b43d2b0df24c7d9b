"""Runs the steps of a build, and says in one sentence why one failed and what to do about it.

What compilers, CMake and Ninja say is shown as it comes; pip shows it where a build fails. The sentence comes last,
where it is read.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import jobs

_ROOT = Path(__file__).resolve().parent.parent
# What a build with TensorFlow, XLA and CUDA leaves in build/, and takes meanwhile; rounded up.
_DISK_GB = 2
_GET_COMPILER = (
    "Install one (Debian, Ubuntu: apt install g++; Fedora, RHEL: dnf install gcc-c++; conda: conda install -c "
    "conda-forge cxx-compiler), or name yours by the environment variable CXX."
)
_ONE_AT_A_TIME = "Compile one file at a time: CMAKE_BUILD_PARALLEL_LEVEL=1 pip install ..."

# What was said, and what it means. The first that is found tells: a full disk or memory has many consequences.
_SYMPTOMS = (
    (
        r"No space left on device|Disk quota exceeded",
        "The disk is full. A build takes up to {disk} GB in {build} and in {temporary} (for the latter the environment "
        "variable TMPDIR names another folder).",
    ),
    (
        r"Killed signal terminated program|internal compiler error: Killed|virtual memory exhausted"
        r"|out of memory allocating|LLVM ERROR: out of memory|Cannot allocate memory|instance of 'std::bad_alloc'"
        r"|terminated with signal 9|died due to signal 9|command: Killed|^Killed$",
        "The memory did not suffice: a compiler takes up to {peak} GB, and {free} GB are free now. {one_at_a_time}, or "
        "leave out the largest files: LSOFTMAX_XLA=OFF pip install ...",
    ),
    (
        r"Python\.h: No such file|missing:[^)]*(?:Python_INCLUDE_DIRS|Development)",
        "The headers of CPython {python} (Python.h) were not found. Install them (Debian, Ubuntu: apt install "
        "python{python}-dev; Fedora, RHEL: dnf install python{python}-devel).",
    ),
    (
        r"specified in the environment\s+variable CXX:\s+(?P<name>\S+)\.\s",
        "The C++ compiler {name}, which the environment variable CXX names, was not found. {get_compiler}",
    ),
    (r"No CMAKE_CXX_COMPILER could be found", "No C++ compiler was found. {get_compiler}"),
    (
        r"The C\+\+ compiler\s+\"(?P<name>[^\"]+)\"\s+is not able to compile",
        "The C++ compiler {name} does not compile an empty program: it is not whole. {get_compiler}",
    ),
    (r"unable to find a build program corresponding to\s+\"Ninja\"", "Ninja was not found: pip install ninja"),
    (r"pybind11Config\.cmake|No module named '?pybind11", "pybind11 was not found: pip install pybind11"),
    (
        r"internal compiler error",
        "The compiler itself failed. {one_at_a_time}, or use another, which the environment variable CXX names.",
    ),
)


def explain(said: str) -> str:
    """Returns the sentence that ends a failed build.

    Args:
        said: all that the step that failed said.
    """
    for pattern, sentence in _SYMPTOMS:
        found = re.search(pattern, said, re.MULTILINE)
        if found is not None:
            return sentence.format(**_facts(), **found.groupdict())
    refused = re.search(r"^CMake Error at [^\n]*\(message\):\n((?:  [^\n]*\n|\n)+)", said, re.MULTILINE)
    if refused is not None:  # CMake breaks lines
        return " ".join(refused[1].split())
    first = re.search(r"^.*\berror: .*$|^CMake Error.*$", said, re.MULTILINE)
    lines = said.strip().splitlines() or ["nothing was said"]
    return f"lsoftmax_op was not built. The first error was: {first[0].strip() if first else lines[-1]}"


def run(*command: object) -> None:
    """Runs one step of a build, and shows what it says.

    Raises:
        SystemExit: it failed; with the sentence that says why.
    """
    said = []
    with subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        for line in process.stdout:
            said.append(line)
            sys.stdout.write(line)
            sys.stdout.flush()
    if process.returncode != 0:
        sys.exit(f"\nerror: {explain(''.join(said))}")


def _facts() -> dict[str, object]:
    """What the sentences say of this machine."""
    free = jobs.free_memory()
    return {
        "get_compiler": _GET_COMPILER,
        "one_at_a_time": _ONE_AT_A_TIME,
        "disk": _DISK_GB,
        "build": _ROOT / "build",
        "temporary": tempfile.gettempdir(),
        "peak": jobs.PEAK_GB[jobs.largest_part(os.environ)],
        "free": "an unknown number of" if free is None else f"{free / jobs.GB:.1f}",
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
    }
