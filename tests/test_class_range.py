"""Classes of which only a range is at hand: the raw ops of all ranges together give what one op of all classes gives.

A label is here, elsewhere or none (-1). Columns are cut unevenly; of some ranges no label is.
"""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
from support import XLA_CALLS_ARE_CUDA, call_of, gradient_error, random_batch

import lsoftmax_op
from lsoftmax_op import _core

tf = pytest.importorskip("tensorflow")

CUTS = (0, 3, 4, 9, 12, 14)
RANGES = tuple(itertools.pairwise(CUTS))
CLASSES = CUTS[-1]
NONE = np.zeros(0)

# Sums over features and rows run in float64, but in XLA's formulas in another order, and rounded once more.
TOLERANCE = {"float64": 1e-13, "float32": 2e-6, "bfloat16": 2e-2, "float16": 2e-3}


@pytest.fixture(params=["eager", "function", "xla", "xla-formulas", "core", "cuda-on-cpu"])
def way(request, monkeypatch):
    """How an op is run: by TensorFlow in one of its ways, or as the kernel that it is."""
    if "xla" in request.param and lsoftmax_op.build_info()["xla"] != "yes":
        pytest.skip(f"XLA: {lsoftmax_op.build_info()['xla']}")
    if request.param == "cuda-on-cpu":
        pytest.importorskip("lsoftmax_op._cuda_on_cpu", reason="built without LSOFTMAX_TESTING=ON")
    monkeypatch.setenv("LSOFTMAX_XLA_CALLS", "OFF" if request.param == "xla-formulas" else "ON")
    return request.param


def run(way, op, inputs, **attributes):
    """Returns the last output of lsoftmax_`op` over `inputs`, by their names."""
    if way in ("core", "cuda-on-cpu"):
        return run_kernel(_core if way == "core" else lsoftmax_op._cuda_on_cpu, op, inputs, **attributes)
    call = caller(way, op, **attributes)
    return call(**{name: tf.constant(value) for name, value in inputs.items()}).numpy()


@functools.cache  # what is compiled for the same shapes is compiled once
def caller(way, op, **attributes):
    function = getattr(lsoftmax_op.library.load(), f"lsoftmax_{op}")

    def call(**arguments):
        outputs = function(**arguments, **attributes)
        return outputs[-1] if op == "target_geometry" else outputs

    return call if way == "eager" else tf.function(call, jit_compile=way != "function")


def run_kernel(module, op, inputs, normalize_features=False, normalize_weights=False, first_class=0, num_classes=0):
    kernel = op.removeprefix("target_")
    given = {name.removeprefix("products_"): value.copy() for name, value in inputs.items() if value.size > 0}
    rows, (depth, classes) = len(given["labels"]), given["weights"].shape
    out = given.setdefault(kernel, np.empty((3, rows)))
    call = call_of(module, given["features"].dtype.name, **given)
    call.rows, call.depth, call.classes = rows, depth, classes
    call.first_class, call.num_classes = first_class, num_classes
    call.normalize_features, call.normalize_weights = normalize_features, normalize_weights
    call.wide_labels = given["labels"].dtype == np.int64
    workspace = np.full(getattr(module, f"{kernel}_workspace")(rows, depth, classes) // 8 + 1, np.nan)
    call.workspace = workspace.ctypes.data
    getattr(module, kernel)(call, 1 if module is _core else 0)
    return out


def batch_for(dtype):
    """Rows whose targets are first and last of a range, none, and several of a class; of one range there are none."""
    batch = random_batch((23, 11, CLASSES), dtype, seed=4)
    batch.labels[:] = [-1, 0, 2, 3, 4, 8, 12, 13, -1, 2, 2, 4, 3, 3, 13, 0, 8, 8, 5, 6, 1, 1, 12]
    return batch


def range_of(batch, first, end):
    """The inputs and attributes of an op that has the classes [first, end)."""
    weights = np.ascontiguousarray(batch.weights[:, first:end])
    inputs = {"features": batch.features, "weights": weights, "labels": batch.labels}
    return inputs, {"first_class": first, "num_classes": CLASSES}


def gradient_inputs(batch, loss):
    """What beside a batch the gradients' ops have: the gradient in the geometry and, `loss`, that in a loss."""
    rng = np.random.default_rng(2)
    rows, dtype = len(batch.labels), batch.features.dtype
    return {
        "geometry_grad": rng.normal(size=(3, rows)),
        "loss_grad": batch.loss_grad if loss else NONE.astype(dtype),
        "grad_unit": np.full(rows, 0.5, np.float32) if loss and dtype == np.float16 else NONE.astype(np.float32),
        "target_weights": NONE.astype(dtype),
    }


# Of a loss or not, of unit vectors or not: with neither, kernels return early where a label is elsewhere.
COMPLETED = pytest.mark.parametrize(("loss", "normalize"), [(True, True), (False, False), (False, True)])


def assert_same(way, got, expected, dtype):
    """To the bit, but where XLA is free to add up as it likes."""
    if "xla" in way:
        got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
        np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE[dtype] * np.abs(expected).max())
    else:
        np.testing.assert_array_equal(got, expected)


def test_the_geometry_is_that_of_the_range_that_has_the_target(way, dtype):
    batch = batch_for(dtype)
    whole = run(way, "target_geometry", range_of(batch, 0, CLASSES)[0])
    for first, end in RANGES:
        inputs, attributes = range_of(batch, first, end)
        here = (first <= batch.labels) & (batch.labels < end)
        geometry = run(way, "target_geometry", inputs, **attributes)
        assert_same(way, geometry, np.where(here, whole, 0), dtype)
        np.testing.assert_array_equal(geometry[:, ~here], 0)


@COMPLETED
def test_the_features_gradients_of_all_ranges_add_up(way, dtype, loss, normalize):
    batch = batch_for(dtype)
    of_all = gradient_inputs(batch, loss)
    rng = np.random.default_rng(3)
    bases = [rng.normal(size=batch.features.shape).astype(batch.features.dtype) for _ in RANGES]
    total = np.zeros(batch.features.shape)
    for base, (first, end) in zip(bases, RANGES, strict=True):
        inputs, attributes = range_of(batch, first, end)
        inputs |= {"products_features_grad": base, **of_all}
        gradient = run(way, "features_grad", inputs, normalize_features=normalize, **attributes)
        total += gradient.astype(np.float64)
        # Of a target elsewhere what none would leave.
        elsewhere = (batch.labels < first) | (batch.labels >= end)
        without = {**inputs, "labels": np.where(elsewhere, -1, batch.labels)}
        none = run(way, "features_grad", without, normalize_features=normalize, **attributes)
        assert_same(way, gradient, none, dtype)
    exact = batch.exact()
    whole = {**range_of(exact, 0, CLASSES)[0], **gradient_inputs(exact, loss)}
    if loss and dtype == "float16":
        whole["loss_grad"] = whole["loss_grad"] * 0.5  # the unit, which float64 has not
    whole["products_features_grad"] = sum(base.astype(np.float64) for base in bases)
    expected = run(way, "features_grad", whole, normalize_features=normalize)
    np.testing.assert_allclose(total, expected, rtol=0, atol=3 * TOLERANCE[dtype] * np.abs(expected).max())


@COMPLETED
def test_the_weights_gradients_of_all_ranges_are_its_columns(way, dtype, loss, normalize):
    batch = batch_for(dtype)
    base = batch.weights[::-1].copy()
    of_all = gradient_inputs(batch, loss)
    whole = {"products_weights_grad": base, **range_of(batch, 0, CLASSES)[0], **of_all}
    expected = run(way, "weights_grad", whole, normalize_weights=normalize)
    for first, end in RANGES:
        inputs, attributes = range_of(batch, first, end)
        inputs |= {"products_weights_grad": np.ascontiguousarray(base[:, first:end]), **of_all}
        gradient = run(way, "weights_grad", inputs, normalize_weights=normalize, **attributes)
        assert_same(way, gradient, expected[:, first:end], dtype)


def test_a_range_that_is_all(way):
    batch = batch_for("float32")
    inputs, attributes = range_of(batch, 0, CLASSES)
    got, expected = (run(way, "target_geometry", inputs, **told) for told in (attributes, {}))
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("label", [CLASSES, -2, 2**40])
@pytest.mark.parametrize("op", ["target_geometry", "features_grad", "weights_grad"])
def test_a_label_beyond_all_classes(way, op, label):
    """Where the host can tell it is an error, elsewhere the row's geometry is NaN."""
    batch = batch_for("float32")
    batch.labels = batch.labels.astype(np.int64)
    batch.labels[5] = label
    inputs, attributes = range_of(batch, 4, 9)
    if op != "target_geometry":
        base = "features" if op == "features_grad" else "weights"
        inputs |= {f"products_{op}": inputs[base], **gradient_inputs(batch, loss=True)}
    called = way == "xla" and op != "target_geometry" and lsoftmax_op.build_info()["xla_calls"]
    if way in ("eager", "function") or (called and not XLA_CALLS_ARE_CUDA):
        message = rf"labels: expected values in \[0, {CLASSES}\), or -1 .*, got labels\[5\] = {label}"
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            run(way, op, inputs, **attributes)
    elif op == "target_geometry" and way != "core":  # where nobody has judged the labels
        geometry = run(way, op, inputs, **attributes)
        np.testing.assert_array_equal(np.isnan(geometry), np.broadcast_to(np.arange(23) == 5, (3, 23)))


@pytest.mark.parametrize(("first", "count"), [(10, 14), (0, 4), (1, 0), (2**62, 2**62 + 1), (14, 14)])
def test_a_range_that_does_not_fit(way, first, count):
    if way in ("core", "cuda-on-cpu"):
        pytest.skip("those who call kernels have judged it")
    inputs, _ = range_of(batch_for("float32"), 4, 9)
    message = f"first_class, num_classes: expected .* weights of 5 classes, got {first} and {count}"
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        run(way, "target_geometry", inputs, first_class=first, num_classes=count)


@pytest.mark.parametrize("of_loss", [False, True])
@pytest.mark.parametrize("name", ["geometry", "features_grad", "weights_grad"])
def test_gradients_numerically(name, of_loss):
    """Of the three ops, in all that they depend on; of the gradients these are second derivatives."""
    ops = lsoftmax_op.library.load()
    batch = random_batch((6, 4, 3), "float64", seed=1)
    labels, classes = [6, 5, 6, -1, 7, 2], {"first_class": 5, "num_classes": 9}
    base = batch.weights if name == "weights_grad" else batch.features
    geometry_grad = batch.features.T[:3]
    none = tf.zeros([0], tf.float64)

    def geometry(features, weights):
        return ops.lsoftmax_target_geometry(features, weights, labels, **classes)

    def complete(base, features, weights, geometry_grad, loss_grad=none):
        op = getattr(ops, f"lsoftmax_{name}")
        unit = tf.ones(tf.shape(loss_grad))
        return op(base, features, weights, labels, geometry_grad, loss_grad, unit, none, **classes)

    arguments = [tf.constant(a) for a in (base, batch.features, batch.weights, geometry_grad, batch.loss_grad)]
    if name == "geometry":
        assert gradient_error(lambda *a: geometry(*a).geometry, arguments[1:3]) < 1e-7
    else:
        assert gradient_error(complete, arguments if of_loss else arguments[:-1]) < 1e-7
