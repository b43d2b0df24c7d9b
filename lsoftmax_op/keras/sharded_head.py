"""The last layer of a classifier whose classes are shared out among the replicas of a strategy.

    replica r has      W_r [C_r, D], its optimizer's slots [C_r, D], and nothing of the others'
    a step takes       all of W_r, or the rows of sampled classes; `lsoftmax_op.sharded_loss` does the rest

W_r and its slots are plain variables of the replica's own: no strategy copies them, and no optimizer adds their
gradients up.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import tensorflow as tf

from lsoftmax_op import _checks
from lsoftmax_op._terms import without_psi
from lsoftmax_op.keras import annealing, class_shard, margin_argument
from lsoftmax_op.keras.annealed_layer import AnnealedLayer
from lsoftmax_op.keras.home_optimizer import HomeOptimizer, Taken
from lsoftmax_op.margins import Margin, margin_of
from lsoftmax_op.sampling import sharded_sample
from lsoftmax_op.sharded import sharded_layer, sharded_top_k


class TopK(NamedTuple):
    """The most probable classes of samples, the first one first."""

    probabilities: Any
    """[N, k], of the plain softmax over all classes."""
    classes: Any
    """[N, k], int64, global class indices."""


class ClassShard:
    """The classes of one replica.

    Attributes:
        classes: which, the first one and how many.
        rows: a variable [C_r, D], their rows of W.
        optimizer: the `HomeOptimizer` that updates them; None before the training.
        taken: the rows that the loss of this step is computed with, for its gradient.
    """

    optimizer: Any = None
    taken: Any = None
    _trained_by: keras.optimizers.Optimizer | None = None

    def __init__(self, classes: class_shard.Range, rows: tf.Variable, device: str | None) -> None:
        self.classes, self.rows, self._device = classes, rows, device

    def train_with(self, optimizer: keras.optimizers.Optimizer, sampled: bool) -> None:
        """Makes the slots of an optimizer, unless it is the one that the classes are trained by already."""
        if self._trained_by is not optimizer:
            with tf.device(self._device):
                self.optimizer = HomeOptimizer(optimizer, self.rows, sampled)
            self._trained_by = optimizer


class ShardedHead(AnnealedLayer):
    """The head of a `ShardedClassifier`.

    Args:
        units: the number of classes C of all replicas.
        margin: an integer m, or a margin of `lsoftmax_op.margins`.
        lam: lambda, or a schedule of it.
        sample_rate: the share of the classes that a training step takes, in (0, 1].
        seed: of the first rows, and of the samples.
        kernel_initializer: of the rows.
        class_block_size: as for `sharded_loss`.
        **kwargs: of ``keras.layers.Layer``.

    Raises:
        TypeError, ValueError: an argument of the wrong type, or out of range.
    """

    def __init__(
        self,
        units: int,
        margin: int | Margin,
        lam: float | annealing.Schedule,
        *,
        sample_rate: float,
        seed: int,
        kernel_initializer: Any,
        class_block_size: int | None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.units = units
        self.margin = margin_argument.checked(margin, use_bias=False)
        self._lam = annealing.checked(lam)
        self.sample_rate = _checks.sample_rate(sample_rate)
        self.seed = _checks.integer_from(0, seed, "seed")
        self.kernel_initializer = class_shard.drawn_by_class(kernel_initializer)
        self.class_block_size = class_block_size
        self.supports_jit = False
        if class_block_size is not None:
            self.class_block_size = _checks.positive_integer(class_block_size, "class_block_size")
        self._shards: Any = lambda: ()  # a closure, as Keras and TensorFlow track lists of variables

    @property
    def samples(self) -> bool:
        """Whether a training step takes but some of the classes."""
        return self.sample_rate < 1

    @property
    def shards(self) -> tuple[ClassShard, ...]:
        """The classes of each replica of this process."""
        shards: tuple[ClassShard, ...] = self._shards()
        return shards

    def build(self, input_shape: Any) -> None:
        """Creates the rows of this process' replicas, and lambda []."""
        strategy = tf.distribute.get_strategy()
        (_, depth), dtype = input_shape, self.variable_dtype

        def shard_of(classes: class_shard.Range, device: str | None) -> ClassShard:
            drawn = class_shard.first_rows(self.kernel_initializer, classes, self.units, depth, dtype, self.seed)
            with tf.device(device):
                return ClassShard(classes, tf.Variable(drawn, name="rows"), device)

        shares = class_shard.local_ranges(self.units, strategy)
        shards = class_shard.without_scopes(lambda: tuple(shard_of(*share) for share in shares))
        self._shards = lambda: shards
        super().build(input_shape)

    def here(self) -> ClassShard:
        """Returns the classes of the replica that is computing."""
        return self.shards[class_shard.replica_of_process(len(self.shards))]

    def train_with(self, optimizer: keras.optimizers.Optimizer) -> None:
        """Makes the slots of an optimizer, of all shards of this process, once."""

        def train_all() -> None:
            for shard in self.shards:
                shard.train_with(optimizer, self.samples)

        class_shard.without_scopes(train_all)

    def compute_loss(
        self, features: Any, labels: tf.Tensor, training: bool, label_smoothing: float
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Computes the softmax cross-entropy over the classes of all replicas, or those that they have sampled.

        Args:
            features: [N_r, D], of this replica's samples.
            labels: [N_r].
            training: whether to apply the margin, and to sample.
            label_smoothing: epsilon in [0, 1).

        Returns:
            The losses [N_r], of the compute dtype, and which [N_r] of the samples have their largest plain logit, among
            the classes that were computed, at their own class.
        """
        shard = self.here()
        first, count = shard.classes.first, self.units
        labels = tf.cast(labels, tf.int64)
        if training and self.samples:
            sampled = sharded_sample(
                labels,
                first_class=first,
                num_columns=shard.classes.size,
                sample_rate=self.sample_rate,
                seed=tf.stack([tf.constant(self.seed, tf.int64), shard.optimizer.steps]),
            )
            taken = Taken(tf.gather(shard.rows, sampled.columns), sampled.columns)
            labels, first, count = sampled.labels, sampled.first_class, sampled.num_classes
        else:
            taken = Taken(tf.convert_to_tensor(shard.rows), None)
        if training:
            shard.taken = taken
        layer = sharded_layer(
            *self._layer(features, taken.rows),
            labels,
            None,
            first_class=first,
            num_classes=count,
            margin=self.margin if training else self._plain_margin,
            lam=self._annealed() if training else 0.0,
            label_smoothing=label_smoothing,
            class_block_size=self.class_block_size,
            class_major=True,
        )
        return layer.loss, layer.predicted == labels

    def top_k(self, features: Any, k: int) -> TopK:
        """Returns the most probable classes of this replica's samples [N_r, D], and their probabilities."""
        shard = self.here()
        first, count = shard.classes.first, self.units
        features, rows = self._layer(features, shard.rows)
        place: dict[str, Any] = {"first_class": first, "num_classes": count, "class_major": True}
        logits, classes = sharded_top_k(features, rows, **place, k=k, margin=self.margin)
        # The loss of the most probable class is how far the logarithm of its probability is below 0.
        best = sharded_layer(
            features,
            rows,
            classes[:, 0],
            None,
            **place,
            margin=self._plain_margin,
            lam=0.0,
            class_block_size=self.class_block_size,
        ).loss
        wide = tf.float64 if best.dtype == tf.float64 else tf.float32
        logits, best = tf.cast(logits, wide), tf.cast(best, wide)
        return TopK(tf.exp(logits - logits[:, :1] - best[:, None]), classes)

    @property
    def _plain_margin(self) -> Margin:
        return without_psi(margin_of(self.margin))

    def _layer(self, features: Any, rows: Any) -> tuple[Any, Any]:
        """Returns features [N, D] and rows [K, D] in the compute dtype."""
        return keras.ops.cast(features, self.compute_dtype), tf.cast(rows, self.compute_dtype)

    def save_own_variables(self, store: Any) -> None:
        """Refuses: Keras' files are written by one process, which has not all the rows."""
        raise NotImplementedError(
            f"{self.name}: expected files of classes that are shared out, which model.save_shards(folder) and the "
            "callback ShardedBackup write, got Keras' or TensorFlow's"
        )

    def _serialize_to_tensors(self) -> dict[str, tf.Tensor]:
        """Refuses: so do tf.train.Checkpoint and tf.saved_model.save."""
        self.save_own_variables(None)
        return {}

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {
            **super().get_config(),
            "units": self.units,
            "margin": margin_argument.serialize(self.margin),
            "lam": self._lambda_of_config(),
            "sample_rate": self.sample_rate,
            "seed": self.seed,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "class_block_size": self.class_block_size,
        }
