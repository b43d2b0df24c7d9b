"""The margin logits and their loss as PyTorch functions; the operators behind them are those of operators.py.

What is left to do here: to spell a margin as its numbers, lambda as a tensor, and weights that are the transpose of a
dense array as that array, in the other layout. Within ``torch.autocast`` floats become float32, as they do for
PyTorch's own losses.
"""

from __future__ import annotations

from numbers import Real
from typing import Any

import torch
from torch.autograd import forward_ad

from lsoftmax_op import _checks
from lsoftmax_op._array_layer import known_margin
from lsoftmax_op.margins import LSoftmax, Margin, margin_of
from lsoftmax_op.torch import operators

_LSOFTMAX = tuple(LSoftmax(m) for m in range(1, _checks.MAX_MARGIN + 1))


def lsoftmax_logits(
    features: torch.Tensor,
    weights: torch.Tensor,
    labels: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    margin: int = 4,
    lam: float | torch.Tensor = 0.0,
    class_major: bool = False,
) -> torch.Tensor:
    """Computes the logits of Large-Margin Softmax (Liu et al., ICML 2016, equations 4 to 6).

    Every logit is the linear layer's, ``features @ weights + bias``, but the target's. With theta the angle between a
    sample x and the weights w of its class, it is::

        (lam |w||x| cos(theta) + |w||x| psi(theta)) / (1 + lam) + bias
        psi(theta) = (-1)^k cos(margin theta) - 2k   for theta in [k pi/margin, (k+1) pi/margin]

    Feed them to ``torch.nn.functional.cross_entropy``, whose ``ignore_index`` is to be -1, in training. For inference
    use the plain ``features @ weights + bias``.

    It is differentiable any number of times in features, weights and bias, and stays in one graph under
    ``torch.compile``. Within ``torch.autocast`` it computes in float32.

    Args:
        features: [N, D], float16, bfloat16, float32 or float64, on the CPU or on a CUDA device.
        weights: [D, C], of the same dtype and device; [C, D] if `class_major`.
        labels: [N], integers, each in [0, C); -1 leaves its row the plain layer's.
        bias: [C], of the same dtype, or None.
        margin: the integer m from 1 (no margin) to 64.
        lam: the annealing weight lambda >= 0, a number or a scalar tensor on the same device; infinity is the plain
            layer. A tensor that changes never compiles anew. See `LambdaScheduler`.
        class_major: whether the weights are [C, D], a row for every class, as those of a ``torch.nn.Linear``. They are
            not copied to another layout, nor is their gradient; and neither is ``linear.weight.T`` without this.

    Returns:
        The logits, [N, C], of the features' dtype.

    Raises:
        TypeError: an argument of the wrong dtype, type or device.
        ValueError: shapes that do not fit, or a label, margin or lambda out of range. On a CUDA device nobody waits to
            look: a label out of range, or a lambda there, makes its row NaN.
        ImportError: tensors on a CUDA device, and the package was built without CUDA.
    """
    return operators.logits(*_arguments(features, weights, labels, bias, _checks.margin(margin), lam, class_major))


def margin_softmax_logits(
    features: torch.Tensor,
    weights: torch.Tensor,
    labels: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    margin: Margin | int,
    lam: float | torch.Tensor = 0.0,
    class_major: bool = False,
) -> torch.Tensor:
    """Computes the logits of any margin: L-Softmax, SphereFace, CosFace, ArcFace or their combination.

    With theta the angle between a sample x and the weights w of a class, its plain logit is::

        scale |x||w| cos(theta)   |x|: 1 if the margin normalises the features; |w|: 1 if it normalises the weights

    and for the sample's own class cos(theta) becomes ``(lam cos(theta) + psi(theta)) / (1 + lam)``, with psi of
    `lsoftmax_op.margins`. For training prefer `margin_softmax_loss`. All else is as for `lsoftmax_logits`.

    Args:
        features: [N, D], as for `lsoftmax_logits`.
        weights: [D, C], or [C, D], as for `lsoftmax_logits`.
        labels: [N], as for `lsoftmax_logits`.
        bias: [C], of the same dtype, or None; None with a margin that normalises or scales.
        margin: of `lsoftmax_op.margins`, whose m2, m3 and scale are numbers, or an integer m for L-Softmax.
        lam: as for `lsoftmax_logits`.
        class_major: as for `lsoftmax_logits`.

    Returns:
        The logits, [N, C], of the features' dtype; 0 where a norm is zero that the margin divides by.

    Raises:
        TypeError, ValueError, ImportError: as for `lsoftmax_logits`.
    """
    return operators.logits(*_arguments(features, weights, labels, bias, margin, lam, class_major))


def lsoftmax_loss(
    features: torch.Tensor,
    weights: torch.Tensor,
    labels: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    margin: int = 4,
    lam: float | torch.Tensor = 0.0,
    label_smoothing: float = 0.0,
    class_major: bool = False,
) -> torch.Tensor:
    """Computes the loss of Large-Margin Softmax (Liu et al., ICML 2016, equations 3 to 6), one number a sample.

    The softmax cross-entropy of `lsoftmax_logits`: one pass over the [N, C] products makes the loss and, in their
    place, its gradient. Reduce it as you like; ``.mean()`` is the mean over the batch.

    It is differentiable any number of times, as `lsoftmax_logits` is.

    Args:
        features: [N, D], as for `lsoftmax_logits`.
        weights: [D, C], or [C, D], as for `lsoftmax_logits`.
        labels: [N], integers, each in [0, C); -1 gives its row loss 0 and gradient 0.
        bias: [C], of the same dtype, or None.
        margin: the integer m from 1 (no margin) to 64.
        lam: as for `lsoftmax_logits`.
        label_smoothing: epsilon in [0, 1), as in ``torch.nn.functional.cross_entropy``: the target distribution is
            1 - epsilon on the sample's class, and epsilon / C on each of the C classes.
        class_major: as for `lsoftmax_logits`.

    Returns:
        The loss of each sample, [N], of the features' dtype (float32 within ``torch.autocast``), never negative.

    Raises:
        TypeError, ValueError, ImportError: as for `lsoftmax_logits`.
    """
    return _loss(features, weights, labels, bias, _checks.margin(margin), lam, class_major, label_smoothing)


def margin_softmax_loss(
    features: torch.Tensor,
    weights: torch.Tensor,
    labels: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    margin: Margin | int,
    lam: float | torch.Tensor = 0.0,
    label_smoothing: float = 0.0,
    class_major: bool = False,
) -> torch.Tensor:
    """Computes the loss of any margin, one number a sample: the softmax cross-entropy of `margin_softmax_logits`.

    What a margin normalises is normalised in the pass over the products, without a normalised copy of the weights::

        margin_softmax_loss(features, weights, labels, margin=margins.ArcFace(0.5, 64)).mean()

    Args:
        features: [N, D], as for `lsoftmax_logits`.
        weights: [D, C], or [C, D], as for `lsoftmax_logits`.
        labels: [N], as for `lsoftmax_loss`.
        bias: [C], of the same dtype, or None; None with a margin that normalises or scales.
        margin: as for `margin_softmax_logits`.
        lam: as for `lsoftmax_logits`.
        label_smoothing: as for `lsoftmax_loss`.
        class_major: as for `lsoftmax_logits`.

    Returns:
        The loss of each sample, [N], as `lsoftmax_loss`. Of a norm of zero that is divided by come logits of 0 and
        gradients of 0.

    Raises:
        TypeError, ValueError, ImportError: as for `lsoftmax_logits`.
    """
    return _loss(features, weights, labels, bias, margin, lam, class_major, label_smoothing)


def _loss(*arguments: Any) -> Any:
    *layer, label_smoothing = arguments
    return operators.loss(*_arguments(*layer), _checks.label_smoothing(label_smoothing))[0]


def _arguments(
    features: Any,
    weights: Any,
    labels: Any,
    bias: Any,
    margin: Margin | int,
    lam: float | torch.Tensor,
    class_major: bool,
) -> tuple[Any, ...]:
    """Returns what the operators take."""
    class_major = _checks.flag(class_major, "class_major")
    margin = known_margin(_margin_of(margin))
    _checks.bias_beside(bias, margin)
    for name, value in (("features", features), ("weights", weights), ("labels", labels), ("bias", bias)):
        if value is not None or name != "bias":
            _check_tensor(name, value, getattr(features, "device", None))
            if value.is_nested:
                raise TypeError(f"{name}: expected a dense PyTorch tensor, got a nested one")
    if isinstance(lam, torch.Tensor):
        _check_tensor("lam", lam, features.device)
        lam = lam.detach().clone()  # of this pass, and the backward pass to it, whatever is set meanwhile
    elif isinstance(lam, (bool, Real)):
        # In a graph that is compiled for numbers to come, it has no value yet: the operator looks at it.
        number = lam if torch.compiler.is_compiling() else _checks.host_lambda(lam)
        lam = torch.full((), number, dtype=torch.float64, device=features.device)
    else:
        raise TypeError(f"lam: expected a number >= 0 or a scalar tensor, got {_checks.described(lam)}")
    if features.device.type in ("cpu", "cuda") and torch.is_autocast_enabled(features.device.type):
        features, weights, bias = (_as_in_autocast(tensor) for tensor in (features, weights, bias))
    if features.dim() == 2 and _is_transposed(weights) and weights.shape[1 if class_major else 0] == features.shape[1]:
        weights, class_major = weights.T, not class_major  # as they lie
    return features, weights, labels, bias, lam, class_major, *_attributes(margin)


def _margin_of(margin: Margin | int) -> Margin:
    """Returns what `margin_of` does; of an integer without its cache, which a compiler cannot read."""
    if type(margin) is int and 1 <= margin <= _checks.MAX_MARGIN:
        return _LSOFTMAX[margin - 1]
    return margin_of(margin)


def _check_tensor(name: str, value: Any, device: Any) -> None:
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name}: expected a PyTorch tensor, got {_checks.described(value)}")
    if value.device != device:
        raise TypeError(
            f"{name}: expected a PyTorch tensor on {device}, as features is, got {_checks.described(value)}"
        )
    if torch.compiler.is_compiling():
        return
    if torch._C._functorch.is_gradtrackingtensor(value) or forward_ad.unpack_dual(value).tangent is not None:
        raise TypeError(
            f"{name}: expected a tensor of no functional derivative, got one within torch.func.grad, jvp or "
            "forward_ad: take gradients by backward or torch.autograd.grad"
        )


def _is_transposed(weights: Any) -> bool:
    """Whether they are a view of a dense matrix that has the other layout."""
    is_dense = weights.layout == torch.strided and weights.dim() == 2
    return is_dense and not weights.is_contiguous() and weights.T.is_contiguous()


def _as_in_autocast(tensor: Any) -> Any:
    return tensor.float() if tensor is not None and tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _attributes(margin: Margin) -> tuple[Any, ...]:
    """Returns those of a margin, in the order of its constructor."""
    unit = margin.normalize_features, margin.normalize_weights
    return margin.m1, margin.m2, margin.m3, margin.scale, *unit, margin.continuation
