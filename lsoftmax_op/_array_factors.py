"""The numbers of a margin, and what it multiplies products by, on the arrays of any library.

    z_ij = r_i (x_i . w_j) f_j      r_i = scale / |x_i|      f_j = 1 / |w_j|      norms that are not divided by: 1

r and f are 0 where their norm is, or below 2^-60. The fused loss does the same in its kernels; this is for the logits
by themselves.
"""

from __future__ import annotations

from typing import Any

from lsoftmax_op import _terms
from lsoftmax_op._array_libraries import Library
from lsoftmax_op.margins import Margin


def terms(library: Library, margin: Margin, smoothing: float, classes: int) -> Any:
    """Returns the terms [7], float64 (_terms.py); None where there are none.

    Args:
        library: that of the arrays.
        margin: one whose numbers are known.
        smoothing: the share of the target distribution that all classes have.
        classes: their number.
    """
    if not _terms.has_terms(margin, smoothing):
        return None
    numbers = (float(margin.m2), float(margin.m3), float(margin.scale))
    return library.numbers(_terms.known_terms(*numbers, smoothing, smoothing / classes))


def row_factors(library: Library, margin: Margin, features: Any) -> Any:
    """Returns r, [N], float64; None where it is 1.

    Args:
        library: as for `terms`.
        margin: as for `terms`.
        features: [N, D].
    """
    if not margin.normalize_features:
        return None if margin.scale == 1 else library.full((features.shape[0],), float(margin.scale), "float64")
    wide = library.cast(features, "float64")
    norm_sq = library.row_sums(wide * wide)
    is_zero = library.cast(norm_sq < 2.0**-120, "float64")
    return (1 - is_zero) * margin.scale / (norm_sq + is_zero) ** 0.5


def scale_rows(library: Library, array: Any, factors: Any) -> Any:
    """Returns diag(factors) times the array [N, .], in its dtype, rounded once; of no factors the array itself."""
    if factors is None:
        return array
    return library.cast(library.cast(array, "float64") * factors[:, None], library.dtype(array))


def scale_columns(library: Library, array: Any, factors: Any) -> Any:
    """Returns the array [., C] times diag(factors), in its dtype, rounded once; of no factors the array itself."""
    if factors is None:
        return array
    return library.cast(library.cast(array, library.dtype(factors)) * factors, library.dtype(array))
