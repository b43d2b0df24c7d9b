"""How many classes matter to a batch, for whoever wants to watch it: filtering.py says which these are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import tensorflow as tf

from lsoftmax_op import _op_margin, _terms, filtering, library
from lsoftmax_op._tensors import batch_of, bias_of, margin_and_lambda
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
) -> tf.Tensor:
    """Counts the classes that matter to the gradients of a batch's loss, to watch it while training.

    The others are below the rounding of every sample's gradient: ``filter`` of `lsoftmax_loss` says when. As many
    (and one, if there are none) are what ``filter="auto"`` keeps, where they are at most a quarter of the classes and a
    look at some of them has not let expect twice as many. It takes the time of a loss without its gradients, so count
    now and then::

        share = lsoftmax_op.kept_classes(features, weights, labels, margin=4, lam=lam) / weights.shape[1]

    Args:
        features: [N, D], float16, bfloat16, float32 or float64.
        weights: [D, C], of the same dtype.
        labels: [N], int32 or int64, each in [0, C), or -1.
        bias: [C], of the same dtype, or None.
        margin: of `lsoftmax_op.margins`, or an integer m for L-Softmax.
        lam: the annealing weight lambda >= 0.

    Returns:
        The number of classes that matter, [], int64, the labels' own not counted unless they matter to another sample.
        Not differentiable.

    Raises:
        TypeError, ValueError, tf.errors.InvalidArgumentError: as for `lsoftmax_loss`.
    """
    with tf.name_scope("kept_classes"):
        margin, lam = margin_and_lambda(margin, lam)
        batch = batch_of(features, weights, labels)
        bias = none(batch.weights.dtype) if bias is None else bias_of(bias, batch.weights, margin)
        ops = library.load()
        terms, attributes = _op_margin.terms(margin), _terms.attributes(margin)
        factors = _op_margin.class_factors(ops, margin, batch.weights)
        products = tf.matmul(batch.features, batch.weights)
        state = ops.lsoftmax_loss(products, *batch, bias, lam, terms, factors, **attributes)
        classes = tf.shape(batch.weights, tf.int64)[1]
        limits = filtering.limits(
            batch.features, state.target_grad, terms, factors, tf.cast(classes, tf.float64), margin.normalize_features
        )
        return filtering.count(state.products_grad, factors, limits)
