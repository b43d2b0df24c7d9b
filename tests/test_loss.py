"""The fused loss against the oracle, and what a loss must never do."""

import dataclasses
import itertools

import numpy as np
import pytest
from conftest import LAYERS
from support import (
    DTYPES,
    KINDS,
    LAMBDAS,
    MARGINS,
    SHAPES,
    WIDER_SHAPES,
    angle_batch,
    assert_loss_close_to_oracle,
    call_of,
    loss_errors,
    random_batch,
    run_python,
)

from lsoftmax_op import arrays, reference

# Around the lanes (32) and blocks (1024) that a row is cut into.
WIDE_SHAPES = ((5, 3, 31), (4, 2, 32), (6, 70, 65), (3, 4, 1030), (2, 3, 2100))


@pytest.mark.parametrize("margin", MARGINS)
def test_every_angle(layer, dtype, margin):
    batch = angle_batch(margin, dtype, norms=(1.0, 1e-2, 1e2))
    for lam in (LAMBDAS[margin % len(LAMBDAS)], 0.0):
        assert_loss_close_to_oracle(batch, dtype, layer, margin, lam)


@pytest.mark.parametrize("shape", SHAPES + WIDE_SHAPES, ids=str)
def test_every_shape(layer, dtype, shape):
    for margin in (1, 4):
        batch = random_batch(shape, dtype, seed=margin)
        assert_loss_close_to_oracle(batch, dtype, layer, margin, 0.5)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("margin", [4, *KINDS], ids=repr)
def test_every_angle_of_every_kind(layer, dtype, margin, label_smoothing):
    batch = angle_batch(margin, dtype, norms=(1.0, 1e-2, 1e2))
    for lam in (0.5, 0.0, np.inf):
        assert_loss_close_to_oracle(batch, dtype, layer, margin, lam, label_smoothing)


# Each shape meets two kinds, and each kind meets two shapes at least.
SHAPES_OF_KINDS = [
    (shape, KINDS[(2 * n + k) % len(KINDS)]) for n, shape in enumerate(WIDER_SHAPES + WIDE_SHAPES) for k in (0, 5)
]


@pytest.mark.parametrize(("shape", "margin"), SHAPES_OF_KINDS, ids=repr)
def test_every_shape_of_every_kind(layer, dtype, shape, margin):
    assert_loss_close_to_oracle(random_batch(shape, dtype), dtype, layer, margin, 0.5, 0.1)


@pytest.mark.parametrize("name", ["function", "blocks"])
@pytest.mark.parametrize("shape", [(13, 33, 7), (130, 19, 6), (0, 4, 3), (1, 1, 1)], ids=str)
def test_inside_a_function(dtype, name, shape):
    pytest.importorskip("tensorflow")
    assert_loss_close_to_oracle(random_batch(shape, dtype), dtype, LAYERS[name], 4, 0.5)


# Every data type meets every kind above: here each kind meets one, and both ways.
@pytest.mark.parametrize("name", ["function", "blocks"])
@pytest.mark.parametrize(("margin", "dtype"), list(zip(KINDS, itertools.cycle(DTYPES), strict=False)), ids=repr)
def test_every_kind_inside_a_function(dtype, name, margin):
    pytest.importorskip("tensorflow")
    assert_loss_close_to_oracle(random_batch((130, 19, 6), dtype), dtype, LAYERS[name], margin, 0.5, 0.1)


def test_without_a_bias(layer, dtype):
    batch = random_batch((13, 33, 7), dtype)
    loss, gradients = layer.loss(batch, margin=4, lam=0.5, bias=False)
    none = dataclasses.replace(batch, bias=np.zeros_like(batch.bias))
    with_bias, gradients_with_bias = layer.loss(none, margin=4, lam=0.5)
    np.testing.assert_array_equal(loss, with_bias)
    for one, other in zip(gradients[:2], gradients_with_bias[:2], strict=True):
        np.testing.assert_array_equal(one, other)


def test_rows_without_a_target_have_no_loss_and_no_gradient(layer, dtype):
    batch = random_batch((13, 33, 7), dtype)
    batch.labels[::2] = -1
    loss, gradients = layer.loss(batch, margin=4, lam=0.0)
    assert (loss[::2] == 0).all()
    assert (loss[1::2] > 0).all()
    assert (gradients[0][::2] == 0).all()
    kept = dataclasses.replace(batch, features=batch.features[1::2], labels=batch.labels[1::2], grad=batch.grad[1::2])
    for one, other in zip(gradients[1:], layer.loss(kept, margin=4, lam=0.0)[1][1:], strict=True):
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        np.testing.assert_allclose(one, other, rtol=1e-2, atol=1e-2 * np.abs(other).max())
    batch.labels[:] = -1
    loss, gradients = layer.loss(batch, margin=4, lam=0.0)
    assert not any(np.any(value) for value in (loss, *gradients))


@pytest.mark.parametrize("size", [1e2, 1e4, 3e4])
def test_large_logits_give_a_finite_loss(layer, dtype, size):
    """Of identity weights the features are the logits: each class leads somewhere, by little and by all."""
    logits = np.array([[1, -1, 0], [-1, 1, 0], [1, 1, 1], [1, 0.999, -1], [0, 0, 1], [-1, -1, -1]]) * size
    batch = random_batch((18, 3, 3), dtype)
    batch.features[:] = np.repeat(logits, 3, axis=0)
    batch.weights[:], batch.bias[:], batch.labels[:] = np.eye(3), 0, np.arange(18) % 3
    loss, gradients = layer.loss(batch, margin=1, lam=0.0)
    expected = reference.loss(*batch.exact().layer, margin=1)
    assert (np.asarray(loss, np.float64) >= 0).all()
    if dtype == "float16":  # whose range ends at 65504
        return
    tolerance = {"bfloat16": 1e-2, "float32": 1e-3, "float64": 1e-10}[dtype]
    np.testing.assert_allclose(np.asarray(loss, np.float64), expected, rtol=tolerance, atol=tolerance)
    assert all(np.isfinite(np.asarray(g, np.float64)).all() for g in gradients)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, 1e-40], ids=str)
def test_strange_numbers_stay_in_their_row(layer, value):
    batch = random_batch((13, 33, 7), "float32")
    batch.labels[:] = np.arange(13) % 7
    clean, clean_gradients = layer.loss(batch, margin=4, lam=0.0)
    batch.features[5, 3] = value
    loss, gradients = layer.loss(batch, margin=4, lam=0.0)
    others = np.arange(13) != 5
    np.testing.assert_array_equal(loss[others], clean[others])
    np.testing.assert_array_equal(gradients[0][others], clean_gradients[0][others])
    assert np.isfinite(loss[5]) == np.isfinite(gradients[0][5]).all() == np.isfinite(value)


@pytest.mark.parametrize("bias", [-np.inf, -1e30])
def test_a_class_can_be_ruled_out_by_its_bias(layer, bias):
    batch = random_batch((6, 5, 4), "float32")
    batch.labels[:] = [0, 1, 3, 0, 1, 3]
    batch.bias[2] = bias
    loss, gradients = layer.loss(batch, margin=3, lam=0.5)
    columns = [0, 1, 3]
    kept = dataclasses.replace(
        batch, weights=batch.weights[:, columns], bias=batch.bias[columns], labels=np.array([0, 1, 2, 0, 1, 2])
    )
    expected, expected_gradients = layer.loss(kept, margin=3, lam=0.5)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(gradients[0], expected_gradients[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(gradients[1][:, columns], expected_gradients[1], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(gradients[1][:, 2], 0)


def test_one_class_is_no_choice(layer, dtype):
    batch = random_batch((5, 3, 1), dtype)
    loss, gradients = layer.loss(batch, margin=4, lam=0.0)
    assert not any(np.any(value) for value in (loss, *gradients))


def test_a_confident_loss_keeps_its_digits(layer):
    """log1p(R) and R / (1 + R): a loss of 1e-30 is not rounded to 0, nor its gradient."""
    batch = random_batch((2, 2, 2), "float64")
    batch.features[:], batch.weights[:], batch.bias[:] = [[69.0, 0.0], [0.0, 40.0]], np.eye(2), 0
    batch.labels[:], batch.grad[:] = [0, 1], 1
    loss, gradients = layer.loss(batch, margin=1, lam=0.0)
    np.testing.assert_allclose(loss, np.exp([-69.0, -40.0]), rtol=1e-13)
    np.testing.assert_allclose(gradients[0][0], np.exp(-69.0) * np.array([-1, 1]), rtol=1e-12)


def test_the_predicted_class(dtype):
    for shape in ((200, 5, 3), (40, 6, 33), (30, 4, 1500)):
        batch = random_batch(shape, dtype)
        predicted = arrays.loss_grad(batch.loss_grad, *batch.layer, margin=4).predicted
        wide = np.float64 if dtype == "float64" else np.float32
        products = arrays.logits(*batch.layer[:3], margin=1).astype(wide)
        np.testing.assert_array_equal(predicted, (products + batch.bias.astype(wide)).argmax(axis=1))


@pytest.mark.parametrize("classes", [2, 40, 1100])
def test_of_equal_logits_the_first_is_predicted(classes):
    for first, label in itertools.product((0, 1, classes - 2), (-1, 0, classes // 2, classes - 1)):
        weights = np.zeros((1, classes))
        weights[0, [first, classes - 1]] = 1
        labels = np.array([label])
        predicted = arrays.loss_grad(np.ones(1), np.ones((1, 1)), weights, labels, margin=4).predicted
        assert predicted == weights.argmax()


@pytest.mark.parametrize("classes", [2, 40, 1100])
def test_of_a_row_of_nans_the_first_class_is_predicted(dtype, classes):
    """As argmax has it: a model that diverged does not look right, whatever the label."""
    labels = np.array([classes - 1, classes // 2, 0, -1])
    features, weights = np.full((4, 3), np.nan), np.ones((3, classes))
    x, w, g = (values.astype(DTYPES[dtype]) for values in (features, weights, np.ones(4)))
    np.testing.assert_array_equal(arrays.loss_grad(g, x, w, labels).predicted, 0)


@pytest.mark.parametrize("module", ["_core", "_cuda_on_cpu"])
def test_the_exponential_is_right_to_two_units_in_the_last_place(module):
    """Through the gradient kernel, with maximum 0 and scale 1: it is the exponential of its products.

    A CUDA kernel's is as exact down to exp(-22), and beyond as exact as its argument, a difference of two logits, is
    known: |x| 2^-24 (FastSlope of cc/cuda/packed.cuh).
    """
    kernels = pytest.importorskip(f"lsoftmax_op.{module}", reason="built without LSOFTMAX_TESTING=ON")
    ends = np.array([0.0, -0.0, -1e-45, -1e-38, -87.33654, -87.4, -103.97, -103.98, -104.0, -1e4, -3e38, -np.inf])
    rng = np.random.default_rng(0)
    count = 400_000 if module == "_core" else 20_000
    x = np.concatenate([ends, -rng.uniform(0, 105, count), -np.exp(rng.uniform(-30, 5, count))]).astype(np.float32)
    gradient, normalizer = np.empty_like(x), np.array([0.0, 1.0, 0.0])
    labels = np.array([len(x)], np.int64)  # beyond the classes at hand
    call = call_of(kernels, "float32", products=x, products_grad=gradient, labels=labels, normalizer=normalizer)
    call.rows, call.classes, call.wide_labels = 1, len(x), True
    kernels.products_grad(call, 1)
    expected = np.exp(x.astype(np.float64))
    ulp = np.spacing(np.maximum(expected, np.finfo(np.float32).tiny).astype(np.float32)).astype(np.float64)
    far = module != "_core" and np.isfinite(x) & (x < -22)
    known = np.where(far, np.abs(np.where(far, x, 0)) * 2.0**-24, 0) * expected
    assert (np.abs(gradient - expected) < 2 * ulp + known).all()
    assert gradient[0] == 1
    assert gradient[len(ends) - 1] == 0


@pytest.mark.parametrize("variant", ["baseline", "avx2", "avx512"])
def test_every_cpu_variant(variant):
    """Those that this machine runs; the others fall back, and say so."""
    run_python(
        """
import sys; sys.path.insert(0, "tests")
import pytest
from conftest import LAYERS
from support import DTYPES, assert_loss_close_to_oracle, random_batch
assert pytest.main(["-p", "no:cacheprovider", "-k", "exponential and _core", "tests/test_loss.py"]) == 0
for dtype in DTYPES:
    assert_loss_close_to_oracle(random_batch((7, 19, 1100), dtype), dtype, LAYERS["arrays"], 4, 0.5)
""",
        LSOFTMAX_CPU=variant,
    )


def test_large_margins(layer):
    batch = random_batch((13, 33, 7), "float64")
    found = loss_errors(batch, *layer.loss(batch, margin=64, lam=0.0), 64, 0.0)
    assert found[0].max() < 1e-15 * 64**2 * 10
    assert max(f.max() for f in found[1:]) < 1e-15 * 64**4 * 10
