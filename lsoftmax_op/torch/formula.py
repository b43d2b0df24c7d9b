"""The margin logits and their loss in PyTorch's own operators, where PyTorch is to derive them again.

    z_ij   = r_i f_j x_i . w_j      r_i = scale / |x_i|, f_j = 1 / |w_j|, where the margin divides by the norm; else 1
    target = scale |x| |w| (c + (psi(c) - c) / (1 + lam)),   c = cos(theta) = x . w / (|x| |w|)

psi is that of `lsoftmax_op.margins`, from the recurrence of the Chebyshev polynomials, as in cc/core/margin.h. Rows
whose margin changes nothing keep the plain logit. Second derivatives are rare and wanted exact, not fast: here the
target's share is O(N D) in float64, and the [N, C] logits are made several times.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from lsoftmax_op.margins import Margin

_POLE = 2.0**-46  # of sin(theta)^2
_ZERO = 2.0**-120  # a squared norm below counts as zero where it is divided by


def plain_logits(features: Any, weights: Any, margin: Margin) -> Any:
    """Returns the logits without the margin and without a bias, [..., C], from features [..., D], weights [D, C]."""
    if margin.normalize_features or margin.scale != 1:
        factors = margin.scale * (_inverse_norm(features, -1) if margin.normalize_features else 1.0)
        features = (features.double() * factors).to(features.dtype)
    if margin.normalize_weights:
        weights = (weights.double() * _inverse_norm(weights, 0)).to(weights.dtype)
    return features @ weights


def logits(features: Any, weights: Any, labels: Any, bias: Any, lam: Any, margin: Margin) -> Any:
    """Returns the margin logits, differentiable any number of times.

    Args:
        features: [N, D].
        weights: [D, C].
        labels: [N], each in [0, C) or -1.
        bias: [C] or None.
        lam: [], the annealing weight lambda.
        margin: of `lsoftmax_op.margins`.
    """
    labels = labels.long()  # unsigned ones compare with nothing
    has_target, column = labels >= 0, labels.clamp(min=0)
    x, w = features.double(), weights.index_select(1, column).T.double()
    plain = plain_logits(features, weights, margin)
    target, has_margin = _target(x, w, lam.double(), margin)
    target = torch.where(has_target & has_margin, target.to(plain.dtype), plain.gather(1, column[:, None])[:, 0])
    result = plain.scatter(1, column[:, None], target[:, None])
    return result if bias is None else result + bias


def loss(features: Any, weights: Any, labels: Any, bias: Any, lam: Any, margin: Margin, label_smoothing: float) -> Any:
    """Returns the loss, [N], differentiable any number of times; the arguments are those of `logits`."""
    z = logits(features, weights, labels, bias, lam, margin)
    wide = z if z.dtype == torch.float64 else z.float()
    loss = torch.nn.functional.cross_entropy(
        wide, labels.long(), ignore_index=-1, label_smoothing=label_smoothing, reduction="none"
    )
    return loss.to(z.dtype)


def second_derivatives(
    function: Callable[..., Any], grad: Any, variables: Sequence[Any], upstream: Sequence[Any]
) -> tuple[Any, ...]:
    """Returns the derivatives of sum(upstream * df/d(variables)), f = sum(grad * function(*variables)).

    They can be differentiated, too, where autograd records.

    Args:
        function: of the variables.
        grad: of the shape of its value.
        variables: tensors.
        upstream: of each, a tensor of its shape, or None.

    Returns:
        In grad and in each of the variables; None where nothing depends on it.
    """
    if all(along is None for along in upstream):
        return (None,) * (1 + len(variables))
    further = torch.is_grad_enabled()
    with torch.enable_grad():
        # Each is a variable of its own here, though one may have been made of another.
        grad, *variables = (
            tensor.view_as(tensor) if tensor.requires_grad else tensor.detach().requires_grad_()
            for tensor in (grad, *variables)
        )
        first = torch.autograd.grad(function(*variables), variables, grad, create_graph=True)
        pairs = [pair for pair in zip(first, upstream, strict=False) if pair[1] is not None]
        return torch.autograd.grad(
            [derivative for derivative, _ in pairs],
            [grad, *variables],
            [along for _, along in pairs],
            create_graph=further,
            allow_unused=True,
        )


def _target(x: Any, w: Any, lam: Any, margin: Margin) -> tuple[Any, Any]:
    """Returns the target's logit of each row, [N], float64, and whether the margin makes it another than the plain one.

    `x`, `w`: [N, D], float64, the features and the weights of their classes.
    """
    A, B = (x * x).sum(1), (w * w).sum(1)
    zero_A, zero_B = (_ZERO if divides else 0.0 for divides in (margin.normalize_features, margin.normalize_weights))
    has_norms = A.gt(zero_A) & B.gt(zero_B)
    a, b = (torch.where(has_norms, norm_sq, 1.0).sqrt() for norm_sq in (A, B))
    c = torch.where(has_norms, (x * w).sum(1), 0.0) / a / b
    c = c + (c.clamp(-1, 1) - c).detach()  # clamped, and still with the slope of c
    value = c + (_psi(c, margin) - c) / (1 + lam)
    size = margin.scale
    size = size if margin.normalize_features else size * a
    size = size if margin.normalize_weights else size * b
    return size * value, has_norms & lam.isfinite() & margin.moves_target


def _psi(c: Any, margin: Margin) -> Any:
    """Returns psi at c = cos(theta)."""
    before, u = torch.zeros_like(c), torch.ones_like(c)  # U_{j-1} and U_j, from j = 0
    segment, sign = torch.zeros_like(c), torch.ones_like(c)  # k and (-1)^k
    for _ in range(1, margin.m1):
        before, u = u, 2 * c * u - before
        changes = sign * u < 0
        segment = segment + changes
        sign = torch.where(changes, -sign, sign)
    cosine, sine_ratio = sign * (c * u - before), sign * u
    if margin.m2 == 0:
        return cosine - 2 * segment - margin.m3
    cos_shift, sin_shift = math.cos(margin.m2), math.sin(margin.m2)
    sin_sq = (1 - c) * (1 + c)
    at_pole = sin_sq < _POLE
    root = torch.where(at_pole, 1.0, sin_sq).sqrt()  # at a pole, no slope of its own
    sine = torch.where(at_pole, sin_sq.clamp(min=0).sqrt().detach(), root)
    value = cosine * cos_shift - sine_ratio * sine * sin_shift
    beyond = cosine < -cos_shift
    segment = torch.where(beyond, segment + 1, segment)
    beyond_value = c - margin.m2 * sin_shift if margin.continuation == "linear" else -value - 2 * segment
    return torch.where(beyond, beyond_value, value - 2 * segment) - margin.m3


def _inverse_norm(array: Any, axis: int) -> Any:
    """Returns 1 / the norms along an axis, float64, 0 of a norm below 2^-60; the axis has size 1 then."""
    norm_sq = array.double().square().sum(axis, keepdim=True)
    is_zero = norm_sq < _ZERO
    return torch.where(is_zero, 0.0, torch.where(is_zero, 1.0, norm_sq).rsqrt())
