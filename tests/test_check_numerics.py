"""Who hunts a NaN of their own (tf.debugging.enable_check_numerics) must not stop at ours: a training step makes none.

XLA cannot run what TensorFlow adds to a graph for this.
"""

import functools

import numpy as np
import pytest
from support import random_batch

import lsoftmax_op

tf = pytest.importorskip("tensorflow")


@pytest.fixture(autouse=True)
def checker():
    tf.debugging.enable_check_numerics()
    yield
    tf.debugging.disable_check_numerics()


def first_order(layer, variables):
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(layer(*variables))
    return tape.gradient(value, variables)


def second_order(layer, variables):
    with tf.GradientTape() as tape:
        value = tf.add_n([tf.reduce_sum(tf.sin(g)) for g in first_order(layer, variables)])
    return tape.gradient(value, variables)


LAYERS = {
    "logits": lsoftmax_op.lsoftmax_logits,
    "loss": lsoftmax_op.lsoftmax_loss,
    "blocks": functools.partial(lsoftmax_op.lsoftmax_loss, class_block_size=3),
}
# N, D and C; whether every row has a target; what features are multiplied by; lambda.
BATCHES = {
    "some rows without a target": ((9, 5, 7), True, 1, 0.5),
    "no row with one": ((4, 3, 2), False, 1, 0.5),
    "one class": ((4, 3, 1), True, 1, 0.5),
    "zero norms": ((9, 5, 7), True, 0, 0.5),
    "large norms": ((9, 5, 7), True, 1e4, 0.0),
    "no row": ((0, 5, 7), True, 1, 0.5),
    "lambda infinite": ((9, 5, 7), True, 1, np.inf),
}


@pytest.mark.parametrize(
    ("gradients", "batch"), [*((first_order, batch) for batch in BATCHES), (second_order, next(iter(BATCHES)))]
)
@pytest.mark.parametrize("layer", LAYERS)
def test_gradients(gradients, layer, batch):
    shape, has_targets, scale, lam = BATCHES[batch]
    arrays = random_batch(shape, "float32", seed=5)
    labels = arrays.labels if has_targets else np.full_like(arrays.labels, -1)
    variables = [tf.Variable(a) for a in (arrays.features * np.float32(scale), arrays.weights, arrays.bias)]
    call = functools.partial(gradients, lambda x, w, b: LAYERS[layer](x, w, labels, b, lam=lam), variables)
    for found in (call(), tf.function(call)()) if gradients is first_order else (call(),):
        assert all(np.isfinite(g).all() for g in found if g is not None)


def test_the_checker_is_on():
    x = tf.constant([[np.nan, 1.0]])
    with pytest.raises(tf.errors.InvalidArgumentError, match="Detected Infinity or NaN"):
        lsoftmax_op.lsoftmax_loss(x, tf.ones([2, 3]), [0])


@pytest.mark.parametrize(("eager", "dtype"), [(True, "float32"), (False, "mixed_float16")])
def test_fit_with_a_monitor(eager, dtype):
    keras = pytest.importorskip("keras")
    from lsoftmax_op.keras import LSoftmaxClassifier, LSoftmaxMonitor

    batch = random_batch((40, 5, 7), "float32", seed=3)
    assert (batch.labels == -1).any()
    model = LSoftmaxClassifier(keras.Sequential([keras.Input((5,)), keras.layers.Dense(4)]), 7, dtype=dtype)
    model.compile("sgd", run_eagerly=eager)
    logs = model.fit(batch.features, batch.labels, verbose=0, callbacks=[LSoftmaxMonitor()]).history
    model.evaluate(batch.features, batch.labels, verbose=0)
    assert 0 < logs["angle"][0] < 180
