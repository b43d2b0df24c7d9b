# cython: language_level=3, cdivision=True
"""The oracle: Large-Margin Softmax as the paper writes it, in float64, one sample at a time.

Liu, Wen, Yu, Yang, "Large-Margin Softmax Loss for Convolutional Neural Networks", ICML 2016. With theta the angle between
a sample x and the weights w of its class, and m the margin::

    psi(theta) = (-1)^k cos(m theta) - 2k      on theta in [k pi/m, (k+1) pi/m]                        (equation 6)
    target     = (lambda |w||x| cos(theta) + |w||x| psi(theta)) / (1 + lambda)                       (section 5.1)

Here theta is an arc cosine, k is searched for, and the derivative goes through theta::

    d target = (lambda d(w.x) + psi d(|w||x|) + |w||x| psi'(theta) d theta) / (1 + lambda)
    psi'(theta) = -(-1)^k m sin(m theta)       d theta = -d cos(theta) / sin(theta)

It is slow, it is meant to be read, and it shares no code with the kernels that it judges. Sums of products are rounded
once, at their end.
"""

from libc.math cimport M_PI as pi, acos, cos, fma, isfinite, isnan, sin, sqrt

from math import fsum, log1p
from numbers import Real
from typing import NamedTuple

import numpy as np

from lsoftmax_op import _checks


class Gradients(NamedTuple):
    """The derivatives of a loss in the arguments of the layer.

    Attributes:
        features: [N, D].
        weights: [D, C].
        bias: [C], None where the layer has no bias.
    """

    features: np.ndarray
    weights: np.ndarray
    bias: "np.ndarray | None"


# One angle ------------------------------------------------------------------------------------------------------------


cdef int _segment(double theta, int m) noexcept:
    """k, for which theta lies in [k pi/m, (k+1) pi/m]."""
    cdef int k = 0
    while k < m - 1 and theta > pi * ((k + 1.0) / m):  # in this order, half a turn's edge is pi/2 to the last bit
        k += 1
    return k


cdef double _psi(double theta, int m) noexcept:
    cdef int k = _segment(theta, m)
    return (1 if k % 2 == 0 else -1) * cos(m * theta) - 2 * k


cdef double _psi_per_cos(double theta, int m) noexcept:
    """d psi / d cos(theta) = (-1)^k m sin(m theta) / sin(theta), whose limit at both poles is m^2."""
    cdef int k = _segment(theta, m)
    if sin(theta) < 1e-12:
        return m * m
    return (1 if k % 2 == 0 else -1) * m * sin(m * theta) / sin(theta)


def psi(theta, margin) -> float:
    """Returns psi(theta) (equation 6).

    Args:
        theta: the angle, in [0, pi].
        margin: the integer m from 1 to 64.

    Raises:
        ValueError: theta outside [0, pi], or a margin out of range.
        TypeError: theta is no number, or the margin no integer.
    """
    return _psi(_angle(theta), _checks.margin(margin))


def segment(theta, margin) -> int:
    """Returns k, for which theta is in [k pi/margin, (k+1) pi/margin].

    Args:
        theta: the angle, in [0, pi].
        margin: the integer m from 1 to 64.

    Raises:
        TypeError, ValueError: as for `psi`.
    """
    return _segment(_angle(theta), _checks.margin(margin))


# One sample -----------------------------------------------------------------------------------------------------------


cdef class _Target:
    """The target logit of one sample x with the weights w of its class, and its derivatives in both."""

    cdef readonly double logit, cos_theta
    cdef readonly int k
    cdef readonly object in_x, in_w

    def __init__(self, x, w, int m, double lam):
        cdef double dot = _dot(x, w), norm_x = _norm(x), norm_w = _norm(w)
        cdef double theta, value, slope, share
        if norm_x == 0 or norm_w == 0:  # no angle: the plain logit
            self.cos_theta = 0
            self.k = _segment(pi / 2, m)
            self.logit, self.in_x, self.in_w = dot, w, x
            return
        self.cos_theta = dot / norm_x / norm_w
        if self.cos_theta > 1:
            self.cos_theta = 1
        if self.cos_theta < -1:
            self.cos_theta = -1
        theta = acos(self.cos_theta)  # NaN where a feature or a weight is NaN or infinite
        self.k = _segment(theta, m)
        if not isfinite(lam):
            self.logit, self.in_x, self.in_w = dot, w, x
            return
        value, slope = _psi(theta, m), _psi_per_cos(theta, m)
        share = 1 / (1 + lam)
        self.logit = lam * share * dot + share * norm_w * norm_x * value
        # d(|w||x|) = |w| x/|x| in x;   |w||x| d cos(theta) = w - cos(theta) |w| x/|x| in x;   the same in w, exchanged.
        along_x, along_w = x / norm_x, w / norm_w
        self.in_x = lam * share * w + share * (
            value * norm_w * along_x + slope * (w - self.cos_theta * norm_w * along_x)
        )
        self.in_w = lam * share * x + share * (
            value * norm_x * along_w + slope * (x - self.cos_theta * norm_x * along_w)
        )


cdef double _dot(const double[:] v, const double[:] w):
    """v . w, rounded once: fma tells what rounding left off a product, and fsum adds without loss."""
    cdef double product
    terms = []
    for i in range(v.shape[0]):
        product = v[i] * w[i]
        if not isfinite(product):
            return float(np.dot(v, w))  # infinite or NaN: nothing to be exact about
        terms += [product, fma(v[i], w[i], -product)]
    return fsum(terms)


cdef double _norm(v):
    """|v|, scaled so that no square over- or underflows."""
    cdef double largest = np.max(np.abs(v), initial=0.0)
    if largest == 0 or not isfinite(largest):
        return largest
    scaled = v / largest
    return largest * sqrt(_dot(scaled, scaled))


# A batch --------------------------------------------------------------------------------------------------------------


def logits(features, weights, labels, bias=None, *, margin=4, lam=0.0) -> np.ndarray:
    """Returns the margin logits [N, C].

    Args:
        features: [N, D].
        weights: [D, C].
        labels: [N], each in [0, C), or -1 for a row of plain logits.
        bias: [C] or None.
        margin: the integer m from 1 to 64.
        lam: the annealing weight lambda >= 0; infinity is the plain layer.

    Raises:
        TypeError, ValueError: arguments that do not fit; the message names the argument.
    """
    m, lam = _checks.margin(margin), _number(lam, "lam: expected a number >= 0")
    x, w, y, b = _batch(features, weights, labels, bias, lam)
    z = np.empty((x.shape[0], w.shape[1]))
    for i in range(x.shape[0]):
        for c in range(w.shape[1]):
            z[i, c] = _dot(x[i], w[:, c])
        if y[i] >= 0:
            z[i, y[i]] = _Target(x[i], w[:, y[i]], m, lam).logit
    return z if b is None else z + b


def logits_grad(grad, features, weights, labels, bias=None, *, margin=4, lam=0.0) -> Gradients:
    """Returns the derivatives of ``sum(grad * logits(...))`` in features, weights and bias.

    Args:
        grad: [N, C], what comes down to the logits.
        features: [N, D], as for `logits`.
        weights: [D, C], as for `logits`.
        labels: [N], as for `logits`.
        bias: [C] or None, as for `logits`.
        margin: as for `logits`.
        lam: as for `logits`.

    Raises:
        TypeError, ValueError: arguments that do not fit; the message names the argument.
    """
    m, lam = _checks.margin(margin), _number(lam, "lam: expected a number >= 0")
    x, w, y, b = _batch(features, weights, labels, bias, lam)
    g = _float64(grad, "grad")
    if g.shape != (x.shape[0], w.shape[1]):
        raise ValueError(f"grad: expected shape {[x.shape[0], w.shape[1]]}, got {list(g.shape)}")
    targets = {i: _Target(x[i], w[:, label], m, lam) for i, label in enumerate(y) if label >= 0}
    in_x, in_w = np.empty_like(x), np.empty_like(w)
    for i in range(x.shape[0]):
        slopes = w.copy()  # d logits[i, c] / d x[i] in column c
        if y[i] >= 0:
            slopes[:, y[i]] = targets[i].in_x
        in_x[i] = [_dot(g[i], slope) for slope in slopes]
    for c in range(w.shape[1]):
        slopes = x.copy()  # d logits[i, c] / d w[:, c] in row i
        for i in np.flatnonzero(y == c):
            slopes[i] = targets[i].in_w
        in_w[:, c] = [_dot(g[:, c], slope) for slope in slopes.T]
    in_b = None if b is None else np.array([_dot(column, np.ones(len(x))) for column in g.T])
    return Gradients(in_x, in_w, in_b)


def target_angles(features, weights, labels, *, margin=4) -> tuple:
    """Returns cos(theta) [N] and the segment k [N], int32, of every sample and the weights of its class.

    A zero norm gives 0 and its segment, a label of -1 gives NaN and -1.

    Args:
        features: [N, D].
        weights: [D, C].
        labels: [N], each in [0, C), or -1.
        margin: the integer m from 1 to 64, which cuts [0, pi] into segments.

    Raises:
        TypeError, ValueError: arguments that do not fit; the message names the argument.
    """
    m = _checks.margin(margin)
    x, w, y, _ = _batch(features, weights, labels, None, 0.0)
    cosines, segments = np.full(len(x), np.nan), np.full(len(x), -1, np.int32)
    for i in range(x.shape[0]):
        if y[i] >= 0:
            target = _Target(x[i], w[:, y[i]], m, 0.0)
            cosines[i], segments[i] = target.cos_theta, target.k
    return cosines, segments


def loss(features, weights, labels, bias=None, *, margin=4, lam=0.0) -> np.ndarray:
    """Returns the softmax cross-entropy [N] of the margin logits; 0 where the label is -1.

    Args:
        features: [N, D], as for `logits`.
        weights: [D, C], as for `logits`.
        labels: [N], as for `logits`.
        bias: [C] or None, as for `logits`.
        margin: as for `logits`.
        lam: as for `logits`.

    Raises:
        TypeError, ValueError: arguments that do not fit; the message names the argument.
    """
    labels = _checks.array(labels, "labels").copy()  # what is checked below is what is used here
    z = logits(features, weights, labels, bias, margin=margin, lam=lam)
    losses = np.zeros(len(z))
    for i, label in enumerate(labels):
        if label >= 0:
            largest = z[i].argmax()
            e = np.exp(z[i] - z[i, largest])
            losses[i] = log1p(fsum(np.delete(e, largest))) + (z[i, largest] - z[i, label])
    return losses


def loss_grad(grad, features, weights, labels, bias=None, *, margin=4, lam=0.0) -> Gradients:
    """Returns the derivatives of ``sum(grad * loss(...))`` in features, weights and bias.

    Args:
        grad: [N], what comes down to each sample's loss.
        features: [N, D], as for `logits`.
        weights: [D, C], as for `logits`.
        labels: [N], as for `logits`.
        bias: [C] or None, as for `logits`.
        margin: as for `logits`.
        lam: as for `logits`.

    Raises:
        TypeError, ValueError: arguments that do not fit; the message names the argument.
    """
    labels = _checks.array(labels, "labels").copy()  # what is checked below is what is used here
    z = logits(features, weights, labels, bias, margin=margin, lam=lam)
    g = _float64(grad, "grad")
    if g.shape != z.shape[:1]:
        raise ValueError(f"grad: expected shape {[z.shape[0]]}, got {list(g.shape)}")
    in_logits = np.zeros_like(z)
    for i, label in enumerate(labels):
        if label >= 0:
            e = np.exp(z[i] - z[i].max())
            in_logits[i] = g[i] * e / fsum(e)
            in_logits[i, label] = -g[i] * fsum(np.delete(e, label)) / fsum(e)  # p - 1 without its cancellation
    return logits_grad(in_logits, features, weights, labels, bias, margin=margin, lam=lam)


# Checks ---------------------------------------------------------------------------------------------------------------


def _number(value, expected):
    """Returns a number, or a scalar array, as a float."""
    number = value if isinstance(value, Real) else _checks.array(value, expected.partition(":")[0])[()]
    return _checks.real(number if isinstance(number, Real) else value, expected)


def _float64(value, name):
    """Returns an array of numbers, or what NumPy makes one of, in float64."""
    values = _checks.array(value, name)
    if values.dtype == object:
        numbers = [_checks.real(number, f"{name}: expected numbers") for number in values.flat]
        return np.array(numbers, np.float64).reshape(values.shape)
    if values.dtype.kind not in "biuf" and values.dtype.name != "bfloat16":
        raise TypeError(f"{name}: expected numbers, got dtype {values.dtype}")
    return values.astype(np.float64)


def _angle(theta):
    theta = _number(theta, "theta: expected an angle from 0 to pi")
    if not 0 <= theta <= pi:
        raise ValueError(f"theta: expected an angle from 0 to pi, got {theta}")
    return theta


def _batch(features, weights, labels, bias, double lam):
    """Returns the arguments as float64 and int64 arrays that fit each other."""
    x, w, y = _float64(features, "features"), _float64(weights, "weights"), _checks.array(labels, "labels")
    b = None if bias is None else _float64(bias, "bias")
    if isnan(lam) or lam < 0:
        raise ValueError(f"lam: expected a number >= 0, got {lam}")
    if x.ndim != 2:
        raise ValueError(f"features: expected shape [N, D], got {list(x.shape)}")
    if w.ndim != 2 or w.shape[0] != x.shape[1] or w.shape[1] == 0:
        raise ValueError(f"weights: expected shape [{x.shape[1]}, C] with C >= 1, got {list(w.shape)}")
    if y.shape != x.shape[:1]:
        raise ValueError(f"labels: expected shape [{x.shape[0]}], got {list(y.shape)}")
    if y.size and y.dtype.kind not in "iu":
        raise TypeError(f"labels: expected integers, got dtype {y.dtype.name}")
    for i, label in enumerate(y):
        if not -1 <= label < w.shape[1]:
            raise ValueError(f"labels: expected values in [0, {w.shape[1]}), or -1, got labels[{i}] = {label}")
    if b is not None and b.shape != w.shape[1:]:
        raise ValueError(f"bias: expected shape [{w.shape[1]}], got {list(b.shape)}")
    return x, w, y.astype(np.int64), b
