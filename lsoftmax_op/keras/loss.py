"""What a compiled `LSoftmaxClassifier` has as its ``loss``, for whoever asks a model for one."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from lsoftmax_op.keras.labels import class_indices


@keras.saving.register_keras_serializable(package="lsoftmax_op")
class PlainLoss(keras.losses.Loss):
    """The cross-entropy of probabilities, without the margin: what ``evaluate`` shows.

    (``fit`` minimises the margin loss, which needs the features and is computed in the model.)

    Args:
        name: a name.
        reduction: as for ``keras.losses.Loss``.
        **kwargs: ``dtype``.

    Call arguments:
        y_true: labels, as ``fit`` takes them; one of -1, or a row of zeros, has loss 0.
        y_pred: probabilities [N, C].
    """

    def __init__(self, name: str = "plain_loss", reduction: str = "sum_over_batch_size", **kwargs: Any) -> None:
        super().__init__(name=name, reduction=reduction, **kwargs)

    def call(self, y_true: Any, y_pred: Any) -> tf.Tensor:
        """Returns the losses of the samples [N]."""
        labels = class_indices(y_true, y_pred.shape[-1], "y_true")
        losses = keras.ops.sparse_categorical_crossentropy(tf.maximum(labels, 0), y_pred)
        return tf.where(labels >= 0, losses, tf.zeros_like(losses))
