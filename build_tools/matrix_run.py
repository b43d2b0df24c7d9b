"""Runs one cell of the matrix: an environment, the wheel, its checks, the fast tests."""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree
from dataclasses import asdict
from pathlib import Path
from typing import Any

import requirements
from matrix_cells import NEWEST, ROOT, Cell, package_version

RESULTS = ROOT / "build" / "matrix"

# What the tests read of a clone, beside the package; and those that judge the clone itself, which no wheel changes.
TEST_FOLDERS = ("tests", "examples", "benchmarks", "build_tools", "cc", "docs")
OF_THE_CLONE = ("build", "docs", "loss_plan", "matrix", "release", "sdist", "wheels")
COMPILED = "tests/test_core.py::test_the_core_compiles_without_any_framework"

_VERSIONS = """
import json, lsoftmax_op, platform
from importlib.metadata import distributions
versions = {one.metadata["Name"].lower().replace("_", "-"): one.version for one in distributions()}
names = {name: versions.get(name) or versions[name + "-cpu"] for name in ("tensorflow", "keras", "numpy")}
print(json.dumps({"python": platform.python_version(), "package": lsoftmax_op.__file__, **names}))
"""


class CellError(Exception):
    """A command of a cell failed."""


class Run:
    """One cell: its folder, its log, its results."""

    def __init__(self, cell: Cell, executable: Path, wheel: Path, options: argparse.Namespace, tested: bool) -> None:
        self.cell, self.executable, self.wheel, self.options, self.tested = cell, executable, wheel, options, tested
        self.folder = RESULTS / cell.name
        self.python = self.folder / "env" / "bin" / "python"
        self.log = RESULTS / f"{cell.name}.log"
        self.row: dict[str, Any] = {
            "cell": asdict(cell),
            **dict.fromkeys(("tensorflow", "keras", "numpy", "python", "install_s", "checks", "tests", "error")),
            "version": package_version(),
            "wheel": wheel.name,
            "sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
            "date": datetime.date.today().isoformat(),
        }

    def results(self) -> dict[str, Any]:
        """Runs the cell, and returns its row of results; what went wrong stands in "error"."""
        try:
            shutil.rmtree(self.folder, ignore_errors=True)
            (self.folder / "empty").mkdir(parents=True)
            self.log.write_text(f"{self.cell.name}: {self.wheel.name}\n")
            self._make_environment()
            self._install()
            self._check()
            if self.tested:
                self._test()
        except (CellError, OSError) as error:
            self.row["error"] = str(error)
        except Exception as error:  # the other cells go on
            self.row["error"] = f"{type(error).__name__}: {error}"
        finally:
            if not self.options.keep:
                shutil.rmtree(self.folder, ignore_errors=True)
        return self.row

    def _make_environment(self) -> None:
        wanted = [f"{self.cell.package}=={self.cell.tensorflow}.*"]
        wanted += [] if self.cell.numpy == NEWEST else [f"numpy=={self.cell.numpy}.*"]
        wanted += requirements.listed(["test"]) if self.tested else []
        uv = [sys.executable, "-m", "uv"]
        self._run("uv venv", *uv, "venv", "--quiet", "--seed", "--python", self.executable, self.folder / "env")
        self._run("uv pip install", *uv, "pip", "install", "--quiet", "--python", self.python, *wanted)

    def _install(self) -> None:
        start = time.monotonic()
        pip = (self.python, "-m", "pip", "--disable-pip-version-check", "install", "--no-index")
        self._run("pip install", *pip, self.wheel)
        self.row["install_s"] = round(time.monotonic() - start, 1)
        versions = json.loads(self._run("import lsoftmax_op", self.python, "-c", _VERSIONS).splitlines()[-1])
        package = Path(versions.pop("package"))
        if not package.is_relative_to(self.folder / "env"):
            raise CellError(f"lsoftmax_op is imported from {package}, which is not in the environment of this cell")
        self.row |= versions

    def _check(self) -> None:
        self.row["checks"] = "FAILED"
        report = self._run("python -m lsoftmax_op", self.python, "-m", "lsoftmax_op")
        for check in ("eager", "tf.function", "jit_compile"):
            if not re.search(rf"^  {re.escape(check)} +ok", report, re.MULTILINE):
                raise CellError(f"python -m lsoftmax_op did not check {check}, so the op library does not fit")
        self.row["checks"] = "passed"

    def _test(self) -> None:
        copied = shutil.ignore_patterns("__pycache__", ".*", "results", *(f"test_{name}.py" for name in OF_THE_CLONE))
        clone = self.folder / "clone"
        for name in TEST_FOLDERS:
            shutil.copytree(ROOT / name, clone / name, ignore=copied)
        for path in ROOT.iterdir():
            if path.is_file() and not path.name.startswith("."):
                shutil.copy(path, clone)
        report = self.folder / "tests.xml"
        workers = max(1, (os.cpu_count() or 1) // self.options.jobs)
        select = ["-m", "not slow and not long", "-n", workers, "--dist", "loadfile", "--deselect", COMPILED]
        command = [self.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *select, f"--junitxml={report}"]
        try:
            self._run("pytest", *command, cwd=clone)
        finally:
            self.row["tests"] = counts(report)

    def _run(self, step: str, *command: object, cwd: Path | None = None) -> str:
        """Runs a command, in an empty folder if in no other, and returns what it printed; the log has everything."""
        cwd = cwd or self.folder / "empty"
        words = list(map(str, command))
        with self.log.open("a") as log:
            log.write(f"\n$ cd {shlex.quote(str(cwd))} && {shlex.join(words)}\n")
        begin = self.log.stat().st_size
        with self.log.open("a") as log:  # as it comes, for whoever reads along
            done = subprocess.run(words, cwd=cwd, env=environment(), stdout=log, stderr=log, check=False)
        with self.log.open("rb") as log:
            log.seek(begin)
            said = log.read().decode(errors="replace")
        if done.returncode != 0:
            named = re.search(r"^.*\bFAILED[: ].*$", said, re.MULTILINE)  # a check of ours, or a test
            what = named.group() if named else (said.strip() or "it said nothing").splitlines()[-1]
            raise CellError(f"{step} ended with {done.returncode}: {what.strip()}")
        return said


def counts(report: Path) -> dict[str, int] | None:
    """Returns how many tests passed, failed and were skipped, of pytest's JUnit report; None of none, or half a one."""
    try:
        suites = xml.etree.ElementTree.parse(report).getroot().iter("testsuite")
    except (FileNotFoundError, xml.etree.ElementTree.ParseError):
        return None
    total = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
    for suite in suites:
        for name in total:
            total[name] += int(suite.get(name, 0))
    failed = total["failures"] + total["errors"]
    return {"passed": total["tests"] - failed - total["skipped"], "failed": failed, "skipped": total["skipped"]}


def environment() -> dict[str, str]:
    """Returns this process's environment without what would lead Python, or the package, elsewhere."""
    ours = ("PYTHON", "LSOFTMAX_", "VIRTUAL_ENV", "PYTEST_")
    return {k: v for k, v in os.environ.items() if not k.startswith(ours)} | {"TF_CPP_MIN_LOG_LEVEL": "3"}
