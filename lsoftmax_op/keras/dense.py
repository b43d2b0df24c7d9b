"""The last layer of a classifier, with a margin while it trains and without one ever after.

    inference, or no labels:   X W + b                          keras.layers.Dense
                               scale cos(theta)                 where the margin normalises both sides (plain.py)
    training with labels:      the margin logits of X, W, b     lsoftmax_op.margin_softmax_logits

lambda is a variable of the layer, saved beside its weights. A schedule is a function of the steps that the *optimizer*
has taken: a layer that follows an optimizer sets its lambda from their number whenever it trains. Forward passes are
not counted: accumulated gradients, replicas, skipped steps and evaluation cannot advance it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from tensorflow.python.eager import record  # whether gradients are recorded has no public name

from lsoftmax_op import _checks, angles, formula, library, ops
from lsoftmax_op._terms import without_psi
from lsoftmax_op.keras import annealing, margin_argument, plain
from lsoftmax_op.keras.annealed_layer import AnnealedLayer
from lsoftmax_op.keras.labels import class_indices
from lsoftmax_op.margins import Margin, margin_of


@keras.saving.register_keras_serializable(package="lsoftmax_op")
class LSoftmaxDense(AnnealedLayer, keras.layers.Dense):
    """A dense layer that, in training, gives the logits of Large-Margin Softmax (Liu et al., ICML 2016, eq. 4 to 6).

    ``layer(features)`` is the plain dense layer. ``layer(features, labels)`` gives the margin logits in training and
    the plain ones in inference. Feed them to a cross-entropy with ``from_logits=True``.

    With a margin that normalises or scales (`lsoftmax_op.margins`), the plain logits are ``scale |x| |w| cos(theta)``,
    ``|x|`` and ``|w|`` being 1 where they are normalised, and 0 where a norm that is divided by is 0: of CosFace,
    ArcFace and their combination ``scale cos(theta)``. They are computed in Keras' own ops, and have no bias.

    With a schedule for lambda, the layer must know whose steps to count: ``layer.follow(optimizer)``, which
    `LSoftmaxMonitor` does in ``fit``. (`LSoftmaxClassifier` needs neither.)

    Args:
        units: the number of classes C, >= 1.
        margin: the integer m from 1 (no margin) to 64, or a margin of `lsoftmax_op.margins`. Its m2, m3 and scale may
            be scalar variables, whose value is read at every step; a saved layer has the value of that moment.
        lam: the annealing weight lambda: a number >= 0, a `LambdaSchedule`, or another function of the optimizer's step
            (a scalar tensor). The variable ``layer.lam`` holds its present value.
        use_bias: whether there is a bias [C]. The paper has none; a margin that normalises or scales cannot have one.
        kernel_initializer: as for ``keras.layers.Dense``, like the following.
        bias_initializer: of the bias.
        kernel_regularizer: of the kernel [D, C].
        bias_regularizer: of the bias.
        activity_regularizer: of the logits.
        kernel_constraint: of the kernel.
        bias_constraint: of the bias.
        **kwargs: ``name``, ``dtype`` (a name or dtype policy), ``trainable`` and, as for ``keras.layers.Dense``,
            ``lora_rank``, ``lora_alpha`` and ``quantization_config``.

    LoRA and quantisation are those of Dense: ``enable_lora``, ``quantize``, what is saved and what is loaded. With LoRA
    the margin trains the factors. A layer quantised to int8 trains what comes before it, and factors of LoRA; in Keras'
    other modes it infers alone, and float8, which is there for training, is refused. With a margin that normalises or
    scales there is int8 alone.

    Call arguments:
        inputs: the features, [N, D] where there are labels, else [..., D].
        labels: integers [N] or [N, 1] (of any type, also a floating one), each in [0, C), or -1 for "no target in this
            row"; or one-hot [N, C]; or None.
        training: whether to apply the margin. None does not, and warns, once, where gradients are recorded.

    Returns of a call:
        The logits, [..., C], of the layer's compute dtype.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a value or shape out of range; a bias with a margin that normalises or scales; no labels in
            training; training with the margin in a quantisation mode other than int8.
        tf.errors.InvalidArgumentError: labels out of range, that are no integers, or not one-hot.
    """

    def __init__(
        self,
        units: int,
        margin: int | Margin = 4,
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
        self.margin = margin_argument.checked(margin, use_bias)
        self._check_mode("dtype", self.quantization_mode)
        self._lam = annealing.checked(lam)
        self._watcher: Callable[[tf.Tensor, tf.Tensor], None] | None = None
        self._warned = False

    def call(self, inputs: Any, labels: Any = None, training: bool | None = None) -> Any:
        """Computes the logits."""
        if training and labels is None and margin_of(self.margin).moves_target:
            raise ValueError(
                f"labels: expected integers [N] or one-hot [N, {self.units}] in training, got None. Call "
                f"{self.name}(features, labels, training=True), or let LSoftmaxClassifier pass them: fit(x, y)"
            )
        if not training or labels is None:
            if training is None:
                self.warn_if_trained_plainly(f"{self.name}(features, labels, training=True)")
            return self._plain(inputs, training)
        layer = self._margin_layer(inputs, labels)
        return ops.margin_softmax_logits(*layer, margin=self.margin, lam=self._annealed())

    def warn_if_trained_plainly(self, instead: str) -> None:
        """Warns, once, if plain logits are computed for gradients, as by a model that passes no `training` on.

        Args:
            instead: the call that has the margin.
        """
        if not self.trainable or self._warned or not record.could_possibly_record():
            return
        if margin_of(self.margin).moves_target:
            self._warned = True
            warnings.warn(
                f"{self.name} computes gradients without its margin of {self.margin}, as a plain dense layer: train by "
                f"{instead}. (Where nothing trains, training=False says so.)",
                stacklevel=2,
            )

    def quantized_call(self, inputs: Any, labels: Any = None, training: bool | None = None) -> Any:
        """Computes the logits of a quantised layer."""
        return self.call(inputs, labels, training)

    def _plain(self, inputs: Any, training: bool | None) -> Any:
        """Returns the logits without the margin, those of Dense where it neither normalises nor scales."""
        margin = without_psi(margin_of(self.margin))
        if not margin.has_factors:
            return self._dense(inputs, training)
        wide = "float64" if self.compute_dtype == "float64" else "float32"
        if margin.normalize_features:
            inputs = keras.ops.cast(plain.unit_rows(inputs, wide), self.compute_dtype)
        scale = margin.scale if isinstance(margin.scale, float) else tf.cast(margin.scale, wide)
        logits = keras.ops.cast(self._dense(inputs, training), wide) * scale
        if margin.normalize_weights:
            logits *= plain.class_factors(self._float_kernel(), wide)[0]
        return keras.ops.cast(logits, self.compute_dtype)

    def _dense(self, inputs: Any, training: bool | None) -> Any:
        """Returns the logits of Dense."""
        if self.quantization_mode is None:
            return super().call(inputs)
        return super().quantized_call(inputs, training=training)

    def compute_loss(
        self, features: Any, labels: Any, training: bool = False, label_smoothing: float = 0.0
    ) -> ops.LossLayer:
        """Computes the softmax cross-entropy of the layer's logits, in one pass over them (`margin_softmax_loss`).

        Args:
            features: [N, D].
            labels: [N], [N, 1] or [N, C], as in a call.
            training: whether to apply the margin.
            label_smoothing: epsilon in [0, 1), as for `margin_softmax_loss`, in training or not.

        Returns:
            ``loss`` [N], of the compute dtype, 0 where there is no target; and ``predicted`` [N], int64, the classes of
            the largest plain logits.

        Raises:
            TypeError, ValueError, tf.errors.InvalidArgumentError: as for a call.
        """
        if not self.built:
            self.build(tuple(features.shape))
        if not training and self.quantization_mode is not None:
            label_smoothing = _checks.label_smoothing(label_smoothing)
            return self._plain_loss(self(features, training=False), class_indices(labels, self.units), label_smoothing)
        layer = self._margin_layer(features, labels, watched=training)
        margin, lam = (self.margin, self._annealed()) if training else (without_psi(margin_of(self.margin)), 0.0)
        return ops.loss_layer(*layer, margin=margin, lam=lam, label_smoothing=label_smoothing)

    @staticmethod
    def _plain_loss(logits: tf.Tensor, labels: tf.Tensor, label_smoothing: float) -> ops.LossLayer:
        """Returns the loss of logits that are no product of features and kernel."""
        wide = tf.cast(logits, tf.float64 if logits.dtype == tf.float64 else tf.float32)
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=tf.maximum(labels, 0), logits=wide)
        if label_smoothing > 0:
            loss += formula.smoothing_of_loss(wide, labels, label_smoothing, label_smoothing / wide.shape[1])
        loss = tf.where(labels >= 0, loss, tf.zeros_like(loss))
        return ops.LossLayer(tf.cast(loss, logits.dtype), tf.argmax(wide, axis=1))

    def _margin_layer(self, features: Any, labels: Any, watched: bool = True) -> tuple[Any, ...]:
        """Returns features, weights, labels and bias in the compute dtype."""
        labels = class_indices(labels, self.units)
        dtype = self.compute_dtype
        if watched and self._watcher is not None:
            self._watcher(self._target_cosines(features, labels), labels >= 0)
        bias = None if self.bias is None else keras.ops.cast(self.bias, dtype)
        return keras.ops.cast(features, dtype), keras.ops.cast(self._float_kernel(), dtype), labels, bias

    def _float_kernel(self) -> Any:
        """Returns the kernel [D, C] that the margin sees: dequantised, and with the product of LoRA's factors."""
        if self.quantization_mode is None:
            return self.kernel
        if self.quantization_mode != "int8":
            raise ValueError(
                f"{self.name}: expected the quantisation mode 'int8' or none in training with the margin, got "
                f"{self.quantization_mode!r}"
            )
        dtype = self.variable_dtype
        kernel = keras.ops.cast(self._kernel, dtype) / keras.ops.cast(self.kernel_scale, dtype)
        if not self.lora_enabled:
            return kernel
        # Older releases of Keras 3 have no alpha.
        scale = getattr(self, "lora_alpha", self.lora_rank) / self.lora_rank
        return keras.ops.add(kernel, scale * keras.ops.matmul(self.lora_kernel_a, self.lora_kernel_b))  # float32

    def watch(self, watcher: Callable[[tf.Tensor, tf.Tensor], None] | None) -> None:
        """Has every training pass call a function with cos(theta) of its samples, and with which of them have a target.

        Args:
            watcher: the function, of cos(theta) [N], 0 without a target, and a bool [N]; or None to call none. What is
                traced already does not change.
        """
        self._watcher = watcher

    def _target_cosines(self, features: Any, labels: tf.Tensor) -> tf.Tensor:
        """Returns cos(theta), 0 without a target, never in a half precision: in it, angles near 0 are degrees apart."""
        dtype = "float64" if self.compute_dtype == "float64" else "float32"
        features, kernel = keras.ops.cast(features, dtype), keras.ops.cast(self._float_kernel(), dtype)
        return angles.target_cosines(features, kernel, labels)

    def quantize(self, mode: str | None = None, type_check: bool = True, **options: Any) -> None:
        """Quantises the layer as ``keras.layers.Dense`` does.

        Args:
            mode: "int8", or another of Keras' modes but "float8".
            type_check: as for Dense, which quantises no subclass but this one.
            **options: of Dense.

        Raises:
            ValueError: the mode "float8", or with a margin that normalises or scales another than "int8".
        """
        if mode == "float8":
            raise ValueError(f"mode: expected one to infer in, as the margin cannot train in float8, got {mode!r}")
        self._check_mode("mode", mode or getattr(options.get("config"), "mode", None))
        super().quantize(mode, type_check=type_check and type(self) is not LSoftmaxDense, **options)

    def _check_mode(self, argument: str, mode: str | None) -> None:
        """Refuses a quantisation mode whose kernel the margin cannot normalise."""
        if mode not in (None, "int8") and margin_of(self.margin).has_factors:
            raise ValueError(
                f"{argument}: expected the quantisation mode 'int8' or none with a margin that normalises or scales, "
                f"{_checks.shown(self.margin)}, got {mode!r}"
            )

    def load_own_variables(self, store: Any) -> None:
        """Loads the weights. In files of the first releases, lambda stands behind them."""
        names = sorted(store.keys(), key=int)
        lam = store[names.pop()] if names and store[names[-1]].shape == () else None
        super().load_own_variables(store if lam is None else {name: store[name] for name in names})
        if lam is not None:
            self._lambda_state.restore(lam)

    def _lookup_dependency(self, name: str, *args: Any) -> Any:
        """Finds lambda in the checkpoints of the first releases, where it was a variable among the others."""
        if name == "lam" and self.built and self.has_schedule:
            return self.lam
        return super()._lookup_dependency(name, *args)

    def _trackable_children(self, save_type: str = "checkpoint", **options: Any) -> dict[str, Any]:
        """Adds lambda and a margin's variables to what a SavedModel holds, whose functions may use them."""
        children = super()._trackable_children(save_type, **options)
        if save_type != "savedmodel" or not self.built:
            return children
        return {**children, "lam": self.lam, **margin_argument.variables(self.margin)}

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor; of variables, and a lambda that is no schedule, present values."""
        config = super().get_config()
        del config["activation"]
        return {**config, "margin": margin_argument.serialize(self.margin), "lam": self._lambda_of_config()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> LSoftmaxDense:
        """Returns a new layer with the arguments that `get_config` gave."""
        config = {**config, "lam": annealing.deserialize(config["lam"])}
        if "margin" in config:
            config["margin"] = margin_argument.deserialize(config["margin"])
        return super().from_config(config)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} name={self.name}, margin={self.margin!r}, built={self.built}>"
