"""The gradients of the raw ops, of every order, registered with TensorFlow.

First order, with G = dL/d(margin logits), g_i its target entries and t(s, A, B) the target logit:

    LsoftmaxLogits           ->  LsoftmaxLogitsGrad       products: G, 0 at the targets;  geometry: g_i dt
    LsoftmaxTargetGeometry   ->  LsoftmaxFeaturesGrad     features: what came through X W + g_s w_y + 2 g_A x
                                 LsoftmaxWeightsGrad      weights:  what came through X W + sum of g_s x + 2 g_B w_y

    LsoftmaxLossWithGradient ->  with P = dloss/d(X W) from LsoftmaxLoss and g = dL/d(loss), row by row (of float16 P is
                                 divided by u = grad_unit, and g u takes g's place: cc/core/grad_unit.h):
                                 LsoftmaxLossFeaturesGrad     features: g (P W^T, completed)
                                 LsoftmaxLossWeightsGrad      weights:  (g X)^T P, completed
                                 LsoftmaxLossBiasGrad         bias:     sum of g P, completed

LsoftmaxFeaturesGrad and LsoftmaxWeightsGrad are multilinear: their own gradients are the same ops again. Only
LsoftmaxLogitsGrad has a gradient with new mathematics, the second derivatives of t. It is rarely asked for and N-sized,
so it is composed of TensorFlow's ops, and TensorFlow derives it again for whoever wants a third. The gradients of the
loss have those of the unfused loss, the cross-entropy of the margin logits.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from lsoftmax_op import blocks
from lsoftmax_op.library import load

for _name in ("TargetAngles", "Loss", "BiasGrad", "LogSumExp", "LossOfSums", "ProductsGrad", "SetColumns"):
    tf.no_gradient(f"Lsoftmax{_name}")


@tf.RegisterGradient("LsoftmaxTargetGeometry")
def _target_geometry(op: Any, features_grad: tf.Tensor, weights_grad: tf.Tensor, geometry_grad: tf.Tensor) -> list:
    features, weights, labels = op.inputs
    unwanted = _unwanted(op)
    for_features, for_weights = None, None
    if 0 not in unwanted:
        for_features = load().lsoftmax_features_grad(features_grad, features, weights, labels, geometry_grad)
    if 1 not in unwanted:
        for_weights = load().lsoftmax_weights_grad(weights_grad, features, weights, labels, geometry_grad)
    return [for_features, for_weights, None]


@tf.RegisterGradient("LsoftmaxLogits")
def _logits(op: Any, logits_grad: tf.Tensor) -> list:
    _, labels, geometry, lam = op.inputs
    products_grad, geometry_grad = load().lsoftmax_logits_grad(
        logits_grad, labels, geometry, lam, margin=op.get_attr("margin")
    )
    return [products_grad, None, geometry_grad, None]


@tf.RegisterGradient("LsoftmaxFeaturesGrad")
def _features_grad(op: Any, upstream: tf.Tensor) -> list:
    # f = base + g_s w_y + 2 g_A x
    _, features, weights, labels, geometry_grad = op.inputs
    has_target = tf.cast(labels >= 0, tf.float64)
    g_s, g_A, _ = tf.unstack(geometry_grad * has_target, num=3)
    none = tf.zeros_like(g_s)
    for_features = tf.cast(2 * g_A, features.dtype)[:, None] * upstream
    for_weights = load().lsoftmax_weights_grad(
        tf.zeros_like(weights), upstream, weights, labels, tf.stack([g_s, none, none])
    )
    along_w = load().lsoftmax_target_geometry(upstream, weights, labels).geometry[0]
    along_x = _inner(upstream, features, axis=1) * has_target
    return [upstream, for_features, for_weights, None, tf.stack([along_w, 2 * along_x, none])]


@tf.RegisterGradient("LsoftmaxWeightsGrad")
def _weights_grad(op: Any, upstream: tf.Tensor) -> list:
    # f[:, y] = base[:, y] + sum of g_s x + 2 g_B w_y
    _, features, weights, labels, geometry_grad = op.inputs
    has_target = tf.cast(labels >= 0, tf.float64)
    g_s, _, g_B = tf.unstack(geometry_grad, num=3)
    none = tf.zeros_like(g_s)
    for_features = load().lsoftmax_features_grad(
        tf.zeros_like(features), features, upstream, labels, tf.stack([g_s, none, none])
    )
    for_weights = load().lsoftmax_weights_grad(
        tf.zeros_like(weights), features, upstream, labels, tf.stack([none, none, g_B])
    )
    columns = tf.maximum(labels, 0)
    along_x = load().lsoftmax_target_geometry(features, upstream, labels).geometry[0]
    along_w = has_target * _inner(tf.gather(upstream, columns, axis=1), tf.gather(weights, columns, axis=1), axis=0)
    return [upstream, for_features, for_weights, None, tf.stack([along_x, none, 2 * along_w])]


@tf.RegisterGradient("LsoftmaxLogitsGrad")
def _logits_grad(op: Any, products_upstream: tf.Tensor, geometry_upstream: tf.Tensor) -> list:
    # products_grad = G, 0 at the targets; geometry_grad = g dt(geometry): bilinear in G, curved in the geometry.
    logits_grad, labels, geometry, lam = op.inputs
    margin = op.get_attr("margin")
    alpha = 1 / (1 + lam)
    _, A, B = tf.unstack(geometry, num=3)
    has_margin = (labels >= 0) & (A != 0) & (B != 0) & (alpha != 0) & (margin > 1)
    rows = tf.range(tf.size(labels, labels.dtype), dtype=labels.dtype)
    targets = tf.stack([rows, tf.maximum(labels, 0)], axis=1)
    g = tf.cast(tf.gather_nd(logits_grad, targets), tf.float64)
    safe = tf.where(has_margin, geometry, tf.constant([[0.0], [1.0], [1.0]], tf.float64))
    with tf.GradientTape() as tape:
        tape.watch(safe)
        along = tf.reduce_sum(geometry_upstream * _jacobian(safe, alpha, margin), axis=0)
    curvature = tape.gradient(along, safe)
    along = tf.cast(along, logits_grad.dtype)
    for_logits = tf.tensor_scatter_nd_update(
        products_upstream,
        targets,
        tf.where(has_margin, along, tf.gather_nd(products_upstream, targets)),
    )
    for_geometry = tf.where(has_margin, g * curvature, tf.zeros_like(geometry))
    return [for_logits, None, for_geometry, None]


@tf.RegisterGradient("LsoftmaxLossWithGradient")
def _loss_with_gradient(op: Any, loss_grad: tf.Tensor) -> list:
    features, weights, labels, bias, lam, _, products_grad, geometry_grad, target_grad, target_weights, _, unit = (
        op.inputs
    )
    margin = op.get_attr("margin")
    layer = (features, weights, labels, bias, lam)
    unwanted = _unwanted(op)
    ops = load()
    has_bias = bias.shape[0] != 0
    if op.get_attr("class_block_size") > 0:
        through_products = blocks.loss_grad(op, loss_grad)
    else:
        through_products = blocks.ThroughProducts(None, None, None)
        if 0 not in unwanted:
            through_products.features = tf.matmul(products_grad, weights, transpose_b=True)
        if 1 not in unwanted:
            through_products.weights = _scaled_product(features, loss_grad, products_grad, unit)
        if has_bias and 3 not in unwanted:
            first_class = tf.constant(0, tf.int64)
            through_products.bias = ops.lsoftmax_bias_grad(
                products_grad, labels, first_class, loss_grad, target_grad, unit
            )
    for_features = for_weights = for_bias = None
    if through_products.features is not None:
        for_features = ops.lsoftmax_loss_features_grad(
            through_products.features, *layer, loss_grad, geometry_grad, target_weights, unit, margin=margin
        )
    if through_products.weights is not None:
        for_weights = ops.lsoftmax_loss_weights_grad(
            through_products.weights, *layer, loss_grad, geometry_grad, target_weights, unit, margin=margin
        )
    if through_products.bias is not None:
        for_bias = ops.lsoftmax_loss_bias_grad(through_products.bias, *layer, loss_grad, margin=margin)
    return [for_features, for_weights, None, for_bias, *[None] * 8]


@tf.RegisterGradient("LsoftmaxLossFeaturesGrad")
def _loss_features_grad(op: Any, upstream: tf.Tensor) -> list:
    return _second_derivatives(op, 0, upstream)


@tf.RegisterGradient("LsoftmaxLossWeightsGrad")
def _loss_weights_grad(op: Any, upstream: tf.Tensor) -> list:
    return _second_derivatives(op, 1, upstream)


@tf.RegisterGradient("LsoftmaxLossBiasGrad")
def _loss_bias_grad(op: Any, upstream: tf.Tensor) -> list:
    return _second_derivatives(op, 2, upstream)


def _second_derivatives(op: Any, argument: int, upstream: tf.Tensor) -> list:
    """The gradient of an op that gives the derivative of sum(loss_grad * loss) in features, weights or bias."""
    _, features, weights, labels, bias, lam, loss_grad, *rest = op.inputs
    variables = [features, weights, bias, loss_grad]
    with tf.GradientTape() as outer:
        outer.watch(variables)
        with tf.GradientTape() as inner:
            inner.watch(variables[argument])
            loss = _unfused_loss(features, weights, labels, bias, lam, op.get_attr("margin"))
        first = inner.gradient(loss, variables[argument], output_gradients=loss_grad)
    for_features, for_weights, for_bias, for_loss_grad = outer.gradient(first, variables, output_gradients=upstream)
    return [None, for_features, for_weights, None, for_bias, None, for_loss_grad, *[None] * len(rest)]


def _unfused_loss(
    features: tf.Tensor, weights: tf.Tensor, labels: tf.Tensor, bias: tf.Tensor, lam: tf.Tensor, margin: int
) -> tf.Tensor:
    """LsoftmaxLoss as the cross-entropy of LsoftmaxLogits: the same function, of ops that TensorFlow can derive."""
    features, weights, geometry = load().lsoftmax_target_geometry(features, weights, labels)
    logits = load().lsoftmax_logits(tf.matmul(features, weights), labels, geometry, lam, margin=margin)
    if bias.shape[0] != 0:
        logits = tf.nn.bias_add(logits, bias)
    loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=tf.maximum(labels, 0), logits=logits)
    return tf.where(labels >= 0, loss, tf.zeros_like(loss))


def _scaled_product(features: tf.Tensor, loss_grad: tf.Tensor, products_grad: tf.Tensor, unit: tf.Tensor) -> tf.Tensor:
    """Features^T times diag(loss_grad unit) times products_grad: the smaller of the two is scaled."""
    depth, classes = features.shape[1], products_grad.shape[1]
    if None not in (depth, classes) and classes < depth:
        products_grad = blocks.scale_rows(products_grad, loss_grad, unit)
    else:
        features = blocks.scale_rows(features, loss_grad, unit)
    return tf.matmul(features, products_grad, transpose_a=True)


def _unwanted(op: Any) -> tuple:
    """The inputs whose gradients nobody will use, as far as an eager tape tells."""
    return getattr(op, "skip_input_indices", None) or ()


def _jacobian(geometry: tf.Tensor, alpha: tf.Tensor, margin: int) -> tf.Tensor:
    """Dt / d(s, A, B), [3, N], differentiable: cc/core/margin.h in TensorFlow's ops. Needs nonzero norms."""
    s, A, B = tf.unstack(geometry, num=3)
    a, b = tf.sqrt(A), tf.sqrt(B)
    c = s / (a * b)
    c += tf.stop_gradient(tf.clip_by_value(c, -1.0, 1.0) - c)  # clamped, and still with the slope of c
    before, u = tf.zeros_like(c), tf.ones_like(c)
    segment, sign = tf.zeros_like(c), tf.ones_like(c)
    for _ in range(1, margin):
        before, u = u, 2 * c * u - before
        changes = sign * u < 0
        segment += tf.cast(changes, c.dtype)
        sign = tf.where(changes, -sign, sign)
    psi = sign * (c * u - before) - 2 * segment
    slope = sign * margin * u
    q = alpha * (psi - c * slope) / 2
    return tf.stack([1 + alpha * (slope - 1), q * b / a, q * a / b])


def _inner(a: tf.Tensor, b: tf.Tensor, axis: int) -> tf.Tensor:
    """Inner products in float64."""
    return tf.reduce_sum(tf.cast(a, tf.float64) * tf.cast(b, tf.float64), axis=axis)
