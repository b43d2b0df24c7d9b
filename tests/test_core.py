"""The house's rules, checked: the core includes no framework, and every dtype survives a round trip."""

import re
import shutil
import subprocess

import ml_dtypes
import numpy as np
import pytest
from support import ROOT, call_of, run_python

from lsoftmax_op import _checks, _core


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
@pytest.mark.parametrize("file", sorted((ROOT / "cc" / "core").iterdir()), ids=lambda file: file.name)
def test_the_core_compiles_without_any_framework(file):
    command = ["c++", "-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", "-x", "c++"]
    command += ["-Wno-unused-function", "-Wno-pragma-once-outside-header"]
    options = ["-DLSOFTMAX_VARIANT=alone", f"-I{ROOT / 'cc'}", str(file)]
    finished = subprocess.run(command + options, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


@pytest.fixture(params=["_core", "_cuda_on_cpu"])
def kernels(request):
    return pytest.importorskip(f"lsoftmax_op.{request.param}", reason="built without LSOFTMAX_TESTING=ON")


@pytest.mark.parametrize("shift", [0, 1, 130, 1030, 12345])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_halves_round_as_numpy_rounds(kernels, dtype, shift):
    """Every half through widening and narrowing, and sums of two of them, near and far, through rounding."""
    every = np.arange(65536, dtype=np.uint16).view(dtype)
    every = every[np.isfinite(every.astype(np.float32))]
    gradient = every[:, None].copy()
    # features_grad += 0 w + 2 (1/2) x, with x as the other addend: gradient = round(gradient + x).
    features = np.roll(every, shift)[:, None].copy()
    with np.errstate(over="ignore"):
        expected = (gradient.astype(np.float32) + features.astype(np.float32)).astype(dtype)
    rows = len(every)
    geometry_grad = np.zeros((3, rows))
    geometry_grad[1] = 0.5
    weights, labels = np.ones((1, 1), dtype), np.zeros(rows, np.int32)
    call = call_of(
        kernels,
        gradient.dtype.name,
        features_grad=gradient,
        features=features,
        weights=weights,
        labels=labels,
        geometry_grad=geometry_grad,
    )
    call.rows, call.depth, call.classes = rows, 1, 1
    kernels.features_grad(call, 1)
    np.testing.assert_array_equal(gradient.astype(np.float32), expected.astype(np.float32))


def test_a_cosine_that_rounding_carried_past_a_pole_is_clamped(kernels):
    past = 1 + 1e-15
    geometry = np.array([[past, -past, 0.5, np.nan], [1, 1, 1, 1], [1, 1, 1, 1]])
    labels = np.array([0, 0, -1, 0], np.int64)
    cos_theta, segment = np.empty(4), np.empty(4, np.int32)
    call = call_of(kernels, "float64", margin=4, geometry=geometry, labels=labels, cos_theta=cos_theta, segment=segment)
    call.rows, call.wide_labels = 4, True
    kernels.angles(call, 1)
    np.testing.assert_array_equal(cos_theta, [1, -1, np.nan, np.nan])
    np.testing.assert_array_equal(segment, [0, 3, -1, 0])


def geometry_of(where, rows=3000, depth=64, classes=50):
    """[3, N] of a batch that is worth several threads."""
    rng = np.random.default_rng(0)
    features, weights = rng.normal(size=(rows, depth)), rng.normal(size=(depth, classes))
    labels, geometry = rng.integers(0, classes, rows), np.full((3, rows), np.nan)
    call = call_of(_core, "float64", features=features, weights=weights, labels=labels, geometry=geometry)
    call.rows, call.depth, call.classes, call.wide_labels = rows, depth, classes, True
    _core.geometry(call, where)
    np.testing.assert_allclose(geometry[0], (features * weights.T[labels]).sum(1), atol=1e-12)
    return geometry


@pytest.mark.parametrize("threads", [2, 3, 1000])
def test_threads_share_a_batch(threads):
    expected = geometry_of(1).tobytes()
    for _ in range(20):
        assert geometry_of(threads).tobytes() == expected


def test_where_the_system_gives_no_threads_the_caller_does_all():
    code = """
import resource, threading
import numpy as np
from lsoftmax_op import arrays
rng = np.random.default_rng(0)
features, weights, labels = rng.normal(size=(3000, 64)), rng.normal(size=(64, 5)), rng.integers(0, 5, 3000)
expected = arrays.logits(features, weights, labels, num_threads=1)
room = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + 2**20  # for no thread's stack
resource.setrlimit(resource.RLIMIT_AS, (room, room))
try:
    threading.Thread(target=print).start()
except RuntimeError:
    pass
else:
    raise AssertionError("the system gave a thread")
assert arrays.logits(features, weights, labels, num_threads=3).tobytes() == expected.tobytes()
"""
    run_python(code, LD_PRELOAD="")  # a sanitizer would want room, too


def test_the_largest_margin_is_one_number():
    assert _core.max_margin == _checks.MAX_MARGIN


def test_the_list_of_kernels_is_whole():
    """What the bindings are made of, beside the declarations."""
    names = ("arguments", "rows", "loss", "columns")
    arguments, *contracts = ((ROOT / "cc" / "core" / f"{name}.h").read_text() for name in names)
    listed = re.findall(r"X\((\w+)\)", arguments.split("define LSOFTMAX_FOR_EACH_KERNEL(X)")[1].split("\n\n")[0])
    several, of_weights_grad = {"geometry_and_loss", "gradients"}, {"take_off_radial"}
    found = set(re.findall(r"void \(\*(\w+)\)\(const Arguments", "".join(contracts)))
    assert set(listed) - several == found - of_weights_grad
