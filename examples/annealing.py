"""What lambda decides: one network on the digits, with schedules and without, and what becomes of its loss.

    python -m examples.annealing [--steps 600]

The table of docs/lambda.md. Every row is the same dense network of 32 features, with batch normalisation and PReLU or
with ReLU alone, trained by Adam for as many steps; accuracy and loss are the plain softmax's on the test images.
"""

from __future__ import annotations

import argparse
import math
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

from examples.data import Dataset, load_digits
from lsoftmax_op import LambdaSchedule
from lsoftmax_op.keras import LSoftmaxClassifier, LSoftmaxMonitor

BATCH = 64


def backbone(shape: tuple[int, ...], normalised: bool) -> keras.Model:
    """Two hidden layers and 32 linear features."""
    layers = keras.layers
    stack = [keras.Input(shape), layers.Flatten()]
    for _ in range(2):
        stack.append(layers.Dense(64, use_bias=not normalised))
        stack += [layers.BatchNormalization(), layers.PReLU()] if normalised else [layers.ReLU()]
    return keras.Sequential([*stack, layers.Dense(32)])


def train(data: Dataset, margin: int, lam: float | LambdaSchedule, normalised: bool, steps: int) -> dict[str, float]:
    """Trains a network and returns the numbers of its row."""
    keras.utils.set_random_seed(0)
    model = LSoftmaxClassifier(backbone(data.train_images.shape[1:], normalised), 10, margin=margin, lam=lam)
    model.compile(keras.optimizers.Adam(1e-3))
    batches = tf.data.Dataset.from_tensor_slices((data.train_images, data.train_labels))
    batches = batches.shuffle(len(data.train_labels), seed=0).repeat().batch(BATCH)
    tenth = math.ceil(steps / 10)  # the last tenth is the last epoch
    logs = model.fit(batches, epochs=10, steps_per_epoch=tenth, verbose=0, callbacks=[LSoftmaxMonitor()]).history
    test_loss, accuracy = model.evaluate(data.test_images, data.test_labels, verbose=0)
    norm = np.linalg.norm(model.backbone.predict(data.test_images, verbose=0), axis=1).mean()
    return {
        "loss": logs["loss"][-1],
        "angle": logs["angle"][-1],
        "norm": norm,
        "test_loss": test_loss,
        "error": 100 * (1 - accuracy),
    }


def main(arguments: list[str] | None = None) -> int:
    """Prints the table; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m examples.annealing", description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=600, help=f"optimizer steps, {BATCH} images each")
    steps = parser.parse_args(arguments).steps
    if steps < 1:
        parser.error(f"--steps: expected a positive integer, got {steps}")
    falling = LambdaSchedule(gamma=0.5 / steps)
    to_five = LambdaSchedule(gamma=0.5 / steps, minimum=5.0)
    rows = (
        ("softmax", 1, 0.0, True),
        ("m = 2, schedule", 2, falling, True),
        ("m = 3, schedule", 3, falling, True),
        ("m = 4, schedule", 4, falling, True),
        ("m = 4, schedule, minimum = 5", 4, to_five, True),
        ("m = 4, schedule, no BatchNorm", 4, falling, False),
        ("m = 4, lambda = 0 throughout", 4, 0.0, True),
        ("m = 4, lambda = 0, no BatchNorm", 4, 0.0, False),
    )
    data = load_digits()
    print(f"{data.name}, {len(data.test_labels)} test images, {steps} steps; ln 10 = {math.log(10):.3f}\n")
    print(f"{'':<34}{'last loss':>10}{'own class at':>14}{'|x|':>8}{'test loss':>11}{'test error':>12}")
    for name, *settings in rows:
        row = train(data, *settings, steps)
        print(
            f"{name:<34}{row['loss']:>10.3f}{row['angle']:>10.1f} deg{row['norm']:>8.2f}{row['test_loss']:>11.3f}"
            f"{row['error']:>10.1f} %",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
