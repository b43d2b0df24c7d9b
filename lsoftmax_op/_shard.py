"""One replica's part in the loss of classes that lie on several: the scheme is in sharded.py.

loss         geometry of the targets that are here, summed;  sums over the classes that are here, merged
gradients    P of the classes that are here, or of those among them that matter (filtering.py);  dX, summed;  dW
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import tensorflow as tf

from lsoftmax_op import _op_margin, _terms, blocks, filtering, library
from lsoftmax_op._collectives import Replicas
from lsoftmax_op._tensors import Batch
from lsoftmax_op.gradients import LossInputs, none, scaled_product
from lsoftmax_op.margins import Margin


class Settings(NamedTuple):
    """What a layer is told beside its arrays and lambda."""

    margin: Margin
    label_smoothing: float = 0.0
    class_block_size: int | None = None
    class_major: bool = False
    filters: bool = False  # whether its gradients leave out classes below rounding (filtering.py)


class Shard:
    """A replica's classes, and the samples of all replicas.

    Args:
        replicas: those of the step, which fit together (_agreement.py).
        own: this replica's samples and weights.
        bias: [C_r], or [0] for none.
        first_class: [], int64, the global class index of the first of these classes.
        num_classes: [], int64, how many all replicas have.
        settings: the others.
    """

    def __init__(
        self,
        replicas: Replicas,
        own: Batch,
        bias: tf.Tensor,
        first_class: tf.Tensor,
        num_classes: tf.Tensor,
        settings: Settings,
    ) -> None:
        self.ops, self.replicas = library.load(), replicas
        weights = tf.stop_gradient(own.weights)
        features, labels = replicas.rows(own.features), replicas.rows(tf.cast(own.labels, tf.int64))
        self.batch, self.bias, self.first_class = Batch(features, weights, labels), tf.stop_gradient(bias), first_class
        self.num_classes, self.block_size = num_classes, settings.class_block_size
        self.has_bias, self.smooths = bias.shape[0] != 0, settings.label_smoothing != 0
        self.attributes = _terms.attributes(settings.margin)
        self.normalize_features = {"normalize_features": self.attributes["normalize_features"]}
        self.class_major = class_major = settings.class_major
        self.filters = settings.filters
        self.terms = _op_margin.terms(settings.margin, settings.label_smoothing, weights, class_major, num_classes)
        self.factors = _op_margin.class_factors(self.ops, settings.margin, weights, class_major)
        place = labels - first_class
        self.is_here = (place >= 0) & (place < tf.shape(weights, tf.int64)[0 if class_major else 1])
        self.columns = tf.where(self.is_here, place, -1)  # of the labels, among these classes; -1 for elsewhere or none

    def loss(self, lam: tf.Tensor) -> Any:
        """Returns the outputs of LsoftmaxFinish for all samples, and keeps what the gradients need."""
        ops, (features, weights, labels) = self.ops, self.batch
        geometry, bias = self._of_targets()
        self.geometry = geometry
        if self.block_size is None:
            self.products = tf.matmul(features, weights, transpose_b=self.class_major)
            no_sums = blocks.no_sums(features)
            sums = ops.lsoftmax_sums(self.products, *self._of_products(geometry), no_sums, **self.normalize_features)
        else:
            of_classes = (self.bias, self.factors, self.terms, geometry, self.block_size, self.first_class)
            layout = {**self.normalize_features, "class_major": self.class_major}
            sums = blocks.sums_of(ops, *self.batch, *of_classes, **layout)
        sums = _merged(self.replicas.stacked(sums if self.smooths else sums[:4]))
        if self.has_bias:  # that of each row's target is all that LsoftmaxFinish reads
            labels = tf.where(labels >= 0, tf.range(tf.size(labels, tf.int64)), -1)
        depth = tf.shape(features, tf.int64)[1]
        return ops.lsoftmax_finish(sums, geometry, labels, bias, lam, self.terms, depth, **self.attributes)

    def _of_targets(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the geometry [3, N] of all rows, and the bias [N] of their targets, or [0]."""
        features, weights, _ = self.batch
        layout = {"class_major": self.class_major}
        known = self.ops.lsoftmax_target_geometry(features, weights, self.columns, **layout).geometry
        if not self.has_bias:
            return self.replicas.sum(known), self.bias
        bias = tf.cast(tf.gather(self.bias, tf.maximum(self.columns, 0)), tf.float64)
        bias = tf.where(self.is_here, bias, 0)
        *geometry, bias = tf.unstack(self.replicas.sum(tf.concat([known, bias[None]], 0)), num=4)
        return tf.stack(geometry), tf.cast(bias, self.bias.dtype)

    def _of_products(self, geometry: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """What LsoftmaxSums and LsoftmaxProductsGrad are told beside the products."""
        return self.batch.labels, self.bias, self.first_class, self.factors, self.terms, geometry

    def products_grad(self, state: Any) -> tf.Tensor:
        """Returns P [N, C_r] of this replica's classes, where they are not taken in blocks.

        Args:
            state: what `loss` returned.
        """
        known = (*self._of_products(self.geometry), state.normalizer)
        return self.ops.lsoftmax_products_grad(self.products, *known, **self.normalize_features)

    def limits(self, state: Any) -> tf.Tensor:
        """Returns what an entry of P has to exceed, so that its class matters (filtering.py), [N]."""
        classes = tf.cast(self.num_classes, tf.float64)
        of_rows = (self.batch.features, state.target_grad, self.terms, self.factors)
        return filtering.limits(*of_rows, classes, self.attributes["normalize_features"])

    def gradients(self, state: Any, own_upstream: tf.Tensor, own_rows: Any) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns those in this replica's features, weights and bias.

        Args:
            state: what `loss` returned.
            own_upstream: [N_r], the upstream gradient of this replica's losses.
            own_rows: takes this replica's rows out of those of all.
        """
        ops, (features, weights, labels) = self.ops, self.batch
        upstream, unit = self.replicas.rows(own_upstream), state.grad_unit
        if self.block_size is None:
            grad = self.products_grad(state)
            limits = functools.partial(self.limits, state)
            kept = filtering.keep(ops, self.filters, grad, weights, self.factors, limits, self.class_major)
            dx = tf.matmul(kept.products_grad, kept.weights, transpose_b=not self.class_major)
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
        own_dx = tf.cast(own_rows(self.replicas.sum(tf.cast(dx, wide))) * scale[:, None], dx.dtype)
        # The weights' gradient next, while that sum is on its way. And an optimizer that had it before this use of the
        # weights has ended would copy them first.
        with tf.control_dependencies([dx]):
            if self.block_size is None:
                dw = scaled_product(features, upstream, kept.products_grad, unit, self.class_major)
                dw, db = filtering.spread(ops, dw, kept, weights, self.class_major), self.bias
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
