"""Every margin as XLA compiles it (tf.function(jit_compile=True)): what the same ops give uncompiled."""

import numpy as np
import pytest
from support import KINDS, gradient_error, random_batch

import lsoftmax_op
from lsoftmax_op import margin_softmax_logits, margin_softmax_loss
from lsoftmax_op.margins import ArcFace, Combined, CosFace, LSoftmax, SphereFace

tf = pytest.importorskip("tensorflow")
if lsoftmax_op.build_info()["xla"] != "yes":
    pytest.skip(f"XLA: {lsoftmax_op.build_info()['xla']}", allow_module_level=True)

TOLERANCE = {"float64": 1e-13, "float32": 3e-6, "bfloat16": 2e-2, "float16": 2e-3}
kinds = pytest.mark.parametrize("margin", [LSoftmax(4), *KINDS], ids=repr)
ways = pytest.mark.parametrize("way", ["calls", "formulas"])


@pytest.fixture
def way(request, monkeypatch):
    """Of what XLA makes: calls of our kernels, where it can, or its own of our formulas."""
    monkeypatch.setenv("LSOFTMAX_XLA_CALLS", "OFF" if request.param == "formulas" else "ON")


def compiled(function):
    return tf.function(function, jit_compile=True)


def batch_for(margin, dtype="float32"):
    """Rows without a target, of zeros and of one class, a class of zeros, every segment, and a bias if there may be.

    One row is at a pole, of which the last bit of cos(theta) may not decide: its norms are powers of two.
    """
    batch = random_batch((13, 6, 9), dtype, seed=3)
    batch.labels[:6] = [-1, 2, 2, 0, 8, 2]
    batch.features[1] = 0
    batch.weights[:, 0] = 2 * np.eye(6)[0]
    batch.features[3] = -2 * batch.weights[:, 0]
    batch.features[4] = batch.features[0]
    batch.weights[:, 8] = 0
    return batch, None if margin.has_factors else batch.bias


def step_of(batch, bias, **settings):
    """A function of features, weights and, if there is one, bias: loss, predicted classes and the three's gradients."""

    def step(*arguments):
        features, weights, *rest = arguments
        with tf.GradientTape() as tape:
            tape.watch(arguments)
            layer = lsoftmax_op.ops.loss_layer(features, weights, batch.labels, rest[0] if rest else None, **settings)
        return layer.loss, layer.predicted, *tape.gradient(layer.loss, arguments, tf.constant(batch.loss_grad))

    return step, [tf.constant(array) for array in (batch.features, batch.weights, bias) if array is not None]


def assert_compiled_is_the_same(function, arguments, dtype):
    for got, expected in zip(compiled(function)(*arguments), function(*arguments), strict=True):
        one, other = np.asarray(got, np.float64), np.asarray(expected, np.float64)
        assert np.isfinite(other).all()
        np.testing.assert_allclose(one, other, rtol=0, atol=TOLERANCE[dtype] * max(1, np.abs(other).max()))


@kinds
@ways
def test_a_step_of_the_loss(margin, way):
    batch, bias = batch_for(margin)
    step, arguments = step_of(batch, bias, margin=margin, lam=0.5, label_smoothing=0.1)
    assert_compiled_is_the_same(step, arguments, "float32")


@ways
@pytest.mark.parametrize("margin", [Combined(2, 0.7, 0.2, 6), SphereFace(3)], ids=repr)
def test_every_dtype(margin, dtype, way):
    batch, bias = batch_for(margin, dtype)
    step, arguments = step_of(batch, bias, margin=margin, lam=0.0)
    assert_compiled_is_the_same(step, arguments, dtype)


@pytest.mark.parametrize("margin", [KINDS[kind] for kind in (0, 2, 5, 7)], ids=repr)
def test_blocks_of_classes(margin):
    batch, bias = batch_for(margin, "float64")
    step, arguments = step_of(batch, bias, margin=margin, lam=0.5, label_smoothing=0.1, class_block_size=4)
    assert_compiled_is_the_same(step, arguments, "float64")


@ways
def test_smoothed_labels_of_a_plain_margin(way):
    batch, bias = batch_for(LSoftmax(4))
    step, arguments = step_of(batch, bias, margin=4, lam=0.5, label_smoothing=0.3)
    assert_compiled_is_the_same(step, arguments, "float32")


@kinds
def test_logits_and_their_gradients(margin):
    batch, bias = batch_for(margin, "float64")

    def step(features, weights):
        with tf.GradientTape() as tape:
            tape.watch([features, weights])
            logits = margin_softmax_logits(features, weights, batch.labels, bias, margin=margin, lam=0.5)
        return logits, *tape.gradient(logits, [features, weights], tf.constant(batch.grad))

    assert_compiled_is_the_same(step, [tf.constant(batch.features), tf.constant(batch.weights)], "float64")


@ways
def test_zero_rows_and_classes_are_no_nan(way):
    """Of a zero norm that is divided by every logit is 0: the loss is log(C)."""

    @compiled
    def step(features, weights):
        with tf.GradientTape() as tape:
            tape.watch([features, weights])
            loss = margin_softmax_loss(features, weights, tf.constant([1, 4, -1]), margin=ArcFace(0.5, 64))
        return loss, *tape.gradient(loss, [features, weights])

    for results in (step(tf.zeros([3, 2]), tf.ones([2, 5])), step(tf.ones([3, 2]), tf.zeros([2, 5]))):
        loss, *gradients = results
        np.testing.assert_allclose(loss, [np.log(5), np.log(5), 0], rtol=1e-6)
        assert not any(np.asarray(gradient).any() for gradient in gradients)


@ways
def test_a_scale_that_changes_is_not_compiled_again(way):
    batch, _ = batch_for(CosFace(0.35, 8))
    scale, traces = tf.Variable(8.0), []

    def loss(scale):
        return margin_softmax_loss(batch.features, batch.weights, batch.labels, margin=CosFace(0.35, scale))

    @compiled
    def function():
        traces.append(None)
        return loss(scale)

    for value in (8.0, 64.0):
        scale.assign(value)
        np.testing.assert_allclose(function(), loss(value), rtol=1e-5, atol=1e-5)
    assert len(traces) == 1
    assert function.experimental_get_compiler_ir()(stage="hlo").count("f64[7]") > 0  # terms that are an operand


@pytest.mark.slow
def test_second_order_numerically():
    batch = random_batch((4, 3, 3), "float64", seed=4)
    batch.labels[:] = [1, 2, -1, 1]

    def gradients(*arguments):
        with tf.GradientTape() as tape:
            tape.watch(arguments)
            loss = margin_softmax_loss(*arguments, batch.labels, margin=ArcFace(0.5, 4), label_smoothing=0.1)
            value = tf.reduce_sum(tf.sin(loss))
        return tf.concat([tf.reshape(g, [-1]) for g in tape.gradient(value, arguments)], axis=0)

    assert gradient_error(compiled(gradients), [tf.constant(batch.features), tf.constant(batch.weights)]) < 1e-6


@ways
@pytest.mark.parametrize(
    ("bias", "terms", "message"),
    [(5, 7, "bias: expected none where there are class_factors"), (0, 0, r"terms: expected shape \[7\]")],
)
def test_factors_go_with_terms_and_without_a_bias(bias, terms, message, way):
    ops = lsoftmax_op.library.load()
    x, w, labels = tf.ones([2, 3]), tf.ones([3, 5]), tf.constant([0, 4])

    def loss():
        target = (labels, tf.ones([bias]), 0.0, tf.ones([terms], tf.float64))
        return ops.lsoftmax_loss(tf.matmul(x, w), x, w, *target, tf.ones([5]), margin=1).loss

    for function in (loss, compiled(loss)):
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            function()


@ways
def test_factors_are_of_the_type_that_is_computed_in(way):
    ops = lsoftmax_op.library.load()
    for dtype, wide in ((tf.float16, tf.float32), (tf.float32, tf.float32), (tf.float64, tf.float64)):
        weights = tf.constant([[3.0, 0.0, 1.0], [4.0, 0.0, 0.0]], dtype)
        factors = compiled(lambda w, wide=wide: ops.lsoftmax_class_factors(w, Twide=wide))(weights)
        assert factors.dtype == wide
        np.testing.assert_allclose(factors, [0.2, 0, 1], rtol=1e-7)
    with pytest.raises(tf.errors.InvalidArgumentError, match="class_factors: expected double"):
        compiled(lambda: ops.lsoftmax_class_factors(tf.ones([2, 3], tf.float64), Twide=tf.float32))()
