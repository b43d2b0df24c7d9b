"""What kernels and ops are told of a margin: attributes, and the numbers that cc/core/margin.h calls its terms.

    terms = (m2, cos(m2), sin(m2), m3, scale, epsilon, epsilon / C)      epsilon: the share of smoothed labels

L-Softmax with labels that are not smoothed has none.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

from lsoftmax_op.margins import Margin


def attributes(margin: Margin) -> dict[str, Any]:
    """Returns the attributes of the raw ops, and of a kernel's call, that a margin is made of."""
    return {
        "margin": margin.m1,
        "normalize_features": margin.normalize_features,
        "normalize_weights": margin.normalize_weights,
        "linear_continuation": margin.continuation == "linear",
    }


class Terms(NamedTuple):
    """The numbers of a margin and of its loss, float64 scalars, as `Terms` of cc/core/margin.h has them."""

    shift: Any
    cos_shift: Any
    sin_shift: Any
    offset: Any
    scale: Any
    smoothing: Any
    smoothing_of_class: Any


@functools.lru_cache(maxsize=256)
def known_terms(shift: float, offset: float, scale: float, smoothing: float, of_class: float) -> Terms:
    """Returns the terms of numbers."""
    return Terms(shift, math.cos(shift), math.sin(shift), offset, scale, smoothing, of_class)


def has_terms(margin: Margin, smoothing: float) -> bool:
    """Whether there are terms: the margin is another than L-Softmax's, or labels are smoothed."""
    return smoothing != 0 or not margin.is_plain


def without_psi(margin: Margin) -> Margin:
    """Returns what an infinite lambda leaves of a margin: the plain logits that it normalises and scales."""
    return dataclasses.replace(margin, m1=1, m2=0.0, m3=0.0, continuation="unfolded")
