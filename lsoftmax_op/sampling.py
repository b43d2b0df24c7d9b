"""Sampled classes: a step computes with the classes of its labels, and a random share of the others.

Partial FC (An et al., ICCV 2021 workshops and CVPR 2022) trains heads of millions of classes so. Of C classes, L of
them labels, a step takes K = max(ceil(sample_rate C), L), the ceiling but for rounding (scale.sample_size): the L, and
n = K - L of the M = C - L others, numbered 0 .. M - 1 in their order. These fill a circle that is turned at random and
cut into n pieces, of which each gives one:

    piece i       begins at b_i = floor(i M / n), i = 0 .. n - 1, and holds b_{i+1} - b_i of them
    takes         (s + b_i + floor(u_i (b_{i+1} - b_i))) mod M        s uniform in 0 .. M - 1, u_i uniform in [0, 1)

As s is uniform, each of the M has the same chance, n / M, whichever n and M are; none is taken twice; and they come in
their order, so that nothing is sorted, nor a list of all classes made: O(K) time and memory. Two of one piece are not
taken together, which of independent draws happens; a gradient is a sum over classes, and its mean does not ask for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import tensorflow as tf

from lsoftmax_op import _checks, scale
from lsoftmax_op._collectives import Replicas, is_compiled
from lsoftmax_op._tensors import INTEGERS, checked_tensor, count_of

if TYPE_CHECKING:
    from tensorflow.types.experimental import TensorLike


class SampledClasses(NamedTuple):
    """The classes that a step computes with, and its labels among them."""

    classes: tf.Tensor
    """[K], int64, ascending."""
    labels: tf.Tensor
    """[N], int64: the place of each label's class among `classes`, or -1."""


class SampledShard(NamedTuple):
    """What `sharded_loss` takes where each replica has sampled among its own classes."""

    columns: tf.Tensor
    """[K_r], int64, ascending: this replica's sampled columns, counted from its first."""
    labels: tf.Tensor
    """[N_r], int64: of this replica's samples, places among the sampled classes of all replicas, or -1."""
    first_class: tf.Tensor
    """[], int64: the place of the first of this replica's among those of all."""
    num_classes: tf.Tensor
    """[], int64: how many classes all replicas have sampled."""


def sample_classes(
    labels: TensorLike, num_classes: int, sample_rate: float, *, seed: TensorLike, name: str | None = None
) -> SampledClasses:
    """Chooses the classes of a training step: those of its labels, and of the others a random share (Partial FC).

    The loss among them is any loss of this library, and its gradient touches only them::

        sampled = lsoftmax_op.sample_classes(labels, 10_000_000, 0.01, seed=[17, step])
        rows = tf.gather(head, sampled.classes)  # of a variable [C, D]; its gradient is tf.IndexedSlices
        losses = lsoftmax_op.lsoftmax_loss(features, rows, sampled.labels, class_major=True)

    The choice follows from labels and seed alone: it is the same on every machine, on resuming, eagerly and in graphs.

    Args:
        labels: [N], int32 or int64, each in [0, num_classes), or -1.
        num_classes: C, an integer.
        sample_rate: the share of the classes to take, in (0, 1]. With 1, all of them, in their order.
        seed: [2], integers, as for ``tf.random.stateless_uniform``: a number of the training and the step, say.
        name: a name for the ops.

    Returns:
        K = max(ceil(sample_rate C), distinct labels) classes, and the labels' places among them; of 0.07 times 100,
        7 (`lsoftmax_op.scale.sample_size`). K is known when the function is traced if N is, and N is no larger than
        sample_rate C. Each class that is no label's has the same chance to be among them.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype, shape or range.
        NotImplementedError: XLA compiles the function, and the rate is not 1.
        tf.errors.InvalidArgumentError: labels out of range, when it runs.
    """
    with tf.name_scope(name or "sample_classes"):
        labels = tf.cast(checked_tensor("labels", labels, INTEGERS, "[N]"), tf.int64)
        num_classes = _checks.positive_integer(num_classes, "num_classes")
        sample_rate = _checks.sample_rate(sample_rate)
        seed = _seed(seed)
        lowest, highest = (reduce(tf.concat([labels, [-1]], 0)) for reduce in (tf.reduce_min, tf.reduce_max))
        fits = (lowest >= -1) & (highest < num_classes)
        checked = tf.debugging.Assert(
            fits,
            [
                f"labels: expected values in [0, {num_classes}), or -1 for a row without a target, got values from",
                lowest,
                "to",
                highest,
            ],
        )
        with tf.control_dependencies([] if checked is None else [checked]):
            return _sampled(tf.identity(labels), num_classes, sample_rate, seed)


def sharded_sample(
    labels: TensorLike,
    *,
    first_class: int | TensorLike,
    num_columns: int,
    sample_rate: float,
    seed: TensorLike,
    name: str | None = None,
) -> SampledShard:
    """Chooses among the classes of this replica, as `sample_classes` does, for `sharded_loss`.

    To be called by all replicas, as `sharded_loss` is. Each takes those of its classes that are labels on any replica,
    and of its others a random share, with a seed of its own; and all number what all have taken in the order of the
    global class indices::

        own = {"first_class": first, "num_columns": C_r}
        sampled = lsoftmax_op.sharded_sample(labels, **own, sample_rate=0.1, seed=[17, step])
        rows = tf.gather(own_head, sampled.columns)  # of this replica's variable [C_r, D]
        losses = lsoftmax_op.sharded_loss(
            features, rows, sampled.labels, class_major=True,
            first_class=sampled.first_class, num_classes=sampled.num_classes,
        )

    Args:
        labels: [N_r], int32 or int64, the global class index of each of this replica's samples, or -1.
        first_class: the global class index of this replica's first class, an integer or a scalar tensor.
        num_columns: C_r, how many columns this replica has, an integer.
        sample_rate: the share of its classes to take, in (0, 1]. With 1, all of them, in their order.
        seed: [2], integers, the same on all replicas.
        name: a name for the ops.

    Returns:
        This replica's columns, and what `sharded_loss` is told of them.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype, shape or range.
        RuntimeError, NotImplementedError: as `sharded_loss`.
        tf.errors.InvalidArgumentError: on every replica, when it runs: shards that leave a gap or overlap, or a label
            that is no replica's class.
    """
    with tf.name_scope(name or "sharded_sample"):
        own_labels = checked_tensor("labels", labels, INTEGERS, "[N]")
        first_class = count_of("first_class", first_class, least=0)
        num_columns = _checks.positive_integer(num_columns, "num_columns")
        sample_rate = _checks.sample_rate(sample_rate)
        seed = _seed(seed)
        replicas = Replicas("sharded_sample")
        shape = tf.stack([tf.size(own_labels, tf.int64), first_class, num_columns])
        samples, first_classes, columns = tf.unstack(replicas.table(shape), axis=1)
        tiles = _assert_tiling(first_classes, columns)
        with tf.control_dependencies([] if tiles is None else [tiles]):
            labels = replicas.rows(tf.cast(own_labels, tf.int64))

        place = labels - first_class
        is_here = (place >= 0) & (place < num_columns)
        own_seed = tf.random.experimental.stateless_fold_in(seed, replicas.index)
        sampled = _sampled(tf.where(is_here, place, -1), num_columns, sample_rate, own_seed)

        taken = replicas.table(tf.size(sampled.classes, tf.int64)[None])[:, 0]
        first_taken = tf.reduce_sum(tf.where(first_classes < first_class, taken, 0))
        # One replica knows a label's place, from 1, and the others say 0: so does everybody of -1.
        known = replicas.sum(tf.where(is_here, first_taken + sampled.labels + 1, 0))
        is_lost = (labels >= 0) & (known == 0) | (labels < -1)
        checked = tf.debugging.Assert(
            ~tf.reduce_any(is_lost),
            ["labels: expected classes of the replicas, or -1, got", tf.boolean_mask(labels, is_lost)],
        )
        with tf.control_dependencies([] if checked is None else [checked]):
            first = tf.reduce_sum(samples[: replicas.index])
            own = (known - 1)[first : first + tf.size(own_labels, tf.int64)]
            own = tf.ensure_shape(own, own_labels.shape)
        return SampledShard(sampled.classes, own, first_taken, tf.reduce_sum(taken))


def _assert_tiling(first_classes: tf.Tensor, columns: tf.Tensor) -> tf.Operation | None:
    """Asserts that the shards [R], in any order, tile the classes from 0 on."""
    order = tf.argsort(first_classes, stable=True)
    begins, widths = tf.gather(first_classes, order), tf.gather(columns, order)
    return tf.debugging.Assert(
        tf.reduce_all(begins == tf.cumsum(widths, exclusive=True)),
        ["first_class: expected shards that tile the classes from 0 on, got", first_classes, "with columns", columns],
    )


def _sampled(labels: tf.Tensor, num_classes: int, sample_rate: float, seed: tf.Tensor) -> SampledClasses:
    if sample_rate == 1:
        return SampledClasses(tf.range(num_classes, dtype=tf.int64), labels)
    if is_compiled():
        raise NotImplementedError(
            "sample_rate: expected 1 in a function with jit_compile=True, as XLA has no sizes that depend on the "
            f"labels, got {sample_rate}. Sample before it, and compile the rest"
        )
    wanted = scale.sample_size(num_classes, sample_rate)
    of_labels = tf.unique(tf.boolean_mask(labels, labels >= 0)).y
    of_labels = tf.sort(of_labels)
    count = tf.size(of_labels, tf.int64)
    others = tf.maximum(wanted - count, 0)
    ranks = _one_of_each_piece(others, num_classes - count, seed)

    # A class that is no label's has its rank among those; the labels below it make its index.
    ranks_of_labels = of_labels - tf.range(count)
    labels_below = tf.searchsorted(ranks_of_labels, ranks, side="right", out_type=tf.int64)
    others_below = tf.searchsorted(ranks, ranks_of_labels, side="left", out_type=tf.int64)
    place_of_others, place_of_labels = tf.range(others) + labels_below, tf.range(count) + others_below
    places = [tf.cast(place, tf.int32) for place in (place_of_others, place_of_labels)]
    classes = tf.dynamic_stitch(places, [ranks + labels_below, of_labels])

    rows = labels.shape[0]
    classes = tf.ensure_shape(classes, [wanted if rows is not None and min(rows, num_classes) <= wanted else None])
    places_of_labels = tf.concat([place_of_labels, [-1]], 0)
    found = tf.searchsorted(of_labels, labels, out_type=tf.int64)
    return SampledClasses(classes, tf.gather(places_of_labels, tf.where(labels >= 0, found, count)))


def _one_of_each_piece(pieces: tf.Tensor, size: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Returns a number of each of the pieces that a circle of `size` numbers, turned at random, is cut into, sorted."""
    uniform = tf.random.stateless_uniform(tf.reshape(pieces + 1, [1]), seed, dtype=tf.float64)
    bounds = tf.range(pieces + 1) * size // tf.maximum(pieces, 1)
    begins, widths = bounds[:-1], bounds[1:] - bounds[:-1]
    chosen = begins + tf.cast(uniform[1:] * tf.cast(widths, tf.float64), tf.int64)
    chosen += tf.cast(uniform[0] * tf.cast(size, tf.float64), tf.int64)
    before = tf.reduce_sum(tf.cast(chosen < size, tf.int64))  # the others have come round
    return tf.concat([chosen[before:] - size, chosen[:before]], 0)


def _seed(seed: Any) -> tf.Tensor:
    seed = checked_tensor("seed", seed, INTEGERS, "[2]")
    if not seed.shape.is_compatible_with([2]):
        raise ValueError(f"seed: expected shape [2], got {tuple(seed.shape.as_list())}")
    return seed
