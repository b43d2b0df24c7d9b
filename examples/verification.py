"""Trains embeddings on eight digits and verifies pairs of the two others: does a margin help with unseen classes?

    python -m examples.verification [--steps 150] [--seeds 3] [--scale 16] [--turned] [--linear] ...

Every row of the table is the same convolutional network with 32 features, the same data, optimizer and number of steps;
only the margin differs, and when it comes in: L-Softmax is annealed, from lambda = 1000 on, as in its paper, and the
others have the whole margin from the first step, as in theirs. Each of five pairs of digits is left out once, with
every seed. Then all pairs of images of the two unseen digits are scored by the cosine of their embeddings, and so are
those of the test images of the eight seen ones (examples/roc.py). With --turned, each digit turned by 90, 180 and 270
degrees is another class to train on; with --linear, the features have no batch normalisation of their own.
Writes verification.json and verification.png; docs/verification.md tells what came out.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from examples import figures
from examples.data import Dataset, load_digits
from examples.roc import verify
from lsoftmax_op import LambdaSchedule
from lsoftmax_op.keras import LSoftmaxClassifier
from lsoftmax_op.margins import ArcFace, Combined, CosFace, LSoftmax, Margin

BATCH = 64
UNSEEN = ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9))
PIXELS, SOFTMAX = "the pixels", "softmax"
RATES = np.geomspace(1e-3, 1, 61)  # where the curves of several networks are averaged


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a row of the table is trained with: a margin, and whether lambda anneals it."""

    key: str  # for --only
    name: str
    margin: Margin
    annealed: bool = False


@dataclasses.dataclass(frozen=True)
class Run:
    """How well embeddings verify pairs of the unseen digits and of the seen ones.

    Attributes:
        kind: the name of the row.
        seed: of weights and batches; 0 for the pixels, which have none.
        unseen: the two digits that were left out.
        unseen_eer: the equal error rate of all pairs of their images, a fraction.
        seen_eer: that of all pairs of test images of the other digits.
        unseen_curve: the false reject rates of the unseen digits at the false accept rates RATES.
        seen_curve: those of the seen digits.
    """

    kind: str
    seed: int
    unseen: tuple[int, int]
    unseen_eer: float
    seen_eer: float
    unseen_curve: list[float]
    seen_curve: list[float]


def kinds_of(scale: float) -> tuple[Kind, ...]:
    """Returns the rows. L-Softmax is annealed, as in its paper; the others are not, as in theirs."""
    return (
        Kind("softmax", SOFTMAX, LSoftmax(1)),
        Kind("lsoftmax2", "L-Softmax m=2", LSoftmax(2), annealed=True),
        Kind("lsoftmax4", "L-Softmax m=4", LSoftmax(4), annealed=True),
        Kind("normalised", "normalised, no margin", Combined(1, 0, 0, scale)),
        Kind("cosface", "CosFace 0.35", CosFace(0.35, scale)),
        Kind("arcface", "ArcFace 0.5", ArcFace(0.5, scale)),
    )


def backbone(shape: tuple[int, ...], norm_features: bool) -> keras.Model:
    """Convolutions with batch normalisation and PReLU, and 32 linear features, batch-normalised or not."""
    layers = keras.layers

    def norm() -> keras.Layer:
        return layers.BatchNormalization(momentum=0.9)  # a training of a hundred steps is short for Keras' 0.99

    def block(filters: int) -> list[keras.Layer]:
        return [layers.Conv2D(filters, 3, padding="same", use_bias=False), norm(), layers.PReLU(shared_axes=[1, 2])]

    stack = [*block(16), *block(16), layers.MaxPooling2D(2), *block(32), layers.MaxPooling2D(2), layers.Flatten()]
    features = [layers.Dense(32, use_bias=False), norm()] if norm_features else [layers.Dense(32)]
    return keras.Sequential([keras.Input(shape), *stack, *features])


class Trainer:
    """Trains one kind of network again and again, and has TensorFlow trace it once."""

    def __init__(
        self, kind: Kind, shape: tuple[int, ...], classes: int, steps: int, norm_features: bool = True
    ) -> None:
        lam = LambdaSchedule(gamma=0.5 / steps) if kind.annealed else 0.0
        self._fresh = lambda: LSoftmaxClassifier(backbone(shape, norm_features), classes, margin=kind.margin, lam=lam)
        self._steps = steps
        self._model = self._fresh()
        rate = keras.optimizers.schedules.CosineDecay(4e-3, steps)
        self._model.compile(keras.optimizers.Adam(rate), steps_per_execution=math.gcd(steps, 10), jit_compile=False)
        self._model.optimizer.build(self._model.trainable_variables)

    def train(self, images: np.ndarray, labels: np.ndarray, seed: int) -> None:
        """Trains the network from a fresh start: images [N, height, width, 1], labels [N] from 0 on."""
        keras.utils.set_random_seed(seed)
        self._model.set_weights(self._fresh().get_weights())
        for variable in self._model.optimizer.variables:  # the step and Adam's moments
            variable.assign(keras.ops.zeros_like(variable))
        batches = tf.data.Dataset.from_tensor_slices((images, labels))
        batches = batches.shuffle(len(labels), seed=seed).repeat().batch(BATCH)
        self._model.fit(batches, steps_per_epoch=self._steps, shuffle=False, verbose=0)

    def embed(self, images: np.ndarray) -> np.ndarray:
        """Returns the embeddings [N, 32] of images."""
        return self._model.embed(images, batch_size=512, verbose=0)


def measure(kind: str, seed: int, unseen: tuple[int, int], data: Dataset, embed: Any) -> Run:
    """Returns what embeddings are worth: `embed` turns images [N, height, width, 1] into them, [N, D]."""
    images = np.concatenate([data.train_images, data.test_images])
    labels = np.concatenate([data.train_labels, data.test_labels])
    new, old = np.isin(labels, unseen), ~np.isin(data.test_labels, unseen)
    of_unseen = verify(embed(images[new]), labels[new])
    of_seen = verify(embed(data.test_images[old]), data.test_labels[old])
    curves = [roc.false_rejects_at(RATES).tolist() for roc in (of_unseen, of_seen)]
    return Run(kind, seed, unseen, of_unseen.equal_error_rate, of_seen.equal_error_rate, *curves)


def measure_pixels(data: Dataset) -> list[Run]:
    """Returns what the images themselves are worth as embeddings: what learning has to beat."""
    return [measure(PIXELS, 0, unseen, data, lambda images: images.reshape(len(images), -1)) for unseen in UNSEEN]


def training_set(data: Dataset, unseen: tuple[int, int], turned: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images [N, height, width, 1] of all but two digits, and their classes [N], from 0 on.

    Args:
        data: the digits.
        unseen: the two.
        turned: whether each digit turned by 90, by 180 and by 270 degrees is a class, too: four times as many of both.
    """
    known = ~np.isin(data.train_labels, unseen)
    digits, labels = np.unique(data.train_labels[known], return_inverse=True)
    turns = range(4 if turned else 1)
    images = [np.rot90(data.train_images[known], turn, axes=(1, 2)) for turn in turns]
    return np.concatenate(images), np.concatenate([labels + turn * len(digits) for turn in turns])


def train_all(kind: Kind, data: Dataset, options: argparse.Namespace, progress: tqdm) -> list[Run]:
    """Trains a network for every seed and pair of unseen digits, and measures it."""
    classes = int(training_set(data, UNSEEN[0], options.turned)[1].max()) + 1
    trainer = Trainer(kind, data.train_images.shape[1:], classes, options.steps, not options.linear)
    runs = []
    for seed in range(options.seeds):
        for unseen in UNSEEN:
            trainer.train(*training_set(data, unseen, options.turned), seed)
            runs.append(measure(kind.name, seed, unseen, data, trainer.embed))
            progress.set_postfix_str(f"{kind.name}, {runs[-1].unseen_eer:.1%} of unseen {unseen}")
            progress.update()
    return runs


def by_seed(runs: list[Run], kind: str, attribute: str) -> np.ndarray:
    """Returns an equal error rate of a row in percent, [seeds, pairs of unseen digits]; no seeds if there is no row."""
    values = [100 * getattr(run, attribute) for run in runs if run.kind == kind]
    return np.reshape(values, (-1, len(UNSEEN)))


def table(runs: list[Run]) -> str:
    """Returns the equal error rates in percent, and how they differ from softmax's, network by network.

    Every number is a mean over the pairs of unseen digits; its spread is that of the seeds.
    """
    titles = ("unseen", "over softmax", "lower in", "seen", "over softmax", "lower in")
    lines = [f"{'equal error rate, %':<24}" + "".join(f"{title:>15}" for title in titles)]
    for kind in dict.fromkeys(run.kind for run in runs):
        cells = []
        for attribute in ("unseen_eer", "seen_eer"):
            values = by_seed(runs, kind, attribute)
            cells.append(figures.spread(list(values.mean(axis=1)), 2))
            plain = by_seed(runs, SOFTMAX, attribute)
            if kind in (PIXELS, SOFTMAX) or not plain.size:
                cells += ["", ""]
            else:
                over = values - plain
                cells += [figures.spread(list(over.mean(axis=1)), 2), f"{(over < 0).sum()} of {over.size}"]
        lines.append(f"{kind:<24}" + "".join(f"{cell:>15}" for cell in cells).rstrip())
    return "\n".join(lines)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Returns the options; leaves with a message where one is bad."""
    parser = argparse.ArgumentParser(prog="python -m examples.verification", description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=150, help=f"optimizer steps of a network, {BATCH} images each")
    parser.add_argument(
        "--seeds", type=int, default=3, help=f"networks a margin and pair; there are {len(UNSEEN)} pairs"
    )
    parser.add_argument("--scale", type=float, default=16.0, help="of the margins that normalise")
    keys = [kind.key for kind in kinds_of(1)]
    parser.add_argument("--only", nargs="+", choices=keys, default=keys, metavar="KIND", help=f"of {', '.join(keys)}")
    parser.add_argument("--turned", action="store_true", help="make turned digits classes, too: 32 to train on")
    parser.add_argument("--linear", action="store_true", help="features as the last dense layer gives them")
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="folder for results and picture")
    options = parser.parse_args(arguments)
    for name in ("seeds", "steps"):
        if getattr(options, name) < 1:
            parser.error(f"--{name}: expected a positive integer, got {getattr(options, name)}")
    if not 0 < options.scale < math.inf:
        parser.error(f"--scale: expected a finite number > 0, got {options.scale}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Trains, prints the table, writes results and picture; returns the exit status."""
    options = parse(arguments)
    data = load_digits()
    began = time.perf_counter()
    kinds = [kind for kind in kinds_of(options.scale) if kind.key in options.only]
    runs = measure_pixels(data)
    with tqdm(total=len(kinds) * options.seeds * len(UNSEEN), unit="network") as progress:
        for kind in kinds:
            runs += train_all(kind, data, options, progress)
    seconds = time.perf_counter() - began
    classes = 8 * (4 if options.turned else 1)
    print(f"\n{data.name}: {options.seeds} seed{'s'[: options.seeds > 1]}, {len(UNSEEN)} pairs of unseen digits,")
    print(f"{classes} classes to train on, {options.steps} steps a network, scale {options.scale:g}\n\n{table(runs)}\n")
    options.output.mkdir(parents=True, exist_ok=True)
    results = options.output / "verification.json"
    settings = {name: getattr(options, name) for name in ("steps", "seeds", "scale", "turned", "linear")}
    document = {**settings, "rates": RATES.tolist(), "runs": [dataclasses.asdict(run) for run in runs]}
    results.write_text(json.dumps(document, indent=1) + "\n")
    print(f"Trained in {seconds:.0f} s. Results and picture:\n  {results}")
    print(f"  {figures.draw_verification(runs, RATES, options.output / 'verification.png')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
