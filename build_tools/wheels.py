"""Builds the wheels: one a CPython, with op libraries for every TensorFlow that is supported.

For each CPython it compiles the modules that depend on it; the CUDA kernels, and the op libraries for each TensorFlow,
are compiled once, in build/wheels, and again only where they changed. A wheel of CPython 3.10 does not serve 3.11: of
the modules, pybind11's cannot be built for the stable ABI (abi3). auditwheel says which Linux a wheel runs on, and
TensorFlow's own libraries stay out of it.

usage: python build_tools/wheels.py [--python PYTHON]... [--every-python] [--tensorflow MINOR]...
                                    [--cuda 12|any|none] [--output dist] [--dry-run]
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import find_nvcc
import find_tensorflow
import pythons
import requirements
import tensorflow_wheels
import wheel_contents

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "wheels"
NVCC_12 = ROOT / "build" / "cuda12" / "bin" / "nvcc"  # where fetch_nvcc.sh puts it

# What a wheel's libraries need and the user's TensorFlow brings.
FOREIGN = ("libtensorflow_framework.so.2", "libtensorflow_cc.so.2")


def choose_nvcc(wanted: str) -> Path | None:
    """Returns the CUDA compiler to build wheels with.

    Args:
        wanted: "12", for a compiler of CUDA 12; "any", for the first that works; or "none", for None.

    Raises:
        RuntimeError: there is none.
    """
    if wanted == "none":
        return None
    candidates = find_nvcc.candidates()
    if NVCC_12.exists() and not os.environ.get("CUDACXX"):
        candidates.insert(0, NVCC_12)
    refused = []
    for nvcc in candidates:
        try:
            version = str(find_nvcc.describe(nvcc)["version"])
        except RuntimeError as error:
            refused.append(str(error))
            continue
        if wanted == "any" or version.startswith("12."):
            return nvcc
        refused.append(f"{nvcc} is of CUDA {version}.")
    raise RuntimeError(
        "Wheels are compiled by CUDA 12: code of CUDA 13 wants NVIDIA's driver 580, where TensorFlow runs on 525. "
        f"{' '.join(refused) or 'No nvcc was found.'} Bring one with build_tools/fetch_nvcc.sh, or name yours by the "
        "environment variable CUDACXX; --cuda any takes what there is, --cuda none builds without."
    )


def build(minor: str, python: Path, tensorflows: list[Path], nvcc: Path | None, output: Path) -> Path:
    """Builds the wheel of one CPython, and returns it.

    Args:
        minor: "3.12".
        python: an interpreter of it.
        tensorflows: folders as tensorflow_wheels makes them.
        nvcc: the CUDA compiler, None to build without.
        output: where the wheel goes.

    Raises:
        RuntimeError: a step failed.
    """
    tag = f"cpython-{minor.replace('.', '')}"
    own = _environment(tag, python)
    raw = FOLDER / "raw" / tag
    # What setuptools put together before: it removes nothing.
    for stale in (raw, *(ROOT / "build").glob(f"lib.*-{tag}")):
        shutil.rmtree(stale, ignore_errors=True)
    command = [own, "-m", "pip", "wheel", "-v", "--no-build-isolation", "--no-deps", "--no-cache-dir", "-w", raw, ROOT]
    _run(command, f"{tag}: compiling", FOLDER / f"{tag}.log", _build_environment(own, tensorflows, nvcc))
    (wheel,) = raw.glob("*.whl")
    excluded = [option for library in FOREIGN for option in ("--exclude", library)]
    output.mkdir(parents=True, exist_ok=True)
    named = f"{wheel.name.rpartition('-')[0]}-*.whl"
    for former in output.glob(named):
        former.unlink()
    command = [sys.executable, "-m", "auditwheel", "repair", *excluded, "-w", output, wheel]
    _run(command, f"{tag}: auditwheel", FOLDER / f"{tag}-auditwheel.log", dict(os.environ, PATH=_path()))
    (repaired,) = output.glob(named)
    return repaired


def _environment(tag: str, python: Path) -> Path:
    """Returns the interpreter of an environment of a CPython's own, with what a build needs."""
    environment = FOLDER / tag
    own = environment / "bin" / "python"
    ready = environment / "ready"
    # Its interpreter is a link to the one that made it, which may be gone.
    if not (own.exists() and ready.exists()) or ready.stat().st_mtime < (ROOT / "pyproject.toml").stat().st_mtime:
        _run([python, "-m", "venv", "--clear", environment], f"{tag}: environment", FOLDER / f"{tag}-venv.log")
        needed = requirements.listed(["build"])
        _run([own, "-m", "pip", "install", *needed], f"{tag}: build tools", FOLDER / f"{tag}-venv.log")
        ready.touch()
    return own


def _every_python() -> dict[str, Path]:
    """Returns an interpreter of each CPython that wheels are made for, by minor version."""
    found = pythons.found()
    missing = [minor for minor in pythons.supported() if minor not in found]
    if missing:
        raise RuntimeError(f"--every-python: expected CPython {', '.join(pythons.supported())}, not found: {missing}.")
    return found


def _build_environment(own: Path, tensorflows: list[Path], nvcc: Path | None) -> dict[str, str]:
    """Returns the environment variables of a build: cmake_build.py hands the first of them on to CMake."""
    environment = {
        **os.environ,
        "LSOFTMAX_TF": "ON",
        "LSOFTMAX_TENSORFLOWS": ";".join(map(str, tensorflows)),
        "LSOFTMAX_XLA": "ON",
        "LSOFTMAX_CUDA": "OFF" if nvcc is None else "ON",
        "LSOFTMAX_TESTING": "OFF",
        "LSOFTMAX_BUILD_FOLDER": str(FOLDER / "cmake"),
        # The same CMake and Ninja for every CPython: another one would link all anew.
        "PATH": f"{_path()}:{own.parent}:{os.environ['PATH']}",
        # The names of this machine's folders stay out of the wheel: in messages of TensorFlow's headers, and in the
        # search path that a CPython which was compiled somewhere hands on to what it links.
        "CXXFLAGS": _appended("CXXFLAGS", f"-ffile-prefix-map={ROOT}=."),
        "LDSHARED": "cc -shared -s",
        "LDFLAGS": _appended("LDFLAGS", "-Wl,-s"),
    }
    if nvcc is not None:
        environment["CUDACXX"] = str(nvcc)
    return environment


def _appended(variable: str, flag: str) -> str:
    """The user's own flags, and one more."""
    return f"{os.environ.get(variable, '')} {shlex.quote(flag)}".lstrip()


def _path() -> str:
    """This interpreter's own programs first, as a virtual environment that is activated has them."""
    return f"{Path(sys.executable).parent}:{os.environ['PATH']}"


def _run(command: list[object], what: str, log: Path, environment: dict[str, str] | None = None) -> None:
    """Runs a command, shows how far Ninja is in it, and keeps all that it says in a file."""
    began, shown, last = time.monotonic(), sys.stdout.isatty(), 0
    start, end = ("\r\033[K", "") if shown else ("", "\n")  # a terminal's line is written anew
    print(f"{what} ...", end=end, flush=True)
    try:
        process = subprocess.Popen(
            list(map(str, command)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            errors="replace",
        )
    except OSError as error:
        raise RuntimeError(f"{what} failed: {command[0]} does not run: {error}") from error
    said = []
    with log.open("w", buffering=1) as file:
        for line in process.stdout:
            file.write(line)
            said.append(line)
            step = re.search(r"\[(\d+)/(\d+)\]", line)
            tenth = 10 * int(step[1]) // int(step[2]) if step else last
            if step and (shown or tenth > last):
                print(f"{start}{what} ... {step[0]}", end=end, flush=True)
            last = tenth
    status = process.wait()
    seconds = time.monotonic() - began
    print(f"{start}{what}: {'done' if status == 0 else 'FAILED'}, {seconds:.0f} s", flush=True)
    if status != 0:
        raise RuntimeError(
            f"{''.join(said[-40:])}\n{what} failed: the end of what it said is above, all of it in {log}"
        )


def main(arguments: list[str]) -> int:
    """Builds them, and prints a table of what they are."""
    supported = find_tensorflow.supported_minors()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", action="append", help=f"{pythons.NAMED}; repeatable (default: this one)")
    parser.add_argument("--every-python", action="store_true", help="each that is supported, as for a release")
    parser.add_argument("--tensorflow", action="append", choices=supported, help="a minor version (default: each)")
    parser.add_argument("--cuda", choices=("12", "any", "none"), default="12", help="the compiler's CUDA (default: 12)")
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="where wheels go (default: dist)")
    parser.add_argument("--dry-run", action="store_true", help="build nothing; say what with, or what is missing")
    options = parser.parse_args(arguments)
    began = time.monotonic()
    try:
        missing = [
            requirement
            for requirement in requirements.listed(["build", "release"])
            if not requirements.is_met(requirement)
        ]
        if missing:
            raise RuntimeError(
                f"To build wheels, this interpreter ({sys.executable}) lacks: pip install {' '.join(missing)}"
            )
        interpreters = _every_python() if options.every_python else pythons.chosen(options.python or [sys.executable])
        nvcc = choose_nvcc(options.cuda)
        print(f"CUDA compiler: {nvcc}")
        if options.dry_run:
            print(f"CPythons: {', '.join(map(str, interpreters.values()))}")
            print(f"TensorFlow: {', '.join(options.tensorflow or supported)}")
            return 0
        FOLDER.mkdir(parents=True, exist_ok=True)
        tensorflows = []
        for minor in options.tensorflow or supported:
            print(f"TensorFlow {minor}: ", end="", flush=True)
            tensorflows.append(tensorflow_wheels.fetch(minor, FOLDER / "tensorflow"))
            print(tensorflows[-1])
        wheels = [build(*one, tensorflows, nvcc, options.output.resolve()) for one in interpreters.items()]
    except (RuntimeError, ValueError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    print(wheel_contents.table(wheels))
    print(f"{len(wheels)} in {(time.monotonic() - began) / 60:.1f} minutes.")
    minors = options.tensorflow or supported
    problems = [problem for wheel in wheels for problem in wheel_contents.problems(wheel, minors)]
    print("\n".join(problems), end="\n" if problems else "")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
