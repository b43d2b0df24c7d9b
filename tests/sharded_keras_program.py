"""``python tests/sharded_keras_program.py PART REPLICAS FOLDER``: what a ShardedClassifier becomes on some replicas.

REPLICAS is the number of logical CPUs of a MirroredStrategy, 1 for none, or 0: the workers of TF_CONFIG. Prints JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

import numpy as np
import tensorflow as tf

DEPTH, CLASSES, ROWS = 8, 7, 33
STEPS = 50


def strategy_of(replicas: int) -> tf.distribute.Strategy:
    """Returns a strategy; it must be made before anything else is computed."""
    if replicas == 0:
        return tf.distribute.MultiWorkerMirroredStrategy()
    if replicas == 1:
        return tf.distribute.get_strategy()
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * replicas)
    return tf.distribute.MirroredStrategy([f"CPU:{n}" for n in range(replicas)])


def batches(rows: int, size: int) -> tf.data.Dataset:
    """Returns labelled and weighted samples, again and again, the last batch of a round smaller."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, rows)
    x = rng.normal(size=(CLASSES, DEPTH))[labels] + 0.5 * rng.normal(size=(rows, DEPTH))
    labels[3] = -1
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    data = tf.data.Dataset.from_tensor_slices((x.astype("float32"), labels, np.linspace(0.5, 2, rows)))
    return data.batch(size).repeat().with_options(options)


def model_of(strategy: tf.distribute.Strategy, optimizer: Any = None, **options: Any) -> Any:
    """Returns a compiled model, the same on any number of replicas."""
    import keras

    from lsoftmax_op import LambdaSchedule
    from lsoftmax_op.keras import ShardedClassifier

    keras.utils.set_random_seed(0)
    with strategy.scope():
        features = keras.layers.Dense(5, "tanh", kernel_regularizer="l2")
        backbone = keras.Sequential([keras.Input((DEPTH,)), features, keras.layers.Dense(3)])
        options = {"margin": 3, "lam": LambdaSchedule(10.0, 0.1), **options}
        model = ShardedClassifier(backbone, CLASSES, **options)
        model.compile(optimizer or keras.optimizers.Adam(0.01))
    return model


def state_of(model: Any) -> dict[str, Any]:
    """Returns the backbone's weights, and by their first class the rows and slots of this process."""
    shards = {
        str(shard.classes.first): [
            shard.rows.numpy().tolist(),
            *(slot.numpy().tolist() for slot in shard.optimizer.slots),
        ]
        for shard in model.head.shards
    }
    return {"backbone": [weight.tolist() for weight in model.backbone.get_weights()], "shards": shards}


def training(strategy: tf.distribute.Strategy, folder: str) -> dict[str, Any]:
    """Trains with batches that replicas cannot share evenly; evaluates; predicts; saves."""
    found = {}
    for rows, size in ((ROWS, 16), (2, 1)):  # of the second, some replicas get nothing
        model = model_of(strategy)
        data = batches(rows + 2, size)
        logs = model.fit(data, epochs=2, steps_per_epoch=STEPS // 2, verbose=0).history
        evaluated = model.evaluate(data, steps=3, verbose=0, return_dict=True)
        x = np.random.default_rng(1).normal(size=(7, DEPTH)).astype("float32")
        best = model.predict(x, batch_size=4, k=3, verbose=0)
        found[f"{rows} by {size}"] = {
            **state_of(model),
            "logs": logs,
            "evaluated": evaluated,
            "probabilities": best.probabilities.tolist(),
            "classes": best.classes.tolist(),
        }
        model.save_shards(os.path.join(folder, f"{rows}"))
    return found


def loaded(strategy: tf.distribute.Strategy, folder: str) -> dict[str, Any]:
    """Takes what `training` has saved, on whatever replicas."""
    model = model_of(strategy)
    model.load_shards(os.path.join(folder, f"{ROWS}"))
    return {**state_of(model), "evaluated": model.evaluate(batches(ROWS + 2, 16), steps=3, verbose=0, return_dict=True)}


def sampled(strategy: tf.distribute.Strategy, folder: str) -> dict[str, Any]:
    """Takes a step with few labels: what it changes."""
    model = model_of(strategy, sample_rate=0.4)
    model.prepare_training("sampled")
    before = state_of(model)["shards"]
    x = np.random.default_rng(1).normal(size=(2, DEPTH)).astype("float32")
    model.fit(x, np.array([1, 6]), batch_size=2, verbose=0)
    after = state_of(model)["shards"]
    changed = {
        first: [
            (np.array(one) != np.array(other)).any(axis=1).tolist()
            for one, other in zip(tables, after[first], strict=True)
        ]
        for first, tables in before.items()
    }
    logs = model.fit(batches(ROWS, 16), steps_per_epoch=STEPS // 5, epochs=3, verbose=0).history
    return {"changed": changed, "loss": logs["loss"], "after": after}


def killed(strategy: tf.distribute.Strategy, folder: str) -> dict[str, Any]:
    """Trains for 4 epochs, saving each; with KILL_IN in its environment a process ends itself in that epoch."""
    import keras

    from lsoftmax_op.keras import ShardedBackup

    class Killer(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if os.environ.get("KILL_IN") == str(self.epoch) and batch == 1:
                os.kill(os.getpid(), signal.SIGKILL)

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.epoch = epoch

    model = model_of(strategy, sample_rate=0.6)
    epochs = model.fit(
        batches(48, 16), epochs=4, steps_per_epoch=3, verbose=0, callbacks=[ShardedBackup(folder), Killer()]
    ).epoch
    return {**state_of(model), "epochs": epochs}


def scaled(strategy: tf.distribute.Strategy, folder: str) -> dict[str, Any]:
    """Takes three steps with a scaled loss; in the second a single sample, of one replica, is infinite."""
    import keras

    with strategy.scope():
        inner = keras.optimizers.Adam(0.01)
        optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=8.0)
    model = model_of(strategy, optimizer, sample_rate=0.9)
    x = np.random.default_rng(1).normal(size=(4, DEPTH)).astype("float32")
    found: dict[str, Any] = {}
    for step in range(3):
        x[3, 0] = np.inf if step == 1 else 0
        model.fit(x, np.arange(4), batch_size=4, verbose=0)
        found[f"after {step}"] = state_of(model)
    return {**found, "scale": model.optimizer.dynamic_scale.numpy(), "steps": inner.iterations.numpy()}


PARTS = {"training": training, "loaded": loaded, "sampled": sampled, "killed": killed, "scaled": scaled}

if __name__ == "__main__":
    part, replicas, folder = sys.argv[1:]
    print(json.dumps(PARTS[part](strategy_of(int(replicas)), folder), default=float))
