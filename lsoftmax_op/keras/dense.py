"""The last layer of a classifier, with a margin while it trains and without one ever after.

    inference, or no labels:   X W + b                          keras.layers.Dense
    training with labels:      the margin logits of X, W, b     lsoftmax_op.lsoftmax_logits

lambda is a weight of the layer, so that it is saved and restored with the others. A schedule is a function of the steps
that the *optimizer* has taken: a layer that follows an optimizer sets its lambda from their number whenever it trains.
Forward passes are not counted: accumulated gradients, replicas, skipped steps and evaluation cannot advance it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from tensorflow.python.eager import record  # whether gradients are recorded has no public name

from lsoftmax_op import _checks, library, ops
from lsoftmax_op.keras import annealing
from lsoftmax_op.keras.labels import class_indices


@keras.saving.register_keras_serializable(package="lsoftmax_op")
class LSoftmaxDense(keras.layers.Dense):
    """A dense layer that, in training, gives the logits of Large-Margin Softmax (Liu et al., ICML 2016, eq. 4 to 6).

    ``layer(features)`` is the plain dense layer. ``layer(features, labels)`` gives the margin logits in training and
    the plain ones in inference. Feed them to a cross-entropy with ``from_logits=True``.

    With a schedule for lambda, the layer must know whose steps to count: ``layer.follow(optimizer)``, which
    `LSoftmaxMonitor` does in ``fit``. (`LSoftmaxClassifier` needs neither.)

    Args:
        units: the number of classes C, >= 1.
        margin: the integer m from 1 (no margin) to 64.
        lam: the annealing weight lambda: a number >= 0, a `LambdaSchedule`, or another function of the optimizer's step
            (a scalar tensor) that never increases. The weight ``layer.lam`` holds its present value.
        use_bias: whether there is a bias [C]. The paper has none.
        kernel_initializer: as for ``keras.layers.Dense``, like the following.
        bias_initializer: of the bias.
        kernel_regularizer: of the kernel [D, C].
        bias_regularizer: of the bias.
        activity_regularizer: of the logits.
        kernel_constraint: of the kernel.
        bias_constraint: of the bias.
        **kwargs: ``name``, ``dtype`` (a name or dtype policy) and ``trainable``.

    Call arguments:
        inputs: the features, [N, D] where there are labels, else [..., D].
        labels: integers [N] or [N, 1] (of any type, also a floating one), each in [0, C), or -1 for "no target in this
            row"; or one-hot [N, C]; or None.
        training: whether to apply the margin. None does not, and warns, once, where gradients are recorded.

    Returns of a call:
        The logits, [..., C], of the layer's compute dtype.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a value or shape out of range; a schedule that increases; no labels in training.
        tf.errors.InvalidArgumentError: labels out of range, that are no integers, or not one-hot.
    """

    def __init__(
        self,
        units: int,
        margin: int = 4,
        lam: float | annealing.Schedule = annealing.DEFAULT,
        use_bias: bool = False,
        *,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        **kwargs: Any,
    ) -> None:
        if "activation" in kwargs:
            raise TypeError(f"activation: expected none, the logits go to a softmax, got {kwargs['activation']!r}")
        super().__init__(
            _checks.positive_integer(units, "units"),
            use_bias=use_bias,
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            kernel_regularizer=kernel_regularizer,
            bias_regularizer=bias_regularizer,
            activity_regularizer=activity_regularizer,
            kernel_constraint=kernel_constraint,
            bias_constraint=bias_constraint,
            **kwargs,
        )
        self.supports_jit = library.load_xla()
        self.margin = _checks.margin(margin)
        self._lam = annealing.checked(lam)
        self._steps: Callable[[], Any] | None = None
        self._watcher: Callable[[tf.Tensor], None] | None = None
        self._warned = False

    def build(self, input_shape: Any) -> None:
        """Creates kernel [D, C], bias [C] and lambda []."""
        self.lam = self.add_weight(
            name="lam",
            shape=(),
            dtype="float32",
            initializer=keras.initializers.Constant(annealing.initial(self._lam)),
            trainable=False,
            autocast=False,
            aggregation="only_first_replica",
        )
        super().build(input_shape)

    @property
    def has_schedule(self) -> bool:
        """Whether lambda is a function of the optimizer's step."""
        return callable(self._lam)

    def follow(self, optimizer: keras.optimizers.Optimizer) -> None:
        """Has lambda follow the steps of an optimizer: call it before the first training step, and once.

        Args:
            optimizer: the one that trains the layer's model.

        Raises:
            TypeError: it is no Keras optimizer.
        """
        self._steps = annealing.steps_of(optimizer)

    def call(self, inputs: Any, labels: Any = None, training: bool | None = None) -> Any:
        """Computes the logits."""
        if training and labels is None and self.margin > 1:
            raise ValueError(
                f"labels: expected integers [N] or one-hot [N, {self.units}] in training, got None. Call "
                f"{self.name}(features, labels, training=True), or let LSoftmaxClassifier pass them: fit(x, y)"
            )
        if not training or labels is None:
            if training is None:
                self.warn_if_trained_plainly(f"{self.name}(features, labels, training=True)")
            return super().call(inputs)
        layer = self._margin_layer(inputs, labels)
        return ops.lsoftmax_logits(*layer, margin=self.margin, lam=self._annealed())

    def warn_if_trained_plainly(self, instead: str) -> None:
        """Warns, once, if plain logits are computed for gradients, as by a model that passes no `training` on.

        Args:
            instead: the call that has the margin.
        """
        if self.margin > 1 and self.trainable and not self._warned and record.could_possibly_record():
            self._warned = True
            warnings.warn(
                f"{self.name} computes gradients without its margin of {self.margin}, as a plain dense layer: train by "
                f"{instead}. (Where nothing trains, training=False says so.)",
                stacklevel=2,
            )

    def compute_loss(self, features: Any, labels: Any, training: bool = False) -> ops.LossLayer:
        """Computes the softmax cross-entropy of the layer's logits, in one pass over them (`lsoftmax_loss`).

        Args:
            features: [N, D].
            labels: [N], [N, 1] or [N, C], as in a call.
            training: whether to apply the margin.

        Returns:
            ``loss`` [N], of the compute dtype, 0 where there is no target; and ``predicted`` [N], int64, the classes of
            the largest plain logits.

        Raises:
            TypeError, ValueError, tf.errors.InvalidArgumentError: as for a call.
        """
        layer = self._margin_layer(features, labels, watched=training)
        if not training:
            return ops.loss_layer(*layer, margin=1, lam=0.0)
        return ops.loss_layer(*layer, margin=self.margin, lam=self._annealed())

    def _margin_layer(self, features: Any, labels: Any, watched: bool = True) -> tuple:
        """Returns features, weights, labels and bias in the compute dtype."""
        labels = class_indices(labels, self.units)
        dtype = self.compute_dtype
        if watched and self._watcher is not None:
            self._watcher(self._target_cosines(features, labels))
        bias = None if self.bias is None else keras.ops.cast(self.bias, dtype)
        return keras.ops.cast(features, dtype), keras.ops.cast(self.kernel, dtype), labels, bias

    def _annealed(self) -> tf.Tensor:
        """Returns lambda, having set it from the optimizer's step."""
        if self.has_schedule:
            if self._steps is not None:
                self.lam.assign(annealing.at(self._lam, self._steps()))
            else:
                warnings.warn(
                    f"{self.name} trains with lambda at {self._lam!r} of step 0, as it follows no optimizer: call "
                    f"{self.name}.follow(optimizer), or add LSoftmaxMonitor() to the callbacks of fit",
                    stacklevel=2,
                )
        return tf.convert_to_tensor(self.lam)

    def watch(self, watcher: Callable[[tf.Tensor], None] | None) -> None:
        """Has every training pass call a function with cos(theta) of its samples, [N], NaN where there is no target.

        Args:
            watcher: the function, or None to call none. What is traced already does not change.
        """
        self._watcher = watcher

    def _target_cosines(self, features: Any, labels: tf.Tensor) -> tf.Tensor:
        """Returns cos(theta), never in a half precision, in which angles near 0 are degrees apart."""
        dtype = "float64" if self.compute_dtype == "float64" else "float32"
        features, kernel = keras.ops.cast(features, dtype), keras.ops.cast(self.kernel, dtype)
        return ops.target_angles(features, kernel, labels)[0]

    def save_own_variables(self, store: Any) -> None:
        """Saves every weight; Dense's own method knows of kernel and bias alone."""
        keras.Layer.save_own_variables(self, store)

    def load_own_variables(self, store: Any) -> None:
        """Loads every weight."""
        keras.Layer.load_own_variables(self, store)

    def get_config(self) -> dict:
        """Returns the arguments of the constructor."""
        config = super().get_config()
        del config["activation"]
        return {**config, "margin": self.margin, "lam": annealing.serialize(self._lam)}

    @classmethod
    def from_config(cls, config: dict) -> LSoftmaxDense:
        """Returns a new layer with the arguments that `get_config` gave."""
        return super().from_config({**config, "lam": annealing.deserialize(config["lam"])})
