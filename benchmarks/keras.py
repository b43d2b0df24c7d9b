"""What does a step of Keras' fit cost with the margin, beside the same backbone without one, and compiled by XLA?

Both models have the same backbone (a Dense layer of D units), optimizer (SGD), metric (accuracy) and data. Plain ends
in Dense(C) without a bias, with SparseCategoricalCrossentropy(from_logits=True); ours is LSoftmaxClassifier. A step is
one of `fit`, with its share of what fit does around the steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from benchmarks import harness
from benchmarks.batches import SHAPES, SMALL, TINY, Shape, batch, name

MINUTES = 2
OVER_PLAIN = {SHAPES[1]: 0.95, SMALL: 1.1}
OVER_PLAIN_XLA = 1.05


def main(output: Path | None, quick: bool = False) -> None:
    """Measures fit of both, the graphs run by TensorFlow and compiled by XLA."""
    rows = []
    for shape in [TINY] if quick else OVER_PLAIN:
        for xla in (False, True):
            harness.progress(f"{name(shape)}{', compiled by XLA' if xla else ''}")
            work = math.prod(shape)
            steps = 2 if quick else max(3, min(60, 4 * 10**9 // work))
            repeats = 2 if quick else max(41, min(151, 10**10 // work))
            peers = {peer: fit(*make(*shape[1:]), shape, xla, steps) for peer, make in MODELS.items()}
            seconds = harness.interleave(peers, repeats, warm_up=1)
            ours, plain = seconds["ours"], seconds["plain"]
            rows.append(
                {
                    "N,D,C": name(shape),
                    "XLA": "yes" if xla else "no",
                    "plain ms": harness.milliseconds(plain) / steps,
                    "ours ms": harness.milliseconds(ours) / steps,
                    "ours/plain": harness.ratio(ours, plain),
                    "quartiles": harness.spread(ours, plain),
                    "target": OVER_PLAIN_XLA if xla else OVER_PLAIN.get(shape, ""),
                }
            )
    harness.report("keras", __doc__.splitlines()[0], rows, output)


def _backbone(depth: int) -> object:
    import keras

    return keras.Sequential([keras.Input((depth,)), keras.layers.Dense(depth, activation="relu")])


def _plain(depth: int, classes: int) -> tuple[object, object]:
    """Returns the plain model and its loss."""
    import keras

    model = keras.Sequential([_backbone(depth), keras.layers.Dense(classes, use_bias=False)])
    return model, keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _ours(depth: int, classes: int) -> tuple[object, object]:
    """Returns this library's model, which has its own loss."""
    from lsoftmax_op.keras import LSoftmaxClassifier

    return LSoftmaxClassifier(_backbone(depth), classes), None


MODELS = {"ours": _ours, "plain": _plain}


def fit(model: object, loss: object, shape: Shape, xla: bool | str, steps: int) -> Callable[[], object]:
    """Returns a function that trains for some steps, on one batch again and again; `xla` is fit's jit_compile."""
    import keras
    import tensorflow as tf

    x, _, y = batch(*shape)
    data = tf.data.Dataset.from_tensors((x, y)).repeat()
    model.compile(keras.optimizers.SGD(1e-3), loss=loss, metrics=["accuracy"], jit_compile=xla)
    return lambda: model.fit(data, steps_per_epoch=steps, verbose=0)
