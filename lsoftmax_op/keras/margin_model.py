"""What classifiers of a margin share: a backbone, its inputs, and the steps of training and evaluation.

    loss of a batch = sum of the samples' losses / number of samples   + the regularisation of the backbone
    hits            = samples whose class has the largest logit without the margin

A classifier of its own brings the last layer, as `head`, and what the functions at the end of `MarginModel` say.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import repeat
from typing import TYPE_CHECKING, Any, NamedTuple

import keras
import tensorflow as tf

from lsoftmax_op import _checks
from lsoftmax_op.keras import annealing, margin_argument, networks, symbolic
from lsoftmax_op.keras.batches import the_one, with_class_weights
from lsoftmax_op.keras.labels import class_indices
from lsoftmax_op.keras.multi_worker import MultiWorkerModel, share_of_batch

if TYPE_CHECKING:
    from typing_extensions import Self


class Result(NamedTuple):
    """A batch, and what the model makes of it."""

    x: Any
    y: Any
    sample_weight: Any
    labels: tf.Tensor  # [N]
    rows: tf.Tensor  # [], N
    counted: tf.Tensor  # [], how many of them the backbone does not mask
    features: tf.Tensor  # [N, D]
    total: tf.Tensor  # []
    hits: tf.Tensor  # [N], bool


class MarginModel(MultiWorkerModel):
    """A backbone that is trained with a margin.

    Args:
        backbone: a model or layer that turns a batch of inputs into features [N, D].
        num_classes: the number of classes C, >= 1.
        label_smoothing: epsilon in [0, 1).
        **kwargs: of ``keras.Model``.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a value out of range.
    """

    head: Any  # a layer with `lam`, `margin` and `follow`

    def __init__(self, backbone: keras.Layer, num_classes: int, label_smoothing: float, **kwargs: Any) -> None:
        if not isinstance(backbone, keras.Layer):
            raise TypeError(f"backbone: expected a Keras model or layer, got {backbone!r}")
        super().__init__(**kwargs)
        self.backbone = backbone
        self.num_classes = _checks.positive_integer(num_classes, "num_classes")
        self.label_smoothing = _checks.label_smoothing(label_smoothing)
        self._accuracy = keras.metrics.Mean(name="accuracy")
        self._first_input: Callable[[], Any] | None = None  # a closure, as Keras wraps lists and dicts in attributes
        self._embedder: Callable[[], keras.Model] | None = None  # a closure, as Keras saves models in attributes

    def _build_for_known_input(self) -> None:
        """Builds the model, at the end of its constructor, if its backbone declares what it takes."""
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
        self._build_head(features)
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

    @property
    def _wide(self) -> str:
        """The dtype of losses and probabilities."""
        return "float64" if self.compute_dtype == "float64" else "float32"

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
            x = with_class_weights(x, options.pop("class_weight"), self.num_classes)
        return super().fit(x, *args, **options)

    def train_step(self, data: Any) -> dict[str, Any]:
        """Takes one step of the optimizer on the margin loss of one batch."""
        with tf.GradientTape() as tape:
            result = self._forward(data, training=True)
            scaled = self.optimizer.scale_loss(result.total * share_of_batch(result.counted, result.total.dtype))
        # Before the weights change: the metrics see the model that the loss was of.
        logs = {**self._count(result), "lam": tf.convert_to_tensor(self.head.lam)}
        self._descend(tape, scaled)
        return self.logs_of_step(logs)

    def test_step(self, data: Any) -> dict[str, Any]:
        """Computes the plain loss and metrics of one batch."""
        return self.logs_of_step(self._count(self._forward(data, training=False)))

    def _forward(self, data: Any, training: bool) -> Result:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        y, sample_weight = the_one(y), the_one(sample_weight)
        labels = class_indices(y, self.num_classes, "y")
        rows = tf.shape(labels)[0]
        if not self.built:
            self(x, training=False)
        features = self.backbone(x, training=training)
        mask = mask_of(features)
        counted = rows
        if mask is not None:
            labels = tf.where(mask, labels, -1)
            counted = tf.math.count_nonzero(mask, dtype=rows.dtype)
        loss, hits = self._losses_and_hits(features, labels, training)
        loss = tf.cast(loss, self._wide)
        if sample_weight is not None:
            loss *= tf.broadcast_to(tf.reshape(tf.cast(sample_weight, self._wide), [-1]), [rows])
        # As Keras reduces: the sum over the number of samples, whatever they weigh; 0 without any; all regularisation.
        mean = tf.math.divide_no_nan(tf.reduce_sum(loss), tf.cast(counted, self._wide))
        total = tf.add_n([mean, *(tf.reduce_sum(tf.cast(term, self._wide)) for term in self.losses)])
        return Result(x, y, sample_weight, labels, rows, counted, features, total, hits)

    def _count(self, result: Result) -> dict[str, Any]:
        """Updates the metrics and returns their values."""
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(result.total, sample_weight=result.rows)
        self._accuracy.update_state(result.hits, sample_weight=result.labels >= 0)
        return self._further_logs(result)

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

    @property
    def _default_save_signature(self) -> Callable[..., Any]:
        """What tf.saved_model.save has a model served by."""
        spec = keras.tree.map_structure(lambda one: tf.TensorSpec(one.shape, one.dtype), self.input)
        return tf.function(lambda inputs: self(inputs), input_signature=[spec])

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> Self:
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

    # What each classifier says of itself.

    def _build_head(self, features: Any) -> None:
        """Builds the last layer for symbolic features [N, D]."""
        raise NotImplementedError

    def _losses_and_hits(self, features: Any, labels: tf.Tensor, training: bool) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the losses [N] of samples, 0 where there is no target, and which [N] the plain logits get right."""
        raise NotImplementedError

    def _descend(self, tape: tf.GradientTape, scaled: tf.Tensor) -> None:
        """Takes the step that a scaled loss [] asks for."""
        raise NotImplementedError

    def _further_logs(self, result: Result) -> dict[str, Any]:
        """Returns the values of all metrics, having updated those of ``compile``."""
        raise NotImplementedError


def mask_of(features: Any) -> Any:
    """Returns which samples count, a bool [N] that ``keras.layers.Masking`` leaves on features [N, D]; None for all."""
    mask = getattr(features, "_keras_mask", None)
    return mask if mask is not None and len(mask.shape) == 1 else None
