"""The fused loss for class counts whose [N, C] products are too large: a block of B classes at a time.

    for each block:   sums     <- sums and (X W_block)                      log-sum-exp, carried along
    once:             loss, normalizer and the target's gradient            N-sized
    for each block:   P        =  dloss/d(X W_block), computed anew         in the products' own buffer
                      dX       +=  P W_block^T
                      dW_block =  (g X)^T P

Memory is O(N B) beside X, W and their gradients; what it costs is one product more. The results are those of the
one-pass form up to rounding, and do not depend on timing or threads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tensorflow as tf


def loss(
    ops: Any,
    features: tf.Tensor,
    weights: tf.Tensor,
    labels: tf.Tensor,
    bias: tf.Tensor,
    lam: tf.Tensor,
    terms: tf.Tensor,
    class_factors: tf.Tensor,
    attributes: dict[str, Any],
    block_size: int,
    class_major: bool = False,
) -> Any:
    """Returns the outputs of LsoftmaxFinish."""
    features, weights, bias = map(tf.stop_gradient, (features, weights, bias))  # an eager tape would keep every block
    geometry = ops.lsoftmax_target_geometry(features, weights, labels, class_major=class_major).geometry
    layer = (features, weights, labels, bias, class_factors, terms, geometry)
    layout = {"normalize_features": attributes["normalize_features"], "class_major": class_major}
    sums = sums_of(ops, *layer, block_size, **layout)
    depth = tf.shape(features, tf.int64)[1]
    return ops.lsoftmax_finish(sums, geometry, labels, bias, lam, terms, depth, **attributes)


def no_sums(features: tf.Tensor) -> tf.Tensor:
    """Returns the sums [5, N] over no class, of features [N, D]."""
    # The lowest finite number does what -inf would, and no checker of numerics stops at it.
    none = tf.constant([[tf.float64.min], [0.0], [tf.float64.min], [0.0], [0.0]], tf.float64)
    return tf.tile(none, [1, tf.shape(features)[0]])


def sums_of(
    ops: Any,
    features: tf.Tensor,
    weights: tf.Tensor,
    labels: tf.Tensor,
    bias: tf.Tensor,
    class_factors: tf.Tensor,
    terms: tf.Tensor,
    geometry: tf.Tensor,
    block_size: int,
    first_class: tf.Tensor | None = None,
    *,
    normalize_features: bool,
    class_major: bool,
) -> tf.Tensor:
    """Returns the sums [5, N] of LsoftmaxSums over the classes of the weights, of which `first_class` is the first."""

    def take_in(block: _Block, sums: tf.Tensor) -> tuple[Any, ...]:
        products = tf.matmul(features, block.weights, transpose_b=class_major)
        inputs = (products, labels, block.bias, block.first_class, block.factors, terms, geometry, sums)
        return (ops.lsoftmax_sums(*inputs, normalize_features=normalize_features),)

    state = (no_sums(features),)
    return _for_each_block(weights, bias, class_factors, block_size, class_major, take_in, state, first_class)[0]


def loss_grad(
    ops: Any,
    state: Any,
    upstream: tf.Tensor,
    normalize_features: bool,
    block_size: int,
    class_major: bool,
    geometry: tf.Tensor | None = None,
    first_class: tf.Tensor | None = None,
) -> tuple[Any, ...]:
    """Returns the gradients of a loss that was computed in blocks, through its products: in features, weights and bias.

    Args:
        ops: the raw ops.
        state: the inputs of LsoftmaxLossWithGradient.
        upstream: [N], the upstream gradient, which the features' gradient is still to be multiplied by.
        normalize_features: whether the logits are divided by the norms of the features.
        block_size: the classes of a block.
        class_major: whether the weights are [C, D], and so their gradient.
        geometry: [3, N], of LsoftmaxTargetGeometry; None to have it computed here, if it is needed.
        first_class: [], int64, the global class index of the weights' first column; None for 0.
    """
    features, weights, labels, bias = map(tf.stop_gradient, (state.features, state.weights, state.labels, state.bias))
    target_grad, unit = state.target_grad, state.grad_unit
    upstream = tf.stop_gradient(upstream)
    scaled = scale_rows(features, upstream, unit)
    has_bias = bias.shape[0] != 0
    factors, terms = state.class_factors, state.terms
    if geometry is None and factors.shape[0] != 0:
        geometry = ops.lsoftmax_target_geometry(features, weights, labels, class_major=class_major).geometry
    elif geometry is None:
        geometry = tf.zeros_like(state.geometry_grad)  # nobody reads it

    def differentiate(block: _Block, dx: tf.Tensor, dw: tf.Tensor, *db: tf.Tensor) -> tuple[Any, ...]:
        products = tf.matmul(features, block.weights, transpose_b=class_major)
        of_block = (block.bias, block.first_class, block.factors)
        of_rows = (terms, geometry, state.normalizer_of_blocks)
        grad = ops.lsoftmax_products_grad(products, labels, *of_block, *of_rows, normalize_features=normalize_features)
        dx += tf.cast(tf.matmul(grad, block.weights, transpose_b=not class_major), dx.dtype)
        own = weights_product(scaled, grad, class_major)
        dw = ops.lsoftmax_set_columns(dw, own, block.first_column, class_major=class_major)
        if has_bias:
            columns = ops.lsoftmax_bias_grad(grad, labels, block.first_class, upstream, target_grad, unit)
            db = (ops.lsoftmax_set_columns(db[0], columns[None], block.first_column),)
        return (dx, dw, *db)

    empty = [tf.zeros_like(weights)]
    if has_bias:
        empty.append(tf.zeros_like(bias)[None])
    none = tf.zeros_like(features, tf.float64 if features.dtype == tf.float64 else tf.float32)
    dx, dw, *db = _for_each_block(
        weights, bias, factors, block_size, class_major, differentiate, (none, *empty), first_class
    )
    return tf.cast(dx, features.dtype), dw, db[0][0] if has_bias else None


def weights_product(features: tf.Tensor, products_grad: tf.Tensor, class_major: bool) -> tf.Tensor:
    """Features^T times products_grad, [D, C], or its transpose: the weights' gradient through X W.

    For the transpose, the batched product, of one batch: that of two matrices takes up to twice its time on a CPU where
    D is small.
    """
    if class_major:
        return tf.raw_ops.BatchMatMulV2(x=products_grad, y=features, adj_x=True)
    return tf.matmul(features, products_grad, transpose_a=True)


def scale_rows(matrix: tf.Tensor, loss_grad: tf.Tensor, grad_unit: tf.Tensor) -> tf.Tensor:
    """Returns diag(loss_grad grad_unit) times a matrix [N, .], in its dtype, rounded once."""
    if matrix.dtype != tf.float16:  # the unit is 1
        return matrix * tf.expand_dims(loss_grad, 1)
    scale = tf.cast(loss_grad, grad_unit.dtype) * grad_unit
    return tf.cast(tf.cast(matrix, scale.dtype) * tf.expand_dims(scale, 1), matrix.dtype)


@dataclass
class _Block:
    first_column: tf.Tensor  # [], int64, among the weights
    first_class: tf.Tensor  # [], int64, its global class index
    weights: tf.Tensor  # [D, B], or [B, D] if they are class-major
    bias: tf.Tensor  # [B], or [0] for none
    factors: tf.Tensor  # [B], or [0] for none


def _for_each_block(
    weights: tf.Tensor,
    bias: tf.Tensor,
    factors: tf.Tensor,
    block_size: int,
    class_major: bool,
    body: Callable[..., tuple[Any, ...]],
    state: tuple[Any, ...],
    first_class: tf.Tensor | None = None,
) -> tuple[Any, ...]:
    """Returns the state after body(block, *state) has been called for one block after the other.

    `first_class` is the global class index of the first of all columns, None for 0.
    """
    of_classes = 0 if class_major else 1
    size = tf.shape(weights, tf.int64)
    classes, known = size[of_classes], weights.shape[of_classes]
    if known is not None:
        block_size = min(block_size, known)

    def columns(first: tf.Tensor, width: int | tf.Tensor) -> _Block:
        begin, extent = [tf.zeros_like(first)] * 2, [size[0], size[1]]
        begin[of_classes], extent[of_classes] = first, tf.cast(width, tf.int64)
        shape = [weights.shape[0], weights.shape[1]]
        shape[of_classes] = width if isinstance(width, int) else None
        own_weights = tf.ensure_shape(tf.slice(weights, tf.stack(begin), tf.stack(extent)), shape)
        own_bias, own_factors = (
            tf.slice(array, [first], [width]) if array.shape[0] != 0 else array for array in (bias, factors)
        )
        of_all = first if first_class is None else first_class + first
        return _Block(first, of_all, own_weights, own_bias, own_factors)

    def whole(first: tf.Tensor, *state: tf.Tensor) -> tuple[Any, ...]:
        return (first + block_size, *body(columns(first, block_size), *state))

    def last(first: tf.Tensor, *state: tf.Tensor) -> tuple[Any, ...]:
        return body(columns(first, classes - first if known is None else known % block_size), *state)

    # All blocks but the last have one, known width, so that XLA can compile them.
    first, *state = tf.while_loop(
        lambda first, *_: first + block_size <= classes,
        whole,
        (tf.constant(0, tf.int64), *state),
        parallel_iterations=1,
    )
    if known is None:
        return tuple(tf.cond(first < classes, lambda: last(first, *state), lambda: tuple(state)))
    return last(first, *state) if known % block_size else tuple(state)
