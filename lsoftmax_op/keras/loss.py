"""What a compiled `LSoftmaxClassifier` has as its ``loss``, for whoever asks a model for one."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from lsoftmax_op import _checks
from lsoftmax_op.keras.labels import class_indices


@keras.saving.register_keras_serializable(package="lsoftmax_op")
class PlainLoss(keras.losses.Loss):
    """The cross-entropy of probabilities, without the margin: what ``evaluate`` shows.

    (``fit`` minimises the margin loss, which needs the features and is computed in the model.)

    Args:
        name: a name.
        reduction: as for ``keras.losses.Loss``.
        label_smoothing: that of the classifier.
        **kwargs: ``dtype``.

    Call arguments:
        y_true: labels, as ``fit`` takes them; one of -1, or a row of zeros, has loss 0.
        y_pred: probabilities [N, C].

    Raises:
        TypeError, ValueError: label_smoothing is no number in [0, 1).
    """

    def __init__(
        self,
        name: str = "plain_loss",
        reduction: str = "sum_over_batch_size",
        *,
        label_smoothing: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, reduction=reduction, **kwargs)
        self.label_smoothing = _checks.label_smoothing(label_smoothing)

    def call(self, y_true: Any, y_pred: Any) -> tf.Tensor:
        """Returns the losses of the samples [N]."""
        labels = class_indices(y_true, y_pred.shape[-1], "y_true")
        target = tf.maximum(labels, 0)
        if self.label_smoothing == 0:
            losses = keras.ops.sparse_categorical_crossentropy(target, y_pred)
        else:
            of_class = self.label_smoothing / y_pred.shape[-1]
            of_target = 1 - self.label_smoothing + of_class
            smoothed = tf.one_hot(target, y_pred.shape[-1], of_target, of_class, dtype=y_pred.dtype)
            losses = keras.ops.categorical_crossentropy(smoothed, y_pred)
        return tf.where(labels >= 0, losses, tf.zeros_like(losses))

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {**super().get_config(), "label_smoothing": self.label_smoothing}
