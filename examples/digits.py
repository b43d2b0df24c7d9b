"""Trains one small network by softmax and by L-Softmax with growing margins, and shows what the margin does.

    make demo        or        python -m examples.digits [--data-dir FOLDER] [--margins 1 2 3 4] [--seeds 3] ...

Every row of the table is the same convolutional network, the same data, optimizer and number of steps; only the
margin differs (a margin of 1 is the plain softmax). It ends in a linear layer of two features, so that the features
can be drawn, as in Figure 2 of the paper. Two pictures are written: the features, and psi beside the cosine (the
paper's Figure 3).
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
from tqdm import tqdm

import lsoftmax_op
from examples import figures
from examples.data import Dataset, load_digits, load_idx_folder

BATCH = 64


@dataclass
class Run:
    """One trained network, and what it makes of the test images."""

    margin: int
    seed: int
    features: np.ndarray  # [N, 2]
    labels: np.ndarray  # [N]
    weights: np.ndarray  # [2, C]

    def cosines(self) -> np.ndarray:
        """Returns the cosine between every sample and the weights of every class, [N, C]."""
        x = self.features / np.linalg.norm(self.features, axis=1, keepdims=True)
        w = self.weights / np.linalg.norm(self.weights, axis=0, keepdims=True)
        return np.clip(x @ w, -1, 1)

    @property
    def error(self) -> float:
        """The test error, a fraction."""
        return float(np.mean(np.argmax(self.features @ self.weights, axis=1) != self.labels))

    @property
    def own_angle(self) -> float:
        """The mean angle to the weights of the sample's own class, in degrees."""
        own = np.take_along_axis(self.cosines(), self.labels[:, None], axis=1)
        return float(np.degrees(np.arccos(own)).mean())

    @property
    def other_angle(self) -> float:
        """The mean angle to the weights of the nearest other class, in degrees."""
        cosines = self.cosines()
        np.put_along_axis(cosines, self.labels[:, None], -1, axis=1)
        return float(np.degrees(np.arccos(cosines.max(axis=1))).mean())


def backbone(shape: tuple[int, ...]) -> tf.keras.Model:
    """Convolutions with batch normalisation and PReLU, as in the paper, down to two linear features."""
    layers = tf.keras.layers

    def block(filters: int) -> list:
        return [
            layers.Conv2D(filters, 3, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.PReLU(shared_axes=[1, 2]),
        ]

    return tf.keras.Sequential(
        [
            layers.Input(shape),
            *block(24),
            *block(24),
            layers.MaxPooling2D(2),
            *block(48),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(64, use_bias=False),
            layers.BatchNormalization(),
            layers.PReLU(),
            layers.Dense(2, name="features"),
        ]
    )


def train(data: Dataset, margin: int, seed: int, steps: int, progress: tqdm) -> Run:
    """Trains one network for a number of steps; lambda falls from 1000 to about 0.1 on the way."""
    tf.keras.utils.set_random_seed(seed)
    model = backbone(data.train_images.shape[1:])
    classes = int(data.train_labels.max()) + 1
    weights = tf.Variable(tf.random.normal([2, classes]), name="weights")
    rate = tf.keras.optimizers.schedules.CosineDecay(4e-3, steps)
    optimizer = tf.keras.optimizers.AdamW(rate, weight_decay=1e-3)
    variables = [*model.trainable_variables, weights]
    optimizer.build(variables)
    schedule = lsoftmax_op.LambdaSchedule(base=1000.0, gamma=0.3 / steps, power=35.0)

    @tf.function
    def step(images: tf.Tensor, labels: tf.Tensor, lam: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            features = model(images, training=True)
            logits = lsoftmax_op.lsoftmax_logits(features, weights, labels, margin=margin, lam=lam)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits))
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    batches = (
        tf.data.Dataset.from_tensor_slices((data.train_images, data.train_labels))
        .shuffle(len(data.train_labels), seed=seed)
        .repeat()
        .batch(BATCH)
        .take(steps)
    )
    for n, (images, labels) in enumerate(batches):
        lam = schedule(n)
        loss = step(images, labels, tf.constant(lam))
        if n % 20 == 0:
            progress.set_postfix_str(f"m={margin} seed={seed} loss={float(loss):.3f} lambda={lam:.3g}")
        progress.update()
    features = model.predict(data.test_images, batch_size=512, verbose=0)
    return Run(margin, seed, features, data.test_labels, weights.numpy())


def print_table(runs: list[Run], data: Dataset, steps: int) -> None:
    """Prints the mean of every measure over the seeds and its standard deviation, a row a margin."""
    seeds = len({run.seed for run in runs})
    print(f"\n{data.name}: {len(data.test_labels)} test images; {seeds} seed{'s'[: seeds > 1]}, {steps} steps each\n")
    print(f"{'':<16}{'test error':>18}{'angle to own class':>24}{'to nearest other':>22}")
    for margin in dict.fromkeys(run.margin for run in runs):
        rows = [run for run in runs if run.margin == margin]
        error = figures.spread([100 * run.error for run in rows], 2)
        own = figures.spread([run.own_angle for run in rows], 1)
        other = figures.spread([run.other_angle for run in rows], 1)
        print(f"{figures.name_of(margin):<16}{error:>16} %{own:>20} deg{other:>18} deg")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Returns the options; leaves with a message where one is bad."""
    parser = argparse.ArgumentParser(prog="python -m examples.digits", description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, help="MNIST or Fashion-MNIST as IDX files (default: digits)")
    parser.add_argument("--margins", type=int, nargs="+", default=[1, 2, 3, 4], help="1 is softmax")
    parser.add_argument("--seeds", type=int, default=3, help="networks a margin")
    parser.add_argument("--steps", type=int, default=700, help=f"optimizer steps, {BATCH} images each")
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="folder for the pictures")
    options = parser.parse_args(arguments)
    for margin in options.margins:
        if not 1 <= margin <= 64:
            parser.error(f"--margins: expected integers from 1 to 64, got {margin}")
    for name in ("seeds", "steps"):
        if getattr(options, name) < 1:
            parser.error(f"--{name}: expected a positive integer, got {getattr(options, name)}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Trains, prints the table and writes the pictures; returns the exit status."""
    options = parse(arguments)
    try:
        data = load_idx_folder(options.data_dir) if options.data_dir else load_digits()
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    began = time.perf_counter()
    margins = list(dict.fromkeys(options.margins))
    with tqdm(total=len(margins) * options.seeds * options.steps, unit="step") as progress:
        runs = [
            train(data, margin, seed, options.steps, progress) for margin in margins for seed in range(options.seeds)
        ]
    print_table(runs, data, options.steps)
    options.output.mkdir(parents=True, exist_ok=True)
    first = [run for run in runs if run.seed == 0]
    print(f"\nTrained in {time.perf_counter() - began:.0f} s. Pictures:")
    print(f"  {figures.draw_features(first, data.name, options.output / 'features.png')}")
    print(f"  {figures.draw_psi(options.output / 'psi.png')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
