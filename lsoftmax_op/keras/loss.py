"""What a compiled `LSoftmaxClassifier` has as its ``loss``, for whoever asks a model for one."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

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
        self.label_smoothing = label_smoothing

    def call(self, y_true: Any, y_pred: Any) -> tf.Tensor:
        """Returns the losses of the samples [N]."""
        labels = class_indices(y_true, y_pred.shape[-1], "y_true")
        losses = keras.ops.sparse_categorical_crossentropy(tf.maximum(labels, 0), y_pred)
        if self.label_smoothing > 0:
            surprisal = -tf.math.log(tf.maximum(y_pred, y_pred.dtype.as_numpy_dtype(np.finfo("float32").tiny)))
            of_class = tf.gather(surprisal, tf.maximum(labels, 0), axis=1, batch_dims=1)
            losses = of_class + self.label_smoothing * (tf.reduce_mean(surprisal, axis=1) - of_class)
        return tf.where(labels >= 0, losses, tf.zeros_like(losses))

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {**super().get_config(), "label_smoothing": self.label_smoothing}
