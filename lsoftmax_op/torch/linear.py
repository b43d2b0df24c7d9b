"""The last layer of a classifier: torch.nn.Linear, with a margin where there are labels."""

from __future__ import annotations

import math
from typing import Any

import torch

from lsoftmax_op import _checks
from lsoftmax_op._array_layer import known_margin
from lsoftmax_op.margins import Margin, margin_of
from lsoftmax_op.torch import formula
from lsoftmax_op.torch.functions import margin_softmax_logits, margin_softmax_loss

_REDUCTIONS = ("mean", "sum", "none")


class LSoftmaxLinear(torch.nn.Linear):
    """A linear layer that trains with a margin: Large-Margin Softmax (Liu et al., ICML 2016), or another.

    It takes the place of a network's last ``torch.nn.Linear``::

        head = LSoftmaxLinear(512, 10_000, margin=4, lam=5.0)
        head.loss(features, labels).backward()  # training: the fused loss
        head(features).argmax(-1)  # inference: the plain logits, in PyTorch's own operators

    Parameters, their initial values and the state_dict are those of ``torch.nn.Linear``: a head that was trained
    without a margin can go on with one, and what was trained here is served without this package (of a margin that
    normalises, the cosines are ``torch.nn.functional.normalize``'s). Lambda is no part of the state: it is given anew,
    or by a `LambdaScheduler`, which has a state.

    Args:
        in_features: D.
        out_features: C, the number of classes.
        bias: whether there is a bias [C]. The paper has none; a margin that normalises or scales cannot have one.
        margin: the integer m from 1 (no margin) to 64, or one of `lsoftmax_op.margins` whose numbers are no tensors.
        lam: the annealing weight lambda >= 0, a number; see `set_lambda`.
        label_smoothing: epsilon in [0, 1), in `loss`; as in ``torch.nn.functional.cross_entropy``.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: one out of range; a bias with a margin that normalises or scales.

    Attributes:
        weight: [C, D].
        bias: [C], or None.
        lam: lambda, a buffer of shape [], float64 and on the weight's device, whatever the module is cast to. As a
            tensor, it changes from step to step without compiling anew.
        margin: a `lsoftmax_op.margins.Margin`.
        label_smoothing: epsilon.
    """

    lam: torch.Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        *,
        margin: Margin | int = 4,
        lam: float = 0.0,
        label_smoothing: float = 0.0,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        margin = known_margin(margin_of(margin))
        if bias and margin.has_factors:
            raise ValueError(
                f"bias: expected False with a margin that normalises or scales, {_checks.shown(margin)}, got {bias!r}"
            )
        super().__init__(in_features, out_features, bias, device, dtype)
        self.margin = margin
        self.label_smoothing = _checks.label_smoothing(label_smoothing)
        self._lambda = _checks.host_lambda(lam)
        self.register_buffer("lam", self._lambda_of(self.weight.device), persistent=False)

    def forward(
        self, input: torch.Tensor, labels: torch.Tensor | None = None, reduction: str | None = None
    ) -> torch.Tensor:
        """Computes the plain logits, or with labels those with the margin, or with a reduction their loss.

        Args:
            input: [..., D], of the weight's dtype; within ``torch.autocast`` halves beside a float32 weight, too.
            labels: [...], integers, each in [0, C); -1 leaves its row the plain logits. None for inference.
            reduction: as of `loss`, which this is then: for wrappers that know the forward pass alone, as
                ``DistributedDataParallel`` and ``fully_shard`` do. None for the logits.

        Returns:
            [..., C]. Without labels they are made by PyTorch alone: ``torch.nn.Linear``'s, or the scaled cosines of a
            margin that normalises. With a reduction, what `loss` returns.

        Raises:
            TypeError, ValueError, ImportError: with labels, as `margin_softmax_logits`, or `loss`.
        """
        if reduction is not None:
            return self._loss(input, labels, _known(reduction))
        if labels is None:
            if not self.margin.has_factors:
                return super().forward(input)
            return formula.plain_logits(input, self.weight.T, self.margin)
        features, flat_labels = self._batch(input, labels)
        logits = margin_softmax_logits(
            features, self.weight, flat_labels, self.bias, margin=self.margin, lam=self.lam, class_major=True
        )
        return logits.reshape(*labels.shape, self.out_features)

    def loss(self, input: torch.Tensor, labels: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
        """Computes the softmax cross-entropy of the margin logits, and in the same pass its gradient.

        It is ``head(input, labels, reduction)``: hooks of the module run, as those of ``torch.nn.utils.prune`` do.

        Args:
            input: [..., D], as for `forward`.
            labels: [...], integers, each in [0, C); -1 gives its row loss 0 and gradient 0.
            reduction: "mean", over the labels that are not -1, as PyTorch's own loss has it; "sum"; or "none".

        Returns:
            The loss, [], or with "none" [...], of the weight's dtype (float32 within ``torch.autocast``, where the
            weight is not float64). The mean over no label is NaN, and its gradients are 0.

        Raises:
            TypeError, ValueError, ImportError: as `margin_softmax_loss`; a reduction that is none of these.
        """
        loss: torch.Tensor = self(input, labels, _known(reduction))
        return loss

    def _loss(self, input: Any, labels: Any, reduction: str) -> torch.Tensor:
        features, flat_labels = self._batch(input, labels)
        losses = margin_softmax_loss(
            features,
            self.weight,
            flat_labels,
            self.bias,
            margin=self.margin,
            lam=self.lam,
            label_smoothing=self.label_smoothing,
            class_major=True,
        )
        if reduction == "none":
            return losses.reshape(labels.shape)
        if reduction == "sum":
            return losses.sum()
        wide = torch.promote_types(losses.dtype, torch.float32)  # a sum of halves ends at 65504
        count = (flat_labels.long() != -1).sum()  # -1 would become a class of unsigned labels
        mean = losses.sum(dtype=wide) / count.clamp(min=1)
        return torch.where(count > 0, mean, math.nan).to(losses.dtype)

    def set_lambda(self, lam: float) -> None:
        """Sets the annealing weight, for training steps to come: large is near to no margin, 0 is the full one.

        Args:
            lam: a number >= 0; infinity is no margin.

        Raises:
            TypeError, ValueError: it is no such number.
        """
        self._lambda = _checks.host_lambda(lam)
        self.lam.fill_(self._lambda)

    def extra_repr(self) -> str:
        """Returns what printing the module shows of it."""
        return f"{super().extra_repr()}, margin={self.margin!r}, label_smoothing={self.label_smoothing}"

    def _load_from_state_dict(self, *arguments: Any, **named: Any) -> None:
        super()._load_from_state_dict(*arguments, **named)
        self._settle()  # the weights may be others now: ``load_state_dict(assign=True)`` of a module on "meta"

    def _batch(self, input: Any, labels: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns features [N, D] and labels [N]."""
        for name, value in (("input", input), ("labels", labels)):
            if not isinstance(value, torch.Tensor):
                raise TypeError(f"{name}: expected a PyTorch tensor, got {_checks.described(value)}")
        if input.dim() == 0:
            raise ValueError(f"input: expected shape [..., {self.in_features}], got {list(input.shape)}")
        if input.shape[:-1] != labels.shape:
            raise ValueError(
                f"labels: expected shape {list(input.shape[:-1])}, that of input {list(input.shape)} without its last "
                f"axis, got {list(labels.shape)}"
            )
        return input.reshape(labels.numel(), input.shape[-1]), labels.reshape(-1)

    def _lambda_of(self, device: torch.device) -> torch.Tensor:
        return torch.full((), self._lambda, dtype=torch.float64, device=_home(device))

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Moves or casts the module as `fn` says; lambda is moved alone, as in float16 it would end at 65504."""
        lam = self.lam
        super()._apply(fn, recurse)
        self.lam = lam
        self._settle()
        return self

    def _settle(self) -> None:
        """Puts lambda where the weights are."""
        device = self.weight.device
        self.lam = self._lambda_of(device) if self.lam.is_meta else self.lam.to(_home(device))


def _known(reduction: object) -> str:
    if not isinstance(reduction, str) or reduction not in _REDUCTIONS:
        raise ValueError(f"reduction: expected one of {', '.join(_REDUCTIONS)}, got {_checks.shown(reduction)}")
    return reduction


def _home(device: torch.device) -> torch.device:
    """Returns where lambda lies: with the weights, but where no kernel is, and maybe no float64, on the CPU."""
    return device if device.type in ("cpu", "cuda", "meta") else torch.device("cpu")
