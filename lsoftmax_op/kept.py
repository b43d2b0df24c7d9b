"""How many classes matter to a batch, for whoever wants to watch it: filtering.py says which these are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import tensorflow as tf

from lsoftmax_op import _agreement, _checks, _op_margin, _terms, filtering, library
from lsoftmax_op._collectives import Replicas
from lsoftmax_op._shard import Settings, Shard
from lsoftmax_op._tensors import Batch, batch_of, bias_of, count_of, margin_and_lambda
from lsoftmax_op.gradients import none
from lsoftmax_op.margins import Margin

if TYPE_CHECKING:
    from tensorflow.types.experimental import TensorLike


def kept_classes(
    features: TensorLike,
    weights: TensorLike,
    labels: TensorLike,
    bias: TensorLike | None = None,
    *,
    margin: Margin | int = 4,
    lam: float | TensorLike = 0.0,
    class_major: bool = False,
    first_class: int | TensorLike | None = None,
    num_classes: int | TensorLike | None = None,
) -> tf.Tensor:
    """Counts the classes that matter to the gradients of a batch's loss, to watch it while training.

    The others are below the rounding of every sample's gradient: ``filter`` of `lsoftmax_loss` says when. As many
    (and one, if there are none) are what ``filter="auto"`` keeps, where they are at most a quarter of the classes and a
    look at some of them has not let expect twice as many. It takes the time of a loss without its gradients, so count
    now and then::

        share = lsoftmax_op.kept_classes(features, weights, labels, margin=4, lam=lam) / weights.shape[1]

    With `first_class` and `num_classes` it is called as `sharded_loss` is, by all replicas, and counts those among this
    replica's own classes, of which it keeps some or all.

    Args:
        features: [N, D], float16, bfloat16, float32 or float64.
        weights: [D, C], of the same dtype; [C, D] if `class_major`.
        labels: [N], int32 or int64, each in [0, C), or -1.
        bias: [C], of the same dtype, or None.
        margin: of `lsoftmax_op.margins`, or an integer m for L-Softmax.
        lam: the annealing weight lambda >= 0.
        class_major: whether the weights are [C, D], as for `lsoftmax_loss`.
        first_class: the global class index of the first of this replica's classes, as for `sharded_loss`; None where
            all classes are in one place.
        num_classes: how many classes all replicas have, as for `sharded_loss`; None without `first_class`.

    Returns:
        The number of classes that matter, [], int64, the labels' own not counted unless they matter to another sample.
        Not differentiable.

    Raises:
        TypeError, ValueError, tf.errors.InvalidArgumentError: as for `lsoftmax_loss`; or one of `first_class` and
            `num_classes` without the other.
        RuntimeError, NotImplementedError: with them, as for `sharded_loss`.
    """
    with tf.name_scope("kept_classes"):
        margin, lam = margin_and_lambda(margin, lam)
        class_major = _checks.flag(class_major, "class_major")
        batch = batch_of(features, weights, labels, class_major=class_major)
        bias = (
            none(batch.weights.dtype) if bias is None else bias_of(bias, batch.weights, margin, class_major=class_major)
        )
        if (first_class is None) != (num_classes is None):
            missing, other = ("first_class", "num_classes") if first_class is None else ("num_classes", "first_class")
            raise ValueError(f"{missing}: expected an integer with {other}, as for sharded_loss, got None")
        if first_class is None:
            return _count_of_all(batch, bias, margin, lam, class_major)
        first = count_of("first_class", first_class, least=0)
        return _count_of_shard(batch, bias, first, count_of("num_classes", num_classes), margin, lam, class_major)


def _count_of_all(batch: Batch, bias: tf.Tensor, margin: Margin, lam: tf.Tensor, class_major: bool) -> tf.Tensor:
    """Returns how many of the classes matter, which are in one place."""
    ops = library.load()
    terms, attributes = _op_margin.terms(margin), _terms.attributes(margin)
    factors = _op_margin.class_factors(ops, margin, batch.weights, class_major)
    products = tf.matmul(batch.features, batch.weights, transpose_b=class_major)
    state = ops.lsoftmax_loss(products, *batch, bias, lam, terms, factors, class_major=class_major, **attributes)
    classes = tf.cast(tf.shape(batch.weights)[0 if class_major else 1], tf.float64)
    limits = filtering.limits(batch.features, state.target_grad, terms, factors, classes, margin.normalize_features)
    return filtering.count(state.products_grad, factors, limits)


def _count_of_shard(
    own: Batch,
    bias: tf.Tensor,
    first_class: tf.Tensor,
    num_classes: tf.Tensor,
    margin: Margin,
    lam: tf.Tensor,
    class_major: bool,
) -> tf.Tensor:
    """Returns how many of this replica's classes matter, to any sample of all replicas."""
    replicas = Replicas("kept_classes")
    same: dict[str, Any] = {**_agreement.of_margin(margin), "lam": lam, "bias": bias.shape[0] != 0}
    _agreement.agree(replicas, *own, first_class, num_classes, class_major, **same)
    settings = Settings(margin, class_major=class_major)
    shard = Shard(replicas, own, bias, first_class, num_classes, settings)
    state = shard.loss(lam)
    return filtering.count(shard.products_grad(state), shard.factors, shard.limits(state))
