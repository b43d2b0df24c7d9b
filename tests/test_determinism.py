"""The same bits of the ops that share rows, columns or classes among threads, however many they are, and again."""

import pytest
from support import run_python

pytest.importorskip("tensorflow")

CODE = """
import hashlib, sys, tensorflow as tf, lsoftmax_op
sys.path.insert(0, "tests")
from support import random_batch
tf.config.threading.set_intra_op_parallelism_threads(THREADS)
ops = lsoftmax_op.library.load()

def logits(shape):
    b = random_batch(shape, "float32")
    g, x, w = (tf.constant(v) for v in (b.grad, b.features, b.weights))
    no_loss, terms = [tf.zeros([0])] * 3, tf.zeros([0], tf.float64)
    same_x, same_w, geometry = ops.lsoftmax_target_geometry(x, w, b.labels)
    p, geometry_grad = ops.lsoftmax_logits_grad(g, b.labels, geometry, 0.5, terms, margin=4)
    return [
        geometry,
        ops.lsoftmax_logits(g, b.labels, geometry, 0.5, terms, margin=4),
        p,
        geometry_grad,
        ops.lsoftmax_features_grad(x, x, w, b.labels, geometry_grad, *no_loss),
        ops.lsoftmax_weights_grad(w, x, w, b.labels, geometry_grad, *no_loss),
    ]

def loss(shape, dtype):
    b = random_batch(shape, dtype)
    x, w, bias, g = (tf.constant(v) for v in (b.features, b.weights, b.bias, b.loss_grad))
    no_terms, no_factors, rows = tf.zeros([0], tf.float64), tf.zeros([0]), tf.transpose(w)
    state = ops.lsoftmax_loss(b.grad, x, w, b.labels, bias, 0.5, no_terms, no_factors, margin=4)
    first = tf.constant(0, tf.int64)
    before = tf.zeros([5, shape[0]], tf.float64)
    unit = state.grad_unit
    target = (state.geometry_grad, g, unit, state.target_weights)
    return [
        *state,
        ops.lsoftmax_sums(b.grad, b.labels, bias, first, no_factors, no_terms, state.geometry, before),
        ops.lsoftmax_bias_grad(state.products_grad, b.labels, first, g, state.target_grad, unit),
        ops.lsoftmax_features_grad(x, x, w, b.labels, *target),
        ops.lsoftmax_weights_grad(w, x, w, b.labels, *target),
        ops.lsoftmax_weights_grad(w, x, w, b.labels, *target, normalize_weights=True),
        ops.lsoftmax_weights_grad(rows, x, rows, b.labels, *target, class_major=True),
        ops.lsoftmax_class_factors(w),
        ops.lsoftmax_class_factors(rows, class_major=True),
    ]

def digest():
    results = [*logits((130, 19, 6)), *logits((700, 65, 9))]
    for case in (((130, 19, 6), "float32"), ((700, 65, 90), "float32"), ((64, 16, 5000), "float16")):
        results += loss(*case)
    return hashlib.sha256(b"".join(result.numpy().tobytes() for result in results)).hexdigest()

first, again = digest(), digest()
assert first == again
print(first)
"""


@pytest.mark.slow
def test_any_number_of_threads_gives_the_same_bits():
    digests = {run_python(CODE.replace("THREADS", str(n))).stdout for n in (1, 2, 3)}
    assert len(digests) == 1
