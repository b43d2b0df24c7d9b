"""Replicas, in one process or in two, train as one does with the joined batch; lambda is in step on all."""

import json
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata

import numpy as np
import pytest
from support import run_python

from benchmarks.local_cluster import tf_configs

pytest.importorskip("tensorflow")
pytestmark = pytest.mark.slow

STEPS = 50
BEGIN = """
import json, tempfile
import numpy as np, tensorflow as tf
strategy = STRATEGY
import keras, lsoftmax_op
from lsoftmax_op.keras import LSoftmaxClassifier, LSoftmaxMonitor
results = {}
"""
TRAIN = """
keras.utils.set_random_seed(0)
rng = np.random.default_rng(0)
y = rng.integers(0, 5, 80)
x = (rng.normal(size=(5, 8))[y] + 0.5 * rng.normal(size=(80, 8))).astype("float32")
with strategy.scope():
    features = keras.layers.Dense(4, "tanh", kernel_regularizer="l2")
    backbone = keras.Sequential([keras.Input((8,)), features, keras.layers.Dense(3)])
    model = LSoftmaxClassifier(backbone, 5, margin=3, lam=lsoftmax_op.LambdaSchedule(gamma=0.01, minimum=0.5))
    model.compile(keras.optimizers.Adam(0.01))
options = tf.data.Options()
options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
data = tf.data.Dataset.from_tensor_slices((x, y, np.linspace(0, 2, 80))).repeat().batch(16).with_options(options)
class Losses(keras.callbacks.Callback):
    losses = []
    def on_train_batch_end(self, batch, logs):
        self.losses.append(float(logs["loss"]))
        model.reset_metrics()
callbacks = [LSoftmaxMonitor(tempfile.mkdtemp()), Losses()]
logs = model.fit(data, epochs=2, steps_per_epoch=STEPS // 2, verbose=0, callbacks=callbacks).history
results["trained"] = {
    "losses": Losses.losses,
    "evaluate": model.evaluate(data, steps=5, verbose=0),
    "predict": model.predict(x[:7], batch_size=4, verbose=0).tolist(),
    "lam of epochs": logs["lam"],
    "angle": logs["angle"],
    "lam of replicas": [float(lam) for lam in strategy.experimental_local_results(model.head.lam.value)],
}
""".replace("STEPS", str(STEPS))
UNEVEN = """
def network():
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, "tanh", kernel_regularizer="l2")])

def plain():
    model = keras.Sequential([network(), keras.layers.Dense(5, use_bias=False)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss, metrics=["accuracy"])
    return model

def ours(**options):
    model = LSoftmaxClassifier(network(), 5, **options)
    model.compile(keras.optimizers.SGD(0.1))
    return model

def batches(rows, size):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 5, rows)
    x = rng.normal(size=(5, 8))[y] + 0.5 * rng.normal(size=(rows, 8))
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    data = tf.data.Dataset.from_tensor_slices((x.astype("float32"), y, np.linspace(0.5, 2, rows)))
    return data.batch(size).repeat().with_options(options)

def trained(model, rows, size, callbacks=()):
    data, steps = batches(rows, size), -(-rows // size)
    logs = model.fit(data, epochs=2, steps_per_epoch=steps, verbose=0, callbacks=list(callbacks)).history
    evaluated = model.evaluate(data, steps=steps, verbose=0, return_dict=True)
    weights = {f"weight {n}": weight.numpy().tolist() for n, weight in enumerate(model.trainable_weights)}
    return {**logs, "evaluated": [evaluated["loss"], evaluated["accuracy"]], **weights}

found = {}
for rows, size in SIZES:
    with strategy.scope():
        schedule = lsoftmax_op.LambdaSchedule(10.0, 0.1)
        models = ours(margin=1), ours(margin=3, lam=schedule), *([plain()] if ALSO_PLAIN else [])
    for name, model in zip(("margin 1", "margin 3", "plain"), models):
        callbacks = [LSoftmaxMonitor()] if name == "margin 3" else []
        found[f"{name}, {rows} by {size}"] = trained(model, rows, size, callbacks)
results["uneven"] = found
"""
END = """
print(json.dumps(results, default=float))  # Keras 3.6 leaves logs of a step tensors
"""
ONE = "tf.distribute.get_strategy()"
MIRRORED = """None
cpu, = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * REPLICAS)
strategy = tf.distribute.MirroredStrategy([f"CPU:{n}" for n in range(REPLICAS)])"""
WORKERS = "tf.distribute.MultiWorkerMirroredStrategy()"


def program(*parts):
    return "".join((BEGIN, *parts, END))


def run(code, strategy, **environment):
    return json.loads(run_python(code.replace("STRATEGY", strategy), **environment).stdout.splitlines()[-1])


def run_on_two_workers(code):
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda config: run(code, WORKERS, TF_CONFIG=config), tf_configs(2)))


def mirrored(replicas):
    return MIRRORED.replace("REPLICAS", str(replicas))


# Batches that replicas cannot share evenly, one of which may get nothing.
SIZES = [(33, 16), (7, 7), (2, 1)]


def uneven(sizes, also_plain=False):
    return UNEVEN.replace("SIZES", repr(sizes)).replace("ALSO_PLAIN", repr(also_plain))


@pytest.fixture(scope="module")
def one_replica():
    return run(program(TRAIN, uneven(SIZES, also_plain=True)), ONE)


@pytest.fixture(scope="module")
def one(one_replica):
    return one_replica["trained"]


@pytest.fixture(scope="module")
def joined(one_replica):
    return one_replica["uneven"]


@pytest.fixture(scope="module")
def two_workers():
    return run_on_two_workers(program(TRAIN, uneven(SIZES[:1])))


def without_wrong_logs(names):
    """Before 3.10, Keras' metrics, of any model, do not add up over replicas."""
    wrong = {"losses", "evaluate", "angle", "loss", "accuracy", "evaluated"}
    joined = tuple(map(int, metadata.version("keras").split(".")[:2])) >= (3, 10)
    return [name for name in names if joined or name not in wrong]


def assert_same(got, one, replicas):
    assert len(got["losses"]) == STEPS
    absolute = {"atol": 1e-5, "rtol": 0}
    tolerances = {"losses": absolute, "evaluate": absolute, "predict": absolute, "angle": {"rtol": 1e-4}}
    for name in without_wrong_logs(tolerances):
        np.testing.assert_allclose(got[name], one[name], **tolerances[name])
    assert got["lam of epochs"] == one["lam of epochs"]
    assert got["lam of replicas"] == [one["lam of replicas"][0]] * replicas


def test_one_replica(one):
    assert one["angle"][1] < one["angle"][0]
    assert one["lam of replicas"] == [one["lam of epochs"][-1]]
    assert 0.5 <= one["lam of epochs"][1] < one["lam of epochs"][0] < 1


def test_mirrored_strategy(one):
    assert_same(run(program(TRAIN), mirrored(2))["trained"], one, replicas=2)


def test_multi_worker_mirrored_strategy(one, two_workers):
    for got in two_workers:
        assert_same(got["trained"], one, replicas=1)


def assert_as_joined(got, joined):
    for name, logs in got.items():
        assert logs.keys() == joined[name].keys()
        for log in without_wrong_logs(logs):
            np.testing.assert_allclose(logs[log], joined[name][log], rtol=1e-6, atol=3e-7, err_msg=f"{name}: {log}")


def test_one_device_is_plain_keras_without_a_margin(joined):
    for rows, size in SIZES:
        ours, plain = ({**joined[f"{name}, {rows} by {size}"]} for name in ("margin 1", "plain"))
        assert ours.pop("lam")
        assert_as_joined({"plain": ours}, {"plain": plain})


def test_uneven_replicas(joined):
    assert_as_joined(run(program(uneven(SIZES)), mirrored(3))["uneven"], joined)


def test_uneven_workers(joined, two_workers):
    for got in two_workers:
        assert_as_joined(got["uneven"], joined)
