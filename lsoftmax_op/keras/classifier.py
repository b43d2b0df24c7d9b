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
from collections.abc import Callable
from functools import cached_property
from itertools import repeat
from os import PathLike
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from lsoftmax_op import _checks
from lsoftmax_op.keras import annealing, margin_argument, networks, symbolic
from lsoftmax_op.keras.batches import the_one, with_class_weights
from lsoftmax_op.keras.dense import LSoftmaxDense
from lsoftmax_op.keras.labels import class_indices
from lsoftmax_op.keras.loss import PlainLoss
from lsoftmax_op.keras.multi_worker import MultiWorkerModel, share_of_batch
from lsoftmax_op.margins import Margin


class _Result(NamedTuple):
    """A batch, and what the model makes of it."""

    x: Any
    y: Any
    sample_weight: Any
    labels: tf.Tensor  # [N]
    rows: tf.Tensor  # [], N
    counted: tf.Tensor  # [], how many of them the backbone does not mask
    features: tf.Tensor  # [N, D]
    total: tf.Tensor  # []
    predicted: tf.Tensor  # [N]


@keras.saving.register_keras_serializable(package="lsoftmax_op")
class LSoftmaxClassifier(MultiWorkerModel):
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
        if not isinstance(backbone, keras.Layer):
            raise TypeError(f"backbone: expected a Keras model or layer, got {backbone!r}")
        head = kwargs.pop("head", {})
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
            **{"dtype": self.dtype_policy, "name": "head", **head},
        )
        self.label_smoothing = _checks.label_smoothing(label_smoothing)
        self._accuracy = keras.metrics.Mean(name="accuracy")
        self._first_input: Callable[[], Any] | None = None  # a closure, as Keras wraps lists and dicts in attributes
        self._embedder: Callable[[], keras.Model] | None = None  # a closure, as Keras saves models in attributes
        if self._known_input() is not None:
            self.build(symbolic.shapes_of(self.input))

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls the model; the first call of a backbone that declares no inputs tells what they are."""
        if not self.built and all(hasattr(one, "dtype") for one in keras.tree.flatten(inputs)):
            self._declare(symbolic.like(inputs, self.input_dtype))
        return super().__call__(inputs, *args, **kwargs)

    def build(self, input_shape: Any) -> None:
        """Builds backbone and head for inputs of a shape, or a structure of shapes."""
        if self._known_input() is None:
            self._declare(symbolic.of_shapes(input_shape, repeat(self.backbone.input_dtype)))
        features = self.backbone(self.input)
        shape = getattr(features, "shape", None)
        if not isinstance(shape, tuple) or len(shape) != 2 or shape[1] is None:
            raise ValueError(
                f"backbone: expected outputs [N, D], got shape {shape}: end it in Flatten or GlobalAveragePooling2D"
            )
        self.head(features)
        super().build(input_shape)

    def get_build_config(self) -> dict[str, Any]:
        """Returns the shapes of the inputs, and the data types that the first call had."""
        config = super().get_build_config()
        return config if self._first_input is None else {**config, "input_dtypes": symbolic.dtypes_of(self.input)}

    def build_from_config(self, config: dict[str, Any]) -> None:
        """Builds backbone and head for the inputs that a saved model had."""
        if "input_dtypes" in config:
            self._declare(symbolic.of_shapes(config["input_shape"], config["input_dtypes"]))
        super().build_from_config(config)

    def _declare(self, inputs: Any) -> None:
        self._first_input = lambda: inputs

    def _known_input(self) -> Any:
        """Returns the symbolic inputs; None as long as nobody has told them."""
        return symbolic.declared(self.backbone) if self._first_input is None else self._first_input()

    @property
    def input(self) -> Any:
        """The symbolic inputs as a call takes them, a tensor, list or dict: the backbone's own if it declares some."""
        inputs = self._known_input()
        if inputs is None:
            raise AttributeError(
                f"{self.name} has no inputs yet: call it first, or give it a backbone with keras.Input"
            )
        return inputs

    @property
    def inputs(self) -> list[Any]:
        """The symbolic inputs, as a list."""
        return keras.tree.flatten(self.input)

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
        probabilities._keras_mask = _mask_of(features)  # for the metrics of compile
        return probabilities

    @property
    def _wide(self) -> str:
        """The dtype of losses and probabilities."""
        return "float64" if self.compute_dtype == "float64" else "float32"

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

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Configures the training as that of a saved model was."""
        self.compile(**keras.saving.deserialize_keras_object(config))
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
            x = with_class_weights(x, options.pop("class_weight"), self.head.units)
        return super().fit(x, *args, **options)

    def train_step(self, data: Any) -> dict[str, Any]:
        """Takes one step of the optimizer on the margin loss of one batch."""
        with tf.GradientTape() as tape:
            result = self._forward(data, training=True)
            scaled = self.optimizer.scale_loss(result.total * share_of_batch(result.counted, result.total.dtype))
        weights = self.trainable_weights
        # Before the weights change: the metrics see the model that the loss was of.
        logs = {**self._count(result), "lam": tf.convert_to_tensor(self.head.lam)}
        if weights:
            self.optimizer.apply_gradients(zip(tape.gradient(scaled, weights), weights, strict=True))
        else:
            warnings.warn(f"{self.name} has no trainable weights", stacklevel=2)
        return self.logs_of_step(logs)

    def test_step(self, data: Any) -> dict[str, Any]:
        """Computes the plain loss and metrics of one batch."""
        return self.logs_of_step(self._count(self._forward(data, training=False)))

    def _forward(self, data: Any, training: bool) -> _Result:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        y, sample_weight = the_one(y), the_one(sample_weight)
        labels = class_indices(y, self.head.units, "y")
        rows = tf.shape(labels)[0]
        if not self.built:
            self(x, training=False)
        features = self.backbone(x, training=training)
        mask = _mask_of(features)
        counted = rows
        if mask is not None:
            labels = tf.where(mask, labels, -1)
            counted = tf.math.count_nonzero(mask, dtype=rows.dtype)
        loss, predicted = self.head.compute_loss(features, labels, training, self.label_smoothing)
        loss = tf.cast(loss, self._wide)
        if sample_weight is not None:
            loss *= tf.broadcast_to(tf.reshape(tf.cast(sample_weight, self._wide), [-1]), [rows])
        # As Keras reduces: the sum over the number of samples, whatever they weigh; 0 without any; all regularisation.
        mean = tf.math.divide_no_nan(tf.reduce_sum(loss), tf.cast(counted, self._wide))
        total = tf.add_n([mean, *(tf.reduce_sum(tf.cast(term, self._wide)) for term in self.losses)])
        return _Result(x, y, sample_weight, labels, rows, counted, features, total, predicted)

    def _count(self, result: _Result) -> dict[str, Any]:
        """Updates the metrics and returns their values."""
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(result.total, sample_weight=result.rows)
        hits = result.predicted == tf.cast(result.labels, tf.int64)
        self._accuracy.update_state(hits, sample_weight=result.labels >= 0)
        # In a graph the probabilities are computed only where some metric of compile looks at them.
        probabilities = self._probabilities(result.features)
        return self.compute_metrics(result.x, result.y, probabilities, result.sample_weight)

    def embed(self, x: Any, **options: Any) -> Any:
        """Computes the features as the last layer sees them: the embeddings.

        Rows of length 1 where the margin normalises features, so that their products are the cosines of the angles
        between samples; a row of zeros stays one. With another margin, what ``backbone.predict(x)`` gives.

        Args:
            x: inputs [N, ...] as ``keras.Model.predict`` takes them: arrays, tensors, lists or dicts of them, or a data
                set of batches of inputs, with or without labels.
            **options: of ``keras.Model.predict``, such as ``batch_size`` and ``verbose``.

        Returns:
            An array [N, D]; of rows of length 1, float32 (float64 for a float64 policy), else of the features' dtype.

        Raises:
            ValueError: the model has not been built yet.
        """
        if not self.built:
            raise ValueError("embed: expected a model that has been built, by fit or by a call, got one that has not")
        if self._embedder is None:
            model = networks.embedder(self, self._wide)
            self._embedder = lambda: model
        return self._embedder().predict(x, **options)

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

    @property
    def _default_save_signature(self) -> Callable[..., Any]:
        """What tf.saved_model.save has a model served by."""
        spec = keras.tree.map_structure(lambda one: tf.TensorSpec(one.shape, one.dtype), self.input)
        return tf.function(lambda inputs: self(inputs), input_signature=[spec])

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

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> LSoftmaxClassifier:
        """Returns a new model with the arguments that `get_config` gave."""
        config = dict(config)
        config["backbone"] = keras.saving.deserialize_keras_object(config["backbone"], custom_objects)
        config["lam"] = annealing.deserialize(config["lam"])
        config["margin"] = margin_argument.deserialize(config["margin"])
        if isinstance(config.get("dtype"), dict):
            config["dtype"] = keras.saving.deserialize_keras_object(config["dtype"])
        if "head" in config:
            config["head"] = {
                name: keras.saving.deserialize_keras_object(value) if isinstance(value, dict) else value
                for name, value in config["head"].items()
            }
        return cls(**config)


def _mask_of(features: Any) -> Any:
    """Returns which samples count, a bool [N] that ``keras.layers.Masking`` leaves on features [N, D]; None for all."""
    mask = getattr(features, "_keras_mask", None)
    return mask if mask is not None and len(mask.shape) == 1 else None
