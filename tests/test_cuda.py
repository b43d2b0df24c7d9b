"""The CUDA kernels: what the layer's own tests (test_layer.py) do not ask of them.

They run through cc/cuda/testing on every machine; what needs a real GPU is in test_gpu.py.
"""

import json
import shutil
import subprocess
from unittest import mock

import numpy as np
import pytest
from conftest import CudaOnCpu
from support import PACKAGE, ROOT, random_batch

from lsoftmax_op import arrays
from lsoftmax_op._libraries import NumPy

kernels = pytest.importorskip("lsoftmax_op._cuda_on_cpu", reason="built without LSOFTMAX_TESTING=ON")


@pytest.fixture(autouse=True)
def _on_cuda():
    with mock.patch.object(arrays, "library_of", return_value=CudaOnCpu()):
        yield


def skewed_batch(rows, depth, classes, dtype="float32"):
    """Classes of every size: one holds half of the rows, and some rows have none."""
    batch = random_batch((rows, depth, classes), dtype, seed=1)
    batch.labels[::2] = classes // 2
    return batch


def on_the_cpu(batch):
    with mock.patch.object(arrays, "library_of", return_value=NumPy()):
        return arrays.logits_grad(batch.grad, *batch.layer)


# Around the edges of warps (32), chunks (32), blocks (8 warps, 256 threads) and sorted tiles (1024).
@pytest.mark.parametrize("rows", [1, 2, 31, 32, 33, 255, 257, 1023, 1024, 1025, 2048, 5000])
@pytest.mark.parametrize("classes", [1, 3, 900])
def test_every_number_of_rows_and_classes(rows, classes):
    batch = skewed_batch(rows, 3, classes, "float64")
    batch.weights[:] += 0.1
    for got, expected in zip(arrays.logits_grad(batch.grad, *batch.layer), on_the_cpu(batch), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e-11)


# Around the width of a vector (16 bytes) and of a warp's step.
@pytest.mark.parametrize("depth", [1, 4, 8, 31, 32, 64, 127, 128, 260, 513])
def test_every_depth(dtype, depth):
    batch = skewed_batch(70, depth, 5, dtype)
    tolerance = {"float64": 1e-11, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}[dtype]
    for got, expected in zip(arrays.logits_grad(batch.grad, *batch.layer), on_the_cpu(batch), strict=True):
        expected = np.asarray(expected, np.float64)
        np.testing.assert_allclose(np.asarray(got, np.float64), expected, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("order", ["reverse", "1", "2", "3"])
def test_threads_in_any_order_give_the_same_bits(monkeypatch, dtype, order):
    batch = skewed_batch(1100, 9, 7, dtype)
    first = (arrays.logits(*batch.layer), *arrays.logits_grad(batch.grad, *batch.layer))
    monkeypatch.setenv("CUDA_ON_CPU_ORDER", order)
    second = (arrays.logits(*batch.layer), *arrays.logits_grad(batch.grad, *batch.layer))
    for a, b in zip(first, second, strict=True):
        assert a.tobytes() == b.tobytes()


def test_rows_that_are_not_aligned():
    batch = skewed_batch(40, 16, 5)
    expected = arrays.logits_grad(batch.grad, *batch.layer)
    shifted = np.empty(40 * 16 + 1, np.float32)[1:].reshape(40, 16)
    shifted[:] = batch.features
    assert shifted.ctypes.data % 16 != 0
    batch.features = shifted
    for got, want in zip(arrays.logits_grad(batch.grad, *batch.layer), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("label", [-2, 7, np.iinfo(np.int64).max, np.iinfo(np.int64).min], ids=str)
def test_a_label_out_of_range_makes_its_row_nan(label):
    batch = random_batch((13, 33, 7), "float32")
    clean = arrays.logits(*batch.layer)
    batch.labels[5] = label
    others = np.arange(13) != 5
    logits = arrays.logits(*batch.layer)
    assert np.isnan(logits[5]).all()
    np.testing.assert_array_equal(logits[others], clean[others])
    gradients = arrays.logits_grad(batch.grad, *batch.layer)
    assert np.isnan(gradients.features[5]).all()
    assert np.isfinite(gradients.features[others]).all()


@pytest.mark.parametrize("lam", [-1.0, np.nan, -np.inf], ids=str)
def test_a_bad_lambda_in_device_memory_makes_every_row_nan(lam):
    batch = random_batch((13, 33, 7), "float32")
    lam = np.array(lam, np.float32)
    assert np.isnan(arrays.logits(*batch.layer, lam=lam)).all()
    assert np.isnan(arrays.logits_grad(batch.grad, *batch.layer, lam=lam).features).all()


def test_matrices_of_more_than_two_to_the_31_entries():
    """Entries are touched at both ends alone, so that the pages between are never made."""
    rows, depth, classes = 3, 3, 2**30
    labels = np.array([0, 1, classes - 1])
    features = np.full((rows, depth), 0.5, np.float16)
    weights, grad = np.zeros((depth, classes), np.float16), np.zeros((rows, classes), np.float16)
    weights[:, labels] = [[1, 2, -3]] * 3
    small = weights[:, labels].copy()
    logits, weights_grad = np.zeros((rows, classes), np.float16), np.zeros((depth, classes), np.float16)
    features_grad, geometry, geometry_grad = np.zeros_like(features), np.empty((3, rows)), np.empty((3, rows))
    grad[np.arange(rows), labels] = [1, 2, 3]
    workspace, lam = np.empty(kernels.weights_grad_workspace(rows, depth), np.uint8), np.zeros(())
    call = kernels.Call()
    call.dtype, call.margin, call.wide_labels = "float16", 4, True
    call.rows, call.depth, call.classes = rows, depth, classes
    for name, array in {
        "features": features,
        "weights": weights,
        "labels": labels,
        "lam": lam,
        "geometry": geometry,
        "geometry_grad": geometry_grad,
        "logits": logits,
        "logits_grad": grad,
        "features_grad": features_grad,
        "weights_grad": weights_grad,
        "workspace": workspace,
    }.items():
        setattr(call, name, array.ctypes.data)
    for kernel in ("geometry", "logits", "logits_grad", "features_grad", "weights_grad"):
        getattr(kernels, kernel)(call, 0)

    own = np.arange(rows)
    expected = arrays.logits(features, small, own)
    np.testing.assert_array_equal(logits[own, labels], expected[own, own])
    np.testing.assert_array_equal(grad[own, labels], 0)
    # The products' shares are 0 here: what is left is the margin's own.
    expected = arrays.logits_grad(np.diag([1, 2, 3]).astype(np.float16), features, small, own)
    np.testing.assert_allclose(features_grad, expected.features, rtol=2e-3)
    np.testing.assert_allclose(weights_grad[:, labels], expected.weights, rtol=2e-3)


def run_kernel(tmp_path, kernel):
    """Compiles a kernel over cc/cuda/testing and runs it on two blocks of 64 threads."""
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    (tmp_path / "main.cc").write_text(
        "#include <cuda_runtime.h>\n#include <stdio.h>\n"
        f"__global__ void kernel(int* out) {{ {kernel} }}\n"
        "int main() {\n"
        "  int out[128] = {};\n"
        "  cudaLaunchConfig_t config = {}; config.gridDim = dim3(2); config.blockDim = dim3(64);\n"
        "  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, out);\n"
        '  printf("[[%d], [", error);\n'
        '  for (int n = 0; n < 128; ++n) printf(n ? ", %d" : "%d", out[n]);\n'
        '  printf("]]");\n}\n'
    )
    command = ["c++", "-std=c++17", "-fsanitize=undefined", f"-I{ROOT / 'cc/cuda/testing'}", "main.cc", "-o", "main"]
    subprocess.run(command, cwd=tmp_path, check=True)
    run = subprocess.run(["./main"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    (error,), out = json.loads(run.stdout)
    return error, np.array(out)


def test_threads_of_the_emulator_meet_at_barriers_and_in_shuffles(tmp_path):
    error, out = run_kernel(
        tmp_path,
        """
        __shared__ int shared[64];
        const int t = threadIdx.x;
        shared[t] = t;
        __syncthreads();
        const int other = shared[63 - t];
        out[blockIdx.x * 64 + t] = __shfl_xor_sync(0xffffffffu, other, 1) + 1000 * blockIdx.x;
        """,
    )
    t = np.arange(64)
    assert error == 0
    np.testing.assert_array_equal(out, np.concatenate([63 - (t ^ 1), 1063 - (t ^ 1)]))


def test_a_barrier_that_some_threads_never_reach_is_an_error(tmp_path):
    error, _ = run_kernel(
        tmp_path,
        "out[0] = __shfl_xor_sync(0xffffffffu, 1, threadIdx.x < 3 ? 1 : 0); if (threadIdx.x == 5) { __syncwarp(); }",
    )
    assert error == 719


def test_cuda_and_core_include_no_framework():
    for file in [*(ROOT / "cc/cuda").glob("*.*"), *(ROOT / "cc/core").glob("*.*")]:
        text = file.read_text()
        assert not any(f'include "{name}' in text for name in ("tensorflow", "Eigen", "pybind11", "xla", "tf/"))
    assert "cuda" not in [
        line.split("/")[0] for line in (ROOT / "cc/cuda/kernels.h").read_text().split("#include <")[1:]
    ]


def test_tensorflow_has_a_gpu_kernel_of_every_op():
    pytest.importorskip("tensorflow")
    from tensorflow.python.framework import kernels as registered

    import lsoftmax_op

    assert lsoftmax_op.lsoftmax_logits
    built = json.loads((PACKAGE / "_build_info.json").read_text())["cuda"] is not None
    for op in ("TargetGeometry", "Logits", "LogitsGrad", "FeaturesGrad", "WeightsGrad", "TargetAngles"):
        found = registered.get_registered_kernels_for_op(f"Lsoftmax{op}").kernel
        devices = [kernel.device_type for kernel in found]
        assert devices.count("GPU") == (devices.count("CPU") if built else 0)
        assert not any(kernel.host_memory_arg for kernel in found)
