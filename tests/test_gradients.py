"""Gradients in TensorFlow: numerical checks, second order, the raw ops, and every way to build a graph."""

import itertools

import numpy as np
import pytest
from support import gradient_error, random_batch

import lsoftmax_op

tf = pytest.importorskip("tensorflow")


@pytest.mark.parametrize("margin", range(1, 9))
def test_first_order_numerically(margin):
    batch = random_batch((5, 7, 4), "float64", seed=margin)
    arguments = [tf.constant(a) for a in (batch.features, batch.weights, batch.bias)]
    error = gradient_error(
        lambda x, w, b: lsoftmax_op.lsoftmax_logits(x, w, batch.labels, b, margin=margin, lam=0.5),
        arguments,
    )
    assert error < 1e-7


def curved_loss(batch, margin, lam):
    """A loss whose second derivatives in the logits do not vanish."""
    return lambda x, w, b: tf.reduce_sum(
        batch.grad * tf.sin(lsoftmax_op.lsoftmax_logits(x, w, batch.labels, b, margin=margin, lam=lam))
    )


@pytest.mark.slow
@pytest.mark.parametrize(("margin", "compiled"), [*((margin, True) for margin in (1, 2, 3, 4, 7)), (3, False)])
def test_second_order_numerically(margin, compiled):
    batch = random_batch((4, 6, 3), "float64", seed=margin)
    batch.labels[-1] = batch.labels[0] = 1  # one class twice
    loss = curved_loss(batch, margin, 0.5)

    def gradients(*arguments):
        with tf.GradientTape() as tape:
            tape.watch(arguments)
            value = loss(*arguments)
        return tf.concat([tf.reshape(g, [-1]) for g in tape.gradient(value, arguments)], axis=0)

    arguments = [tf.constant(a) for a in (batch.features, batch.weights, batch.bias)]
    assert gradient_error(tf.function(gradients) if compiled else gradients, arguments) < 1e-7


def test_third_order_numerically():
    batch = random_batch((3, 4, 3), "float64", seed=5)
    batch.labels[:] = [0, 2, 0]
    loss = curved_loss(batch, 3, 0.5)
    direction = tf.constant(np.random.default_rng(0).normal(size=(3, 4)))

    def second(x, w):
        with tf.GradientTape() as outer:
            outer.watch([x, w])
            with tf.GradientTape() as inner:
                inner.watch(x)
                value = loss(x, w, batch.bias)
            along = tf.reduce_sum(direction * inner.gradient(value, x))
        return tf.concat([tf.reshape(g, [-1]) for g in outer.gradient(along, [x, w])], axis=0)

    assert gradient_error(second, [tf.constant(batch.features), tf.constant(batch.weights)]) < 1e-6


def test_second_order_is_finite_at_poles_and_zero_norms():
    features = tf.constant([[2.0, 0.0], [-3.0, 0.0], [0.0, 0.0]], tf.float64)
    weights = tf.constant([[1.0, 0.5], [0.0, 0.5]], tf.float64)
    with tf.GradientTape() as outer:
        outer.watch([features, weights])
        with tf.GradientTape() as inner:
            inner.watch([features, weights])
            logits = lsoftmax_op.lsoftmax_logits(features, weights, [0, 0, 0], margin=4)
            loss = tf.reduce_sum(logits**2)
        first = inner.gradient(loss, [features, weights])
        total = tf.add_n([tf.reduce_sum(g**2) for g in first])
    for gradient in outer.gradient(total, [features, weights]):
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("of_loss", [False, True])
@pytest.mark.parametrize("name", ["features", "weights"])
def test_the_gradients_of_gradients_numerically(name, of_loss):
    """Of the raw ops that complete the gradients, in all that they depend on."""
    ops = tf.load_op_library(lsoftmax_op.library_path())
    batch = random_batch((5, 4, 3), "float64", seed=1)
    batch.labels[:] = [1, 0, 1, -1, 2]
    base = batch.features if name == "features" else batch.weights
    geometry_grad = batch.features.T[:3]
    arguments = [tf.constant(a) for a in (base, batch.features, batch.weights, geometry_grad, batch.loss_grad)]

    def complete(base, features, weights, geometry_grad, loss_grad=None):
        op, none = getattr(ops, f"lsoftmax_{name}_grad"), tf.zeros([0], tf.float64)
        loss_grad = none if loss_grad is None else loss_grad
        return op(base, features, weights, batch.labels, geometry_grad, loss_grad, tf.ones(loss_grad.shape), none)

    assert gradient_error(complete, arguments if of_loss else arguments[:-1]) < 1e-7


def raw_logits(ops, batch, margin, lam):
    """The raw ops, put together as their documentation says."""
    features, weights, geometry = ops.lsoftmax_target_geometry(
        tf.constant(batch.features), tf.constant(batch.weights), batch.labels
    )
    none = tf.zeros([0], tf.float64)
    return ops.lsoftmax_logits(tf.matmul(features, weights), batch.labels, geometry, lam, none, margin=margin)


def test_a_plainly_loaded_library_has_gradients():
    batch = random_batch((5, 7, 4), "float64")
    ops = tf.load_op_library(lsoftmax_op.library_path())
    graph = tf.Graph()
    with graph.as_default():
        x = tf.compat.v1.placeholder(tf.float64, [None, 7])
        w = tf.compat.v1.placeholder(tf.float64, [7, 4])
        features, weights, geometry = ops.lsoftmax_target_geometry(x, w, batch.labels)
        terms = tf.zeros([0], tf.float64)
        logits = ops.lsoftmax_logits(tf.matmul(features, weights), batch.labels, geometry, 0.5, terms, margin=3)
        gradients = tf.compat.v1.gradients(logits, [x, w], grad_ys=tf.constant(batch.grad))
        with tf.compat.v1.Session() as session:
            got = session.run([logits, *gradients], {x: batch.features, w: batch.weights})
    expected = lsoftmax_op.reference.logits_grad(
        batch.grad, batch.features, batch.weights, batch.labels, margin=3, lam=0.5
    )
    np.testing.assert_allclose(got[1], expected.features, rtol=1e-11)
    np.testing.assert_allclose(got[2], expected.weights, rtol=1e-11)


def test_each_gradient_alone():
    batch = random_batch((5, 7, 4), "float64")
    expected = lsoftmax_op.reference.logits_grad(batch.grad, *batch.layer, margin=4, lam=0.5)
    arguments = [tf.constant(a) for a in (batch.features, batch.weights, batch.bias)]
    for n, wrap in itertools.product(range(3), (lambda f: f, tf.function)):

        def gradient(*arguments, n=n):
            with tf.GradientTape() as tape:
                tape.watch(arguments[n])
                x, w, b = arguments
                z = lsoftmax_op.lsoftmax_logits(x, w, batch.labels, b, lam=0.5)
            return tape.gradient(z, arguments[n], output_gradients=tf.constant(batch.grad))

        np.testing.assert_allclose(wrap(gradient)(*arguments), expected[n], rtol=1e-10, atol=1e-12)


def test_lambda_and_labels_have_none():
    batch = random_batch((5, 7, 4), "float32")
    lam, labels = tf.Variable(1.0), tf.constant(batch.labels)
    with tf.GradientTape() as tape:
        tape.watch(labels)
        z = lsoftmax_op.lsoftmax_logits(batch.features, batch.weights, labels, lam=lam)
    assert tape.gradient(z, [lam, labels]) == [None, None]
