"""XLA's calls of the CUDA kernels: on machines without a GPU, and how their libraries hang together."""

import os
import subprocess
import sys

import pytest
from support import PACKAGE, ROOT, XLA_CALLS_ARE_CUDA, XLA_CUDA_ON_CPU, run_python

import lsoftmax_op

# Files of tests of XLA: what in them compiles. Not those of formulas, which call nobody, nor those of numbers alone,
# which the kernels' own tests have: here it is how they are called.
QUICK = ("test_xla.py", "test_xla_margins.py", "test_raw_ops.py")
LONG = ("test_xla_calls.py", "test_class_range.py", "test_class_major.py")
CALLING = "(xla or raw_ops) and not (formulas or every_angle or every_lambda or numerically or several_threads)"


@pytest.mark.slow
@pytest.mark.skipif(XLA_CALLS_ARE_CUDA, reason="this is that process")
@pytest.mark.parametrize("files", [QUICK, pytest.param(LONG, marks=pytest.mark.long)], ids=["quick", "long"])
def test_the_handlers_of_the_gpu(files):
    """The tests of XLA in a process whose XLA makes on the CPU the calls that it makes on a GPU.

    What it makes of the rest need not be fast: the kernels are ours, and compiled beforehand.
    """
    if not any(PACKAGE.glob(f"tf-*/{XLA_CUDA_ON_CPU}")):
        pytest.skip("built without LSOFTMAX_TESTING=ON, or this TensorFlow came without what custom calls are made of")
    paths = [f"tests/{file}" for file in files]
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", CALLING, *paths],
        env={
            **os.environ,
            "LSOFTMAX_TEST_XLA": "cuda-on-cpu",
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0",
        },
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert finished.returncode == 0, finished.stdout[-3000:]
    assert " passed" in finished.stdout


LIBRARIES = [str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.so")]
built_with_cuda = pytest.mark.skipif(lsoftmax_op.build_info()["cuda"] is None, reason="built without CUDA")


def symbols(name):
    """What a library gives to others and what it takes from them."""
    told = subprocess.run(["nm", "-D", PACKAGE / name], capture_output=True, text=True, check=True).stdout
    given, taken = set(), set()
    for line in told.splitlines():
        *_, kind, symbol = line.split()
        (taken if kind in "Uwv" else given).add(symbol.split("@")[0])
    return given, taken


@built_with_cuda
@pytest.mark.parametrize("name", LIBRARIES)
def test_cudart_is_nobody_elses(name):
    """The runtime of the compiler is in _lsoftmax_cuda.so alone; nobody takes it from TensorFlow, or gives it away."""
    given, taken = symbols(name)
    assert not [symbol for symbol in given | taken if symbol.lstrip("_").startswith("cuda")]
    if name == "_lsoftmax_cuda.so":
        version = "LSOFTMAX_" + lsoftmax_op.build_info()["version"].replace(".", "_")  # so that two builds do not mix
        assert version in given
        assert len(given) > 1
        assert all(symbol.startswith("_ZN8lsoftmax4cuda") for symbol in given - {version})


@built_with_cuda
def test_the_machine_code_is_there_once():
    def sections(name):
        return subprocess.run(["readelf", "-SW", PACKAGE / name], capture_output=True, text=True, check=True).stdout

    assert [name for name in LIBRARIES if ".nv_fatbin" in sections(name)] == ["_lsoftmax_cuda.so"]


@built_with_cuda
def test_the_libraries_load_without_a_driver():
    pytest.importorskip("tensorflow")
    run_python(
        """
import tensorflow
from lsoftmax_op import _cuda, library
assert library.load() and (library.load_xla() or library.build_info()["xla"] != "yes")
""",
        CUDA_VISIBLE_DEVICES="-1",
    )
