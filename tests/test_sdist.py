"""The source distribution: all that is in git, and nothing that was built."""

import shutil
import subprocess
import sys
import tarfile

import pytest
from support import ROOT

# What is about git and its hosts alone.
LEFT_OUT = (".gitignore", ".ci/", ".github/")

# What lies about in a folder that is worked in.
BUILT = (
    "lsoftmax_op/_core.cpython-311-x86_64-linux-gnu.so",
    "lsoftmax_op/_build_info.json",
    "lsoftmax_op/tf-2.21/_lsoftmax_ops.so",
    "lsoftmax_op/tf-2.21/_build_info.json",
    "lsoftmax_op/reference.c",
    "cc/core/__pycache__/rows.cpython-311.pyc",
    "benchmarks/results/a.json",
    "build/CMakeCache.txt",
    "dist/old.tar.gz",
    ".venv/built",
)


def test_an_older_archive_makes_room(tmp_path):
    if shutil.which("make") is None:
        pytest.skip("no make")
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\ncase "$*" in *build*--sdist*) touch dist/lsoftmax_op-2.0.tar.gz;; esac\n')
    python.chmod(0o755)
    (tmp_path / "venv" / "ready").touch()
    (tmp_path / "dist").mkdir()
    for name in ("lsoftmax_op-1.0.tar.gz", "another-1.0.tar.gz"):
        (tmp_path / "dist" / name).touch()
    subprocess.run(["make", "sdist", "VENV=venv"], cwd=tmp_path, capture_output=True, check=True)
    assert sorted(path.name for path in (tmp_path / "dist").iterdir()) == [
        "another-1.0.tar.gz",
        "lsoftmax_op-2.0.tar.gz",
    ]


@pytest.fixture
def tracked():
    """The paths of the files in git."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a clone of the repository")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for path in listed.split("\0") if path and (ROOT / path).exists()]


def test_it_holds_what_git_holds_and_nothing_that_was_built(tracked, tmp_path):
    pytest.importorskip("setuptools")
    pytest.importorskip("Cython")
    clone = tmp_path / "clone"
    for path in tracked:
        (clone / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, clone / path)
    for path in BUILT:
        (clone / path).parent.mkdir(parents=True, exist_ok=True)
        (clone / path).write_text("")
    made = subprocess.run(
        [sys.executable, "setup.py", "--quiet", "sdist", "--dist-dir", str(tmp_path)],
        cwd=clone,
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    (archive,) = tmp_path.glob("lsoftmax_op-*.tar.gz")
    with tarfile.open(archive) as files:
        held = {member.name.partition("/")[2] for member in files if member.isfile()}
    # setuptools' own.
    held = {path for path in held if path not in ("PKG-INFO", "setup.cfg") and ".egg-info/" not in path}
    assert held == {path for path in tracked if not path.startswith(LEFT_OUT)}
