"""One row of the paper's experiment: a network, a margin and a seed, trained in a process of its own.

    python -m examples.paper_row '{"data_dir": "...", "output": "...", "margin": 2, "seed": 0, ...}'

`examples.paper` starts these processes. A row can be killed at any time: it goes on from its last checkpoint, to the
same result as if nothing had happened.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

from examples.data import Dataset, load_idx_folder
from lsoftmax_op import LambdaSchedule
from lsoftmax_op.keras import LSoftmaxClassifier

BATCH = 256
POINTS = 15  # of a curve
PAPER_STEPS = 18_000


@dataclasses.dataclass(frozen=True)
class Row:
    """What a row is trained with.

    Attributes:
        data_dir: the folder of IDX files.
        output: the folder for its results.
        margin: m, 1 for softmax.
        seed: of the weights and the order of the images.
        width: the filters of a convolution; 64 is the paper's.
        steps: optimizer steps in all: up to POINTS, or a multiple of them.
        rate: the learning rate to begin with.
        minimum: where lambda stops falling.
        images: how many of the training images it learns from, None for all.
        mixed: whether it computes in bfloat16 (Keras' mixed_bfloat16); weights and losses are float32 always.
    """

    data_dir: str
    output: str
    margin: int
    seed: int
    width: int
    steps: int
    rate: float
    minimum: float
    images: int | None = None
    mixed: bool = False

    @property
    def interval(self) -> int:
        """The steps between two points of the curve."""
        return max(1, self.steps // POINTS)

    def path(self, suffix: str) -> Path:
        """Returns the row's file of a kind: its results (.json), checkpoint (.keras), messages (.log) or .lock."""
        return Path(self.output) / f"m{self.margin}-seed{self.seed}{suffix}"

    def settings(self) -> dict[str, Any]:
        """Returns what the result depends on: all but the folders."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in ("data_dir", "output")}

    def result(self) -> dict[str, Any] | None:
        """Returns what is known of the row: settings and curve; or None before its first checkpoint.

        Raises:
            ValueError: the folder holds this row, trained with other settings.
        """
        path = self.path(".json")
        if not path.exists():
            return None
        result = json.loads(path.read_text())
        settings = {"mixed": False, **result["settings"]}  # which rows of an earlier version do not mention
        if settings != self.settings():
            was = {name: value for name, value in settings.items() if value != self.settings().get(name)}
            raise ValueError(f"--output: {path} was trained with {was}: choose another folder, or remove this one")
        return result

    def done(self) -> bool:
        """Tells whether the row has been trained to its end."""
        result = self.result()
        return result is not None and result["train"] is not None


def backbone(shape: tuple[int, ...], width: int) -> keras.Model:
    """The paper's network for MNIST (Table 1): ten convolutions in four groups, and 4 x width features."""
    layers = keras.layers
    decay = keras.regularizers.L2(0.0005 / 2)

    def norm() -> keras.Layer:
        return layers.BatchNormalization(momentum=0.9)

    def group(convolutions: int) -> Iterator[keras.Layer]:
        for _ in range(convolutions):
            yield layers.Conv2D(
                width, 3, padding="same", use_bias=False, kernel_initializer="he_normal", kernel_regularizer=decay
            )
            yield norm()
            yield layers.PReLU(keras.initializers.Constant(0.25), shared_axes=[1, 2])

    stack = [keras.Input(shape), *group(1)]
    for _ in range(3):
        stack += [*group(3), layers.MaxPooling2D(2)]
    stack += [layers.Flatten(), layers.Dense(4 * width, kernel_initializer="he_normal", kernel_regularizer=decay)]
    return keras.Sequential([*stack, norm()])


def classifier(shape: tuple[int, ...], classes: int, row: Row) -> LSoftmaxClassifier:
    """The network with its last layer, compiled; every schedule is the paper's, shrunk to the row's steps."""
    lam = LambdaSchedule(base=1000.0, gamma=2.5e-5 * PAPER_STEPS / row.steps, power=35.0, minimum=row.minimum)
    model = LSoftmaxClassifier(
        backbone(shape, row.width),
        classes,
        row.margin,
        lam,
        kernel_initializer="he_normal",
        kernel_regularizer=keras.regularizers.L2(0.0005 / 2),
    )
    rate = keras.optimizers.schedules.PiecewiseConstantDecay(
        [row.steps * 2 // 3, row.steps * 5 // 6], [row.rate, row.rate / 10, row.rate / 100]
    )
    model.compile(keras.optimizers.SGD(rate, momentum=0.9), jit_compile=False)
    return model


def order(begin: int, end: int, images: int, seed: int) -> np.ndarray:
    """Returns the images of the batches of some steps, one after the other: every epoch is a permutation of all."""
    first, last = begin * BATCH // images, (end * BATCH - 1) // images
    epochs = [np.random.default_rng([seed, epoch]).permutation(images) for epoch in range(first, last + 1)]
    return np.concatenate(epochs)[begin * BATCH - first * images :][: (end - begin) * BATCH]


class Learner:
    """Takes the steps of the optimizer; the images lie where TensorFlow computes, and are looked up there by number.

    The steps are queued one after the other, and nothing waits for a device until the logs are read.
    """

    def __init__(self, model: LSoftmaxClassifier, images: np.ndarray, labels: np.ndarray) -> None:
        self._model = model
        self._images, self._labels = tf.constant(images), tf.constant(labels)
        model.optimizer.build(model.trainable_variables)
        self._step = tf.function(model.train_step)

    def learn(self, chosen: np.ndarray) -> dict[str, float]:
        """Learns batch after batch of the images of those numbers; returns the mean loss and accuracy."""
        self._model.reset_metrics()
        for batch in chosen.reshape(-1, BATCH):
            logs = self._step((tf.gather(self._images, batch), tf.gather(self._labels, batch)))
        return {name: float(value) for name, value in logs.items()}


def measure(model: LSoftmaxClassifier, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Returns what the plain classifier makes of images: errors, loss and the mean angle to the own class (degrees)."""
    features = model.backbone.predict(images, batch_size=500, verbose=0).astype(np.float64)
    kernel = keras.ops.convert_to_numpy(model.head.kernel).astype(np.float64)
    logits = features @ kernel
    own = logits[np.arange(len(labels)), labels]
    norms = np.linalg.norm(features, axis=1) * np.linalg.norm(kernel, axis=0)[labels]
    cosines = own / np.maximum(norms, np.finfo(np.float64).tiny)
    wrong = logits.argmax(axis=1) != labels
    return {
        "error": float(wrong.mean()),
        "worst_class_error": max(float(wrong[labels == c].mean()) for c in np.unique(labels)),
        "loss": float(np.mean(np.logaddexp.reduce(logits, axis=1) - own)),
        "angle": float(np.degrees(np.arccos(np.clip(cosines, -1, 1))).mean()),
    }


def train(row: Row, data: Dataset) -> None:
    """Trains the row from its last checkpoint to its end; prints every step at which it has been saved."""
    result = row.result() or {"settings": row.settings(), "curve": [], "train": None}
    keras.utils.set_random_seed(row.seed)
    if row.path(".keras").exists():
        model = keras.saving.load_model(row.path(".keras"))
    else:
        keras.config.set_dtype_policy("mixed_bfloat16" if row.mixed else "float32")
        model = classifier(data.train_images.shape[1:], int(data.train_labels.max()) + 1, row)
    done = int(model.optimizer.iterations)
    result["curve"] = [point for point in result["curve"] if point["step"] <= done]
    learner = Learner(model, data.train_images, data.train_labels)
    print(done, flush=True)
    for step in range(done, row.steps, row.interval):
        end = step + row.interval
        logs = learner.learn(order(step, end, len(data.train_labels), row.seed))
        test = measure(model, data.test_images, data.test_labels)
        margin_loss, train_error = logs["loss"], 1 - logs["accuracy"]
        result["curve"].append({"step": end, "margin_loss": margin_loss, "train_error": train_error, **test})
        if end == row.steps:
            few = len(data.test_labels)
            result["train"] = measure(model, data.train_images[:few], data.train_labels[:few])
        # The results first: what they hold beyond the checkpoint is dropped and made again.
        replace(row.path(".json"), lambda path: path.write_text(json.dumps(result, indent=1)))
        replace(row.path(".keras"), model.save)
        print(end, flush=True)


def replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Lets `write` make a file, and puts it in its place at once: a kill leaves the old one or the new one."""
    part = path.with_name(f"part-{path.name}")
    write(part)
    part.replace(path)


def prepared(data: Dataset, images: int | None = None) -> Dataset:
    """Returns the images as the paper has them, (x - mean) / 256 of x within 0 and 255; all for training, or a few."""
    data = data._replace(train_images=data.train_images[:images], train_labels=data.train_labels[:images])
    mean = data.train_images.mean()
    train_images, test_images = ((images - mean) * (255 / 256) for images in (data.train_images, data.test_images))
    return data._replace(train_images=train_images, test_images=test_images)


def gpus() -> list[Any]:
    """Returns the GPUs that TensorFlow sees."""
    return tf.config.list_physical_devices("GPU")


def prepare_devices() -> None:
    """One thread, so that as many rows as there are cores train side by side; or a GPU, which rows may share, too."""
    for gpu in gpus():
        tf.config.experimental.set_memory_growth(gpu, True)
    if gpus():
        tf.config.experimental.enable_op_determinism()  # as threads would, a GPU adds up in another order each time
        return
    for set_threads in ("set_intra_op_parallelism_threads", "set_inter_op_parallelism_threads"):
        getattr(tf.config.threading, set_threads)(1)


def main(arguments: list[str]) -> int:
    """Trains one row; returns the exit status."""
    row = Row(**json.loads(arguments[0]))
    prepare_devices()
    with row.path(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # waits for a process of a killed run that still trains this row
        if not row.done():
            train(row, prepared(load_idx_folder(Path(row.data_dir)), row.images))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
