"""Calls of the loss's kernels in the CUDA code as it runs on the CPU, and programs over cc/cuda/testing."""

import json
import shutil
import subprocess

import numpy as np
import pytest
from support import DTYPES, ROOT

from lsoftmax_op import _core

kernels = pytest.importorskip("lsoftmax_op._cuda_on_cpu", reason="built without LSOFTMAX_TESTING=ON")

EPSILON = {"float64": 1e-13, "float32": 1e-6, "bfloat16": 2.0**-7, "float16": 2.0**-10}
TINY = {"float64": 1e-300, "float32": 1e-44, "bfloat16": 1e-39, "float16": 6e-8}  # half an ulp below the normal range
WIDE = {"float64": 2, "float32": 4, "bfloat16": 8, "float16": 8}
RESULTS = ("loss", "products_grad", "geometry_grad", "target_grad", "grad_unit", "predicted")


def run(module, names, state, **sizes):
    """Runs kernels over the arrays of `state`, a dictionary, and its `sizes`; a workspace comes full of NaNs."""
    call = module.Call()
    call.dtype, call.margin = state["products"].dtype.name, 4
    call.rows, call.classes = state["products"].shape
    call.depth = state["features"].shape[1] if "features" in state else 16
    call.wide_labels = state["labels"].dtype == np.int64
    for name, value in {**state.get("sizes", {}), **sizes}.items():
        setattr(call, name, value)
    for name, array in state.items():
        if array is not None and name != "sizes":
            assert array.flags.c_contiguous
            setattr(call, name, array.__array_interface__["data"][0])
    for name in names:
        size = getattr(module, f"{name}_workspace")(call.rows, call.depth, call.classes)
        workspace = np.full(size // 8 + 1, np.nan)
        call.workspace = workspace.ctypes.data
        getattr(module, name)(call, 1 if module is _core else 0)
    return state


def loss_state(rows, classes, dtype, *, bias=True, scale=3.0, lam=0.5):
    """Everything that `loss` and its parts read and write; some rows have no target."""
    rng = np.random.default_rng([rows, classes])
    labels = rng.integers(0, classes, rows)
    labels[: 2 * (rows > 2)] = [classes - 1, -1][: 2 * (rows > 2)]
    dot, features_sq, weights_sq = rng.normal(size=rows), 1 + rng.random(rows), 1 + rng.random(rows)
    return {
        "products": (scale * rng.normal(size=(rows, classes))).astype(DTYPES[dtype]),
        "bias": rng.normal(size=classes).astype(DTYPES[dtype]) if bias else None,
        "labels": labels.astype(np.int32 if bias else np.int64),
        "lam": np.array(lam),
        "geometry": np.stack([dot, features_sq, weights_sq]),
        "geometry_grad": np.full((3, rows), -7.0),
        "loss": np.full(rows, -7, DTYPES[dtype]),
        "loss_grad": rng.normal(size=rows).astype(DTYPES[dtype]),
        "target_grad": np.full(rows, -7.0),
        "grad_unit": np.full(rows, -7, np.float32) if dtype == "float16" else None,
        "predicted": np.full(rows, -7),
        "products_grad": np.full((rows, classes), -7, DTYPES[dtype]),
        "bias_grad": np.full(classes, -7, DTYPES[dtype]),
    }


def copied(state, *, in_place=False):
    state = {name: value if value is None else value.copy() for name, value in state.items()}
    if in_place:
        state["products_grad"] = state["products"]
    return state


def assert_close(got, expected, names=RESULTS, *, beside_row=False):
    """Each number is as near as its type allows; with terms, whose sums may cancel, beside the largest of its row."""
    kind = got["loss"].dtype
    for name in names:
        a, b = got[name], expected[name]
        if a is None:  # of other types than float16 there is no unit
            continue
        if name in ("predicted", "grad_unit"):
            np.testing.assert_array_equal(a, b, err_msg=name)
            continue
        epsilon = EPSILON[kind.name] if a.dtype == kind else min(EPSILON[kind.name], EPSILON["float32"])
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        if not beside_row:
            np.testing.assert_allclose(a, b, rtol=4 * epsilon, atol=TINY[kind.name], err_msg=name)
            continue
        finite = np.isfinite(b)
        np.testing.assert_array_equal(a[~finite], b[~finite], err_msg=name)
        a, b = np.where(finite, a, 0), np.where(finite, b, 0)
        size = np.abs(b) + {"products_grad": np.abs(b).max(axis=-1, keepdims=True), "loss": 1}.get(name, 0)
        if name == "geometry_grad":
            size = size + np.abs(b).max(axis=0)
        np.testing.assert_array_less(np.abs(a - b), 4 * epsilon * np.maximum(size, 1e-30), err_msg=name)


def bits(state, names=RESULTS):
    return [state[name].tobytes() for name in names if state[name] is not None]


def assert_loss_is_that_of_the_cpu(state, *, beside_row=False):
    expected = run(_core, ["loss"], copied(state))
    got = run(kernels, ["loss"], copied(state))
    assert_close(got, expected, beside_row=beside_row)
    assert bits(run(kernels, ["loss"], copied(state, in_place=True))) == bits(got)
    return got


def shifted(array, entries):
    """The same array, so many entries after a border of 16 bytes."""
    memory = np.empty(array.size + 32, array.dtype)
    begin = -memory.ctypes.data % 16 // array.itemsize + entries
    view = memory[begin : begin + array.size].reshape(array.shape)
    view[:] = array
    assert view.ctypes.data % 16 == entries * array.itemsize % 16
    return view


def assert_arrays_may_lie_anywhere(state, places):
    """Products, their gradient and the bias, each so many entries after a border of 16 bytes, change no result."""
    expected = run(_core, ["loss"], copied(state))
    for place in places:
        moved = copied(state)
        for name, entries in zip(("products", "products_grad", "bias"), place, strict=True):
            moved[name] = shifted(state[name], entries)
        before = moved["products"].copy()
        assert_close(run(kernels, ["loss"], moved), expected)
        assert moved["products"].tobytes() == before.tobytes()


def run_kernel(folder, kernel, include="", threads=64):
    """Compiles a kernel over cc/cuda/testing and runs it on two blocks of `threads`, or on one of one thread."""
    return run_program(compile_kernel(folder, kernel, include, threads))


def compile_kernel(folder, kernel, include="", threads=64, shared=0, cluster=1, before=""):
    """`before`: what the host does before the launch. Both may ask for the numbers that run_program is given."""
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    (folder / "main.cc").write_text(
        f"#include <cuda_runtime.h>\n#include <stdio.h>\n{include}\n"
        "static int given[8];\n"
        f"__global__ void kernel(int* out) {{ {kernel} }}\n"
        "int main(int count, char** numbers) {\n"
        "  for (int n = 1; n < count; ++n) given[n - 1] = atoi(numbers[n]);\n"
        "  int out[128] = {};\n"
        "  cudaLaunchConfig_t config = {}; "
        f"config.gridDim = dim3({min(2, threads)}); config.blockDim = dim3({threads});\n"
        f"  config.dynamicSmemBytes = {shared};\n"
        "  cudaLaunchAttribute attribute = {cudaLaunchAttributeClusterDimension, {}};\n"
        f"  attribute.val.clusterDim = {{{cluster}, 1, 1}}; config.attrs = &attribute; config.numAttrs = 1;\n"
        f"  {before}\n"
        "  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, out);\n"
        '  printf("[[%d], [", error);\n'
        '  for (int n = 0; n < 128; ++n) printf(n ? ", %d" : "%d", out[n]);\n'
        '  printf("]]");\n}\n'
    )
    command = [
        "c++",
        "-std=c++17",
        "-fsanitize=undefined",
        f"-I{ROOT / 'cc/cuda/testing'}",
        f"-I{ROOT / 'cc'}",
        "main.cc",
        "-o",
        "main",
    ]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "main"


def run_program(program, *given):
    """The error and the results of what compile_kernel made, of numbers that it asks for."""
    run = subprocess.run([program, *map(str, given)], capture_output=True, text=True, timeout=60, check=True)
    (error,), out = json.loads(run.stdout)
    return error, np.array(out)


def assert_a_bad_label_makes_its_row_nan(classes, bias, label):
    """Runs `loss` with and without a label out of range in row 3 of 5; "C" is the first that is."""
    state = loss_state(5, classes, "float32", bias=bias)
    state["labels"] = state["labels"].astype(np.int64)
    clean = run(kernels, ["loss"], copied(state))
    state["labels"][3] = classes if label == "C" else label
    bad = run(kernels, ["loss"], copied(state))
    others = np.arange(5) != 3
    for name in ("loss", "products_grad", "target_grad"):
        assert np.isnan(bad[name][3]).all()
        assert bad[name][others].tobytes() == clean[name][others].tobytes()
    assert np.isnan(bad["geometry_grad"][:, 3]).all()
    assert np.isfinite(bad["geometry_grad"][:, others]).all()
    assert 0 <= bad["predicted"][3] < classes
