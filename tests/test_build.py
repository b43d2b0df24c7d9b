"""Building in the clone itself, and `make gpu`, which does that on a machine with nothing of ours."""

import fnmatch
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata

import pytest
from support import ROOT

PARTS = ("CMakeLists.txt", "README.md", "LICENSE", "setup.py", "pyproject.toml", "build_tools", "cc", "lsoftmax_op")


@pytest.fixture
def clone(tmp_path):
    """A copy of what a build needs, without anything that was built."""
    built = shutil.ignore_patterns("*.so", "tf-*", "_build_info.json", "reference.c", "__pycache__")
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, tmp_path / part, ignore=built)
        else:
            shutil.copy(ROOT / part, tmp_path / part)
    return tmp_path


def run(*command, cwd, **environment):
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, **environment}
    environment.pop("PYTHONPATH", None)
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.long
def test_a_build_in_place_leaves_every_part_in_the_package(clone):
    for tool in ("setuptools", "Cython", "pybind11"):
        pytest.importorskip(tool)
    stale = clone / "lsoftmax_op" / "tf-2.17" / "_lsoftmax_ops.so"
    stale.parent.mkdir()
    stale.touch()
    options = {"LSOFTMAX_TF": "OFF", "LSOFTMAX_CUDA": "OFF", "LSOFTMAX_TESTING": "OFF"}
    # --debug, as compiling without optimising is the faster.
    built = run(sys.executable, "setup.py", "--quiet", "build_ext", "--inplace", "--debug", cwd=clone, **options)
    assert built.returncode == 0, built.stderr[-3000:]
    parts = {path.name.partition(".")[0] for path in (clone / "lsoftmax_op").glob("*.so")}
    assert parts == {"_core", "_lsoftmax_core", "reference"}
    assert (clone / "lsoftmax_op" / "_build_info.json").exists()
    assert not stale.exists()
    assert not list((clone / "build").glob("lib*/**/_core*"))
    code = "import lsoftmax_op, lsoftmax_op.__main__ as m; print(lsoftmax_op.__file__); m.main()"
    checked = run(sys.executable, "-c", code, cwd=clone).stdout
    assert checked.startswith(str(clone))
    assert "built with LSOFTMAX_TF=OFF" in checked
    assert checked.endswith("All checks passed.\n")


def test_what_a_build_removes_of_an_earlier_one(tmp_path, monkeypatch):
    pytest.importorskip("setuptools")
    monkeypatch.syspath_prepend(ROOT / "build_tools")
    import cmake_build

    stale = {"_lsoftmax_core.so", f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}", "tf-2.17/_lsoftmax_ops.so"}
    others = {"_cuda.cpython-399-x86_64-linux-gnu.so", "tf-2.17/a folder/a file"}
    for name in stale | others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    cmake_build.remove_stale(tmp_path)
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == others


def test_the_reason_why_there_is_no_xla_goes_into_json(tmp_path):
    if shutil.which("cmake") is None:
        pytest.skip("no cmake")
    tools = ROOT / "build_tools" / "cmake"
    program = f"""include("{tools}/Json.cmake")
lsoftmax_json(build_info_xla "$ENV{{REASON}}")
set(build_info_xla_calls false)
configure_file("{tools}/ops_build_info.json.in" _build_info.json @ONLY)
"""
    (tmp_path / "a.cmake").write_text(program)
    run("cmake", "-P", "a.cmake", cwd=tmp_path, REASON='no "a\\b.h";\n[1] here')
    assert json.loads((tmp_path / "_build_info.json").read_text())["xla"] == 'no "a\\b.h"; [1] here'


def script(path, text):
    """Writes a program for the shell."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


# Builds that fail: what stands in for the compiler, and how the last line opens.
FAILING = {
    "none": (None, "error: No C++ compiler was found. Install one"),
    "a wrong name": (
        "no-such-compiler",
        "error: The C++ compiler no-such-compiler, which the environment variable CXX names",
    ),
    "too old": (
        'exec g++ -U__GNUC__ -D__GNUC__=8 "$@"',
        "error: The C++ compiler is too old: expected GCC 9 or Clang 11 or later, got GNU 8.",
    ),
    "not whole": ("echo cannot find crt1.o; exit 1", "error: The C++ compiler * does not compile an empty program"),
    "out of memory": (
        'case "$*" in */cc/*) ulimit -v 150000;; esac; exec g++ "$@"',
        "error: The memory did not suffice: a compiler takes up to",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("compiler", "last"), FAILING.values(), ids=FAILING)
def test_a_build_that_fails_says_last_what_to_do(clone, compiler, last):
    pytest.importorskip("Cython")
    environment = {"LSOFTMAX_TF": "OFF", "LSOFTMAX_CUDA": "OFF"}
    if compiler is None:
        # The build's own tools, and nothing else.
        tools = clone / "tools"
        tools.mkdir()
        for tool in ("cmake", "ninja"):
            found = shutil.which(tool, path=f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}")
            if found is None:
                pytest.skip(f"no {tool}")
            (tools / tool).symlink_to(found)
        environment["PATH"] = str(tools)
    else:
        environment["CXX"] = script(clone / "fake" / "g++", compiler) if " " in compiler else compiler
    built = run(sys.executable, "setup.py", "build_ext", cwd=clone, **environment)
    assert built.returncode == 1
    assert fnmatch.fnmatch(built.stderr.splitlines()[-1], f"{last}*"), (built.stdout + built.stderr)[-3000:]


# What stands in for the programs that only a machine with a GPU has, or that would take long.
SMI = """#!/bin/sh
case "$*" in *compute_cap*) printf "9.0\\n9.0\\n";; *) echo "NVIDIA H100 80GB HBM3, 580.159, 81559 MiB";; esac
"""
PYTHON = """#!/bin/sh
case "$*" in
*requirements.py*) ;;
*setup.py*) echo "$LSOFTMAX_CUDA $LSOFTMAX_CUDA_ARCHITECTURES" >asked && touch lsoftmax_op/_core.so;;
*test_gpu.py*) TESTS;;
*pytest*) echo "7 passed in 1.00s";;
*benchmarks*) echo "a table";;
*) echo "All checks passed.";;
esac
"""


def make_gpu(clone, python):
    """Runs `make gpu`, with stand-ins."""
    folder = clone / "stubs"
    folder.mkdir()
    tools = {
        "nvidia-smi": SMI,
        "python3": python,
        "compute-sanitizer": "#!/bin/sh\necho clean\n",
    }
    for name, text in tools.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"
    return subprocess.run(
        ["build_tools/gpu.sh"], cwd=clone, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("tests", "status", "last"),
    [
        ('echo "5 passed in 1.00s"', 0, "All checks passed."),
        (
            'echo "FAILED tests/test_gpu.py::test_one - assert 1 == 2" && echo "1 failed, 4 passed" && exit 1',
            1,
            "FAILED",
        ),
    ],
)
def test_make_gpu_ends_in_one_page(clone, tests, status, last):
    finished = make_gpu(clone, PYTHON.replace("TESTS", tests))
    assert finished.returncode == status, finished.stderr
    assert (clone / "asked").read_text() == "ON 90\n"
    page = (clone / "build" / "gpu.txt").read_text()
    assert page == finished.stdout
    for text in ("NVIDIA H100", "7 passed", "a table", "4 passed" if status else "5 passed"):
        assert text in page
    assert ("FAILED tests/test_gpu.py::test_one" in page) == bool(status)
    assert last in page.splitlines()[-1]
    assert "7 passed" in (clone / "build" / "gpu.log").read_text()


def test_make_gpu_ends_where_it_cannot_know_what_is_missing(clone):
    finished = make_gpu(clone, PYTHON.replace("*requirements.py*)", "*requirements.py*) exit 3"))
    assert finished.returncode == 3
    assert not (clone / "asked").exists()


def test_what_is_missing_to_build_is_named(clone):
    text = (clone / "pyproject.toml").read_text()
    numpy = metadata.version("numpy")
    for name, wanted in (("old", f"numpy<{numpy}"), ("here", f"numpy=={numpy}"), ("none", "no-such-package>=1")):
        text = text.replace(
            "[project.optional-dependencies]", f'[project.optional-dependencies]\n{name} = ["{wanted}"]'
        )
    (clone / "pyproject.toml").write_text(text)
    asked = run(sys.executable, "build_tools/requirements.py", "--missing", "old", "here", "none", cwd=clone)
    assert asked.stdout.split() == [f"numpy<{numpy}", "no-such-package>=1"], asked.stderr
