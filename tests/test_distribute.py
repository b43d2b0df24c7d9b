"""Two replicas, in one process or in two, train as one does with the joined batch; lambda is in step on all."""

import json
import socket
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from support import run_python

pytest.importorskip("tensorflow")

STEPS = 50
TRAIN = """
import json, tempfile
import numpy as np, tensorflow as tf
strategy = STRATEGY
import keras, lsoftmax_op
from lsoftmax_op.keras import LSoftmaxClassifier, LSoftmaxMonitor
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
print(json.dumps({
    "losses": Losses.losses,
    "evaluate": model.evaluate(data, steps=5, verbose=0),
    "predict": model.predict(x[:7], batch_size=4, verbose=0).tolist(),
    "lam of epochs": logs["lam"],
    "angle": logs["angle"],
    "lam of replicas": [float(lam) for lam in strategy.experimental_local_results(model.head.lam.value)],
}))
""".replace("STEPS", str(STEPS))
ONE = "tf.distribute.get_strategy()"
MIRRORED = """None
cpu, = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])"""
WORKERS = "tf.distribute.MultiWorkerMirroredStrategy()"


def train(strategy, **environment):
    return json.loads(run_python(TRAIN.replace("STRATEGY", strategy), **environment).stdout.splitlines()[-1])


def free_ports(count):
    sockets = [socket.create_server(("localhost", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def one():
    return train(ONE)


def assert_same(got, one, replicas):
    assert len(got["losses"]) == STEPS
    np.testing.assert_allclose(got["losses"], one["losses"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(got["evaluate"], one["evaluate"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(got["predict"], one["predict"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(got["angle"], one["angle"], rtol=1e-4)
    assert got["lam of epochs"] == one["lam of epochs"]
    assert got["lam of replicas"] == [one["lam of replicas"][0]] * replicas


def test_one_replica(one):
    assert one["angle"][1] < one["angle"][0]
    assert one["lam of replicas"] == [one["lam of epochs"][-1]]
    assert 0.5 <= one["lam of epochs"][1] < one["lam of epochs"][0] < 1


def test_mirrored_strategy(one):
    assert_same(train(MIRRORED), one, replicas=2)


def test_multi_worker_mirrored_strategy(one):
    addresses = [f"localhost:{port}" for port in free_ports(2)]

    def worker(index):
        config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        return train(WORKERS, TF_CONFIG=json.dumps(config))

    with ThreadPoolExecutor() as pool:
        for got in pool.map(worker, range(2)):
            assert_same(got, one, replicas=1)
