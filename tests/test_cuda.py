"""The CUDA kernels: what the layer's own tests (test_layer.py) do not ask of them.

They run through cc/cuda/testing on every machine; what needs a real GPU is in test_gpu.py.
"""

import json
from unittest import mock

import ml_dtypes
import numpy as np
import pytest
from conftest import CudaOnCpu
from cuda_support import (
    EPSILON,
    RESULTS,
    WIDE,
    assert_a_bad_label_makes_its_row_nan,
    assert_arrays_may_lie_anywhere,
    assert_close,
    assert_loss_is_that_of_the_cpu,
    bits,
    copied,
    kernels,
    loss_state,
    run,
    run_kernel,
)
from support import DTYPES, PACKAGE, RAW_OPS, ROOT, random_batch

from lsoftmax_op import _core, arrays
from lsoftmax_op._array_libraries import NumPy


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


ORDERS = ("reverse", "1", "2", "3")


def test_threads_in_any_order_give_the_same_bits(monkeypatch, dtype):
    batch = skewed_batch(1100, 9, 7, dtype)

    def all_bits():
        return [a.tobytes() for a in (arrays.logits(*batch.layer), *arrays.logits_grad(batch.grad, *batch.layer))]

    first = all_bits()
    for order in ORDERS:
        monkeypatch.setenv("CUDA_ON_CPU_ORDER", order)
        assert all_bits() == first, order


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
    workspace, lam = np.empty(kernels.weights_grad_workspace(rows, depth, classes), np.uint8), np.zeros(())
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
        "products_grad": grad,
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


SHARED = 64 << 10  # what the emulator's device has; loss_plan.h says what becomes of it
ON_CHIP = [256, (SHARED // 4 - 2560) // 16, (SHARED // 2 - 2560) // 16, (SHARED - 2560) // 16]


@pytest.mark.parametrize("vectors", [1, *ON_CHIP])
@pytest.mark.parametrize("beyond", [-7, 0, 1])
@pytest.mark.parametrize("bias", [True, False])
def test_loss_of_rows_around_what_a_warp_or_shared_memory_holds(dtype, vectors, beyond, bias):
    classes = max(1, WIDE[dtype] * (vectors - 1) + 1 + beyond)
    rows = 3 if classes <= 2**14 else 17  # rows so few would be cut in parts
    assert_loss_is_that_of_the_cpu(loss_state(rows, classes, dtype, bias=bias))


HELD = {"float64": 4, "float32": 8, "bfloat16": 4, "float16": 4}  # vectors of a row that a thread holds in registers


@pytest.mark.parametrize(("n", "threads"), list(enumerate([2, 4, 32, 64, 96, 512, 1024])))
@pytest.mark.parametrize(("m", "beyond"), list(enumerate([-7, 0, 1, 13])))
def test_loss_of_rows_around_what_registers_hold(dtype, n, threads, m, beyond):
    bias = (n + m) % 2 == 0  # each number of threads, and what is beyond, with one and without
    classes = WIDE[dtype] * HELD[dtype] * threads + beyond
    rows = 5 if classes <= 2**14 else classes // 1024 + 1  # rows so few would be cut in parts
    assert_loss_is_that_of_the_cpu(loss_state(rows, classes, dtype, bias=bias))


@pytest.mark.parametrize("classes", [2**14 + 8, 28_035, 57_091, pytest.param(115_205, marks=pytest.mark.slow)])
def test_loss_of_rows_in_a_larger_shared_memory(monkeypatch, classes):
    """As on sm_90: a row of halves in a fourth of it, a half, all of it, and one that is longer."""
    monkeypatch.setenv("CUDA_ON_CPU_SHARED", str(227 << 10))
    state = loss_state(classes // 1024 + 1, classes, "bfloat16", bias=classes % 2 == 0)
    assert_loss_is_that_of_the_cpu(state)


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 17, 63, 65, 129])
@pytest.mark.parametrize("classes", [1, 2, 3, 7, 8, 9, 33, 255, 256, 257, 300])
def test_loss_of_short_rows(rows, classes):
    for kind in ("float32", "bfloat16"):
        assert_loss_is_that_of_the_cpu(loss_state(rows, classes, kind, bias=classes % 2 == 0))


# Around the fewest classes that are cut, and around the borders of parts, wherever rows begin.
@pytest.mark.parametrize("rows", [1, 3, 17])
@pytest.mark.parametrize("classes", [16384, 16385, 17408, 17409, 24575, 24576, 24577, 24583])
def test_loss_in_parts(rows, classes):
    for kind in ("float32", "bfloat16"):
        assert_loss_is_that_of_the_cpu(loss_state(rows, classes, kind, bias=rows != 3))


def test_more_parts_than_lanes(dtype):
    assert_loss_is_that_of_the_cpu(loss_state(2, 33 * 8192 + 5, dtype))


def test_no_rows(dtype):
    state = loss_state(0, 7, dtype)
    run(kernels, ["loss", "finish", "products_grad", "bias_grad"], {**state, "normalizer": np.empty((3, 0))})
    np.testing.assert_array_equal(state["bias_grad"].astype(float), 0)


def test_the_loss_in_any_order_gives_the_same_bits(monkeypatch, dtype):
    # row per group; row per block; row in shared memory, kept whole and in part; parts
    states = [loss_state(rows, classes, dtype) for rows, classes in ((19, 70), (3, 4500), (17, 17400), (3, 20001))]
    for state in states:
        state["sums"] = np.tile([[-np.inf], [0], [-np.inf], [0], [0]], len(state["labels"]))
        state["normalizer"] = np.full((3, len(state["labels"])), -7.0)
    in_shared = loss_state(34, 34001, dtype)
    results = (*RESULTS, "sums", "normalizer", "bias_grad")

    def all_bits():
        found = [bits(run(kernels, ["loss"], copied(state))) for state in states]
        for shared in (227, 36):
            with monkeypatch.context() as larger:
                larger.setenv("CUDA_ON_CPU_SHARED", str(shared << 10))
                found.append(bits(run(kernels, ["loss"], copied(in_shared))))
        for state, last in zip(states, (["bias_grad"], [], [], []), strict=True):  # of many classes it takes its time
            found.append(bits(run(kernels, ["sums", "finish", "products_grad", *last], copied(state)), results))
        return found

    first = all_bits()
    for order in ORDERS:
        monkeypatch.setenv("CUDA_ON_CPU_ORDER", order)
        assert all_bits() == first, order


@pytest.mark.parametrize("classes", [64, 1100, 20000])
def test_rows_and_biases_anywhere_in_memory(dtype, classes):
    assert_arrays_may_lie_anywhere(loss_state(3, classes, dtype), ((1, 1, 0), (1, 1, 1), (0, 1, 0), (3, 0, 2)))


@pytest.mark.parametrize("classes", [7, 2000, 17000])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("label", [-2, "C", np.iinfo(np.int64).max, np.iinfo(np.int64).min], ids=str)
def test_a_label_out_of_range_makes_its_rows_loss_nan(classes, bias, label):
    assert_a_bad_label_makes_its_row_nan(classes, bias, label)


@pytest.mark.parametrize("classes", [7, 2000, 17000])
@pytest.mark.parametrize("lam", [-1.0, np.nan, -np.inf], ids=str)
def test_a_bad_lambda_in_device_memory_makes_every_loss_nan(classes, lam):
    state = run(kernels, ["loss"], loss_state(5, classes, "float32", lam=lam))
    for name in ("loss", "products_grad", "target_grad", "geometry_grad"):
        assert np.isnan(state[name]).all()
    assert ((state["predicted"] >= 0) & (state["predicted"] < classes)).all()


@pytest.mark.parametrize("classes", [9, 1500, 17000])
def test_extreme_logits(dtype, classes):
    state = loss_state(16, classes, dtype, bias=False, scale=0)
    products, labels = state["products"], state["labels"]
    labels[:] = classes // 2
    labels[10] = -1
    products[0] = np.linspace(-1e4, 1e4, classes)
    products[1] = -1e4
    products[2, :] = -np.inf  # no other class
    products[3, 1:] = -np.inf
    products[4, 0] = np.inf
    products[5, -1] = np.nan
    products[6, classes // 2] = np.nan  # the target's own: its logit is t
    products[7, classes // 2] = -np.inf
    products[8] = np.nan
    products[9, :] = np.inf
    products[10, 0] = np.nan  # no target
    state["geometry"][:, 11] = [1e4, 1e8, 1]
    state["geometry"][:, 12] = [-1e4, 1e8, 1]
    state["geometry"][0, 13] = np.nan
    state["geometry"][0, 14] = np.inf
    with np.errstate(invalid="ignore"):
        expected, got = (run(module, ["loss"], copied(state)) for module in (_core, kernels))
    poisoned = np.isnan(expected["loss"].astype(float))
    assert poisoned.tolist() == [i in (4, 5, 8, 9, 13, 14) for i in range(16)]
    got["products_grad"][poisoned, classes // 2] = expected["products_grad"][poisoned, classes // 2]  # 0 or NaN
    assert ((got["predicted"] >= 0) & (got["predicted"] < classes)).all()
    got["predicted"][8] = expected["predicted"][8]  # of NaNs, any
    assert_close(got, expected)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("classes", [9, 1500, 17000])
@pytest.mark.parametrize("bias", [True, False])
def test_huge_logits(dtype, classes, bias):
    """No exponent overflows on the way, whatever is added to or subtracted from them."""
    state = loss_state(6, classes, dtype, bias=bias, scale=0)
    products, huge = state["products"], float(ml_dtypes.finfo(DTYPES[dtype]).max)
    state["labels"][:] = classes - 1
    products[0, :3] = [huge, -huge, huge]
    products[1] = -huge
    products[2], products[2, 5] = huge / 4, huge / 2
    products[3], products[3, 5] = -huge / 2, -huge / 4
    products[4], products[4, 2:4] = 1e7, 1.25e7
    products[5] = np.linspace(3e4, 4e4, classes)
    with np.errstate(over="ignore"):
        expected, got = (run(module, ["loss"], copied(state)) for module in (_core, kernels))
    assert np.isfinite(expected["products_grad"].astype(float)).all()
    assert_close(got, expected)


def test_the_exponential_of_a_gradient_in_fewer_instructions(tmp_path):
    """Beside exp in double, in units of 2^-24 of it: as exact as d = z - max itself, from |d| = 22 on; 0 at -inf."""
    body = """
      using namespace lsoftmax::cuda;
      const double scales[] = {1, 0.3, 1e-9, 1e-17, 1e-19};
      for (int n = 0; n < 5; ++n) {
        const FastSlope<float> slope({0, scales[n], 0}, -0.0);
        for (float d = 0; d > -44; d -= 0.0017f) {
          const double exact = exp(static_cast<double>(d)) * scales[n];
          const int error = static_cast<int>(fabs(slope.at(d) - exact) / exact * 0x1p24);
          int& worst = out[d > -22 ? 0 : 1];
          worst = error > worst ? error : worst;
        }
        for (float d = -60; d > -110; d -= 0.0017f) {  // below the normal range in units of its least number
          const double exact = exp(static_cast<double>(d)) * scales[n];
          const int error = static_cast<int>(fabs(slope.at(d) - exact) / (exact * 0x1p-24 + 0x1p-149));
          out[2] = error > out[2] ? error : out[2];
        }
        out[3] += slope.at(-INFINITY) != 0;
        out[4] += slope.at(NAN) == slope.at(NAN);
      }
    """
    error, out = run_kernel(tmp_path, body, '#include "cuda/packed.cuh"', threads=1)
    assert error == 0
    assert out[0] <= 4
    assert out[1] <= 44
    assert out[2] <= 60
    assert out[3] == out[4] == 0


@pytest.mark.parametrize("classes", [40, 4000, 30000, 300000])
def test_of_equal_logits_the_first_is_predicted(classes):
    """Wherever the target is among them, in whichever thread or part."""
    places = [0, 1, 5, 31, 32, classes // 3, classes // 2, classes - 2, classes - 1]
    rng = np.random.default_rng(0)
    state = loss_state(17, classes, "float32", bias=False)
    expected = []
    for row in range(17):
        tied = rng.choice(places, 3, replace=False) if row % 8 else np.array([classes - 2, classes - 1, classes - 1])
        state["products"][row, tied] = 50
        state["labels"][row] = tied[row % 3] if row % 4 or row == 8 else -1
        expected.append(tied.min())
    np.testing.assert_array_equal(run(kernels, ["loss"], state)["predicted"], expected)


@pytest.mark.parametrize("blocks", [[40], [1, 38, 1], [16, 24], [13, 13, 14], [9000, 8193, 30], [0, 5]], ids=str)
def test_blocks_of_classes(dtype, blocks):
    classes, rows = sum(blocks), 11
    state = loss_state(rows, classes, dtype)
    state["products"][4, :] = 2  # all equal
    expected = run(_core, ["loss", "bias_grad"], copied(state))
    sums, carried = np.tile([[-np.inf], [0], [-np.inf], [0], [0]], rows), np.empty((3, rows))
    on_the_cpu, first, parts = sums.copy(), 0, []
    for width in blocks:
        own = slice(first, first + width)
        part = copied(state)
        part["products"], part["bias"] = (state[n][..., own].copy() for n in ("products", "bias"))
        part["bias_grad"] = np.full(width, -7, DTYPES[dtype])
        parts.append({**part, "sums": sums, "normalizer": carried, "first_class": first})
        first += width
    for part in parts:
        first = part.pop("first_class")
        run(kernels, ["sums"], part, first_class=first)
        run(_core, ["sums"], {**part, "sums": on_the_cpu}, first_class=first)
        np.testing.assert_array_equal(sums[[0, 2, 3]], on_the_cpu[[0, 2, 3]])
        np.testing.assert_allclose(sums[1], on_the_cpu[1], rtol=1e-12 if dtype == "float64" else 4e-6)
        part["first_class"] = first
    whole = run(kernels, ["finish"], {**copied(state), "sums": sums, "normalizer": carried})
    for part in parts:
        first = part.pop("first_class")
        part.update(products_grad=part["products"], target_grad=whole["target_grad"], grad_unit=whole["grad_unit"])
        run(kernels, ["products_grad", "bias_grad"], part, first_class=first)
    for name in ("products_grad", "bias_grad"):
        whole[name] = np.concatenate([part[name] for part in parts], axis=-1)
    assert_close(whole, expected)
    scale = np.abs(expected["bias_grad"].astype(float)).max()
    for got in (whole, run(kernels, ["loss", "bias_grad"], copied(state))):
        difference = np.abs(got["bias_grad"].astype(float) - expected["bias_grad"].astype(float))
        assert difference.max() <= 8 * EPSILON[dtype] * scale


def test_finish_of_bad_rows():
    state = loss_state(6, 5, "float32")
    state["labels"][[3, 4]] = [-2, 5]
    state.update(sums=np.ones((5, 6)), normalizer=np.zeros((3, 6)))
    finished = run(kernels, ["finish", "products_grad"], copied(state))
    bad = np.isin(np.arange(6), [3, 4])
    for values in (finished["loss"], finished["products_grad"].T, finished["normalizer"], finished["target_grad"]):
        np.testing.assert_array_equal(np.isnan(values).all(axis=0) if values.ndim > 1 else np.isnan(values), bad)
    state["lam"] = np.array(-1.0)
    finished = run(kernels, ["finish", "products_grad"], copied(state))
    assert np.isnan(finished["loss"]).all()
    assert np.isnan(finished["products_grad"]).all()


@pytest.mark.parametrize("rows", [1, 31, 33, 255, 256, 257, 600])
@pytest.mark.parametrize("classes", [1, 31, 33, 70])
def test_bias_grad_of_every_shape(dtype, rows, classes):
    state = loss_state(rows, classes, dtype)
    state["products_grad"] = state["products"]
    state["target_grad"] = np.linspace(-1, 1, rows)
    for without in ({}, {"loss_grad": None}):
        given = {**copied(state), **without}
        got, expected = (run(module, ["bias_grad"], copied(given))["bias_grad"] for module in (kernels, _core))
        scale = np.abs(state["products"].astype(float)).sum(axis=0) * np.abs(state["loss_grad"].astype(float)).max() + 9
        assert (np.abs(got.astype(float) - expected.astype(float)) <= 2 * EPSILON[dtype] * scale).all()


@pytest.mark.parametrize("depth", [1, 7, 33, 64])
@pytest.mark.parametrize("with_copies", [True, False])
def test_what_comes_down_to_the_loss_and_copies_of_the_targets_weights(dtype, depth, with_copies):
    batch = skewed_batch(70, depth, 9, dtype)
    batch.labels[1:8] = -1
    state = {
        "features": batch.features,
        "weights": batch.weights,
        "labels": batch.labels,
        "products": batch.grad,
        "geometry": np.full((3, 70), -7.0),
        "geometry_grad": np.random.default_rng(0).normal(size=(3, 70)),
        "loss_grad": batch.grad[:, 0].copy(),
        "target_weights": np.full((70, depth), -7, DTYPES[dtype]) if with_copies else None,
        "features_grad": batch.features[::-1].copy(),
        "weights_grad": batch.weights[::-1].copy(),
    }
    expected = run(_core, ["geometry", "features_grad", "weights_grad"], copied(state))
    got = run(kernels, ["geometry", "features_grad", "weights_grad"], copied(state))
    if with_copies:
        assert got["target_weights"].tobytes() == expected["target_weights"].tobytes()
        assert (got["target_weights"][batch.labels < 0].astype(float) == 0).all()
        # The copies are what is read.
        for module, result in ((_core, expected), (kernels, got)):
            run(module, ["features_grad", "weights_grad"], {**result, "weights": np.full_like(batch.weights, np.nan)})
    for name in ("geometry", "features_grad", "weights_grad"):
        a, b = np.asarray(got[name], np.float64), np.asarray(expected[name], np.float64)
        assert np.isfinite(b).all()
        np.testing.assert_allclose(a, b, rtol=0, atol=2 * EPSILON[dtype] * max(1, np.abs(b).max()))


def last_blocks_of_a_large_batch(rows, classes, tail):
    """Two rows of `tail` products at the end of a batch whose other pages are never made, and the two alone."""
    small = loss_state(2, tail, "float16", bias=False)
    small["labels"][:] = [0, tail - 1]
    large = {
        name: np.zeros((*small[name].shape[:-1], rows), small[name].dtype) for name in (*RESULTS, "geometry", "labels")
    }
    large |= {name: np.zeros((rows, classes), np.float16) for name in ("products", "products_grad")}
    large["products"][-2:, -tail:] = small["products"]
    large["geometry"][:, -2:] = small["geometry"]
    large["labels"][-2:] = small["labels"] + (classes - tail)
    return {**large, "lam": small["lam"]}, small


def test_the_loss_of_more_than_two_to_the_31_products(monkeypatch):
    """A row per block; the last two blocks run."""
    large, small = last_blocks_of_a_large_batch(2**18, 2**13 + 1, 2**13 + 1)
    large["grad_unit"] = small["grad_unit"] = None  # it depends on the number of rows
    monkeypatch.setenv("CUDA_ON_CPU_LAST", "2")
    run(kernels, ["loss"], large)
    names = [name for name in RESULTS if name != "grad_unit"]
    for name in names:
        large[name] = large[name][-2:] if name != "geometry_grad" else large[name][:, -2:]
    assert_close(large, run(_core, ["loss"], small), names)


def test_parts_of_more_than_two_to_the_31_products(monkeypatch):
    """The last two parts of the last row."""
    rows, classes, tail = 3, 2**30, 2**14
    large, small = last_blocks_of_a_large_batch(rows, classes, tail)
    row, target, products = slice(1, 2), large["labels"][-1], small["products"][1].astype(np.float32)
    monkeypatch.setenv("CUDA_ON_CPU_LAST", "2")
    large["normalizer"] = np.full((3, rows), 0.25)
    large["sums"] = np.tile([[-np.inf], [0], [-np.inf], [0], [0]], rows)
    run(kernels, ["sums", "products_grad"], large)
    best = products.argmax()
    assert large["sums"][[0, 2, 3], -1].tolist() == [products[:-1].max(), products[best], classes - tail + best]
    expected = np.exp(products - np.float32(0.25)) / 4
    expected[-1] = 0
    np.testing.assert_allclose(large["products_grad"][-1, -tail:], expected, rtol=2e-3, atol=6e-8)
    assert target == classes - 1
    assert not large["products_grad"][row, -tail:].any()  # other blocks


def test_copies_of_rows(tmp_path):
    body = """
      char from[24], to[40] = {};
      for (int n = 0; n < 24; ++n) from[n] = n + 1;
      out[0] = lsoftmax::cuda::copy_rows(from, 6, to + 3, 10, 5, 4, nullptr);
      out[1] = lsoftmax::cuda::copy_rows(from, 0, to, 0, 0, 4, nullptr);
      out[2] = lsoftmax::cuda::copy_rows(from, 5, to, 4, 5, 4, nullptr);
      for (int n = 0; n < 40; ++n) out[3 + n] = to[n];
    """
    _, out = run_kernel(tmp_path, body, '#include "cuda/target.cu"', threads=1)
    expected = np.zeros((4, 10), int)
    expected[:, 3:8] = np.arange(1, 25).reshape(4, 6)[:, :5]
    assert out[:2].tolist() == [0, 0]
    assert out[2] != 0  # rows wider than they are apart
    np.testing.assert_array_equal(out[3:43], expected.ravel())


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
    for op, on_the_host in RAW_OPS.items():
        found = registered.get_registered_kernels_for_op(f"Lsoftmax{op}").kernel
        found = [kernel for kernel in found if not kernel.device_type.startswith("XLA_")]
        devices = [kernel.device_type for kernel in found]
        assert devices.count("GPU") == (devices.count("CPU") if built else 0)
        expected = [on_the_host] if on_the_host else []
        assert all(list(kernel.host_memory_arg) == expected for kernel in found)
