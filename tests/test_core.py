"""The house's rules, checked: the core includes no framework, and every dtype survives a round trip."""

import shutil
import subprocess

import ml_dtypes
import numpy as np
import pytest
from support import ROOT

from lsoftmax_op import _core


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
@pytest.mark.parametrize("file", sorted((ROOT / "cc" / "core").iterdir()), ids=lambda file: file.name)
def test_the_core_compiles_without_any_framework(file):
    command = ["c++", "-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", "-x", "c++"]
    command += ["-Wno-unused-function", "-Wno-pragma-once-outside-header"]
    options = ["-DLSOFTMAX_VARIANT=alone", f"-I{ROOT / 'cc'}", str(file)]
    finished = subprocess.run(command + options, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_halves_round_as_numpy_rounds(dtype):
    """Every half through widening and narrowing, and sums of two of them through rounding."""
    every = np.arange(65536, dtype=np.uint16).view(dtype)
    every = every[np.isfinite(every.astype(np.float32))]
    gradient = every[:, None].copy()
    # features_grad += 0 w + 2 (1/2) x, with x as the other addend: gradient = round(gradient + x).
    features = np.roll(every, 12345)[:, None].copy()
    with np.errstate(over="ignore"):
        expected = (gradient.astype(np.float32) + features.astype(np.float32)).astype(dtype)
    rows = len(every)
    geometry_grad = np.zeros((3, rows))
    geometry_grad[1] = 0.5
    _core.features_grad(gradient, features, np.ones((1, 1), dtype), np.zeros(rows, np.int32), geometry_grad, 1)
    np.testing.assert_array_equal(gradient.astype(np.float32), expected.astype(np.float32))
