"""A network that trains with a margin and is a plain softmax classifier everywhere else.

| call     | what it computes                                                                                  |
|----------|---------------------------------------------------------------------------------------------------|
| fit      | the margin loss of backbone(x) and y, fused (lsoftmax_op.lsoftmax_loss); y goes nowhere else       |
| evaluate | the plain cross-entropy and accuracy                                                               |
| predict  | the plain probabilities softmax(backbone(x) W + b)                                                 |
| export   | what predict computes, in the ops and layers of TensorFlow and Keras alone                         |
"""

from __future__ import annotations

from os import PathLike
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from lsoftmax_op import _checks
from lsoftmax_op.keras import annealing
from lsoftmax_op.keras.dense import LSoftmaxDense
from lsoftmax_op.keras.labels import class_indices
from lsoftmax_op.keras.multi_worker import MultiWorkerModel, share_of_batch


class _Result(NamedTuple):
    """A batch, and what the model makes of it."""

    x: Any
    y: Any
    sample_weight: Any
    labels: tf.Tensor  # [N]
    rows: tf.Tensor  # [], N
    features: tf.Tensor  # [N, D]
    total: tf.Tensor  # []
    predicted: tf.Tensor  # [N]


@keras.saving.register_keras_serializable(package="lsoftmax_op")
class LSoftmaxClassifier(MultiWorkerModel):
    """A backbone, and a last layer that is trained with Large-Margin Softmax (Liu et al., ICML 2016).

    The loss is built in: ``compile(optimizer)``, then ``fit(x, y)`` with integer (of any type, also a floating one) or
    one-hot labels. A sample whose label is -1 (or a row of zeros) has loss 0 and counts in no accuracy. The logs of
    ``fit`` show the loss, the accuracy without the margin and lambda, as ``lam``; further metrics of ``compile`` see
    the plain probabilities.

    Args:
        backbone: a model or layer that turns a batch of inputs into features [N, D].
        num_classes: the number of classes C, >= 1.
        margin: the integer m from 1 (no margin) to 64.
        lam: the annealing weight lambda: a number >= 0, a `LambdaSchedule`, or another function of the optimizer's step
            (a scalar tensor) that never increases. The steps are those of the optimizer that the model is compiled
            with: another one begins the schedule anew, as it does with a schedule of the learning rate.
        use_bias: whether there is a bias [C]. The paper has none.
        kernel_initializer: of the last layer's kernel [D, C], as for ``keras.layers.Dense``, like the following.
        bias_initializer: of its bias.
        kernel_regularizer: of its kernel.
        bias_regularizer: of its bias.
        kernel_constraint: of its kernel.
        bias_constraint: of its bias.
        **kwargs: ``name``, ``dtype`` (a name or dtype policy) and ``trainable``.

    Attributes:
        backbone: the backbone.
        head: the last layer, an `LSoftmaxDense`; ``head.lam`` is the present lambda.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a value out of range; a schedule that increases; a backbone whose outputs are no [N, D].
    """

    def __init__(
        self,
        backbone: keras.Layer,
        num_classes: int,
        margin: int = 4,
        lam: float | annealing.Schedule = annealing.DEFAULT,
        use_bias: bool = False,
        *,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(backbone, keras.Layer):
            raise TypeError(f"backbone: expected a Keras model or layer, got {backbone!r}")
        super().__init__(**kwargs)
        self.backbone = backbone
        self.head = LSoftmaxDense(
            _checks.positive_integer(num_classes, "num_classes"),
            margin,
            lam,
            use_bias,
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            kernel_regularizer=kernel_regularizer,
            bias_regularizer=bias_regularizer,
            kernel_constraint=kernel_constraint,
            bias_constraint=bias_constraint,
            dtype=self.dtype_policy,
            name="head",
        )
        self._accuracy = keras.metrics.Mean(name="accuracy")
        if len(getattr(backbone, "inputs", None) or []) == 1:
            self.build(backbone.input_shape)

    def build(self, input_shape: Any) -> None:
        """Builds backbone and head for inputs of a shape, or a structure of shapes."""
        features = getattr(self.backbone(self._inputs(input_shape)), "shape", None)
        if not isinstance(features, tuple) or len(features) != 2 or features[1] is None:
            raise ValueError(
                f"backbone: expected outputs [N, D], got shape {features}: end it in Flatten or GlobalAveragePooling2D"
            )
        if not self.head.built:
            self.head.build(features)
        super().build(input_shape)

    def _inputs(self, shapes: Any) -> Any:
        """Returns symbolic inputs of a structure of shapes, named and typed as the backbone's, for any batch size."""
        known = iter(getattr(self.backbone, "inputs", None) or [])

        def one(shape: tuple) -> keras.KerasTensor:
            like = next(known, None)
            name, dtype = (None, self.backbone.input_dtype) if like is None else (like.name, like.dtype)
            return keras.Input(batch_shape=(None, *shape[1:]), dtype=dtype, name=name)

        return keras.tree.map_shape_structure(one, shapes)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Computes the plain probabilities [N, C], float32 (float64 for a float64 policy)."""
        if training is not False:
            self.head.warn_if_trained_plainly("fit(x, y), or head.compute_loss(backbone(x), y, training=True)")
        return self._probabilities(self.backbone(inputs, training=training))

    def _probabilities(self, features: Any) -> Any:
        logits = self.head(features, training=False)
        return keras.ops.softmax(keras.ops.cast(logits, self._wide))

    @property
    def _wide(self) -> str:
        """The dtype of losses and probabilities."""
        return "float64" if self.compute_dtype == "float64" else "float32"

    def compile(self, optimizer: Any = "rmsprop", loss: Any = None, **options: Any) -> None:
        """Configures the training.

        Args:
            optimizer: a Keras optimizer, or its name.
            loss: None. The loss is the model's own.
            **options: the other arguments of ``keras.Model.compile``, such as ``metrics``. The metric "accuracy" is
                always there.

        Raises:
            ValueError: a loss or `loss_weights` is given.
        """
        for name, value in (("loss", loss), ("loss_weights", options.get("loss_weights"))):
            if value is not None:
                raise ValueError(f"{name}: expected None, as LSoftmaxClassifier has its own loss, got {value!r}")
        metrics = options.pop("metrics", None)
        if isinstance(metrics, (list, tuple)):
            metrics = [metric for metric in metrics if metric != "accuracy"]
        super().compile(optimizer, metrics=metrics or None, **options)
        self.head.follow(self.optimizer)

    def compile_from_config(self, config: dict) -> None:
        """Configures the training as that of a saved model was."""
        config = keras.saving.deserialize_keras_object(config)
        self.compile(**{name: value for name, value in config.items() if name not in ("loss", "loss_weights")})
        if self.built:
            self.optimizer.build(self.trainable_variables)

    def fit(self, x: Any = None, *args: Any, **options: Any) -> keras.callbacks.History:
        """Trains the model, as ``keras.Model.fit`` does and with its arguments.

        Where `x` is a ``tf.data.Dataset``, too, `class_weight` may leave out classes, whose weight is 1, and labels may
        be -1.

        Raises:
            ValueError: `class_weight` for a data set that has sample weights.
        """
        if options.get("class_weight") is not None and isinstance(x, tf.data.Dataset):
            x = self._with_class_weights(x, options.pop("class_weight"))
        return super().fit(x, *args, **options)

    def _with_class_weights(self, batches: tf.data.Dataset, class_weight: dict) -> tf.data.Dataset:
        """Returns the batches with the weights of their samples, those that Keras gives the samples of an array."""
        classes = self.head.units
        table = tf.constant([class_weight.get(c, 1.0) for c in range(-1, classes)], keras.config.floatx())

        def weighted(*data: Any) -> tuple:
            x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
            if sample_weight is not None:
                raise ValueError("class_weight: expected None where the data set has sample weights, got both")
            y = _the_one(y)
            labels = tf.clip_by_value(class_indices(y, classes, "y"), -1, classes - 1)  # the op tells of others
            return x, y, tf.gather(table, labels + 1)

        return batches.map(weighted).prefetch(tf.data.AUTOTUNE)

    def train_step(self, data: Any) -> dict:
        """Takes one step of the optimizer on the margin loss of one batch."""
        with tf.GradientTape() as tape:
            result = self._forward(data, training=True)
            scaled = self.optimizer.scale_loss(result.total * share_of_batch(result.rows, result.total.dtype))
        weights = self.trainable_weights
        self.optimizer.apply_gradients(zip(tape.gradient(scaled, weights), weights, strict=True))
        return self.logs_of_step({**self._count(result), "lam": tf.convert_to_tensor(self.head.lam)})

    def test_step(self, data: Any) -> dict:
        """Computes the plain loss and metrics of one batch."""
        return self.logs_of_step(self._count(self._forward(data, training=False)))

    def _forward(self, data: Any, training: bool) -> _Result:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        y, sample_weight = _the_one(y), _the_one(sample_weight)
        labels = class_indices(y, self.head.units, "y")
        rows = tf.shape(labels)[0]
        if not self.built:
            self(x, training=False)
        features = self.backbone(x, training=training)
        loss, predicted = self.head.compute_loss(features, labels, training)
        loss = tf.cast(loss, self._wide)
        if sample_weight is not None:
            loss *= tf.broadcast_to(tf.reshape(tf.cast(sample_weight, self._wide), [-1]), [rows])
        # As Keras reduces: the sum over the batch size, whatever the weights; 0 without samples; all regularisation.
        mean = tf.math.divide_no_nan(tf.reduce_sum(loss), tf.cast(rows, self._wide))
        total = tf.add_n([mean, *(tf.reduce_sum(tf.cast(term, self._wide)) for term in self.losses)])
        return _Result(x, y, sample_weight, labels, rows, features, total, predicted)

    def _count(self, result: _Result) -> dict:
        """Updates the metrics and returns their values."""
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(result.total, sample_weight=result.rows)
        hits = result.predicted == tf.cast(result.labels, tf.int64)
        self._accuracy.update_state(hits, sample_weight=result.labels >= 0)
        # In a graph the probabilities are computed only where some metric of compile looks at them.
        probabilities = self._probabilities(result.features)
        return self.compute_metrics(result.x, result.y, probabilities, result.sample_weight)

    def export(self, filepath: str | PathLike, format: str = "tf_saved_model", **options: Any) -> Any:
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
        inputs = self._inputs(self.get_build_config()["input_shape"])
        if str(filepath).endswith(".keras"):
            self._plain_model(inputs).save(filepath)
            return None
        self(inputs)  # Keras exports what has been called, and fit calls backbone and head only
        return super().export(filepath, format, **options)

    def _plain_model(self, inputs: Any) -> keras.Model:
        """Returns the backbone, a Dense layer with a copy of the head's weights, and a softmax."""
        with self.distribute_strategy.scope():
            dense = keras.layers.Dense(
                self.head.units, use_bias=self.head.use_bias, dtype=self.dtype_policy, name=self.head.name
            )
            softmax = keras.layers.Activation("softmax", dtype=self._wide, name="probabilities")
            model = keras.Model(inputs, softmax(dense(self.backbone(inputs))), name=self.name)
            weights = [self.head.kernel] if self.head.bias is None else [self.head.kernel, self.head.bias]
            dense.set_weights([keras.ops.convert_to_numpy(weight) for weight in weights])
        return model

    def get_config(self) -> dict:
        """Returns the arguments of the constructor."""
        head = self.head.get_config()
        names = ("margin", "lam", "use_bias", *(n for n in head if n.endswith(("izer", "constraint")) and n[0] != "a"))
        return {
            **super().get_config(),
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "num_classes": head["units"],
            **{name: head[name] for name in names},
        }

    @classmethod
    def from_config(cls, config: dict, custom_objects: dict | None = None) -> LSoftmaxClassifier:
        """Returns a new model with the arguments that `get_config` gave."""
        config = dict(config)
        config["backbone"] = keras.saving.deserialize_keras_object(config["backbone"], custom_objects)
        config["lam"] = annealing.deserialize(config["lam"])
        if isinstance(config.get("dtype"), dict):
            config["dtype"] = keras.saving.deserialize_keras_object(config["dtype"])
        return cls(**config)


def _the_one(value: Any) -> Any:
    """Returns the labels or weights of a list that holds those of the one output, as Keras takes them, too."""
    is_list = isinstance(value, (list, tuple)) and len(value) == 1 and getattr(value[0], "ndim", 0)
    return value[0] if is_list else value
