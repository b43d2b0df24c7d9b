"""What a margin does while it trains: lambda, and the mean angle between samples and the weights of their class."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from os import PathLike
from typing import Any

import keras
import tensorflow as tf

from lsoftmax_op.keras import annealing
from lsoftmax_op.keras.dense import LSoftmaxDense


class LSoftmaxMonitor(keras.callbacks.Callback):
    """Adds lambda and the mean angle of an epoch's training batches to its logs, and writes them for TensorBoard.

    The logs get ``lam`` and ``angle`` (in degrees, of the features that the training saw); of several layers, each name
    is preceded by its layer's. History, the progress bar and callbacks that come later in the list see them.

    In a model of your own it also has every `LSoftmaxDense` follow the model's optimizer, so that schedules run.

    Args:
        log_dir: a folder for TensorBoard's event files, or None to write none. The scalars are ``lsoftmax/lam`` and
            ``lsoftmax/angle``, over the optimizer's steps.

    Raises:
        ValueError: when the training begins, a model without an `LSoftmaxDense`.
    """

    def __init__(self, log_dir: str | PathLike[str] | None = None) -> None:
        super().__init__()
        self.log_dir = log_dir
        self._angles: dict[str, tuple[LSoftmaxDense, keras.metrics.Mean]] = {}
        self._writer: tf.summary.SummaryWriter | None = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Has every layer follow the optimizer and tell its angles."""
        layers = list(_margin_layers(self.model))
        if not layers:
            raise ValueError(f"model: expected one with an LSoftmaxDense layer, got {self.model.name}, which has none")
        for layer in layers:
            prefix = f"{layer.name}_" if len(layers) > 1 else ""
            with self.model.distribute_strategy.scope():
                mean = keras.metrics.Mean()
            self._angles[prefix] = layer, mean
            layer.follow(self.model.optimizer)
            layer.watch(_adds_degrees_to(mean))
        self.model.make_train_function(force=True)
        if self.log_dir is not None:
            self._writer = tf.summary.create_file_writer(str(self.log_dir))

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Begins a new mean."""
        for _, mean in self._angles.values():
            mean.reset_state()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Adds to the logs and writes the scalars."""
        values = {}
        for prefix, (layer, mean) in self._angles.items():
            values[f"{prefix}lam"] = float(tf.convert_to_tensor(layer.lam))
            values[f"{prefix}angle"] = float(mean.result())
        if logs is not None:
            logs.update(values)
        if self._writer is not None:
            with self._writer.as_default(step=int(annealing.steps_of(self.model.optimizer)())):
                for name, value in values.items():
                    tf.summary.write(f"lsoftmax/{name}", tf.constant(value), metadata=_scalar())
            self._writer.flush()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Leaves the model as it was."""
        for layer, _ in self._angles.values():
            layer.watch(None)
        self._angles.clear()
        self.model.train_function = None
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _margin_layers(layer: keras.Layer) -> Iterator[LSoftmaxDense]:
    """Every LSoftmaxDense within a model, each once."""
    seen = set()
    waiting = [layer]
    while waiting:
        layer = waiting.pop()
        if id(layer) not in seen:
            seen.add(id(layer))
            if isinstance(layer, LSoftmaxDense):
                yield layer
            waiting += getattr(layer, "layers", [])


def _scalar() -> tf.compat.v1.SummaryMetadata:
    """What makes TensorBoard plot a tensor as a scalar (tf.summary.scalar can do that only where TensorBoard is)."""
    metadata = tf.compat.v1.SummaryMetadata()
    metadata.plugin_data.plugin_name = "scalars"
    return metadata


def _adds_degrees_to(mean: keras.metrics.Mean) -> Callable[[tf.Tensor, tf.Tensor], None]:
    def watch(cos_theta: tf.Tensor, has_target: tf.Tensor) -> None:
        degrees = tf.acos(tf.clip_by_value(cos_theta, -1.0, 1.0)) * (180 / math.pi)
        mean.update_state(degrees, sample_weight=has_target)

    return watch
