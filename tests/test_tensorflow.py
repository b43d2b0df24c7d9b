"""Every place in TensorFlow where the function must work, and what it must not do there."""

import numpy as np
import pytest
from support import LAMBDAS, random_batch, run_python

import lsoftmax_op

tf = pytest.importorskip("tensorflow")


@pytest.fixture
def batch():
    return random_batch((6, 5, 4), "float64")


@pytest.fixture
def expected(batch):
    return lsoftmax_op.reference.logits(*batch.layer, margin=3, lam=0.5)


def test_unknown_shapes(batch, expected):
    unknown = tf.TensorSpec(None, tf.float64)

    @tf.function(input_signature=[unknown, unknown, tf.TensorSpec(None, tf.int64), unknown])
    def logits(x, w, y, b):
        z = lsoftmax_op.lsoftmax_logits(x, w, y, b, margin=3, lam=0.5)
        assert z.shape.rank == 2
        return z

    np.testing.assert_allclose(logits(*batch.layer), expected)


def test_static_shapes_are_inferred():
    @tf.function(
        input_signature=[
            tf.TensorSpec([None, 5], tf.float32),
            tf.TensorSpec([None, 4], tf.float32),
            tf.TensorSpec([8], tf.int32),
        ]
    )
    def logits(x, w, y):
        z = lsoftmax_op.lsoftmax_logits(x, w, y)
        cos_theta, segment = lsoftmax_op.target_angles(x, w, y)
        assert z.shape == [8, 4]
        assert cos_theta.shape == segment.shape == [8]
        return z

    logits.get_concrete_function()


def test_lambda_never_retraces(batch):
    traces = []

    @tf.function
    def logits(lam):
        traces.append(lam)
        return lsoftmax_op.lsoftmax_logits(*batch.layer, margin=3, lam=lam)

    lam = tf.Variable(0.0, dtype=tf.float32)
    for value in LAMBDAS:
        lam.assign(value)
        want = lsoftmax_op.reference.logits(*batch.layer, margin=3, lam=value)
        np.testing.assert_allclose(logits(lam), want, rtol=1e-12)
    assert len(traces) == 1


@pytest.mark.parametrize("lam", [2, 2.0, np.float32(2), tf.constant(2), tf.constant(2.0, tf.float16)])
def test_every_kind_of_lambda(batch, lam):
    want = lsoftmax_op.reference.logits(*batch.layer, lam=2.0)
    np.testing.assert_allclose(lsoftmax_op.lsoftmax_logits(*batch.layer, lam=lam), want)


def test_variables_and_v1_graphs(batch, expected):
    with tf.Graph().as_default():
        x = tf.compat.v1.placeholder(tf.float64)
        w = tf.compat.v1.get_variable("w", initializer=batch.weights, use_resource=False)
        b = tf.compat.v1.get_variable("b", initializer=batch.bias, use_resource=True)
        z = lsoftmax_op.lsoftmax_logits(x, w, batch.labels, b, margin=3, lam=0.5)
        with tf.compat.v1.Session() as session:
            session.run(tf.compat.v1.global_variables_initializer())
            np.testing.assert_allclose(session.run(z, {x: batch.features}), expected)


def test_inside_while_loop_and_map_fn(batch):
    """The gradient of a loop that applies the layer to scaled features, against the sum of the oracle's."""
    scales = [1.0, 2.0, 3.0]
    x, w = tf.constant(batch.features), tf.constant(batch.weights)

    def layer(scale, x, w):
        return tf.reduce_sum(batch.grad * lsoftmax_op.lsoftmax_logits(scale * x, w, batch.labels, margin=3, lam=0.5))

    @tf.function
    def by_while(x, w):
        def body(n, total):
            return n + 1, total + layer(tf.gather(tf.constant(scales, tf.float64), n), x, w)

        return tf.while_loop(lambda n, _: n < 3, body, (0, tf.constant(0.0, tf.float64)))[1]

    @tf.function
    def by_map(x, w):
        return tf.reduce_sum(tf.map_fn(lambda s: layer(s, x, w), tf.constant(scales, tf.float64)))

    want = [
        lsoftmax_op.reference.logits_grad(
            batch.grad, s * batch.features, batch.weights, batch.labels, margin=3, lam=0.5
        )
        for s in scales
    ]
    for function in (by_while, by_map):
        with tf.GradientTape() as tape:
            tape.watch([x, w])
            value = function(x, w)
        in_x, in_w = tape.gradient(value, [x, w])
        np.testing.assert_allclose(in_x, sum(s * g.features for s, g in zip(scales, want, strict=True)))
        np.testing.assert_allclose(in_w, sum(g.weights for g in want))


def test_eager_inputs_are_never_changed(batch):
    arguments = [tf.constant(a) for a in (batch.features, batch.weights)]
    products = tf.matmul(*arguments)
    before = [a.numpy().copy() for a in (*arguments, products)]
    ops = tf.load_op_library(lsoftmax_op.library_path())
    _, _, geometry = ops.lsoftmax_target_geometry(*arguments, batch.labels)
    ops.lsoftmax_logits(products, batch.labels, geometry, 0.0, tf.zeros([0], tf.float64), margin=4)
    with tf.GradientTape() as tape:
        tape.watch(arguments)
        z = lsoftmax_op.lsoftmax_logits(*arguments, batch.labels)
    tape.gradient(z, arguments)
    for now, then in zip((*arguments, products), before, strict=True):
        np.testing.assert_array_equal(now, then)


@pytest.mark.slow
def test_mirrored_strategy_on_two_logical_cpus():
    run_python("""
import numpy as np, tensorflow as tf, sys
import lsoftmax_op
from lsoftmax_op import reference
sys.path.insert(0, "tests")
from support import random_batch
cpu, = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
b = random_batch((8, 5, 4), "float64")
with strategy.scope():
    weights = tf.Variable(b.weights)
assert strategy.num_replicas_in_sync == 2
for layer, upstream, grad in ((lsoftmax_op.lsoftmax_logits, b.grad, reference.logits_grad),
                              (lsoftmax_op.lsoftmax_loss, b.loss_grad, reference.loss_grad)):
    def step(rows):
        x, y, g = (tf.gather(tf.constant(a), rows) for a in (b.features, b.labels, upstream))
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(g * layer(x, weights, y, lam=0.5))
        return tf.distribute.get_replica_context().all_reduce("sum", tape.gradient(loss, weights))
    @tf.function
    def run():
        values = strategy.experimental_distribute_values_from_function(
            lambda c: tf.range(4) + 4 * c.replica_id_in_sync_group)
        return strategy.run(step, args=(values,))
    want = grad(upstream, b.features, b.weights, b.labels, lam=0.5).weights
    for got in strategy.experimental_local_results(run()):
        np.testing.assert_allclose(got, want)
""")


class Model(tf.Module):
    """A layer, to be saved."""

    def __init__(self):
        self.weights = tf.Variable(np.cos(np.arange(20.0)).reshape(5, 4), dtype=tf.float32)

    @tf.function(input_signature=[tf.TensorSpec([None, 5]), tf.TensorSpec([None], tf.int64), tf.TensorSpec([])])
    def logits(self, x, y, lam):
        return lsoftmax_op.lsoftmax_logits(x, self.weights, y, lam=lam)


LOAD = """
import numpy as np
IMPORTS
assert lsoftmax_op.library.load() is lsoftmax_op.library.load()
model = tf.saved_model.load(PATH)
x, y = np.sin(np.arange(15.0)).reshape(3, 5), np.array([0, 3, -1])
with tf.GradientTape() as tape:
    z = model.logits(tf.constant(x, tf.float32), tf.constant(y), tf.constant(0.5))
    loss = tf.reduce_sum(z ** 2)
grad = tape.gradient(loss, model.weights)
w = model.weights.numpy().astype("float64")
want = lsoftmax_op.reference.logits(x, w, y, lam=0.5)
np.testing.assert_allclose(z, want, rtol=1e-5, atol=1e-5)
want_grad = lsoftmax_op.reference.logits_grad(2 * want, x, w, y, lam=0.5).weights
np.testing.assert_allclose(grad, want_grad, rtol=1e-4, atol=1e-4)
"""


@pytest.mark.slow
def test_saved_model_still_trains_in_a_new_process(tmp_path):
    tf.saved_model.save(Model(), str(tmp_path / "model"))
    path = repr(str(tmp_path / "model"))
    for imports in ("import lsoftmax_op, tensorflow as tf", "import tensorflow as tf, lsoftmax_op"):
        run_python(LOAD.replace("PATH", path).replace("IMPORTS", imports))
    without = run_python(f"import tensorflow as tf; tf.saved_model.load({path})", check=False)
    assert without.returncode != 0
    assert "Lsoftmax" in without.stderr


def test_target_angles(batch):
    cos_theta, segment = lsoftmax_op.target_angles(*batch.layer[:3], margin=3)
    want_cos, want_segment = lsoftmax_op.reference.target_angles(*batch.layer[:3], margin=3)
    np.testing.assert_allclose(cos_theta, want_cos, rtol=1e-14)
    np.testing.assert_array_equal(segment, want_segment)
    zero = lsoftmax_op.target_angles(np.zeros((1, 2)), np.ones((2, 2)), [1])
    assert [t.numpy().item() for t in zero] == [0.0, 1]


def test_the_graph_does_not_grow_with_the_batch():
    def nodes(rows):
        @tf.function
        def step(x, w, y, g):
            with tf.GradientTape() as tape:
                tape.watch([x, w])
                z = lsoftmax_op.lsoftmax_logits(x, w, y, lam=5.0)
            return tape.gradient(z, [x, w], output_gradients=g)

        shapes = [tf.TensorSpec(s) for s in ([rows, 8], [8, 4], [rows], [rows, 4])]
        shapes[2] = tf.TensorSpec([rows], tf.int32)
        return len(step.get_concrete_function(*shapes).graph.get_operations())

    assert nodes(8) == nodes(1024) < 60


def test_the_default_determinism_needs_nothing_special():
    run_python("""
import tensorflow as tf, numpy as np, lsoftmax_op
tf.config.experimental.enable_op_determinism()
x, w = tf.ones([4, 3]), tf.eye(3)
with tf.GradientTape() as tape:
    tape.watch([x, w])
    z = lsoftmax_op.lsoftmax_logits(x, w, [0, 1, 1, -1])
assert all(np.isfinite(g).all() for g in tape.gradient(z, [x, w]))
""")
