"""The operators that PyTorch knows: lsoftmax_op::logits and lsoftmax_op::loss, and their gradients.

    logits(X, W, y, b)  -> [N, C]                             logits_grad(G, X, W, y, b)      -> dX, dW, db
    loss(X, W, y, b)    -> [N], and what its gradient is      loss_grad(g, X, W, y, b, P ...) -> dX, dW, db
                           made of: P = dloss/d(X W), ...

The gradients on the right are differentiated, where somebody asks for that, as those of the same functions composed of
PyTorch's own operators (formula.py).

A margin is spelled as its attributes, in their order: an operator takes tensors, numbers, flags and strings. With
`class_major` W and dW are [C, D]. The gradient of a bias that is None, and one that nobody wants, has shape [0].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from lsoftmax_op._array_layer import Layer
from lsoftmax_op._array_libraries import Torch
from lsoftmax_op.margins import Margin
from lsoftmax_op.torch import formula

_TENSORS = "Tensor features, Tensor weights, Tensor labels, Tensor? bias, Tensor lam"
_MARGIN = "int m1, float m2, float m3, float scale, bool normalize_features, bool normalize_weights, str continuation"
_LAYER = f"{_TENSORS}, bool class_major, {_MARGIN}"
_LOSS_LAYER = f"{_LAYER}, float label_smoothing"
_OPTIONAL = ("target_weights", "grad_unit", "label_order")  # not of every layer
_STATE = ("products_grad", "geometry_grad", "target_grad", *_OPTIONAL)
_STATE_TENSORS = ", ".join(f"Tensor {name}" for name in _STATE)
_WANTED = "bool of_features, bool of_weights"
_GRADIENTS = "(Tensor features_grad, Tensor weights_grad, Tensor bias_grad)"


def _operator(name: str, arguments: str, results: str) -> Callable[[Callable[..., Any]], Any]:
    schema = f"({arguments}) -> {results}"
    return lambda function: torch.library.custom_op(f"lsoftmax_op::{name}", function, mutates_args=(), schema=schema)


@_operator("logits", _LAYER, "Tensor")
def logits(*arguments: Any) -> Any:
    """Computes the margin logits, [N, C]."""
    layer = _layer(*arguments)
    with layer.array_library.device():
        return layer.logits()


@_operator("logits_grad", f"Tensor grad, {_LAYER}", _GRADIENTS)
def logits_grad(grad: Any, *arguments: Any) -> tuple[Any, ...]:
    """Computes the derivatives of sum(grad * logits) in features, weights and bias."""
    return _as_results(arguments[0], *_layer(*arguments).logits_gradients(grad))


@_operator("loss", _LOSS_LAYER, f"(Tensor loss, {_STATE_TENSORS})")
def loss(*arguments: Any) -> tuple[Any, ...]:
    """Computes the loss, [N], and what its gradient is made of, by the names of cc/core/arguments.h."""
    layer = _layer(*arguments)
    with layer.array_library.device():
        optional = _optional_state(layer.features, layer.class_major)
        made = {"label_order": optional["label_order"]()} if layer.features.device.type == "cuda" else {}
        state = made | layer.loss(**made)
        state |= {name: make() for name, make in optional.items() if name not in state}
    return state["loss"], *(state[name] for name in _STATE)


@_operator("loss_grad", f"Tensor grad, {_LOSS_LAYER}, {_WANTED}, {_STATE_TENSORS}", _GRADIENTS)
def loss_grad(grad: Any, *arguments: Any) -> tuple[Any, ...]:
    """Computes the derivatives of sum(grad * loss) in features, weights and bias, from what `loss` left."""
    arguments, arrays = arguments[: -len(_STATE)], arguments[-len(_STATE) :]
    arguments, (of_features, of_weights) = arguments[:-2], arguments[-2:]
    layer = _layer(*arguments)
    grad = layer.upstream(grad, "[N]", (layer.rows,))
    state = {name: array for name, array in zip(_STATE, arrays, strict=True) if name not in _OPTIONAL or array.numel()}
    return _as_results(arguments[0], *layer.loss_gradients(grad, state, of_features, of_weights))


def _layer(features: Any, weights: Any, labels: Any, bias: Any, lam: Any, class_major: bool, *numbers: Any) -> Layer:
    library = Torch(torch, features, torch.get_num_threads() if features.device.type == "cpu" else None)
    margin, smoothing = Margin(*numbers[:7]), numbers[7] if len(numbers) > 7 else 0.0
    return Layer(library, features, weights, labels, bias, margin, lam, smoothing, class_major)


def _as_results(features: Any, *gradients: Any) -> tuple[Any, ...]:
    return tuple(features.new_empty(0) if gradient is None else gradient for gradient in gradients)


# Their shapes, for tensors without data -------------------------------------------------------------------------------


@logits.register_fake
def _(features: Any, weights: Any, labels: Any, bias: Any, lam: Any, class_major: bool, *_: Any) -> Any:
    return features.new_empty(features.shape[0], _classes(weights, class_major))


@loss.register_fake
def _(features: Any, weights: Any, labels: Any, bias: Any, lam: Any, class_major: bool, *_: Any) -> Any:
    rows = features.shape[0]
    return (
        features.new_empty(rows),
        features.new_empty(rows, _classes(weights, class_major)),
        features.new_empty(3, rows, dtype=torch.float64),
        features.new_empty(rows, dtype=torch.float64),
        *(make() for make in _optional_state(features, class_major).values()),
    )


@logits_grad.register_fake
def _(grad: Any, features: Any, weights: Any, labels: Any, bias: Any, *_: Any) -> tuple[Any, ...]:
    return _fake_gradients(features, weights, bias)


@loss_grad.register_fake
def _(grad: Any, features: Any, weights: Any, labels: Any, bias: Any, *rest: Any) -> tuple[Any, ...]:
    of_features, of_weights = rest[-len(_STATE) - 2 : -len(_STATE)]
    return _fake_gradients(features if of_features else None, weights if of_weights else None, bias, features)


def _fake_gradients(features: Any, weights: Any, bias: Any, like: Any = None) -> tuple[Any, ...]:
    like = features if like is None else like
    return tuple(like.new_empty(0 if of is None else of.shape) for of in (features, weights, bias))


def _optional_state(features: Any, class_major: bool) -> dict[str, Callable[[], Any]]:
    """Returns what makes memory for what a layer may leave, by the names of _OPTIONAL; empty where it leaves none."""
    rows, depth = features.shape
    in_half, on_cuda = features.dtype == torch.float16, features.device.type == "cuda"
    return {
        "target_weights": lambda: features.new_empty(0 if class_major else rows, depth),
        "grad_unit": lambda: features.new_empty(rows if in_half else 0, dtype=torch.float32),
        "label_order": lambda: features.new_empty(2, rows if on_cuda else 0, dtype=torch.int64),
    }


def _classes(weights: Any, class_major: bool) -> Any:
    return weights.shape[0 if class_major else 1]


# Their gradients ------------------------------------------------------------------------------------------------------


def _save_logits(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.numbers = inputs[5:]


def _of_logits(ctx: Any, grad: Any) -> tuple[Any, ...]:
    layer = (*ctx.saved_tensors, *ctx.numbers)
    return _for_inputs(layer, logits_grad(grad, *layer))


def _save_loss(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    _, *state = output
    ctx.mark_non_differentiable(*state)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:5], *state)
    ctx.numbers = inputs[5:]


def _of_loss(ctx: Any, grad: Any, *_: Any) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * (5 + len(ctx.numbers))
    saved = ctx.saved_tensors  # once: under torch.utils.checkpoint each look at them computes them anew
    layer = (*saved[:5], *ctx.numbers)
    of_features, of_weights, *_ = ctx.needs_input_grad
    gradients = loss_grad(grad, *layer, of_features, of_weights, *saved[5:])
    features_grad, weights_grad, *rest = _for_inputs(layer, gradients)
    return features_grad if of_features else None, weights_grad if of_weights else None, *rest


def _for_inputs(layer: tuple[Any, ...], gradients: tuple[Any, Any, Any]) -> tuple[Any, ...]:
    features_grad, weights_grad, bias_grad = gradients
    return features_grad, weights_grad, None, None if layer[3] is None else bias_grad, *[None] * (len(layer) - 4)


def _save_gradients(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:6])
    ctx.set_materialize_grads(False)
    ctx.numbers = tuple(value for value in inputs[6:] if not isinstance(value, torch.Tensor))
    ctx.inputs = len(inputs)


def _of_logits_grad(ctx: Any, *upstream: Any) -> tuple[Any, ...]:
    return _second_derivatives(ctx, formula.logits, ctx.numbers, upstream)


def _of_loss_grad(ctx: Any, *upstream: Any) -> tuple[Any, ...]:
    return _second_derivatives(ctx, formula.loss, ctx.numbers[:-2], upstream)  # what was wanted is none of its


def _second_derivatives(
    ctx: Any, function: Any, numbers: tuple[Any, ...], upstream: tuple[Any, ...]
) -> tuple[Any, ...]:
    """With f = sum(grad * function(X, W, b)), those of sum(upstream * df/d(X, W, b)) in grad, X, W and b."""
    grad, features, weights, labels, bias, lam = ctx.saved_tensors
    class_major, margin, smoothing = numbers[0], Margin(*numbers[1:8]), numbers[8:]

    def value(features: Any, weights: Any, bias: Any = None) -> Any:
        weights = weights.T if class_major else weights
        return function(features, weights, labels, bias, lam, margin, *smoothing)

    variables = [tensor for tensor in (features, weights, bias) if tensor is not None]
    with torch.autocast(features.device.type, enabled=False):
        of_grad, *of_variables = formula.second_derivatives(value, grad, variables, upstream)
    of_features, of_weights, of_bias = (*of_variables, None)[:3]
    return of_grad, of_features, of_weights, None, of_bias, *[None] * (ctx.inputs - 5)


logits.register_autograd(_of_logits, setup_context=_save_logits)
loss.register_autograd(_of_loss, setup_context=_save_loss)
logits_grad.register_autograd(_of_logits_grad, setup_context=_save_gradients)
loss_grad.register_autograd(_of_loss_grad, setup_context=_save_gradients)
