"""Weights [C, D], a row for every class: what they give is what weights [D, C] give, and neither layout is copied."""

from __future__ import annotations

import re

import numpy as np
import pytest
from conftest import LAYERS
from support import call_of, gradient_error, random_batch, run_python

import lsoftmax_op
from lsoftmax_op import _core, margin_softmax_logits
from lsoftmax_op.margins import ArcFace, Combined, LSoftmax, Margin
from lsoftmax_op.ops import loss_layer

tf = pytest.importorskip("tensorflow")

# Beside the largest entry. Sums may run in another order, and halves round what is between the steps.
TOLERANCE = {"float64": 1e-13, "float32": 3e-6, "bfloat16": 2e-2, "float16": 4e-3}
MARGINS = [LSoftmax(4), ArcFace(0.5, 16), Combined(2, 0.7, 0.2, 6), Margin(2, 0.5, 0.1), Margin(scale=0.25)]
margins = pytest.mark.parametrize("margin", MARGINS, ids=repr)


@pytest.fixture(params=["eager", "blocks"])
def uncompiled(request):
    """A layer of conftest.py."""
    return LAYERS[request.param]


@pytest.fixture(params=["function", "xla", "xla-formulas", "xla-blocks"])
def way(request, monkeypatch):
    """The others of TensorFlow."""
    if "xla" in request.param and lsoftmax_op.build_info()["xla"] != "yes":
        pytest.skip(f"XLA: {lsoftmax_op.build_info()['xla']}")
    monkeypatch.setenv("LSOFTMAX_XLA_CALLS", "OFF" if request.param == "xla-formulas" else "ON")
    return LAYERS[request.param]


def run(way, function, arguments):
    """Calls a function as the layer would."""
    call = tf.function(function, jit_compile=way.xla) if way.compiled else function
    return call(*(None if one is None else tf.constant(one) for one in arguments))


def weights_of(batch, class_major):
    return np.ascontiguousarray(batch.weights.T) if class_major else batch.weights


def step(batch, bias, class_major, **settings):
    """Loss, predicted classes and gradients in features, weights and bias, those of the weights as [D, C]."""

    def run_step(x, w, b, grad):
        variables = [one for one in (x, w, b) if one is not None]
        with tf.GradientTape() as tape:
            tape.watch(variables)
            layer = loss_layer(x, w, batch.labels, b, class_major=class_major, **settings)
        gradients = tape.gradient(layer.loss, variables, grad)
        assert gradients[1].shape == w.shape
        gradients[1] = tf.transpose(gradients[1]) if class_major else gradients[1]
        return layer.loss, layer.predicted, *gradients

    return run_step, (batch.features, weights_of(batch, class_major), bias, batch.loss_grad)


def assert_same(results, expected, dtype):
    for got, want in zip(results, expected, strict=True):
        one, other = np.asarray(got, np.float64), np.asarray(want, np.float64)
        assert one.shape == other.shape
        assert np.isfinite(other).all()
        size = np.abs(other).max(initial=1e-300)
        np.testing.assert_allclose(one, other, rtol=0, atol=TOLERANCE[dtype] * max(size, 1e-30))


def assert_a_step_is_that_of_the_other_layout(way, shape, margin, dtype="float64"):
    """That of the other layout is the eager one's: of the same kernels, and nothing is compiled for it."""
    batch = random_batch(shape, dtype)
    bias = None if margin.has_factors else batch.bias
    settings = {"margin": margin, "lam": 0.5, "label_smoothing": 0.1}
    got = run(way, *step(batch, bias, True, **settings, class_block_size=way.class_block_size))
    assert_same(got, run(LAYERS["eager"], *step(batch, bias, False, **settings)), dtype)


@margins
@pytest.mark.parametrize("shape", [(13, 33, 7), (9, 5, 40), (0, 4, 3)], ids=str)
def test_a_step_is_that_of_the_other_layout(uncompiled, shape, margin):
    assert_a_step_is_that_of_the_other_layout(uncompiled, shape, margin)


@pytest.mark.parametrize("margin", [LSoftmax(4), ArcFace(0.5, 16)], ids=repr)
@pytest.mark.parametrize("shape", [(13, 33, 7), (9, 5, 40)], ids=str)
def test_and_so_is_a_compiled_one(way, shape, margin):
    assert_a_step_is_that_of_the_other_layout(way, shape, margin)


@pytest.mark.parametrize("margin", [LSoftmax(4), ArcFace(0.5, 16)], ids=repr)
def test_every_dtype(uncompiled, dtype, margin):
    assert_a_step_is_that_of_the_other_layout(uncompiled, (13, 33, 7), margin, dtype)


def test_every_dtype_compiled(way, dtype):
    assert_a_step_is_that_of_the_other_layout(way, (7, 5, 9), ArcFace(0.5, 16), dtype)


def test_angles_are_those_of_columns():
    batch = random_batch((13, 5, 7), "float32")
    columns = lsoftmax_op.target_angles(*batch.layer[:3])
    rows = lsoftmax_op.target_angles(batch.features, batch.weights.T, batch.labels, class_major=True)
    for one, other in zip(rows, columns, strict=True):
        np.testing.assert_array_equal(one, other)


@margins
def test_logits_and_their_second_derivatives(margin):
    batch = random_batch((6, 5, 4), "float64")
    bias = None if margin.has_factors else tf.constant(batch.bias)
    upstream = [tf.random.stateless_normal(a.shape, [1, 2], dtype=tf.float64) for a in (batch.features, batch.weights)]

    def derivatives(class_major):
        x, w = tf.constant(batch.features), tf.constant(weights_of(batch, class_major))
        of_weights = tf.transpose(upstream[1]) if class_major else upstream[1]
        with tf.GradientTape() as outer:
            outer.watch([x, w])
            with tf.GradientTape() as inner:
                inner.watch([x, w])
                logits = margin_softmax_logits(
                    x, w, batch.labels, bias, margin=margin, lam=0.5, class_major=class_major
                )
            first = inner.gradient(logits, [x, w], tf.constant(batch.grad))
        second = outer.gradient(first, [x, w], [upstream[0], of_weights])
        return [logits, *(tf.transpose(g) if class_major and n % 2 else g for n, g in enumerate([*first, *second]))]

    for one, other in zip(derivatives(True), derivatives(False), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-11 * np.abs(other).max())


@pytest.mark.parametrize("class_block_size", [None, 2])
@pytest.mark.parametrize("of", ["features", "weights"])
def test_second_derivatives_of_the_loss_numerically(of, class_block_size):
    batch = random_batch((5, 4, 3), "float64")
    arguments = [tf.constant(a) for a in (batch.features, weights_of(batch, True), batch.bias)]

    def gradient(x, w, b):
        with tf.GradientTape() as tape:
            tape.watch([x, w])
            loss = lsoftmax_op.lsoftmax_loss(
                x, w, batch.labels, b, margin=2, lam=0.5, class_block_size=class_block_size, class_major=True
            )
        return tape.gradient(loss, x if of == "features" else w, tf.constant(batch.loss_grad))

    assert gradient_error(gradient, arguments) < 1e-7


@pytest.mark.parametrize("kernels", ["core", "cuda-on-cpu"])
@pytest.mark.parametrize("shape", [(13, 33, 7), (40, 256, 70), (5, 129, 3), (4100, 8, 9)], ids=str)
@pytest.mark.parametrize(("copies", "normalize"), [(True, True), (False, False), (False, True)])
def test_kernels(dtype, kernels, shape, copies, normalize):
    """On the CPU the geometry is summed up in the same order in both layouts, the norm of a class is not."""
    if kernels == "cuda-on-cpu":
        pytest.importorskip("lsoftmax_op._cuda_on_cpu", reason="built without LSOFTMAX_TESTING=ON")
    module = _core if kernels == "core" else lsoftmax_op._cuda_on_cpu
    got, expected = (run_kernels(module, shape, dtype, copies, normalize, layout) for layout in (True, False))
    for name in ("weights_grad", "weights"):
        got[name] = got[name].T
    for name, value in got.items():
        one, other = value.astype(np.float64), expected[name].astype(np.float64)
        assert np.isfinite(other).all()
        over_a_class = name == "class_factors" or (normalize and name == "weights_grad")
        if kernels == "core" and not over_a_class:
            np.testing.assert_array_equal(one, other, err_msg=name)
        else:
            tolerance = 1e-13 if other.dtype == dtype or name == "geometry" else TOLERANCE[dtype]
            np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * np.abs(other).max(), err_msg=name)
    if copies:
        assert got["target_weights"].tobytes() == expected["target_weights"].tobytes()


def run_kernels(module, shape, dtype, copies, normalize, class_major):
    """What the kernels that read or write weights make of a batch, together with what they were given."""
    batch = random_batch(shape, dtype)
    rows, depth, classes = shape
    rng = np.random.default_rng(1)
    kind = batch.features.dtype
    base = rng.normal(size=(depth, classes)).astype(kind)
    state = {
        "features": batch.features,
        "weights": weights_of(batch, class_major),
        "labels": batch.labels,
        "geometry": np.full((3, rows), np.nan),
        "geometry_grad": rng.normal(size=(3, rows)),
        "loss_grad": rng.normal(size=rows).astype(kind),
        "class_factors": np.zeros(classes, np.float64 if dtype == "float64" else np.float32),
        "features_grad": rng.normal(size=(rows, depth)).astype(kind),
        "weights_grad": np.ascontiguousarray(base.T) if class_major else base,
    }
    if copies:
        state["target_weights"] = np.full((rows, depth), -7, kind)
    for name in ("geometry", "class_factors", "features_grad", "weights_grad"):
        call = call_of(module, dtype, **state)
        call.rows, call.depth, call.classes, call.class_major = rows, depth, classes, class_major
        call.normalize_features = call.normalize_weights = normalize
        call.wide_labels = batch.labels.dtype == np.int64
        workspace = np.full(getattr(module, f"{name}_workspace")(rows, depth, classes) // 8 + 1, np.nan)
        call.workspace = workspace.ctypes.data
        getattr(module, name)(call, 2 if module is _core else 0)
    return state


@pytest.mark.parametrize("compiled", ["eager", "xla", "xla-formulas"])
def test_a_range_of_the_classes(compiled, monkeypatch):
    """first_class and class_major together: rows of the weights."""
    if "xla" in compiled and lsoftmax_op.build_info()["xla"] != "yes":
        pytest.skip(f"XLA: {lsoftmax_op.build_info()['xla']}")
    monkeypatch.setenv("LSOFTMAX_XLA_CALLS", "OFF" if compiled == "xla-formulas" else "ON")
    ops = lsoftmax_op.library.load()
    batch = random_batch((23, 11, 9), "float64")
    base, geometry_grad = batch.weights[::-1].copy(), batch.features.T[:3].copy()
    none, no_unit = tf.zeros([0], tf.float64), tf.zeros([0])

    def both(weights, base, **layout):
        geometry = ops.lsoftmax_target_geometry(batch.features, weights, batch.labels, **layout).geometry
        target = (batch.features, weights, batch.labels, geometry_grad, none, no_unit, none)
        return geometry, ops.lsoftmax_weights_grad(base, *target, normalize_weights=True, **layout)

    def run_both(*arguments, **layout):
        call = both if compiled == "eager" else tf.function(both, jit_compile=True)
        return [result.numpy() for result in call(*arguments, **layout)]

    geometry, gradient = run_both(tf.constant(batch.weights), tf.constant(base))
    total = np.zeros_like(geometry)
    for first, end in ((0, 1), (1, 7), (7, 9)):
        own = (tf.constant(np.ascontiguousarray(a[:, first:end].T)) for a in (batch.weights, base))
        one, rows = run_both(*own, first_class=first, num_classes=9, class_major=True)
        total += one
        np.testing.assert_allclose(rows.T, gradient[:, first:end], rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(total, geometry, rtol=1e-12)


@pytest.mark.parametrize("first", [0, 2])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_rows_of_a_matrix_are_replaced(first, jit_compile):
    if jit_compile and lsoftmax_op.build_info()["xla"] != "yes":
        pytest.skip(f"XLA: {lsoftmax_op.build_info()['xla']}")
    matrix, block = np.arange(15.0).reshape(5, 3), -np.arange(9.0).reshape(3, 3)

    @tf.function(jit_compile=jit_compile)
    def replaced(matrix, block, first):
        return lsoftmax_op.library.load().lsoftmax_set_columns(matrix, block, first, class_major=True)

    expected = matrix.copy()
    expected[first : first + 3] = block
    np.testing.assert_array_equal(replaced(matrix, block, tf.constant(first, tf.int64)), expected)


@pytest.mark.parametrize("block", [None, 4])
def test_shapes_that_are_not_known(block):
    batch = random_batch((9, 5, 7), "float64")
    unknown = tf.TensorSpec([None, None], tf.float64)

    @tf.function(input_signature=[unknown, unknown])
    def loss(x, w):
        return lsoftmax_op.lsoftmax_loss(
            x, w, batch.labels, label_smoothing=0.1, class_block_size=block, class_major=True
        )

    expected = lsoftmax_op.lsoftmax_loss(
        tf.constant(batch.features), tf.constant(batch.weights), batch.labels, label_smoothing=0.1
    )
    np.testing.assert_allclose(loss(batch.features, weights_of(batch, True)), expected, rtol=1e-12)


@pytest.mark.parametrize(
    "function", ["lsoftmax_loss", "lsoftmax_logits", "margin_softmax_loss", "margin_softmax_logits"]
)
def test_bad_input(function):
    call, margin = getattr(lsoftmax_op, function), {"margin": 4}
    x, w, y, b = tf.ones([3, 2]), tf.ones([5, 2]), tf.zeros([3], tf.int32), tf.zeros([2])
    with pytest.raises(
        ValueError, match=r"weights: expected shape \[C, D\] with the D = 2 of features \(3, 2\), got \(2, 5\)"
    ):
        call(x, tf.transpose(w), y, class_major=True, **margin)
    with pytest.raises(ValueError, match=r"weights: expected shape \[C, D\] with at least one class, got \(0, 2\)"):
        call(x, w[:0], y, class_major=True, **margin)
    with pytest.raises(ValueError, match=r"bias: expected shape \[C\] with the C = 5 of weights \(5, 2\), got \(2,\)"):
        call(x, w, y, b, class_major=True, **margin)
    with pytest.raises(TypeError, match="class_major: expected True or False, got 1"):
        call(x, w, y, class_major=1, **margin)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"labels: expected values in \[0, 5\)"):
        call(x, w, y + 5, class_major=True, **margin)


def test_a_raw_op_names_the_layout_that_it_expects():
    ops = lsoftmax_op.library.load()
    x, w, y = tf.ones([3, 2]), tf.ones([5, 2]), tf.zeros([3], tf.int32)
    for arguments in ((x, tf.transpose(w), y), (x, w[:0], y)):
        with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match="weights: expected"):
            ops.lsoftmax_target_geometry(*arguments, class_major=True)
    with tf.Graph().as_default():
        outputs = ops.lsoftmax_target_geometry(
            *(tf.compat.v1.placeholder(t.dtype) for t in (x, w, y)), class_major=True
        )
        assert outputs.geometry.shape.as_list() == [3, None]


@pytest.mark.parametrize("margin", [LSoftmax(4), ArcFace(0.5, 16)], ids=repr)
@pytest.mark.parametrize("calls", ["ON", "OFF"])
def test_nothing_of_the_other_layout_is_made_by_xla(margin, calls, monkeypatch):
    """In what it compiles, no array has the shape [D, C], and none of the shape [C, D] lies column by column."""
    if lsoftmax_op.build_info()["xla"] != "yes":
        pytest.skip(f"XLA: {lsoftmax_op.build_info()['xla']}")
    monkeypatch.setenv("LSOFTMAX_XLA_CALLS", calls)
    batch = random_batch((9, 19, 37), "float32")
    x, w, grad = batch.features, weights_of(batch, True), batch.loss_grad

    @tf.function(jit_compile=True)
    def gradients(x, w, grad):
        with tf.GradientTape() as tape:
            tape.watch([x, w])
            layer = loss_layer(x, w, batch.labels, None, margin=margin, lam=0.5, class_major=True)
        return tape.gradient(layer.loss, [x, w], grad)

    arguments = [tf.constant(a) for a in (x, w, grad)]
    hlo = gradients.experimental_get_compiler_ir(*arguments)(stage="optimized_hlo", platform_name="CPU")
    assert "f32[37,19]{1,0}" in hlo
    assert not re.search(r"\[19,37\]|\[37,19\]\{0,1\}", hlo)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(("margin", "block"), [("LSoftmax(4)", 2048), ("ArcFace(0.5, 16)", None)])
def test_a_step_takes_no_more_memory_than_in_the_other_layout(margin, block):
    """Counted by the kernel: the highest resident memory of a process during steps, over that before them. A copy of
    the weights would be 40 MB more, of 40 for their gradient and, with all classes at once, 10 for the logits."""
    peaks = [
        float(
            run_python(
                f"""
from pathlib import Path
import numpy as np, tensorflow as tf, lsoftmax_op
from lsoftmax_op.margins import ArcFace, LSoftmax
N, D, C = 64, 256, 40000

def resident(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith(field))

def step(C):
    rng = np.random.default_rng(0)
    x, y = tf.constant(rng.random((N, D), np.float32)), tf.range(N)
    w = tf.constant(rng.random((C, D) if {class_major} else (D, C), np.float32))
    @tf.function
    def step():
        with tf.GradientTape() as tape:
            tape.watch([x, w])
            loss = lsoftmax_op.margin_softmax_loss(
                x, w, y, margin={margin}, class_block_size={block}, class_major={class_major})
        return tape.gradient(loss, [x, w])
    return step

step(100)()
measured = step(C)
before = resident("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
for _ in range(2):
    measured()
print(resident("VmHWM") - before)
""",
                MALLOC_MMAP_THRESHOLD_="65536",
                MALLOC_TRIM_THRESHOLD_="65536",
            ).stdout
        )
        for class_major in (True, False)
    ]
    assert 40 < peaks[0] < peaks[1] + 20, peaks
