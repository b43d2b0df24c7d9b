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

`lsoftmax_op.communication` tells what that comes to in bytes. The kernels are those of blocks of classes (blocks.py).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import tensorflow as tf

from lsoftmax_op import _agreement, _checks, _op_margin, _terms, blocks, formula, library
from lsoftmax_op._collectives import Replicas
from lsoftmax_op._tensors import Batch, batch_of, bias_of, count_of, features_and_weights, margin_and_lambda
from lsoftmax_op.gradients import LossInputs, none, scaled_product
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
    class_major: bool = False,
) -> LossLayer:
    """Returns the loss [N_r] of this replica's samples and the global class index of each one's largest plain logit."""
    asked: dict[str, Any] = {"margin": margin, "lam": lam}
    asked |= {"label_smoothing": label_smoothing, "class_block_size": class_block_size, "class_major": class_major}
    margin, lam = margin_and_lambda(margin, lam)
    label_smoothing = _checks.label_smoothing(label_smoothing)
    if class_block_size is not None:
        class_block_size = _checks.positive_integer(class_block_size, "class_block_size")
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

    joined = Batch(
        replicas.rows(own.features),
        tf.stop_gradient(own.weights),
        replicas.rows(tf.cast(own.labels, tf.int64)),
    )
    settings = (margin, label_smoothing, class_block_size, class_major)
    shard = _Shard(joined, tf.stop_gradient(bias), first_class, num_classes, *settings)
    state = shard.loss(replicas, lam)

    def own_rows(rows: tf.Tensor) -> tf.Tensor:
        return shards.own_rows(rows, replicas, own.labels)

    @tf.custom_gradient
    def differentiable(features: tf.Tensor, weights: tf.Tensor, bias: tf.Tensor) -> tuple[tf.Tensor, Any]:
        def gradients(upstream: tf.Tensor) -> tuple[tf.Tensor, ...]:
            dx, dw, db = shard.gradients(replicas, state, upstream, own_rows)
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
        features: [N_r, D], this replica's samples.
        weights: [D, C_r], its classes.
        bias: [C_r], or None.
        first_class: the global class index of the first column.
        num_classes: C, of all replicas.
        k: how many classes to find, from 1 to C; the same on every replica.
        margin: one of `lsoftmax_op.margins`, for what it normalises and scales; an integer does neither.
        class_major: whether the weights are [C_r, D].
        name: a name for the ops.

    Returns:
        The logits without the margin and their classes, [N_r, k].

    Raises:
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


class _Shard:
    """A replica's classes, and the samples of all replicas."""

    def __init__(
        self,
        batch: Batch,
        bias: tf.Tensor,
        first_class: tf.Tensor,
        num_classes: tf.Tensor,
        margin: Margin,
        label_smoothing: float,
        block_size: int | None,
        class_major: bool,
    ) -> None:
        self.ops = library.load()
        self.batch, self.bias, self.first_class, self.block_size = batch, bias, first_class, block_size
        self.has_bias, self.smooths = bias.shape[0] != 0, label_smoothing != 0
        self.attributes = _terms.attributes(margin)
        self.normalize_features = {"normalize_features": self.attributes["normalize_features"]}
        self.class_major = class_major
        self.terms = _op_margin.terms(margin, label_smoothing, batch.weights, class_major, num_classes)
        self.factors = _op_margin.class_factors(self.ops, margin, batch.weights, class_major)
        place = batch.labels - first_class
        self.is_here = (place >= 0) & (place < tf.shape(batch.weights, tf.int64)[0 if class_major else 1])
        self.columns = tf.where(self.is_here, place, -1)  # of the labels, among these classes; -1 for elsewhere or none

    def loss(self, replicas: Replicas, lam: tf.Tensor) -> Any:
        """Returns the outputs of LsoftmaxFinish for all samples, and keeps what the gradients need."""
        ops, (features, weights, labels) = self.ops, self.batch
        geometry, bias = self._of_targets(replicas)
        self.geometry = geometry
        if self.block_size is None:
            self.products = tf.matmul(features, weights, transpose_b=self.class_major)
            no_sums = blocks.no_sums(features)
            sums = ops.lsoftmax_sums(self.products, *self._of_products(geometry), no_sums, **self.normalize_features)
        else:
            of_classes = (self.bias, self.factors, self.terms, geometry, self.block_size, self.first_class)
            layout = {**self.normalize_features, "class_major": self.class_major}
            sums = blocks.sums_of(ops, *self.batch, *of_classes, **layout)
        sums = _merged(replicas.stacked(sums if self.smooths else sums[:4]))
        if self.has_bias:  # that of each row's target is all that LsoftmaxFinish reads
            labels = tf.where(labels >= 0, tf.range(tf.size(labels, tf.int64)), -1)
        depth = tf.shape(features, tf.int64)[1]
        return ops.lsoftmax_finish(sums, geometry, labels, bias, lam, self.terms, depth, **self.attributes)

    def _of_targets(self, replicas: Replicas) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the geometry [3, N] of all rows, and the bias [N] of their targets, or [0]."""
        features, weights, _ = self.batch
        layout = {"class_major": self.class_major}
        known = self.ops.lsoftmax_target_geometry(features, weights, self.columns, **layout).geometry
        if not self.has_bias:
            return replicas.sum(known), self.bias
        bias = tf.cast(tf.gather(self.bias, tf.maximum(self.columns, 0)), tf.float64)
        bias = tf.where(self.is_here, bias, 0)
        *geometry, bias = tf.unstack(replicas.sum(tf.concat([known, bias[None]], 0)), num=4)
        return tf.stack(geometry), tf.cast(bias, self.bias.dtype)

    def _of_products(self, geometry: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """What LsoftmaxSums and LsoftmaxProductsGrad are told beside the products."""
        return self.batch.labels, self.bias, self.first_class, self.factors, self.terms, geometry

    def gradients(
        self, replicas: Replicas, state: Any, own_upstream: tf.Tensor, own_rows: Any
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns those in this replica's features, weights and bias.

        Args:
            replicas: those of the step.
            state: what `loss` returned.
            own_upstream: [N_r], the upstream gradient of this replica's losses.
            own_rows: takes this replica's rows out of those of all.
        """
        ops, (features, weights, labels) = self.ops, self.batch
        upstream, unit = replicas.rows(own_upstream), state.grad_unit
        if self.block_size is None:
            known = (*self._of_products(self.geometry), state.normalizer)
            grad = ops.lsoftmax_products_grad(self.products, *known, **self.normalize_features)
            dx = tf.matmul(grad, weights, transpose_b=not self.class_major)
        else:
            dx, dw, db = self._through_blocks(state, upstream, self.block_size)
        batch, none_of_loss = (features, weights, self.columns), (none(dx.dtype), none(tf.float32), none(dx.dtype))
        layout = {"class_major": self.class_major}
        of_features = {**self.normalize_features, **layout}
        dx = ops.lsoftmax_features_grad(dx, *batch, state.geometry_grad, *none_of_loss, **of_features)
        # Halves are added up in float32: among many replicas, each addition in their own type would round once more.
        wide = tf.float64 if dx.dtype == tf.float64 else tf.float32
        scale = tf.cast(own_upstream, wide)
        if dx.dtype == tf.float16:
            scale *= own_rows(unit)
        own_dx = tf.cast(own_rows(replicas.sum(tf.cast(dx, wide))) * scale[:, None], dx.dtype)
        # The weights' gradient next, while that sum is on its way. And an optimizer that had it before this use of the
        # weights has ended would copy them first.
        with tf.control_dependencies([dx]):
            if self.block_size is None:
                dw, db = scaled_product(features, upstream, grad, unit, self.class_major), self.bias
                if self.has_bias:
                    db = ops.lsoftmax_bias_grad(grad, labels, self.first_class, upstream, state.target_grad, unit)
            of_loss = (state.geometry_grad, upstream, unit, none(dw.dtype))
            normalize_weights = self.attributes["normalize_weights"]
            dw = ops.lsoftmax_weights_grad(dw, *batch, *of_loss, normalize_weights=normalize_weights, **layout)
        return own_dx, dw, db

    def _through_blocks(self, state: Any, upstream: tf.Tensor, size: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns the gradients through X W_r: in features, not yet times the upstream gradient, weights and bias."""
        inputs = LossInputs(
            *self.batch,
            bias=self.bias,
            terms=self.terms,
            class_factors=self.factors,
            target_grad=state.target_grad,
            normalizer_of_blocks=state.normalizer,
            grad_unit=state.grad_unit,
        )
        normalize_features = self.attributes["normalize_features"]
        at = (size, self.class_major, self.geometry, self.first_class)
        dx, dw, db = blocks.loss_grad(self.ops, inputs, upstream, normalize_features, *at)
        return dx, dw, self.bias if db is None else db


def _merged(sums: tf.Tensor) -> tf.Tensor:
    """Returns the sums [5, N] over the classes of all shards, from [R, 5, N], or from [R, 4, N] without the last.

    It is `merge` of cc/core/softmax.h, in the order of the replicas. Of equal logits the first class is predicted.
    """
    m, s, best, predicted, *total = tf.unstack(sums, axis=1)
    largest, highest = tf.reduce_max(m, 0), tf.reduce_max(best, 0)
    s = tf.where(s == 0, s, s * tf.exp(m - largest))
    predicted = tf.reduce_min(tf.where(best < highest, tf.constant(2.0**53, tf.float64), predicted), 0)
    s, *total = (tf.add_n(tf.unstack(part)) for part in (s, *total))
    return tf.stack([largest, s, highest, predicted, *(total or [tf.zeros_like(s)])])


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
