"""The gradients of the raw ops, of every order, for TensorFlow.

First order, with G = dL/d(margin logits), g_i its target entries and t(s, A, B) the target logit:

    LsoftmaxLogits           ->  LsoftmaxLogitsGrad     products: G, 0 at the targets;  geometry: g_i dt
    LsoftmaxTargetGeometry   ->  LsoftmaxFeaturesGrad   features: what came through X W + g_s w_y + 2 g_A x
                                 LsoftmaxWeightsGrad    weights:  what came through X W + sum of g_s x + 2 g_B w_y

    LsoftmaxLossWithGradient ->  with P = dloss/d(X W) from LsoftmaxLoss and the upstream gradient g, one number a row
                                 (of float16 P is divided by u = grad_unit, and g u is g: cc/core/grad_unit.h):
                                 LsoftmaxFeaturesGrad   features: g (P W^T, completed)
                                 LsoftmaxWeightsGrad    weights:  (g X)^T P, completed
                                 LsoftmaxBiasGrad       bias:     sum of g P, completed
                                 each handed on by LsoftmaxLossGradient, which knows what it depends on;
                                 the first two over the classes that matter, where these are few (filtering.py)

LsoftmaxFeaturesGrad and LsoftmaxWeightsGrad are multilinear where nothing is normalised: their own gradients are the
same ops again. Only LsoftmaxLogitsGrad has a gradient with new mathematics, the second derivatives of t. It is rarely
asked for and N-sized, so it is composed of TensorFlow's ops, and TensorFlow derives it again for whoever wants a third.
The gradients of LsoftmaxLossGradient are those of the unfused loss, the cross-entropy of the margin logits.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import tensorflow as tf

from lsoftmax_op import _op_margin, blocks, filtering, formula


def register(ops: Any) -> None:
    """Registers the gradients of `ops`, the module of the raw ops, with TensorFlow: once in a process.

    TensorFlow keeps both for good, and so they are there already where this package is imported anew.
    """
    if hasattr(ops, "_gradients"):
        return
    of_one_pass, of_blocks = ("Loss", "BiasGrad"), ("Sums", "Finish", "ProductsGrad", "SetColumns")
    for name in (*of_one_pass, *of_blocks, "KeptClasses", "TakeColumns", "SpreadColumns"):
        tf.no_gradient(f"Lsoftmax{name}")
    gradients = ops._gradients = _Gradients(ops)
    for name, gradient in (
        ("TargetGeometry", gradients.of_target_geometry),
        ("ClassFactors", gradients.of_class_factors),
        ("FeaturesGrad", gradients.of_features_grad),
        ("WeightsGrad", gradients.of_weights_grad),
        ("Logits", gradients.of_logits),
        ("LogitsGrad", gradients.of_logits_grad),
        ("LossWithGradient", gradients.of_loss_with_gradient),
        ("LossGradient", gradients.of_loss_gradient),
    ):
        tf.RegisterGradient(f"Lsoftmax{name}")(gradient)


class LossInputs(NamedTuple):
    """The inputs of LsoftmaxLossWithGradient; or what their gradients are, None for none."""

    features: tf.Tensor = None
    weights: tf.Tensor = None
    labels: tf.Tensor = None
    bias: tf.Tensor = None
    lam: tf.Tensor = None
    terms: tf.Tensor = None
    class_factors: tf.Tensor = None
    loss: tf.Tensor = None
    whole_products_grad: tf.Tensor = None
    geometry_grad: tf.Tensor = None
    target_grad: tf.Tensor = None
    target_weights: tf.Tensor = None
    normalizer_of_blocks: tf.Tensor = None
    grad_unit: tf.Tensor = None


class _Gradients:
    """Each method takes an op and the upstream gradients of its outputs, and returns the gradients of its inputs."""

    def __init__(self, ops: Any) -> None:
        self.ops = ops

    def of_target_geometry(
        self, op: Any, features_grad: tf.Tensor, weights_grad: tf.Tensor, geometry_grad: tf.Tensor
    ) -> list[Any]:
        unwanted = _unwanted(op)
        target, classes = (*op.inputs, geometry_grad, *_no_loss(op.inputs[0].dtype)), _classes_of(op)
        for_features, for_weights = None, None
        if 0 not in unwanted:
            for_features = self.ops.lsoftmax_features_grad(features_grad, *target, **classes)
        if 1 not in unwanted:
            for_weights = self.ops.lsoftmax_weights_grad(weights_grad, *target, **classes)
        return [for_features, for_weights, None]

    def of_class_factors(self, op: Any, upstream: tf.Tensor) -> tf.Tensor:
        # d(1 / |w|) = -w / |w|^3
        weights, factors = op.inputs[0], op.outputs[0]
        if op.get_attr("class_major"):
            upstream, factors = upstream[:, None], factors[:, None]
        units = tf.cast(weights, factors.dtype) * factors
        return tf.cast(units * (-upstream * factors * factors), weights.dtype)

    def of_features_grad(self, op: Any, upstream: tf.Tensor) -> list[Any]:
        # f = h (base + g_s w_y + 2 g_A x)
        _refuse_normalised(op, "normalize_features")
        base, features, weights, labels, geometry_grad, loss_grad, unit, _ = op.inputs
        no_loss, classes = _no_loss(features.dtype), _classes_of(op)
        for_loss_grad = None
        if loss_grad.shape[0] != 0:
            own = self.ops.lsoftmax_features_grad(base, features, weights, labels, geometry_grad, *no_loss, **classes)
            for_loss_grad = _of_loss_grad(_inner(upstream, own, axis=1), loss_grad, unit)
            h = _upstream(loss_grad, unit)[:, None]
            upstream = tf.cast(tf.cast(upstream, h.dtype) * h, upstream.dtype)
        has_target = tf.cast(_targets(op, labels, weights)[0], tf.float64)
        g_s, g_A, _ = tf.unstack(geometry_grad * has_target, num=3)
        nothing = tf.zeros_like(g_s)
        for_features = tf.cast(2 * g_A, features.dtype)[:, None] * upstream
        for_weights = self.ops.lsoftmax_weights_grad(
            tf.zeros_like(weights), upstream, weights, labels, tf.stack([g_s, nothing, nothing]), *no_loss, **classes
        )
        along_w = self.ops.lsoftmax_target_geometry(upstream, weights, labels, **classes).geometry[0]
        along_x = _inner(upstream, features, axis=1) * has_target
        for_geometry = tf.stack([along_w, 2 * along_x, nothing])
        return [upstream, for_features, for_weights, None, for_geometry, for_loss_grad, None, None]

    def of_weights_grad(self, op: Any, upstream: tf.Tensor) -> list[Any]:
        # f[:, y] = base[:, y] + sum of h (g_s x + 2 g_B w_y)
        _refuse_normalised(op, "normalize_weights")
        _, features, weights, labels, geometry_grad, loss_grad, unit, _ = op.inputs
        no_loss, classes = _no_loss(features.dtype), _classes_of(op)
        here, columns = _targets(op, labels, weights)
        has_target = tf.cast(here, tf.float64)
        along_x = self.ops.lsoftmax_target_geometry(features, upstream, labels, **classes).geometry[0]
        of_classes = _class_dimension(op)
        own, w = (tf.gather(matrix, columns, axis=of_classes) for matrix in (upstream, weights))
        along_w = has_target * _inner(own, w, axis=1 - of_classes)
        nothing = tf.zeros_like(along_x)
        for_geometry = tf.stack([along_x, nothing, 2 * along_w])
        for_loss_grad = None
        if loss_grad.shape[0] != 0:
            own = tf.reduce_sum(for_geometry * geometry_grad, axis=0)
            for_loss_grad = _of_loss_grad(own, loss_grad, unit)
            h = _upstream(loss_grad, unit)
            geometry_grad, for_geometry = h * geometry_grad, h * for_geometry
        g_s, _, g_B = tf.unstack(geometry_grad, num=3)
        for_features = self.ops.lsoftmax_features_grad(
            tf.zeros_like(features), features, upstream, labels, tf.stack([g_s, nothing, nothing]), *no_loss, **classes
        )
        for_weights = self.ops.lsoftmax_weights_grad(
            tf.zeros_like(weights), features, upstream, labels, tf.stack([nothing, nothing, g_B]), *no_loss, **classes
        )
        return [upstream, for_features, for_weights, None, for_geometry, for_loss_grad, None, None]

    def of_logits(self, op: Any, logits_grad: tf.Tensor) -> list[Any]:
        _, *target = op.inputs
        products_grad, geometry_grad = self.ops.lsoftmax_logits_grad(
            logits_grad, *target, **_op_margin.attributes_of(op)
        )
        return [products_grad, None, geometry_grad, None, None]

    def of_logits_grad(self, op: Any, products_upstream: tf.Tensor, geometry_upstream: tf.Tensor) -> list[Any]:
        # products_grad = G, 0 at the targets; geometry_grad = g dt(geometry): bilinear in G, curved in the geometry.
        logits_grad, labels, geometry, lam, terms = op.inputs
        margin = _op_margin.attributes_of(op)
        alpha = 1 / (1 + lam)
        _, A, B = tf.unstack(geometry, num=3)
        has_target = labels >= 0
        has_margin = has_target & (A != 0) & (B != 0)
        if terms.shape[0] == 0:
            has_margin &= (alpha != 0) & (margin["margin"] > 1)
        rows = tf.range(tf.size(labels, labels.dtype), dtype=labels.dtype)
        targets = tf.stack([rows, tf.maximum(labels, 0)], axis=1)
        g = tf.cast(tf.gather_nd(logits_grad, targets), tf.float64)
        safe = tf.where(has_margin, geometry, tf.constant([[0.0], [1.0], [1.0]], tf.float64))
        with tf.GradientTape() as tape:
            tape.watch(safe)
            along = tf.reduce_sum(geometry_upstream * formula.jacobian(safe, alpha, terms, margin), axis=0)
        curvature = tape.gradient(along, safe)
        along = tf.cast(along, logits_grad.dtype)
        dense = tf.gather_nd(products_upstream, targets)
        if terms.shape[0] != 0:  # the target's entry is t of the geometry, without a margin, too
            factor = formula.factor_of(geometry, terms, margin)
            dense = tf.where(has_target, tf.cast(factor * geometry_upstream[0], dense.dtype), dense)
        for_logits = tf.tensor_scatter_nd_update(products_upstream, targets, tf.where(has_margin, along, dense))
        for_geometry = tf.where(has_margin, g * curvature, tf.zeros_like(geometry))
        return [for_logits, None, for_geometry, None, None]

    def of_loss_with_gradient(self, op: Any, loss_grad: tf.Tensor) -> list[Any]:
        ops, state = self.ops, LossInputs(*op.inputs)
        margin = _op_margin.attributes_of(op)
        block_size, class_major = _op_margin.some_attributes_of(op, "class_block_size", "class_major").values()
        if block_size > 0:
            dx, dw, db = blocks.loss_grad(ops, state, loss_grad, margin["normalize_features"], block_size, class_major)
        else:
            unwanted = _unwanted(op)
            filters = op.get_attr("filter") and not {0, 1} <= {*unwanted}
            kept = self._kept(state, filters, margin["normalize_features"], class_major)
            dx, dw, db = self._through_products(state, loss_grad, unwanted, kept, class_major)
        batch = (state.features, state.weights, state.labels)
        target = (state.geometry_grad, loss_grad, state.grad_unit, state.target_weights)
        if dx is not None:
            own = {"normalize_features": margin["normalize_features"], "class_major": class_major}
            dx = ops.lsoftmax_features_grad(dx, *batch, *target, **own)
        if dw is not None:
            own = {"normalize_weights": margin["normalize_weights"], "class_major": class_major}
            dw = ops.lsoftmax_weights_grad(dw, *batch, *target, **own)

        def differentiable(gradient: tf.Tensor | None, of: str) -> tf.Tensor | None:
            if gradient is None:
                return None
            layer = (*batch, state.bias, state.lam, state.terms)
            return ops.lsoftmax_loss_gradient(gradient, *layer, loss_grad, of=of, class_major=class_major, **margin)

        return list(
            LossInputs(
                features=differentiable(dx, "features"),
                weights=differentiable(dw, "weights"),
                bias=differentiable(db, "bias"),
            )
        )

    def _kept(self, state: LossInputs, filters: bool, normalize_features: bool, class_major: bool) -> filtering.Kept:
        """The classes that the products run over."""
        weights, factors = state.weights, state.class_factors
        classes = weights.shape[0 if class_major else 1]
        of_rows = (state.features, state.target_grad, state.terms, factors, classes, normalize_features)
        limits = functools.partial(filtering.limits, *of_rows)
        return filtering.keep(self.ops, filters, state.whole_products_grad, weights, factors, limits, class_major)

    def _through_products(
        self,
        state: LossInputs,
        loss_grad: tf.Tensor,
        unwanted: tuple[Any, ...],
        kept: filtering.Kept,
        class_major: bool,
    ) -> tuple[Any, ...]:
        """The loss's gradients through X W, in features (not yet times the upstream gradient), weights and bias."""
        products_grad, unit = state.whole_products_grad, state.grad_unit
        dx = dw = db = None
        if 0 not in unwanted:
            dx = tf.matmul(kept.products_grad, kept.weights, transpose_b=not class_major)
        if 1 not in unwanted:
            dw = scaled_product(state.features, loss_grad, kept.products_grad, unit, class_major)
            dw = filtering.spread(self.ops, dw, kept, state.weights, class_major)
        if 3 not in unwanted and state.bias.shape[0] != 0:
            first_class = tf.constant(0, tf.int64)
            db = self.ops.lsoftmax_bias_grad(
                products_grad, state.labels, first_class, loss_grad, state.target_grad, unit
            )
        return dx, dw, db

    def of_loss_gradient(self, op: Any, upstream: tf.Tensor) -> list[Any]:
        # The derivative of sum(loss_grad * loss) in one of the variables.
        _, features, weights, labels, bias, lam, terms, loss_grad = op.inputs
        margin = _op_margin.attributes_of(op)
        variables = {"features": features, "weights": weights, "bias": bias, "loss_grad": loss_grad}
        argument = variables[op.get_attr("of").decode()]
        with tf.GradientTape() as outer:
            outer.watch(variables)
            with tf.GradientTape() as inner:
                inner.watch(argument)
                layer = (features, weights, labels, bias, lam, terms)
                loss = self._unfused_loss(*layer, margin, op.get_attr("class_major"))
            first = inner.gradient(loss, argument, output_gradients=loss_grad)
        second = outer.gradient(first, variables, output_gradients=upstream)
        return [None, second["features"], second["weights"], None, second["bias"], None, None, second["loss_grad"]]

    def _unfused_loss(
        self,
        features: tf.Tensor,
        weights: tf.Tensor,
        labels: tf.Tensor,
        bias: tf.Tensor,
        lam: tf.Tensor,
        terms: tf.Tensor,
        margin: dict[str, Any],
        class_major: bool,
    ) -> tf.Tensor:
        """LsoftmaxLoss as the cross-entropy of LsoftmaxLogits: the same function, of ops that TensorFlow can derive."""
        target = self.ops.lsoftmax_target_geometry(features, weights, labels, class_major=class_major)
        features, weights, geometry = target
        products = formula.plain_logits(self.ops, features, weights, terms, margin, class_major)
        logits = self.ops.lsoftmax_logits(products, labels, geometry, lam, terms, **margin)
        if bias.shape[0] != 0:
            logits = tf.nn.bias_add(logits, bias)
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=tf.maximum(labels, 0), logits=logits)
        if terms.shape[0] != 0:
            loss += formula.smoothing_of_loss(logits, labels, *tf.unstack(terms, num=7)[-2:])
        return tf.where(labels >= 0, loss, tf.zeros_like(loss))


def scaled_product(
    features: tf.Tensor, loss_grad: tf.Tensor, products_grad: tf.Tensor, unit: tf.Tensor, class_major: bool
) -> tf.Tensor:
    """Features^T times diag(loss_grad unit) times products_grad, or its transpose: the smaller of the two is scaled."""
    depth, classes = features.shape[1], products_grad.shape[1]
    if None not in (depth, classes) and classes < depth:
        products_grad = blocks.scale_rows(products_grad, loss_grad, unit)
    else:
        features = blocks.scale_rows(features, loss_grad, unit)
    return blocks.weights_product(features, products_grad, class_major)


def _classes_of(op: Any) -> dict[str, Any]:
    """The attributes of an op that say which of all classes its weights are, and how they lie."""
    return _op_margin.some_attributes_of(op, "first_class", "num_classes", "class_major")


def _class_dimension(op: Any) -> int:
    """Which dimension of the op's weights is that of the classes."""
    return 0 if op.get_attr("class_major") else 1


def _targets(op: Any, labels: tf.Tensor, weights: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Whether each row's target is one of the op's classes, and its place among them if so; else 0."""
    if op.get_attr("num_classes") == 0:
        return labels >= 0, tf.maximum(labels, 0)
    columns = tf.cast(labels, tf.int64) - op.get_attr("first_class")
    here = (columns >= 0) & (columns < tf.shape(weights, tf.int64)[_class_dimension(op)])
    return here, tf.where(here, columns, 0)


def _refuse_normalised(op: Any, attribute: str) -> None:
    """Refuses to derive a gradient whose radial part was taken off: LsoftmaxLossGradient knows what it depends on."""
    if op.get_attr(attribute):
        raise LookupError(f"{op.type}: expected {attribute}=False where it is differentiated itself, got True")


def _no_loss(dtype: tf.DType) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """loss_grad, grad_unit and target_weights of a gradient that no loss's upstream gradient is folded into."""
    return none(dtype), none(tf.float32), none(dtype)


def none(dtype: tf.DType) -> tf.Tensor:
    """What an op takes for an array that is none. In eager code tf.zeros would take seven times as long."""
    return tf.constant([], dtype)


def _upstream(loss_grad: tf.Tensor, unit: tf.Tensor) -> tf.Tensor:
    """The factor h, loss_grad times grad_unit, which is 1 but for float16; [N], in float64."""
    h = tf.cast(loss_grad, tf.float64)
    return h * tf.cast(unit, h.dtype) if loss_grad.dtype == tf.float16 and unit.shape[0] != 0 else h


def _of_loss_grad(of_h: tf.Tensor, loss_grad: tf.Tensor, unit: tf.Tensor) -> tf.Tensor:
    """The gradient in loss_grad, from that in h."""
    return tf.cast(of_h * _upstream(tf.ones_like(loss_grad), unit), loss_grad.dtype)


def _unwanted(op: Any) -> tuple[Any, ...]:
    """The inputs whose gradients nobody will use, as far as an eager tape tells."""
    return getattr(op, "skip_input_indices", None) or ()


def _inner(a: tf.Tensor, b: tf.Tensor, axis: int) -> tf.Tensor:
    """Inner products in float64."""
    return tf.reduce_sum(tf.cast(a, tf.float64) * tf.cast(b, tf.float64), axis=axis)
