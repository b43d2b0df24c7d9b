"""A classifier of more classes than one device holds: the classes are shared out, or sampled, or both.

| call     | what it computes                                                                                    |
|----------|-----------------------------------------------------------------------------------------------------|
| fit      | the margin loss over the classes of all replicas (lsoftmax_op.sharded_loss), or over sampled ones      |
| evaluate | the plain cross-entropy and accuracy, over all classes                                               |
| predict  | the k most probable classes and their probabilities                                                  |
| embed    | backbone(x), of length 1 where the margin normalises features                                        |

The backbone is trained as Keras does it: every replica has a copy, and gradients are added up. The rows of W are not
copied, and neither are their gradients or slots: of C classes, each of R replicas has C / R.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from os import PathLike
from typing import Any

import keras
import tensorflow as tf

from lsoftmax_op import _checks
from lsoftmax_op.keras import annealing, home_optimizer, shard_files
from lsoftmax_op.keras.margin_model import MarginModel, Result
from lsoftmax_op.keras.multi_worker import sum_over_replicas
from lsoftmax_op.keras.sharded_head import ShardedHead, TopK
from lsoftmax_op.margins import Margin

_NO_WEIGHTS = (
    "weights: expected a model with all its classes in one place; use model.save_shards(folder) and load_shards, or "
    "model.backbone.get_weights()"
)


@keras.saving.register_keras_serializable(package="lsoftmax_op")
class ShardedClassifier(MarginModel):
    """A backbone, and a last layer whose classes are shared out among the replicas of a strategy, or sampled.

    Made in the scope of a ``tf.distribute.MirroredStrategy`` or ``MultiWorkerMirroredStrategy``, each replica keeps
    its share of the classes, with the optimizer's slots for them, and the loss is that of all classes: R replicas train
    as one does with the joined batch. Without a strategy there is one share. With ``sample_rate=r`` a step takes
    the classes of its labels and at random others, r C together (Partial FC, An et al., ICCV 2021 workshops and CVPR
    2022), and updates only them; the slots of the others stay. Both go together: each replica samples among its own::

        with tf.distribute.MirroredStrategy().scope():
            model = ShardedClassifier(backbone, 10_000_000, margin=CosFace(0.4, 64), lam=0.0, sample_rate=0.1)
            model.compile(keras.optimizers.SGD(0.1, momentum=0.9))
        model.fit(data, callbacks=[ShardedBackup("training")])

    Labels are those of `LSoftmaxClassifier`, and so are the logs; ``accuracy`` in training counts the samples whose
    class is the best among those that the step took. A call of the model gives the features. There is no bias.

    Any optimizer of Keras that updates each number alone does (SGD, Adam, AdamW, ...), with its schedule, weight decay,
    ``clipvalue`` and loss scale; others are refused. With sampled classes, momentum and weight decay move a class in
    the steps that take it.

    Args:
        backbone: a model or layer that turns a batch of inputs into features [N, D], and that declares its inputs
            (``keras.Input``), or else the model is called before the training.
        num_classes: the number of classes C, at least one for each replica.
        margin: the integer m from 1 (no margin) to 64, or a margin of `lsoftmax_op.margins`.
        lam: the annealing weight lambda, as for `LSoftmaxClassifier`.
        sample_rate: the share of the classes that a training step takes, in (0, 1]. With 1, all of them: the full loss.
        seed: of the first rows of W and of the samples: an integer >= 0. A class begins with the same row, whoever has
            it. The samples follow from seed and step, and are the same on resuming.
        label_smoothing: epsilon in [0, 1), as for `LSoftmaxClassifier`; of sampled classes, over these.
        kernel_initializer: of the last layer's kernel [D, C]: a constant, normal, uniform or variance-scaling one. Its
            own seed is not used.
        class_block_size: how many of its classes a replica goes through at a time, as for `sharded_loss`, in training
            and in `evaluate`; None for all at once.
        **kwargs: ``name``, ``dtype`` (a name or dtype policy) and ``trainable``.

    Attributes:
        backbone: the backbone.
        head: the last layer. ``head.lam`` is the present lambda, and ``head.shards`` what this process has of the
            classes: ``shard.classes.first``, ``shard.classes.size`` and the variable ``shard.rows`` [C_r, D].

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a value out of range, fewer classes than replicas, or a backbone whose outputs are no [N, D].
    """

    def __init__(
        self,
        backbone: keras.Layer,
        num_classes: int,
        margin: int | Margin = 4,
        lam: float | annealing.Schedule = annealing.DEFAULT,
        *,
        sample_rate: float = 1.0,
        seed: int = 0,
        label_smoothing: float = 0.0,
        kernel_initializer: Any = "glorot_uniform",
        class_block_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, num_classes, label_smoothing, **kwargs)
        self.head = ShardedHead(
            self.num_classes,
            margin,
            lam,
            sample_rate=sample_rate,
            seed=seed,
            kernel_initializer=kernel_initializer,
            class_block_size=class_block_size,
            dtype=self.dtype_policy,
            name="head",
        )
        self._k = min(5, self.num_classes)
        self._build_for_known_input()

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Computes the features [N, D]."""
        return self.backbone(inputs, training=training)

    def compile(self, optimizer: Any = "rmsprop", **options: Any) -> None:
        """Configures the training.

        Args:
            optimizer: a Keras optimizer, or its name.
            **options: the other arguments of ``keras.Model.compile``. The loss is the model's own, "accuracy" is always
                there, and no other metric, as those look at the probabilities of all classes.

        Raises:
            ValueError: a loss, a further metric, ``jit_compile=True``, or an optimizer that updates more than each
                number alone.
        """
        metrics = options.pop("metrics", None)
        if metrics not in (None, [], ["accuracy"]):
            raise ValueError(f"metrics: expected none but 'accuracy', got {metrics!r}: the others want [N, C]")
        for name in ("loss", "loss_weights", "weighted_metrics"):
            if options.get(name) is not None:
                raise ValueError(f"{name}: expected None, as ShardedClassifier has its own, got {options[name]!r}")
        if options.get("jit_compile") is True:
            raise ValueError("jit_compile: expected None or False, as XLA has no collectives of replicas, got True")
        optimizer = keras.optimizers.get(optimizer)
        home_optimizer.check(optimizer, self.head.samples)
        super().compile(optimizer, **{**options, "jit_compile": False})
        self._embedder = None
        self.head.follow(self.optimizer)

    def make_train_function(self, force: bool = False) -> Any:
        """Creates the optimizer's variables, and the function that takes a step."""
        self.prepare_training("fit")
        return super().make_train_function(force)

    def prepare_training(self, what: str) -> None:
        """Creates the optimizer's variables, those of the shards, too, where they are not there yet.

        Args:
            what: who asks, for the error.

        Raises:
            ValueError: the model is not compiled, or not built; or accumulated gradients of a backbone that has none.
        """
        if not self.compiled or not self.built:
            raise ValueError(
                f"{what}: expected a model that is compiled and built, got one that is not: give its backbone inputs "
                "(keras.Input), or call the model on a batch first; then compile it"
            )
        if not self.trainable_variables:
            self._refuse_without_gradients(self.optimizer)
        if not self.optimizer.built:
            with self.distribute_strategy.scope():
                self.optimizer.build(self.trainable_variables)
        self.head.train_with(self.optimizer)

    @staticmethod
    def _refuse_without_gradients(optimizer: keras.optimizers.Optimizer) -> None:
        """Refuses what an optimizer does with gradients, where the backbone has nothing to train and gives it none."""
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        expected = "where the backbone has nothing to train"
        if inner.gradient_accumulation_steps:
            raise ValueError(
                f"optimizer: expected one without gradient_accumulation_steps {expected}, got "
                f"{inner.gradient_accumulation_steps}"
            )
        if inner is not optimizer:
            raise ValueError(
                f"optimizer: expected one that scales no loss {expected}, got {type(optimizer).__name__}: its scale "
                "follows from the backbone's gradients. Use the dtype mixed_bfloat16 or float32"
            )

    def _build_head(self, features: Any) -> None:
        with self.distribute_strategy.scope():  # a first call may be outside of it
            self.head.build(tuple(features.shape))

    def _losses_and_hits(self, features: Any, labels: tf.Tensor, training: bool) -> tuple[tf.Tensor, tf.Tensor]:
        losses, hits = self.head.compute_loss(features, labels, training, self.label_smoothing)
        return losses, hits

    def _further_logs(self, result: Result) -> dict[str, Any]:
        logs: dict[str, Any] = self.get_metrics_result()
        return logs

    def _descend(self, tape: tf.GradientTape, scaled: tf.Tensor) -> None:
        weights, shard = self.trainable_weights, self.head.here()
        taken, shard.taken = shard.taken, None
        *gradients, of_rows = tape.gradient(scaled, [*weights, taken.rows])
        scaler = self.optimizer if isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer) else None
        apply = functools.partial(shard.optimizer.apply, taken=taken) if self.head.trainable else _leave
        if scaler is None:
            apply(of_rows)
        else:
            gradients = self._apply_if_finite(gradients, of_rows, apply, scaler.dynamic_scale)
        if weights:
            self.optimizer.apply_gradients(zip(gradients, weights, strict=True))
        else:  # Keras counts no step without a gradient
            self.optimizer.iterations.assign_add(1)

    @staticmethod
    def _apply_if_finite(
        gradients: list[Any], of_rows: tf.Tensor, apply: Callable[[tf.Tensor], None], scale: Any
    ) -> list[Any]:
        """Updates the rows as loss scaling does, where the gradients of all replicas are finite.

        Returns:
            The gradients of the backbone; NaN if any replica's, also of rows, are not finite, so that all skip a step.
        """
        known = [tf.convert_to_tensor(gradient) for gradient in (*gradients, of_rows) if gradient is not None]
        is_bad = tf.reduce_any([tf.reduce_any(~tf.math.is_finite(gradient)) for gradient in known])
        is_finite = sum_over_replicas(tf.cast(is_bad, tf.int32)) == 0
        of_rows /= tf.cast(scale, of_rows.dtype)
        tf.cond(is_finite, lambda: apply(of_rows), lambda: None)
        return [
            None if gradient is None else tf.where(is_finite, gradient, tf.constant(math.nan, gradient.dtype))
            for gradient in gradients
        ]

    def predict(self, x: Any, *args: Any, k: int | None = None, **options: Any) -> TopK:
        """Finds the most probable classes.

        Args:
            x: inputs, as ``keras.Model.predict`` takes them.
            *args: its further arguments.
            k: how many classes a sample, from 1 to C; None for 5, or for C if there are fewer.
            **options: of ``keras.Model.predict``, such as ``batch_size``: with it grows the memory, a batch over a
                replica's classes.

        Returns:
            ``probabilities`` [N, k], of the plain softmax over all classes, and ``classes`` [N, k], int64, the most
            probable one first.

        Raises:
            ValueError: a `k` out of range, or a model that is not built.
        """
        k = min(5, self.num_classes) if k is None else _checks.positive_integer(k, "k")
        if k > self.num_classes:
            raise ValueError(f"k: expected at most num_classes, {self.num_classes}, got {k}")
        if not self.built:
            raise ValueError("predict: expected a model that is built, got one that is not: call it on a batch first")
        if k != self._k:
            self._k, self.predict_function = k, None
        return TopK(*super().predict(x, *args, **options))

    def predict_step(self, data: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns probabilities and classes of one batch."""
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        return tuple(self.head.top_k(self.backbone(x, training=False), self._k))

    def get_weights(self) -> Any:
        """Refuses, as ``set_weights`` does: the rows of W lie where their replicas are.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(_NO_WEIGHTS)

    def set_weights(self, weights: Any) -> None:
        """Refuses: see `get_weights`.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(_NO_WEIGHTS)

    def save_shards(self, folder: str | PathLike[str]) -> None:
        """Saves the training, every process what it has: its classes' rows and slots; the first one the backbone.

        All processes call it, with one folder that all of them see. The files get their name when all are complete: a
        training that is killed meanwhile finds those before. What goes on from here is bit-equal.

        Args:
            folder: where to; what was saved there before is replaced.

        Raises:
            ValueError: the model is not compiled, or not built.
        """
        self.prepare_training("save_shards")
        shard_files.save(self, folder)

    def load_shards(self, folder: str | PathLike[str]) -> None:
        """Takes what `save_shards` saved, by as many replicas or by others: the classes are shared out anew.

        Args:
            folder: that of `save_shards`.

        Raises:
            FileNotFoundError: nothing was saved there.
            ValueError: the model is not compiled or built, or another one was saved: what differs is named.
        """
        self.prepare_training("load_shards")
        shard_files.load(self, folder)

    def export(self, *args: Any, **options: Any) -> Any:
        """Refuses: what a process serves has all the weights. Export the backbone.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("export: expected a model with all its classes in one place; export model.backbone")

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        head = self.head.get_config()
        names = ("margin", "lam", "sample_rate", "seed", "kernel_initializer", "class_block_size")
        return {
            **super().get_config(),
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "num_classes": self.num_classes,
            "label_smoothing": self.label_smoothing,
            **{name: head[name] for name in names},
        }


def _leave(of_rows: tf.Tensor) -> None:
    """What a head that is not trainable does with a gradient of its rows."""
