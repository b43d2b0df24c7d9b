"""What programs do with the functions beside training: Jacobians, forward mode, vectorised maps, recomputation, threads
and processes. Beside each, the oracle."""

import numpy as np
import pytest
from support import random_batch, run_python

import lsoftmax_op
from lsoftmax_op import reference

tf = pytest.importorskip("tensorflow")

OPTIONS = {"margin": 3, "lam": 0.5}
BLOCKS = {"class_block_size": 2}
FUNCTIONS = {
    "logits": (lsoftmax_op.lsoftmax_logits, reference.logits, reference.logits_grad, {}),
    "loss": (lsoftmax_op.lsoftmax_loss, reference.loss, reference.loss_grad, {}),
    "loss in blocks": (lsoftmax_op.lsoftmax_loss, reference.loss, reference.loss_grad, BLOCKS),
}


class Function:
    """One of the functions, and the oracle's, of features, weights and bias of a batch."""

    def __init__(self, name):
        self.function, self.value, self.grad, self.options = FUNCTIONS[name]
        self.batch = random_batch((4, 3, 5), "float64", seed=2)
        self.arguments = (self.batch.features, self.batch.weights, self.batch.bias)

    def __call__(self, x, w, b, labels=None):
        labels = self.batch.labels if labels is None else labels
        return self.function(x, w, labels, b, **OPTIONS, **self.options)

    def want(self, x, w, b):
        return self.value(x, w, self.batch.labels, b, **OPTIONS)

    def want_gradients(self, upstream, x, w, b):
        return self.grad(upstream, x, w, self.batch.labels, b, **OPTIONS)

    def want_jacobian(self, *arguments):
        shape = self.want(*arguments).shape
        rows = [self.want_gradients(one.reshape(shape), *arguments) for one in np.eye(np.prod(shape))]
        return [np.reshape([row[n] for row in rows], (*shape, *a.shape)) for n, a in enumerate(arguments)]


@pytest.fixture(params=FUNCTIONS)
def function(request):
    return Function(request.param)


def tensors(function):
    return tuple(map(tf.constant, function.arguments))


def assert_close(got, want):
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


def gradients(function, *arguments):
    """Those of a sum whose upstream gradient is the cosine of the values."""
    with tf.GradientTape() as tape:
        tape.watch(arguments)
        value = tf.reduce_sum(tf.sin(function(*arguments)))
    return tape.gradient(value, arguments)


def want_gradients(function, *arguments):
    return function.want_gradients(np.cos(function.want(*arguments)), *arguments)


def test_jacobian(function):
    @tf.function
    def jacobian(*arguments):
        with tf.GradientTape() as tape:
            tape.watch(arguments)
            value = function(*arguments)
        return tape.jacobian(value, arguments)

    assert_close(jacobian(*tensors(function)), function.want_jacobian(*function.arguments))


def test_forward_mode(function):
    """The derivative along a direction, and over reverse mode the product of the Hessian with it."""
    rng = np.random.default_rng(0)
    direction = tuple(rng.normal(size=a.shape) for a in function.arguments)

    def along(*arguments):
        with tf.autodiff.ForwardAccumulator(arguments, tuple(map(tf.constant, direction))) as accumulator:
            value, first = function(*arguments), gradients(function, *arguments)
        return accumulator.jvp(value), [accumulator.jvp(one) for one in first]

    value, second = along(*tensors(function))
    jacobian = function.want_jacobian(*function.arguments)
    assert_close([value], [sum(np.tensordot(j, d, d.ndim) for j, d in zip(jacobian, direction, strict=True))])
    after, before = (
        want_gradients(function, *(a + step * d for a, d in zip(function.arguments, direction, strict=True)))
        for step in (1e-6, -1e-6)
    )
    for got, high, low in zip(second, after, before, strict=True):
        np.testing.assert_allclose(got, (high - low) / 2e-6, rtol=1e-6, atol=1e-7)


def test_vectorized_map(function):
    """Of several models, each with its own data."""
    models = [random_batch((4, 3, 5), "float64", seed=seed) for seed in (2, 4, 6)]
    stacked = [np.stack(arrays) for arrays in zip(*(model.layer for model in models), strict=True)]

    def of_model(model):
        x, w, y, b = model
        return gradients(lambda *arguments: function(*arguments, labels=y), x, w, b)

    got = tf.vectorized_map(of_model, tuple(map(tf.constant, stacked)))
    for n, function.batch in enumerate(models):
        features, weights, _, bias = function.batch.layer
        assert_close([one[n] for one in got], want_gradients(function, features, weights, bias))


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "function"])
def test_recompute_grad(function, compiled):
    calls = []

    @tf.recompute_grad
    def recomputed(*arguments):
        calls.append(None)
        return function(*arguments)

    def step(*arguments):
        return gradients(recomputed, *arguments)

    got = (tf.function(step) if compiled else step)(*tensors(function))
    assert_close(got, want_gradients(function, *function.arguments))
    assert len(calls) == 2


THREADS = """
import sys, threading
from concurrent.futures import ThreadPoolExecutor
import numpy as np, tensorflow as tf
sys.path.insert(0, "tests")
together = threading.Barrier(8)

def step(x, w, y, g):
    import lsoftmax_op
    with tf.GradientTape() as tape:
        tape.watch([x, w])
        loss = lsoftmax_op.lsoftmax_loss(x, w, y, lam=0.5)
    return loss, *tape.gradient(loss, [x, w], output_gradients=g)

compiled = tf.function(step)

def work(_):
    together.wait()
    from support import random_batch
    import lsoftmax_op
    batch = random_batch((300, 33, 50), "float32")
    arguments = batch.features, batch.weights, batch.labels, batch.loss_grad
    bits = []
    for _ in range(5):
        together.wait()
        results = lsoftmax_op.arrays.loss_grad(arguments[3], *arguments[:3], lam=0.5, num_threads=2)
        for loss, *grads in (step(*map(tf.constant, arguments)), compiled(*arguments), (results.loss, *results[:2])):
            bits.append(b"".join(np.asarray(one).tobytes() for one in (loss, *grads)))
    return bits, loss, *grads, batch

with ThreadPoolExecutor(8) as pool:
    found = list(pool.map(work, range(8)))
from lsoftmax_op import reference
for bits, loss, dx, dw, batch in found:
    assert bits == found[0][0]
    assert bits == bits[:3] * 5
    exact = batch.exact()
    np.testing.assert_allclose(loss, reference.loss(*exact.layer[:3], lam=0.5), rtol=1e-4, atol=1e-4)
"""


@pytest.mark.slow
def test_8_threads_at_once():
    """From the first import on."""
    run_python(THREADS)


WORKER = """
import lsoftmax_op

def by_tensorflow(grad, *layer, **options):
    import tensorflow as tf
    with tf.GradientTape() as tape:
        x, w, y, b = map(tf.constant, layer)
        tape.watch([x, w, b])
        loss = lsoftmax_op.lsoftmax_loss(x, w, y, b, **options)
    return [one.numpy() for one in tape.gradient(loss, [x, w, b], output_gradients=grad)]
"""
PROCESSES = """
import multiprocessing, sys
sys.path[:0] = ["tests", "FOLDER"]
import numpy as np, tensorflow as tf, worker
from lsoftmax_op import LambdaSchedule, arrays, reference
from support import random_batch
batch = random_batch((300, 33, 50), "float64")
arguments, options = (batch.loss_grad, *batch.layer), {"lam": 0.5, "num_threads": 2}
want = reference.loss_grad(*arguments, lam=0.5)
here = arrays.loss_grad(*arguments, **options)
for method in ("fork", "spawn"):
    with multiprocessing.get_context(method).Pool(1) as pool:
        there = pool.apply_async(arrays.loss_grad, arguments, options).get(60)
        assert all((one == other).all() for one, other in zip(there, here, strict=True))
        assert pool.apply_async(LambdaSchedule(gamma=0.1), (3,)).get(60) == LambdaSchedule(gamma=0.1)(3)
        if method == "fork":
            there = pool.apply_async(worker.by_tensorflow, arguments, {"lam": 0.5}).get(60)
            for one, other in zip(there, want, strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-10)
"""


@pytest.mark.slow
def test_processes_forked_and_spawned(tmp_path):
    """Where threads have been and the ops are loaded. A spawned process imports TensorFlow as any other does."""
    (tmp_path / "worker.py").write_text(WORKER)
    run_python(PROCESSES.replace("FOLDER", str(tmp_path)))
