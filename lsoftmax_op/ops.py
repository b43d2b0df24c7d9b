"""The margin logits and their cross-entropy as TensorFlow functions.

    products = X W                                         TensorFlow's own matrix product
    geometry = (x_i . w_{y_i}, |x_i|^2, |w_{y_i}|^2)_i     what the margin depends on, in float64
    logits   = products, the target's entry of each row replaced by t(geometry)   + bias
    loss     = log(sum_j exp(logits_j)) - logits_y         and, in the same pass over the products, its gradient

A few ops, however large the batch. Their gradients (gradients.py) are the two products that any dense layer needs,
completed in place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import tensorflow as tf

from lsoftmax_op import _checks, _op_margin, _terms, blocks, formula, library
from lsoftmax_op._tensors import batch_of, bias_of, margin_and_lambda
from lsoftmax_op.angles import angles_of
from lsoftmax_op.gradients import LossInputs, none
from lsoftmax_op.margins import Margin

if TYPE_CHECKING:
    from tensorflow.types.experimental import TensorLike


def lsoftmax_logits(
    features: TensorLike,
    weights: TensorLike,
    labels: TensorLike,
    bias: TensorLike | None = None,
    *,
    margin: int = 4,
    lam: float | TensorLike = 0.0,
    class_major: bool = False,
    name: str | None = None,
) -> tf.Tensor:
    """Computes the logits of Large-Margin Softmax (Liu et al., ICML 2016, equations 4 to 6).

    Every logit is the dense layer's, ``features @ weights + bias``, but the target's. With theta the angle between a
    sample x and the weights w of its class, it is::

        (lam |w||x| cos(theta) + |w||x| psi(theta)) / (1 + lam) + bias
        psi(theta) = (-1)^k cos(margin theta) - 2k   for theta in [k pi/margin, (k+1) pi/margin]

    Feed them to a softmax cross-entropy in training. For inference use the plain ``features @ weights + bias``.

    Works eagerly, in ``tf.function`` and in v1 graphs, and is differentiable any number of times in features, weights
    and bias.

    Args:
        features: [N, D], float16, bfloat16, float32 or float64.
        weights: [D, C], of the same dtype: the kernel of a Keras ``Dense`` layer, a column for every class; [C, D] if
            `class_major`.
        labels: [N], int32 or int64, each in [0, C); -1 leaves its row the plain dense layer's.
        bias: [C], of the same dtype, or None.
        margin: the integer m from 1 (no margin) to 64.
        lam: the annealing weight lambda >= 0, a number or a scalar tensor or variable (which never retraces).
            Large values are close to the plain softmax, 0 is the full margin. See `LambdaSchedule`.
        class_major: whether the weights are [C, D], a row for every class: for heads whose classes are sampled or
            gathered. No copy of them is made in either layout.
        name: a name for the ops.

    Returns:
        The logits, [N, C], of the features' dtype.

    Raises:
        TypeError: an argument of the wrong dtype or type.
        ValueError: shapes that do not fit, or a margin or lambda out of range, as far as it is known when called.
        tf.errors.InvalidArgumentError: the same, and labels out of range, when it is only known at run time.
    """
    with tf.name_scope(name or "lsoftmax_logits"):
        margin = _checks.margin(margin)
        return margin_layer(features, weights, labels, bias, margin=margin, lam=lam, class_major=class_major).logits


def margin_softmax_logits(
    features: TensorLike,
    weights: TensorLike,
    labels: TensorLike,
    bias: TensorLike | None = None,
    *,
    margin: Margin | int,
    lam: float | TensorLike = 0.0,
    class_major: bool = False,
    name: str | None = None,
) -> tf.Tensor:
    """Computes the logits of any margin: L-Softmax, SphereFace, CosFace, ArcFace or their combination.

    With theta the angle between a sample x and the weights w of a class, its plain logit is::

        scale |x||w| cos(theta)   |x|: 1 if the margin normalises the features; |w|: 1 if it normalises the weights

    and for the sample's own class cos(theta) becomes ``(lam cos(theta) + psi(theta)) / (1 + lam)``, with psi of
    `lsoftmax_op.margins`. For training prefer `margin_softmax_loss`, which makes no normalised copy of the weights nor
    of the logits. For inference use the plain logits.

    Works as `lsoftmax_logits` does, which is this with an integer margin. It is not differentiated in the margin's own
    numbers, which may be tensors.

    Args:
        features: [N, D], float16, bfloat16, float32 or float64.
        weights: [D, C], of the same dtype, a column for every class; [C, D] if `class_major`.
        labels: [N], int32 or int64, each in [0, C); -1 leaves its row the plain logits.
        bias: [C], of the same dtype, or None; None with a margin that normalises or scales.
        margin: of `lsoftmax_op.margins`, or an integer m for L-Softmax.
        lam: the annealing weight lambda >= 0, as for `lsoftmax_logits`.
        class_major: whether the weights are [C, D], as for `lsoftmax_logits`.
        name: a name for the ops.

    Returns:
        The logits, [N, C], of the features' dtype; 0 where a norm that is divided by is zero.

    Raises:
        TypeError, ValueError, tf.errors.InvalidArgumentError: as `lsoftmax_logits`.
    """
    with tf.name_scope(name or "margin_softmax_logits"):
        return margin_layer(features, weights, labels, bias, margin=margin, lam=lam, class_major=class_major).logits


def lsoftmax_loss(
    features: TensorLike,
    weights: TensorLike,
    labels: TensorLike,
    bias: TensorLike | None = None,
    *,
    margin: int = 4,
    lam: float | TensorLike = 0.0,
    label_smoothing: float = 0.0,
    class_block_size: int | None = None,
    filter: Literal["auto", False] = "auto",
    class_major: bool = False,
    name: str | None = None,
) -> tf.Tensor:
    """Computes the loss of Large-Margin Softmax (Liu et al., ICML 2016, equations 3 to 6), one number a sample.

    The softmax cross-entropy of `lsoftmax_logits`, and faster than that of the plain layer: one pass over the [N, C]
    products makes the loss and, in their place, its gradient. Reduce it as you like::

        tf.reduce_mean(loss)  # the mean over the batch
        tf.reduce_sum(loss * sample_weights) / batch_size  # samples weighted
        tf.reduce_sum(loss) / tf.math.count_nonzero(labels >= 0, dtype=loss.dtype)  # over the labelled

    Works eagerly, in ``tf.function`` and in v1 graphs, and is differentiable any number of times in features, weights
    and bias.

    Args:
        features: [N, D], float16, bfloat16, float32 or float64.
        weights: [D, C], of the same dtype: the kernel of a Keras ``Dense`` layer, a column for every class; [C, D] if
            `class_major`.
        labels: [N], int32 or int64, each in [0, C); -1 gives its row loss 0 and gradient 0.
        bias: [C], of the same dtype, or None.
        margin: the integer m from 1 (no margin) to 64.
        lam: the annealing weight lambda >= 0, as for `lsoftmax_logits`.
        label_smoothing: epsilon in [0, 1): the target distribution is 1 - epsilon on the sample's class, and
            epsilon / C on each of the C classes. The margin stays on the target's logit alone.
        class_block_size: where [N, C] is too large for the memory, the number B of classes to go through at a time, a
            few thousand: [N, B] takes its place, and the step takes about a third longer, as it computes the products
            twice.
        filter: "auto" has the gradients leave out what is below their rounding, where that saves time: the classes
            whose probability is at most eps / C times 1 - p in every sample, p being that of the sample's own class and
            eps the data type's. The gradient in a sample x then differs by at most ``eps |g| (1 - p) max|w|``, with g
            the upstream gradient. That in the weights of a class left out has its own samples' part alone, or is 0;
            the norm of what it lacks is at most ``eps / C sum(|g| (1 - p) |x|)``. An optimizer that divides by a
            gradient's size, as Adam does above its epsilon, can tell. Classes are left out on the CPU, not under XLA;
            of layers of 4 million weights and more (D <= C, C >= 4096) whose shape is known; not with smoothed labels
            or `class_block_size`. Elsewhere, and where more than a quarter of the classes matter, the gradients are
            those of False, to the bit. `kept_classes` counts those that matter.
        class_major: whether the weights are [C, D], as for `lsoftmax_logits`.
        name: a name for the ops.

    Returns:
        The loss of each sample, [N], of the features' dtype, never negative.

    Raises:
        TypeError: an argument of the wrong dtype or type.
        ValueError: shapes that do not fit, or a margin, lambda or block size out of range, as far as it is known
            when called.
        tf.errors.InvalidArgumentError: the same, and labels out of range, when it is only known at run time.
    """
    with tf.name_scope(name or "lsoftmax_loss"):
        return loss_layer(
            features,
            weights,
            labels,
            bias,
            margin=_checks.margin(margin),
            lam=lam,
            label_smoothing=label_smoothing,
            class_block_size=class_block_size,
            filter=filter,
            class_major=class_major,
        ).loss


def margin_softmax_loss(
    features: TensorLike,
    weights: TensorLike,
    labels: TensorLike,
    bias: TensorLike | None = None,
    *,
    margin: Margin | int,
    lam: float | TensorLike = 0.0,
    label_smoothing: float = 0.0,
    class_block_size: int | None = None,
    filter: Literal["auto", False] = "auto",
    class_major: bool = False,
    name: str | None = None,
) -> tf.Tensor:
    """Computes the loss of any margin, one number a sample: the softmax cross-entropy of `margin_softmax_logits`.

    The same kernels as `lsoftmax_loss`, which is this with an integer margin. What a margin normalises is normalised in
    the pass over the products, without a copy of the weights: their norms are one more pass over them, and in the
    gradient what is radial is taken off in place::

        margin_softmax_loss(features, weights, labels, margin=margins.ArcFace(0.5, 64))
        margin_softmax_loss(features, weights, labels, margin=margins.CosFace(0.35, scale))  # a tensor: never retraces

    Args:
        features: [N, D], float16, bfloat16, float32 or float64.
        weights: [D, C], of the same dtype, a column for every class; [C, D] if `class_major`.
        labels: [N], int32 or int64, each in [0, C); -1 gives its row loss 0 and gradient 0.
        bias: [C], of the same dtype, or None; None with a margin that normalises or scales.
        margin: of `lsoftmax_op.margins`, or an integer m for L-Softmax.
        lam: the annealing weight lambda >= 0, as for `lsoftmax_logits`.
        label_smoothing: as for `lsoftmax_loss`.
        class_block_size: as for `lsoftmax_loss`.
        filter: as for `lsoftmax_loss`. In the bounds a norm that the margin divides by is 1, all is times its scale,
            and the gradient in what is normalised is meant times its own norm.
        class_major: whether the weights are [C, D], as for `lsoftmax_logits`.
        name: a name for the ops.

    Returns:
        The loss of each sample, [N], of the features' dtype, never negative. A norm of zero that is divided by makes
        logits of 0 and gradients of 0.

    Raises:
        TypeError, ValueError, tf.errors.InvalidArgumentError: as `lsoftmax_loss`.
    """
    with tf.name_scope(name or "margin_softmax_loss"):
        return loss_layer(
            features,
            weights,
            labels,
            bias,
            margin=margin,
            lam=lam,
            label_smoothing=label_smoothing,
            class_block_size=class_block_size,
            filter=filter,
            class_major=class_major,
        ).loss


class MarginLayer(NamedTuple):
    """The margin logits and, for whoever wants to watch them, the angles behind."""

    logits: tf.Tensor
    cos_theta: tf.Tensor
    segment: tf.Tensor


def margin_layer(
    features: TensorLike,
    weights: TensorLike,
    labels: TensorLike,
    bias: TensorLike | None,
    *,
    margin: Margin | int,
    lam: float | TensorLike,
    class_major: bool = False,
    angles: bool = False,
) -> MarginLayer:
    """Returns the margin logits and, if asked, the angles, from one pass over the label columns."""
    margin, lam = margin_and_lambda(margin, lam)
    class_major = _checks.flag(class_major, "class_major")
    batch = batch_of(features, weights, labels, class_major=class_major)
    bias = None if bias is None else bias_of(bias, batch.weights, margin, class_major=class_major)
    ops = library.load()
    features, weights, geometry = ops.lsoftmax_target_geometry(*batch, class_major=class_major)
    terms, attributes = _op_margin.terms(margin), _terms.attributes(margin)
    products = formula.plain_logits(ops, features, weights, terms, attributes, class_major)
    logits = ops.lsoftmax_logits(products, batch.labels, geometry, lam, terms, **attributes)
    if bias is not None:
        logits = tf.nn.bias_add(logits, bias)
    if not angles:
        return MarginLayer(logits, None, None)
    return MarginLayer(logits, *angles_of(batch.labels, geometry, margin, logits.dtype))


class LossLayer(NamedTuple):
    """The loss and, for whoever wants to count hits, the class of each sample's largest logit without the margin."""

    loss: tf.Tensor  # [N]
    predicted: tf.Tensor  # [N], int64


def loss_layer(
    features: TensorLike,
    weights: TensorLike,
    labels: TensorLike,
    bias: TensorLike | None,
    *,
    margin: Margin | int,
    lam: float | TensorLike,
    label_smoothing: float = 0.0,
    class_block_size: int | None = None,
    filter: Literal["auto", False] = "auto",
    class_major: bool = False,
) -> LossLayer:
    """Returns the loss and the predicted classes."""
    margin, lam = margin_and_lambda(margin, lam)
    label_smoothing = _checks.label_smoothing(label_smoothing)
    filters = _checks.gradient_filter(filter, label_smoothing)
    class_major = _checks.flag(class_major, "class_major")
    batch = batch_of(features, weights, labels, class_major=class_major)
    features, weights, labels = batch
    bias = none(weights.dtype) if bias is None else bias_of(bias, weights, margin, class_major=class_major)
    ops = library.load()
    no_double = none(tf.float64)  # once: eagerly a constant costs as much as a small op
    terms = no_double
    if _terms.has_terms(margin, label_smoothing):
        terms = _op_margin.terms(margin, label_smoothing, weights, class_major)
    factors, attributes = _op_margin.class_factors(ops, margin, weights, class_major), _terms.attributes(margin)
    if class_block_size is None:
        block_size = 0
        products = tf.matmul(features, weights, transpose_b=class_major)
        state = ops.lsoftmax_loss(products, *batch, bias, lam, terms, factors, class_major=class_major, **attributes)
        of_products = {
            "whole_products_grad": state.products_grad,
            "target_weights": state.target_weights,
            "normalizer_of_blocks": no_double,
        }
    else:
        block_size = _checks.positive_integer(class_block_size, "class_block_size")
        state = blocks.loss(ops, *batch, bias, lam, terms, factors, attributes, block_size, class_major)
        of_products = {
            "whole_products_grad": none(weights.dtype),
            "target_weights": none(weights.dtype),
            "normalizer_of_blocks": state.normalizer,
        }
    inputs = LossInputs(
        *batch,
        bias,
        lam,
        terms,
        factors,
        state.loss,
        geometry_grad=state.geometry_grad,
        target_grad=state.target_grad,
        grad_unit=state.grad_unit,
        **of_products,
    )
    layout = {"class_block_size": block_size, "class_major": class_major, "filter": filters}
    loss = ops.lsoftmax_loss_with_gradient(*inputs, **layout, **attributes)
    return LossLayer(loss, state.predicted)
