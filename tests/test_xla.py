"""The ops as XLA compiles them (tf.function(jit_compile=True)): the same results, wherever they must work."""

import numpy as np
import pytest
from conftest import LAYERS
from support import (
    RAW_OPS,
    XLA_CALLS_ARE_CUDA,
    angle_batch,
    assert_close_to_oracle,
    assert_loss_close_to_oracle,
    gradient_error,
    random_batch,
    run_python,
)

import lsoftmax_op

tf = pytest.importorskip("tensorflow")
if lsoftmax_op.build_info()["xla"] != "yes":
    pytest.skip(f"XLA: {lsoftmax_op.build_info()['xla']}", allow_module_level=True)

# Calls of the CPU's kernels judge values. Those of the GPU's make NaNs, as formulas do.
ON_GPU = XLA_CALLS_ARE_CUDA or bool(tf.config.list_physical_devices("GPU"))
CALLS_JUDGE = lsoftmax_op.build_info()["xla_calls"] and not ON_GPU


def compiled(function):
    return tf.function(function, jit_compile=True)


def test_every_op_has_a_kernel_for_cpu_and_gpu():
    from tensorflow.python.framework import kernels

    assert lsoftmax_op.lsoftmax_loss  # loads both libraries
    ops = [op for op in dir(tf.load_op_library(lsoftmax_op.library_path())) if op.startswith("Lsoftmax")]
    assert set(ops) == {f"Lsoftmax{op}" for op in RAW_OPS}
    for op in ops:
        devices = [kernel.device_type for kernel in kernels.get_registered_kernels_for_op(op).kernel]
        assert {"XLA_CPU_JIT", "XLA_GPU_JIT"} <= set(devices), op


# Of the loss: our kernels as custom calls, where XLA can make them, and its own of our formulas.
WAYS = pytest.mark.parametrize("name", ["xla", "xla-formulas"])


@WAYS
@pytest.mark.parametrize("margin", [1, 2, 3, 4, 64])
def test_every_angle(margin, name):
    batch = angle_batch(margin, "float64", norms=(1.0, 1e-2, 1e2))
    assert_loss_close_to_oracle(batch, "float64", LAYERS[name], margin, 0.0)
    if name == "xla":
        assert_close_to_oracle(batch, "float64", LAYERS[name], margin, 0.5)


@pytest.mark.parametrize("lam", [0.0, 1000.0, np.inf])
def test_every_lambda(lam):
    batch = angle_batch(4, "float32")
    assert_close_to_oracle(batch, "float32", LAYERS["xla"], 4, lam)


# Few rows and many classes, and the reverse, take different ways to the weight gradient.
SHAPES = [(13, 33, 7), (9, 5, 40), (3, 4, 1030), (0, 4, 3), (7, 1, 3), (1, 1, 1)]


@WAYS
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape(shape, name):
    check(shape, "float32", name)


@pytest.mark.slow
@WAYS
@pytest.mark.parametrize(
    ("dtype", "shape"),
    [("float16", SHAPES[0]), ("float16", SHAPES[1]), ("bfloat16", SHAPES[1]), ("float64", SHAPES[0])],
    ids=str,
)
def test_every_dtype(dtype, shape, name):
    """float32 is above. The way to the weight gradient does not depend on the type; float16 has a unit of its own."""
    check(shape, dtype, name)


@pytest.mark.parametrize(("shape", "dtype"), [(SHAPES[0], "bfloat16"), (SHAPES[1], "float64"), (SHAPES[3], "float32")])
def test_in_blocks(shape, dtype):
    check(shape, dtype, "xla-blocks")


@pytest.mark.parametrize("shape", [(140, 33, 900), (300, 200, 7)], ids=str)
def test_enough_for_several_threads(shape):
    check(shape, "float32", "xla")


def check(shape, dtype, name):
    batch = random_batch(shape, dtype, seed=shape[0])
    assert_loss_close_to_oracle(batch, dtype, LAYERS[name], 4, 0.5)
    if name == "xla":
        assert_close_to_oracle(batch, dtype, LAYERS[name], 4, 0.5)


@pytest.mark.parametrize("block_size", [None, 2])
def test_without_a_bias(block_size):
    batch = random_batch((9, 5, 7), "float64")
    layer, plain = (LAYERS[name + "-blocks" * bool(block_size)] for name in ("xla", "xla"))
    loss, gradients = layer.loss(batch, margin=4, lam=0.5, bias=False)
    batch.bias[:] = 0
    expected, expected_gradients = plain.loss(batch, margin=4, lam=0.5)
    for one, other in zip((loss, *gradients), (expected, *expected_gradients[:2]), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("of_loss", [True, False])
def test_second_order_numerically(of_loss):
    batch = random_batch((4, 3, 3), "float64", seed=4)
    batch.labels[:] = [1, 2, -1, 1]  # one class twice
    layer = lsoftmax_op.lsoftmax_loss if of_loss else lsoftmax_op.lsoftmax_logits

    def gradients(*arguments):
        with tf.GradientTape() as tape:
            tape.watch(arguments)
            x, w, b = arguments
            value = tf.reduce_sum(tf.sin(layer(x, w, batch.labels, b, margin=4, lam=0.5)))
        return tf.concat([tf.reshape(g, [-1]) for g in tape.gradient(value, arguments)], axis=0)

    arguments = [tf.constant(a) for a in (batch.features, batch.weights, batch.bias)]
    assert gradient_error(compiled(gradients), arguments) < 1e-7


@pytest.mark.parametrize("margin", [1, 4])
def test_angles_and_predicted_classes(margin):
    from lsoftmax_op import ops

    batch = random_batch((13, 5, 7), "float32")
    options = {"margin": margin, "lam": 0.5}

    def function(x, w, b):
        angles = lsoftmax_op.target_angles(x, w, batch.labels, margin=margin)
        return (*angles, ops.loss_layer(x, w, batch.labels, b, **options).predicted)

    arguments = [tf.constant(a) for a in (batch.features, batch.weights, batch.bias)]
    for one, other in zip(compiled(function)(*arguments), function(*arguments), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_of_equal_logits_the_first_is_predicted():
    from lsoftmax_op import ops

    @compiled
    def predicted(x, w):
        return ops.loss_layer(x, w, tf.constant([2]), None, margin=2, lam=0.0).predicted

    assert predicted(tf.ones([1, 3]), tf.ones([3, 5])).numpy().tolist() == [0]


BAD = pytest.mark.parametrize(
    ("labels", "lam", "lost", "message"),
    [
        ([0, 7, -1], 0.5, [False, True, False], r"labels: expected values in \[0, 5\), .* got labels\[1\] = 7"),
        ([0, 1, -1], -1.0, [True] * 3, "lam: expected a number >= 0, got -1"),
    ],
)
LAYER = tf.random.stateless_normal([3, 4], [1, 2]), tf.random.stateless_normal([4, 5], [3, 4])


@BAD
def test_what_cannot_be_computed_is_nan_in_its_own_row(labels, lam, lost, message, monkeypatch):
    if CALLS_JUDGE:
        monkeypatch.setenv("LSOFTMAX_XLA_CALLS", "OFF")

    @compiled
    def both(x, w, labels, lam):
        loss = lsoftmax_op.lsoftmax_loss(x, w, labels, lam=lam)
        return loss, lsoftmax_op.lsoftmax_logits(x, w, labels, lam=lam)

    loss, logits = both(*LAYER, tf.constant(labels), tf.constant(lam, tf.float64))
    assert np.isnan(loss).tolist() == lost
    assert np.isnan(logits).all(axis=1).tolist() == lost
    assert np.isnan(logits).any(axis=1).tolist() == lost


@BAD
def test_our_kernels_say_what_cannot_be_computed(labels, lam, lost, message):
    if not CALLS_JUDGE:
        pytest.skip("this TensorFlow came without what custom calls are made of, or they are the GPU's")
    loss = compiled(lambda x, w, labels, lam: lsoftmax_op.lsoftmax_loss(x, w, labels, lam=lam))
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        loss(*LAYER, tf.constant(labels), tf.constant(lam, tf.float64))


def test_lambda_changes_without_compiling_again():
    x, w, lam = tf.ones([2, 3]), tf.eye(3), tf.Variable(0.0)
    traces = []

    @compiled
    def loss():
        traces.append(1)
        return lsoftmax_op.lsoftmax_loss(x, w, tf.constant([0, 1]), lam=lam)

    first = loss().numpy()
    lam.assign(1000.0)
    assert (loss().numpy() < first).all()
    assert len(traces) == 1


def test_rows_whose_number_is_known_only_when_they_are_counted():
    batch = random_batch((9, 5, 4), "float32")
    chosen = tf.constant(batch.labels % 2 == 0)

    def function(x, w):
        with tf.GradientTape() as tape:
            tape.watch([x, w])
            rows, labels = tf.boolean_mask(x, chosen), tf.boolean_mask(tf.constant(batch.labels), chosen)
            loss = tf.reduce_sum(lsoftmax_op.lsoftmax_loss(rows, w, labels, lam=0.5))
        return loss, *tape.gradient(loss, [x, w])

    arguments = tf.constant(batch.features), tf.constant(batch.weights)
    for one, other in zip(compiled(function)(*arguments), function(*arguments), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(XLA_CALLS_ARE_CUDA, reason="not in the process that this starts")
def test_the_package_may_come_after_the_first_compilation():
    run_python("""
import tensorflow as tf
tf.function(lambda x: x + 1, jit_compile=True)(1.0)
import lsoftmax_op
loss = tf.function(lsoftmax_op.lsoftmax_loss, jit_compile=True)
print(loss(tf.ones([2, 3]), tf.ones([3, 4]), tf.constant([0, 1])))
""")


def test_shapes_that_do_not_fit():
    @tf.function(jit_compile=True, reduce_retracing=True)
    def loss(x, w, labels):
        x, labels = tf.ensure_shape(x, [None, None]), tf.ensure_shape(labels, [None])
        return lsoftmax_op.lsoftmax_loss(x, w, labels)

    unknown = tf.TensorSpec([None, None]), tf.TensorSpec([3, 5]), tf.TensorSpec([None], tf.int32)
    function = loss.get_concrete_function(*unknown)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"labels: expected shape \[2\], got \[3\]"):
        function(tf.ones([2, 3]), tf.ones([3, 5]), tf.constant([0, 1, 2]))


@WAYS
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_one_buffer_for_several_inputs(dtype, name, monkeypatch):
    """The results lie in the place of the products; where those are features or weights, too, they are read before."""
    monkeypatch.setenv("LSOFTMAX_XLA_CALLS", "OFF" if name == "xla-formulas" else "ON")
    ops = tf.load_op_library(lsoftmax_op.library_path())
    x = tf.cast(tf.random.stateless_normal([8, 8], [1, 2]), dtype)
    v, labels, geometry_grad = x[0], tf.range(-1, 7), tf.cast(x[:3], tf.float64)
    batch, lam, unit = (x, x, labels), tf.constant(0.5, tf.float64), tf.ones([8])
    terms, factors = tf.constant([], tf.float64), tf.constant([])
    calls = [
        lambda x: tuple(ops.lsoftmax_loss(x, x, x, labels, v, lam, terms, factors, margin=4)),
        lambda x: ops.lsoftmax_features_grad(x, *batch, geometry_grad, v, unit, x),
        lambda x: ops.lsoftmax_weights_grad(x, *batch, geometry_grad, v, unit, x),
    ]
    for call in calls:
        for one, other in zip(tf.nest.flatten(compiled(call)(x)), tf.nest.flatten(call(x)), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5 if dtype == "float32" else 1e-2, atol=1e-5)


@WAYS
def test_columns_that_do_not_fit(name, monkeypatch):
    calls = name == "xla" and CALLS_JUDGE
    monkeypatch.setenv("LSOFTMAX_XLA_CALLS", "ON" if calls else "OFF")
    ops = tf.load_op_library(lsoftmax_op.library_path())
    set_columns = compiled(lambda first: ops.lsoftmax_set_columns(tf.zeros([2, 4]), tf.ones([2, 2]), first))
    for first in (0, 2):
        assert set_columns(tf.constant(first, tf.int64)).numpy()[0].tolist() == [first == 0] * 2 + [first == 2] * 2
    for first in (3, -1, 2**62, -(2**63)):
        if calls:
            with pytest.raises(tf.errors.InvalidArgumentError, match=f"first_column: expected .*, got {first}"):
                set_columns(tf.constant(first, tf.int64))
        else:
            assert np.isnan(set_columns(tf.constant(first, tf.int64))).sum() == 4


def test_a_first_class_that_is_none():
    ops = tf.load_op_library(lsoftmax_op.library_path())
    z, labels, vector = tf.ones([3, 4]), tf.constant([0, 1, -1]), tf.ones([3], tf.float64)
    factors, terms = tf.constant([]), tf.constant([], tf.float64)
    sums, of_rows = tf.zeros([5, 3], tf.float64), (terms, tf.ones([3, 3], tf.float64))
    calls = [
        lambda first: ops.lsoftmax_sums(z, labels, z[0], first, factors, *of_rows, sums)[1],
        lambda first: ops.lsoftmax_products_grad(z, labels, z[0], first, factors, *of_rows, of_rows[1])[:, 3],
        lambda first: ops.lsoftmax_bias_grad(z, labels, first, z[:, 0], vector, z[:, 0]),
    ]
    for call in calls:
        assert np.isfinite(compiled(call)(tf.constant(8, tf.int64))).all()
        for first in (-1, 2**63 - 1):
            assert np.isnan(compiled(call)(tf.constant(first, tf.int64))).all()
            with pytest.raises(tf.errors.InvalidArgumentError, match=f"first_class: expected .*, got {first}"):
                call(tf.constant(first, tf.int64))
