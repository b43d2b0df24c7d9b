"""A network that trains with a margin and is a plain softmax classifier everywhere else.

| call     | what it computes                                                                                  |
|----------|---------------------------------------------------------------------------------------------------|
| fit      | the margin loss of backbone(x) and y, fused (lsoftmax_op.margin_softmax_loss); y goes nowhere else |
| evaluate | the plain cross-entropy and accuracy                                                               |
| predict  | the plain probabilities softmax(backbone(x) W + b); softmax(scale cos) where the margin normalises |
| export   | what predict computes, in the ops and layers of TensorFlow and Keras alone                         |
| embed    | backbone(x), of length 1 where the margin normalises features                                      |
"""

from __future__ import annotations

import warnings
from functools import cached_property
from os import PathLike
from typing import Any

import keras
import tensorflow as tf

from lsoftmax_op.keras import annealing, networks
from lsoftmax_op.keras.dense import LSoftmaxDense
from lsoftmax_op.keras.loss import PlainLoss
from lsoftmax_op.keras.margin_model import MarginModel, Result, mask_of
from lsoftmax_op.margins import Margin


@keras.saving.register_keras_serializable(package="lsoftmax_op")
class LSoftmaxClassifier(MarginModel):
    """A backbone, and a last layer that is trained with Large-Margin Softmax (Liu et al., ICML 2016) or another margin.

    The loss is built in: ``compile(optimizer)``, then ``fit(x, y)`` with integer (of any type, also a floating one) or
    one-hot labels. A sample whose label is -1 (or a row of zeros) has loss 0 and counts in no accuracy; one that the
    backbone masks (``keras.layers.Masking``) counts nowhere. The logs of ``fit`` show the loss, the accuracy without
    the margin and lambda, as ``lam``; further metrics of ``compile`` see the plain probabilities.

    Any margin is trained in the same way, such as ``margin=ArcFace(0.5, 64)``. The probabilities of one that normalises
    features and weights are softmax(scale cos(theta)), in training, inference and export alike.

    Args:
        backbone: a model or layer that turns a batch of inputs into features [N, D].
        num_classes: the number of classes C, >= 1.
        margin: the integer m from 1 (no margin) to 64, or a margin of `lsoftmax_op.margins`. Its m2, m3 and scale may
            be scalar variables, whose value is read at every step; a saved model has the value of that moment.
        lam: the annealing weight lambda: a number >= 0, a `LambdaSchedule`, or another function of the optimizer's step
            (a scalar tensor). The steps are those of the optimizer that the model is compiled with: another one begins
            the schedule anew, as it does with a schedule of the learning rate.
        use_bias: whether there is a bias [C]. The paper has none; a margin that normalises or scales cannot have one.
        label_smoothing: epsilon in [0, 1): the target distribution is 1 - epsilon on the sample's class, and
            epsilon / C on each of the C classes; the margin stays on the sample's class alone. The loss of ``evaluate``
            has it, too, without the margin: that of ``keras.losses.CategoricalCrossentropy(label_smoothing=epsilon)``.
        kernel_initializer: of the last layer's kernel [D, C], as for ``keras.layers.Dense``, like the following.
        bias_initializer: of its bias.
        kernel_regularizer: of its kernel.
        bias_regularizer: of its bias.
        kernel_constraint: of its kernel.
        bias_constraint: of its bias.
        **kwargs: ``name``, ``dtype`` (a name or dtype policy) and ``trainable``; and ``head``, a dict of what only
            `LSoftmaxDense` takes, such as ``lora_rank``.

    Attributes:
        backbone: the backbone: ``backbone.predict(x)`` gives the features [N, D] as the last layer gets them, `embed`
            as it sees them.
        head: the last layer, an `LSoftmaxDense`; ``head.lam`` is the present lambda.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a value out of range; a bias with a margin that normalises or scales; a backbone whose outputs are
            no [N, D].
    """

    def __init__(
        self,
        backbone: keras.Layer,
        num_classes: int,
        margin: int | Margin = 4,
        lam: float | annealing.Schedule = annealing.DEFAULT,
        use_bias: bool = False,
        *,
        label_smoothing: float = 0.0,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        **kwargs: Any,
    ) -> None:
        head = kwargs.pop("head", {})
        super().__init__(backbone, num_classes, label_smoothing, **kwargs)
        self.head = LSoftmaxDense(
            self.num_classes,
            margin,
            lam,
            use_bias,
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            kernel_regularizer=kernel_regularizer,
            bias_regularizer=bias_regularizer,
            kernel_constraint=kernel_constraint,
            bias_constraint=bias_constraint,
            **{"dtype": self.dtype_policy, "name": "head", **head},
        )
        self._build_for_known_input()

    def _build_head(self, features: Any) -> None:
        self.head(features)

    @cached_property
    def output(self) -> Any:
        """The symbolic probabilities [N, C] of `input`."""
        return self(self.input)

    @property
    def outputs(self) -> list[Any]:
        """The symbolic probabilities, in a list."""
        return [self.output]

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Computes the plain probabilities [N, C], float32 (float64 for a float64 policy)."""
        if training is not False:
            self.head.warn_if_trained_plainly("fit(x, y), or head.compute_loss(backbone(x), y, training=True)")
        return self._probabilities(self.backbone(inputs, training=training))

    def _probabilities(self, features: Any) -> Any:
        logits = self.head(features, training=False)
        probabilities = keras.ops.softmax(keras.ops.cast(logits, self._wide))
        probabilities._keras_mask = mask_of(features)  # for the metrics of compile
        return probabilities

    def compile(self, optimizer: Any = "rmsprop", loss: Any = None, **options: Any) -> None:
        """Configures the training.

        Args:
            optimizer: a Keras optimizer, or its name.
            loss: None, or the one that a compiled model has as ``model.loss``. The loss is the model's own.
            **options: the other arguments of ``keras.Model.compile``, such as ``metrics``. The metric "accuracy" is
                always there.

        Raises:
            ValueError: a loss or `loss_weights` is given.
        """
        for name, value in (("loss", loss), ("loss_weights", options.get("loss_weights"))):
            is_own = isinstance(value, PlainLoss) and value.label_smoothing == self.label_smoothing
            if value is not None and not is_own:
                raise ValueError(f"{name}: expected None, as LSoftmaxClassifier has its own loss, got {value!r}")
        metrics = options.pop("metrics", None)
        if isinstance(metrics, (list, tuple)):
            metrics = [metric for metric in metrics if metric != "accuracy"]
        loss = loss or PlainLoss(label_smoothing=self.label_smoothing)
        super().compile(optimizer, loss, metrics=metrics or None, **options)
        self._embedder = None
        self.head.follow(self.optimizer)

    def _losses_and_hits(self, features: Any, labels: tf.Tensor, training: bool) -> tuple[tf.Tensor, tf.Tensor]:
        loss, predicted = self.head.compute_loss(features, labels, training, self.label_smoothing)
        return loss, predicted == tf.cast(labels, tf.int64)

    def _descend(self, tape: tf.GradientTape, scaled: tf.Tensor) -> None:
        weights = self.trainable_weights
        if weights:
            self.optimizer.apply_gradients(zip(tape.gradient(scaled, weights), weights, strict=True))
        else:
            warnings.warn(f"{self.name} has no trainable weights", stacklevel=2)

    def _further_logs(self, result: Result) -> dict[str, Any]:
        # In a graph the probabilities are computed only where some metric of compile looks at them.
        probabilities = self._probabilities(result.features)
        return self.compute_metrics(result.x, result.y, probabilities, result.sample_weight)

    def quantize(self, *args: Any, **options: Any) -> None:
        """Quantises backbone and head, as ``keras.Model.quantize`` does and with its arguments."""
        self._embedder = None
        super().quantize(*args, **options)

    def export(self, filepath: str | PathLike[str], format: str = "tf_saved_model", **options: Any) -> Any:
        """Exports the plain softmax classifier: no margin, no label, nothing that needs lsoftmax_op where it is served.

        Args:
            filepath: where to; a name that ends in ``.keras`` makes a Keras model of Keras' own layers (and those of
                the backbone), with probabilities as its output.
            format: otherwise, the format, as for ``keras.Model.export``.
            **options: of ``keras.Model.export``.

        Raises:
            ValueError: the model has not been built yet.
        """
        if not self.built:
            raise ValueError("export: expected a model that has been built, by fit or by a call, got one that has not")
        model = networks.plain_softmax(self, self._wide)
        if str(filepath).endswith(".keras"):
            return model.save(filepath)
        return model.export(filepath, format, **options)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        head = self.head.get_config()
        names = ("margin", "lam", "use_bias", *(n for n in head if n.endswith(("izer", "constraint")) and n[0] != "a"))
        config = {
            **super().get_config(),
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "num_classes": head["units"],
            "label_smoothing": self.label_smoothing,
            **{name: head[name] for name in names},
        }
        special = {name: head[name] for name in ("lora_rank", "lora_alpha", "quantization_config") if head.get(name)}
        if head["dtype"] != config["dtype"]:
            special["dtype"] = head["dtype"]
        return {**config, "head": special} if special else config
