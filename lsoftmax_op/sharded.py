"""The loss of a layer whose classes lie on several replicas: each has its own samples and its own columns of W.

With X of all replicas' samples and W_r of this replica's classes:

    gathered   X [N, D] and labels [N]
    here       the products X W_r [N, C_r], and geometry and bias of the labels that are among these classes
    summed     geometry and bias [4, N]: of each row one replica has them, and the others zeros
    here       the row's sums over these classes (cc/core/softmax.h): m, S, the best class
    gathered   the sums [R, 4, N] of every shard, which are merged; from them loss, normalizer and target's share

    gathered   the upstream gradient g [N]
    here       P = dloss/d(X W_r);  dW_r = (g X)^T P, completed: it stays here, and so does db_r
    summed     P W_r^T, completed [N, D], of which each replica multiplies its own rows by g

What a replica computes is in _shard.py, and `lsoftmax_op.communication` tells what they send, in bytes. The kernels are
those of blocks of classes (blocks.py).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import tensorflow as tf

from lsoftmax_op import _agreement, _checks, _op_margin, _terms, formula, library
from lsoftmax_op._collectives import Replicas
from lsoftmax_op._shard import Settings, Shard
from lsoftmax_op._tensors import batch_of, bias_of, count_of, features_and_weights, margin_and_lambda
from lsoftmax_op.gradients import none
from lsoftmax_op.margins import Margin
from lsoftmax_op.ops import LossLayer, loss_layer

if TYPE_CHECKING:
    from tensorflow.types.experimental import TensorLike


def sharded_loss(
    features: TensorLike,
    weights: TensorLike,
    labels: TensorLike,
    bias: TensorLike | None = None,
    *,
    first_class: int | TensorLike,
    num_classes: int | TensorLike,
    margin: Margin | int = 4,
    lam: float | TensorLike = 0.0,
    label_smoothing: float = 0.0,
    class_block_size: int | None = None,
    filter: Literal["auto", False] = "auto",
    class_major: bool = False,
    name: str | None = None,
) -> tf.Tensor:
    """Computes the loss of a layer whose classes are shared out among the replicas, one number for each own sample.

    For heads that do not fit one device: each replica of a MirroredStrategy or a MultiWorkerMirroredStrategy keeps some
    columns of the weights, with their optimizer's slots, and never sees the others. The loss is that of
    `margin_softmax_loss` over the samples and classes of all replicas, whose weights' gradients stay where they are::

        def step(features, labels):  # with strategy.run; `columns` is a variable of this replica's own
            with tf.GradientTape() as tape:
                losses = lsoftmax_op.sharded_loss(
                    backbone(features), columns, labels, first_class=first_class, num_classes=1_000_000
                )
                loss = tf.reduce_sum(losses) / global_batch_size

    The gradient in the features is that of the joined batch: a backbone whose gradients are summed over the replicas
    learns as it would on one. In the weights it is complete, and not to be summed up again.

    With one replica, or without a strategy, this is `margin_softmax_loss`. With several, all of them call it, in the
    function that is given to ``strategy.run``, and take its gradient there. It is differentiable once.

    Args:
        features: [N_r, D], this replica's samples, float16, bfloat16, float32 or float64. N_r may differ from replica
            to replica, and be 0.
        weights: [D, C_r], of the same dtype, this replica's classes: at least one.
        labels: [N_r], int32 or int64, the global class index of each of its samples, in [0, num_classes); -1 gives
            loss 0 and gradient 0.
        bias: [C_r], of the same dtype, or None; None with a margin that normalises or scales.
        first_class: the global class index of the first column, an integer or a scalar tensor. The shards of all
            replicas, in any order, tile the classes.
        num_classes: C, how many classes all replicas have together, an integer or a scalar tensor.
        margin: an integer m for L-Softmax, or one of `lsoftmax_op.margins`.
        lam: the annealing weight lambda >= 0, as for `lsoftmax_logits`.
        label_smoothing: as for `lsoftmax_loss`; its C is `num_classes`.
        class_block_size: as for `lsoftmax_loss`, of this replica's classes; replicas may differ in it.
        filter: as for `lsoftmax_loss`, with the C of `num_classes`: each replica leaves out classes of its own, if they
            are as many weights as a layer has to have there. Replicas may differ in it.
        class_major: whether the weights are [C_r, D], a row for every class, and so their gradient.
        name: a name for the ops.

    Returns:
        The loss of each of this replica's samples, [N_r], of the features' dtype, never negative.

    Raises:
        TypeError: an argument of the wrong dtype or type.
        ValueError: shapes that do not fit, a shard of no class, or a number out of range, as far as it is known when
            called.
        RuntimeError: it is called outside of a replica context.
        NotImplementedError: XLA compiles the function, and there are several replicas.
        LookupError: the gradient is differentiated again, and there are several replicas.
        tf.errors.InvalidArgumentError: at run time, on every replica: labels out of range, shards that do not tile the
            classes, or replicas that disagree in number or type of classes or features, in margin, lambda or smoothing.
    """
    with tf.name_scope(name or "sharded_loss"):
        return sharded_layer(
            features,
            weights,
            labels,
            bias,
            first_class=first_class,
            num_classes=num_classes,
            margin=margin,
            lam=lam,
            label_smoothing=label_smoothing,
            class_block_size=class_block_size,
            filter=filter,
            class_major=class_major,
        ).loss


def sharded_layer(
    features: TensorLike,
    weights: TensorLike,
    labels: TensorLike,
    bias: TensorLike | None,
    *,
    first_class: int | TensorLike,
    num_classes: int | TensorLike,
    margin: Margin | int,
    lam: float | TensorLike,
    label_smoothing: float = 0.0,
    class_block_size: int | None = None,
    filter: Literal["auto", False] = "auto",
    class_major: bool = False,
) -> LossLayer:
    """Returns the loss [N_r] of this replica's samples and the global class index of each one's largest plain logit."""
    asked: dict[str, Any] = {"margin": margin, "lam": lam}
    asked |= {"label_smoothing": label_smoothing, "class_block_size": class_block_size}
    asked |= {"filter": filter, "class_major": class_major}
    margin, lam = margin_and_lambda(margin, lam)
    label_smoothing = _checks.label_smoothing(label_smoothing)
    if class_block_size is not None:
        class_block_size = _checks.positive_integer(class_block_size, "class_block_size")
    filters = _checks.gradient_filter(filter, label_smoothing)
    class_major = _checks.flag(class_major, "class_major")
    own = batch_of(features, weights, labels, class_major=class_major)
    bias = none(own.weights.dtype) if bias is None else bias_of(bias, own.weights, margin, class_major=class_major)
    first_class, num_classes = count_of("first_class", first_class, least=0), count_of("num_classes", num_classes)
    replicas = Replicas("sharded_loss")
    shards = _agreement.agree(
        replicas,
        *own,
        first_class,
        num_classes,
        class_major,
        **_agreement.of_margin(margin),
        lam=lam,
        label_smoothing=label_smoothing,
        bias=bias.shape[0] != 0,
    )
    if replicas.count == 1:
        return loss_layer(*own, bias if bias.shape[0] != 0 else None, **asked)

    settings = Settings(margin, label_smoothing, class_block_size, class_major, filters)
    shard = Shard(replicas, own, bias, first_class, num_classes, settings)
    state = shard.loss(lam)

    def own_rows(rows: tf.Tensor) -> tf.Tensor:
        return shards.own_rows(rows, replicas, own.labels)

    @tf.custom_gradient
    def differentiable(features: tf.Tensor, weights: tf.Tensor, bias: tf.Tensor) -> tuple[tf.Tensor, Any]:
        def gradients(upstream: tf.Tensor) -> tuple[tf.Tensor, ...]:
            dx, dw, db = shard.gradients(state, upstream, own_rows)
            depends_on = (features, weights, bias, upstream)
            return tuple(_differentiable_once(part, *depends_on) for part in (dx, dw, db))

        return own_rows(state.loss), gradients

    return LossLayer(differentiable(own.features, own.weights, bias), own_rows(state.predicted))


class TopK(NamedTuple):
    """The largest plain logits of each sample, the largest first, and their classes."""

    logits: tf.Tensor
    """[N_r, k], of the features' dtype."""
    classes: tf.Tensor
    """[N_r, k], int64, global class indices. Of equal logits the first class is first."""


def sharded_top_k(
    features: TensorLike,
    weights: TensorLike,
    bias: TensorLike | None = None,
    *,
    first_class: int | TensorLike,
    num_classes: int | TensorLike,
    k: int,
    margin: Margin | int = 1,
    class_major: bool = False,
    name: str | None = None,
) -> TopK:
    """Finds the classes with the largest plain logits, among those of all replicas, of this replica's own samples.

    To be called as `sharded_loss` is, for evaluation: nothing is differentiated. No replica sees more logits than those
    of its own classes, and k of each other.

    Args:
        features: [N_r, D], this replica's samples, float16, bfloat16, float32 or float64.
        weights: [D, C_r], its classes, of the same dtype.
        bias: [C_r], of the same dtype, or None; None with a margin that normalises or scales.
        first_class: the global class index of the first column.
        num_classes: C, of all replicas.
        k: how many classes to find, from 1 to C; the same on every replica.
        margin: one of `lsoftmax_op.margins`, for what it normalises and scales; an integer does neither.
        class_major: whether the weights are [C_r, D].
        name: a name for the ops.

    Returns:
        The logits without the margin and their classes, [N_r, k].

    Raises:
        ValueError: a `k` below 1, or above C.
        TypeError, ValueError, RuntimeError, NotImplementedError, tf.errors.InvalidArgumentError: as `sharded_loss`.
    """
    with tf.name_scope(name or "sharded_top_k"):
        k = _checks.positive_integer(k, "k")
        margin, _ = margin_and_lambda(margin, 0.0)
        class_major = _checks.flag(class_major, "class_major")
        own = features_and_weights(features, weights, class_major=class_major)
        if bias is not None:
            bias = tf.stop_gradient(bias_of(bias, own.weights, margin, class_major=class_major))
        first_class, num_classes = count_of("first_class", first_class, least=0), count_of("num_classes", num_classes)
        known = tf.get_static_value(num_classes)
        if known is not None and k > known:
            raise ValueError(f"k: expected at most the {known} of num_classes, got {k}")
        replicas = Replicas("sharded_top_k")
        same = {"k": k, **_agreement.of_margin(margin), "bias": bias is not None}
        shards = _agreement.agree(replicas, *own, None, first_class, num_classes, class_major, **same)
        joined, weights = replicas.rows(own.features), tf.stop_gradient(own.weights)
        terms, attributes = _op_margin.terms(margin), _terms.attributes(margin)
        logits = formula.plain_logits(library.load(), joined, weights, terms, attributes, class_major)
        logits = tf.stop_gradient(logits)
        if bias is not None:
            logits = tf.nn.bias_add(logits, bias)
        best, columns = tf.math.top_k(logits, tf.minimum(k, tf.shape(logits)[1]))
        missing = [[0, 0], [0, k - tf.shape(best)[1]]]
        best = tf.pad(best, missing, constant_values=best.dtype.as_numpy_dtype(-math.inf))
        classes = tf.pad(tf.cast(columns, tf.int64) + first_class, missing)

        # Class by class, and what is padded at the end: of equal logits top_k finds the first.
        place = tf.range(k, dtype=tf.int64)[None]
        key = tf.where(place < shards.classes[:, None], shards.first_classes[:, None] + place, num_classes)
        order = tf.argsort(tf.reshape(key, [-1]), stable=True)

        def candidates(of_shard: tf.Tensor) -> tf.Tensor:
            of_all = tf.transpose(replicas.stacked(of_shard), [1, 0, 2])
            of_own = shards.own_rows(of_all, replicas, own.features)
            return tf.gather(tf.reshape(of_own, [-1, replicas.count * k]), order, axis=1)

        best, classes = candidates(best), candidates(classes)
        best, places = tf.math.top_k(best, k)
        return TopK(best, tf.gather(classes, places, batch_dims=1))


def _differentiable_once(gradient: tf.Tensor, *depends_on: tf.Tensor) -> tf.Tensor:
    """Returns the gradient, whose own gradient in what it depends on is an error."""

    @tf.custom_gradient
    def once(gradient: tf.Tensor, *_: tf.Tensor) -> tuple[tf.Tensor, Any]:
        def refuse(*_: tf.Tensor) -> None:
            raise LookupError(
                "sharded_loss: expected to be differentiated once, got a gradient of its gradient, which is known for "
                "a single replica alone"
            )

        return tf.identity(gradient), refuse

    return once(tf.stop_gradient(gradient), *depends_on)
