"""The fused loss in TensorFlow: derivatives of every order, blocks of classes, and every place where it must work."""

import itertools

import numpy as np
import pytest
from support import LAMBDAS, gradient_error, random_batch

import lsoftmax_op
from lsoftmax_op import ops, reference

tf = pytest.importorskip("tensorflow")

BLOCK_SIZES = (None, 1, 3, 4, 100)


def tensors(batch):
    return [tf.constant(a) for a in (batch.features, batch.weights, batch.bias)]


@pytest.mark.parametrize("margin", range(1, 9))
def test_first_order_numerically(margin):
    batch = random_batch((5, 7, 4), "float64", seed=margin)
    error = gradient_error(
        lambda x, w, b: lsoftmax_op.lsoftmax_loss(x, w, batch.labels, b, margin=margin, lam=0.5), tensors(batch)
    )
    assert error < 1e-7


@pytest.mark.slow
@pytest.mark.parametrize(
    ("margin", "block_size", "compiled"),
    [(1, None, True), (2, None, True), (3, 2, True), (4, None, True), (7, 3, True), (4, None, False), (3, 2, False)],
)
def test_second_order_numerically(margin, block_size, compiled):
    batch = random_batch((4, 3, 3), "float64", seed=margin)
    batch.labels[:] = [1, 2, -1, 1]  # one class twice

    def gradients(*arguments):
        with tf.GradientTape() as tape:
            tape.watch(arguments)
            x, w, b = arguments
            loss = lsoftmax_op.lsoftmax_loss(x, w, batch.labels, b, margin=margin, lam=0.5, class_block_size=block_size)
            value = tf.reduce_sum(tf.sin(loss))  # what comes down to the loss depends on it
        return tf.concat([tf.reshape(g, [-1]) for g in tape.gradient(value, arguments)], axis=0)

    assert gradient_error(tf.function(gradients) if compiled else gradients, tensors(batch)) < 1e-7


def test_third_order_numerically():
    batch = random_batch((3, 2, 3), "float64", seed=5)
    batch.labels[:] = [0, 2, 0]
    direction = tf.constant(np.random.default_rng(0).normal(size=(3, 2)))

    @tf.function
    def second(x, w):
        with tf.GradientTape() as outer:
            outer.watch([x, w])
            with tf.GradientTape() as inner:
                inner.watch(x)
                value = tf.reduce_sum(lsoftmax_op.lsoftmax_loss(x, w, batch.labels, margin=3, lam=0.5))
            along = tf.reduce_sum(direction * inner.gradient(value, x))
        return tf.concat([tf.reshape(g, [-1]) for g in outer.gradient(along, [x, w])], axis=0)

    assert gradient_error(second, tensors(batch)[:2]) < 1e-6


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_blocks_of_any_size_give_the_same(block_size, bias):
    batch = random_batch((9, 7, 11), "float64")
    layer = batch.layer if bias else batch.layer[:3]
    want = reference.loss(*layer, margin=3, lam=0.5)
    want_gradients = reference.loss_grad(batch.loss_grad, *layer, margin=3, lam=0.5)
    for wrap in (lambda f: f, tf.function):

        @wrap
        def step(*arguments):
            with tf.GradientTape() as tape:
                tape.watch(arguments)
                x, w, *b = arguments
                loss, predicted = ops.loss_layer(
                    x, w, batch.labels, *(b or [None]), margin=3, lam=0.5, class_block_size=block_size
                )
            return predicted, loss, *tape.gradient(loss, arguments, output_gradients=tf.constant(batch.loss_grad))

        predicted, loss, *gradients = step(*tensors(batch)[: 3 if bias else 2])
        np.testing.assert_allclose(loss, want, rtol=1e-12)
        plain = batch.features @ batch.weights + (batch.bias if bias else 0)
        np.testing.assert_array_equal(predicted, plain.argmax(axis=1))
        for got, expected in zip(gradients, want_gradients, strict=False):
            np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e-13)


def test_each_gradient_alone():
    batch = random_batch((5, 7, 4), "float64")
    expected = reference.loss_grad(batch.loss_grad, *batch.layer, margin=4, lam=0.5)
    for n, wrap, block_size in itertools.product(range(3), (lambda f: f, tf.function), (None, 3)):

        def gradient(*arguments, n=n, block_size=block_size):
            with tf.GradientTape() as tape:
                tape.watch(arguments[n])
                x, w, b = arguments
                loss = lsoftmax_op.lsoftmax_loss(x, w, batch.labels, b, lam=0.5, class_block_size=block_size)
            return tape.gradient(loss, arguments[n], output_gradients=tf.constant(batch.loss_grad))

        np.testing.assert_allclose(wrap(gradient)(*tensors(batch)), expected[n], rtol=1e-10, atol=1e-12)


def test_lambda_and_labels_have_no_gradient():
    batch = random_batch((5, 7, 4), "float32")
    lam, labels = tf.Variable(1.0), tf.constant(batch.labels)
    with tf.GradientTape() as tape:
        tape.watch(labels)
        loss = lsoftmax_op.lsoftmax_loss(batch.features, batch.weights, labels, lam=lam)
    assert tape.gradient(loss, [lam, labels]) == [None, None]


def test_lambda_never_retraces():
    batch = random_batch((6, 5, 4), "float64")
    traces = []

    @tf.function
    def loss(lam):
        traces.append(lam)
        return lsoftmax_op.lsoftmax_loss(*batch.layer, margin=3, lam=lam)

    lam = tf.Variable(0.0)
    for value in LAMBDAS:
        lam.assign(value)
        np.testing.assert_allclose(loss(lam), reference.loss(*batch.layer, margin=3, lam=value), rtol=1e-11)
    assert len(traces) == 1


@pytest.mark.parametrize("block_size", [None, 3])
def test_unknown_shapes(block_size):
    batch = random_batch((6, 5, 4), "float64")
    unknown = tf.TensorSpec(None, tf.float64)

    @tf.function(input_signature=[unknown, unknown, tf.TensorSpec(None, tf.int64), unknown])
    def step(x, w, y, b):
        with tf.GradientTape() as tape:
            tape.watch([x, w, b])
            loss = lsoftmax_op.lsoftmax_loss(x, w, y, b, margin=3, lam=0.5, class_block_size=block_size)
        assert loss.shape.rank == 1
        return loss, *tape.gradient(loss, [x, w, b])

    want = reference.loss_grad(np.ones(6), *batch.layer, margin=3, lam=0.5)
    loss, *gradients = step(*batch.layer)
    np.testing.assert_allclose(loss, reference.loss(*batch.layer, margin=3, lam=0.5))
    for got, expected in zip(gradients, want, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("block_size", [None, 3])
def test_v1_graphs(block_size):
    batch = random_batch((6, 5, 4), "float64")
    with tf.Graph().as_default():
        x = tf.compat.v1.placeholder(tf.float64)
        w = tf.compat.v1.get_variable("w", initializer=batch.weights, use_resource=False)
        loss = lsoftmax_op.lsoftmax_loss(x, w, batch.labels, lam=0.5, class_block_size=block_size)
        (gradient,) = tf.compat.v1.gradients(loss, [w])
        with tf.compat.v1.Session() as session:
            session.run(tf.compat.v1.global_variables_initializer())
            got = session.run([loss, gradient], {x: batch.features})
    want = reference.loss_grad(np.ones(6), *batch.layer[:3], lam=0.5)
    np.testing.assert_allclose(got[0], reference.loss(*batch.layer[:3], lam=0.5))
    np.testing.assert_allclose(got[1], want.weights, rtol=1e-9, atol=1e-12)


def test_training_ends_where_it_should():
    """A layer that is trained from scratch separates two clusters by the angle that the margin asks for."""
    rng = np.random.default_rng(0)
    labels = tf.constant(np.arange(64) % 2)
    features = tf.constant(np.eye(2)[np.arange(64) % 2] + 0.05 * rng.normal(size=(64, 2)))
    weights = tf.Variable(0.1 * rng.normal(size=(2, 2)))
    losses = []
    for _ in range(300):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(lsoftmax_op.lsoftmax_loss(features, weights, labels, margin=4))
        weights.assign_sub(0.5 * tape.gradient(loss, weights))
        losses.append(float(loss))
    assert losses[-1] < 0.05 * losses[0]
    cos_theta, _ = lsoftmax_op.target_angles(features, weights, labels)
    assert np.degrees(np.arccos(cos_theta)).max() < 45


def test_nothing_that_the_caller_holds_is_changed():
    batch = random_batch((6, 5, 4), "float64")
    arguments = tensors(batch)
    products = tf.matmul(*arguments[:2])
    before = [a.numpy().copy() for a in (*arguments, products)]
    x, w, b = arguments
    raw = tf.load_op_library(lsoftmax_op.library_path())
    none = tf.zeros([0], tf.float64)
    raw.lsoftmax_loss(products, x, w, batch.labels, b, 0.0, none, none, margin=4)
    with tf.GradientTape() as tape:
        tape.watch(arguments)
        loss = lsoftmax_op.lsoftmax_loss(x, w, batch.labels, b)
    tape.gradient(loss, arguments)
    for now, then in zip((*arguments, products), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_the_tape_can_be_asked_twice():
    batch = random_batch((6, 5, 4), "float64")
    x, w, b = tensors(batch)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([x, w, b])
        loss = lsoftmax_op.lsoftmax_loss(x, w, batch.labels, b)
    first, second = (tape.gradient(loss, [x, w, b]) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_graph_does_not_grow_with_the_batch():
    def nodes(rows):
        @tf.function
        def step(x, w, y):
            with tf.GradientTape() as tape:
                tape.watch([x, w])
                loss = tf.reduce_mean(lsoftmax_op.lsoftmax_loss(x, w, y, lam=5.0))
            return tape.gradient(loss, [x, w])

        shapes = [tf.TensorSpec(s, d) for s, d in (([rows, 8], "float32"), ([8, 4], "float32"), ([rows], "int32"))]
        return len(step.get_concrete_function(*shapes).graph.get_operations())

    assert nodes(8) == nodes(1024) <= 30  # README's figure


def test_a_saved_model_still_trains(tmp_path):
    batch = random_batch((8, 5, 4), "float64")

    class Model(tf.Module):
        def __init__(self):
            self.weights = tf.Variable(batch.weights)

        @tf.function(input_signature=[tf.TensorSpec([None, 5], tf.float64), tf.TensorSpec([None], tf.int64)])
        def loss(self, x, y):
            return lsoftmax_op.lsoftmax_loss(x, self.weights, y, lam=0.5)

    tf.saved_model.save(Model(), str(tmp_path))
    model = tf.saved_model.load(str(tmp_path))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(batch.loss_grad * model.loss(batch.features, batch.labels.astype(np.int64)))
    want = reference.loss_grad(batch.loss_grad, *batch.layer[:3], lam=0.5).weights
    np.testing.assert_allclose(tape.gradient(loss, model.weights), want)


@pytest.mark.parametrize("way", ["eager", "function", "xla", "xla-formulas"])
@pytest.mark.parametrize("copies", [True, False])
def test_the_feature_gradient_of_rows_without_a_target_is_scaled_as_others(dtype, way, copies, monkeypatch):
    """As the op's documentation has it: what came through the products may be of classes elsewhere."""
    monkeypatch.setenv("LSOFTMAX_XLA_CALLS", "OFF" if way == "xla-formulas" else "ON")
    ops = tf.load_op_library(lsoftmax_op.library_path())
    rows, depth, classes = 3, 40, 4
    features = np.full((rows, depth), np.inf)  # does not matter
    target_weights = np.zeros((rows, depth) if copies else 0)
    x, w, h, t = (tf.cast(v, dtype) for v in (features, np.ones((depth, classes)), np.full(rows, 2), target_weights))
    geometry_grad, unit = tf.zeros([3, rows], tf.float64), tf.ones([rows])

    def features_grad(base):
        return ops.lsoftmax_features_grad(base, x, w, np.full(rows, -1), geometry_grad, h, unit, t)

    if way != "eager":
        features_grad = tf.function(features_grad, jit_compile=way.startswith("xla"))
    np.testing.assert_array_equal(tf.cast(features_grad(tf.ones([rows, depth], x.dtype)), tf.float32), 2)
