# cython: language_level=3, cdivision=True
"""The oracle: the margins as their papers write them, in float64, one sample at a time.

With theta the angle between a sample x and the weights w of its class, m1 = m, and x and w divided by their norms first
where a paper does so::

    psi(theta) = (-1)^k cos(m theta) - 2k      on theta in [k pi/m, (k+1) pi/m]
    target     = (lambda |w||x| cos(theta) + |w||x| psi(theta)) / (1 + lambda)

    L-Softmax    as it stands                      Liu et al., ICML 2016, equation 6 and section 5.1
    SphereFace   |w| = 1                           Liu et al., CVPR 2017, equation 7
    CosFace      psi = cos(theta) - m3             Wang et al., CVPR 2018, equation 4;   |w| = 1, |x| = scale
    ArcFace      psi = cos(theta + m2)             Deng et al., CVPR 2019, equation 3;   |w| = 1, |x| = scale
    combined     psi = cos(m1 theta + m2) - m3     Deng et al., CVPR 2019, equation 4;   |w| = 1, |x| = scale

The last three say nothing of angles beyond m1 theta + m2 = pi. There psi is unfolded as in L-Softmax, at edges that m2
moves, or is cos(theta) - m2 sin(m2) - m3, as in ArcFace's published code.

Here theta is an arc cosine (or where m2 > 0 twice an arc tangent, which keeps small angles), k is searched for, and the
derivative goes through theta::

    d target = (lambda d(w.x) + psi d(|w||x|) + |w||x| psi'(theta) d theta) / (1 + lambda)
    psi'(theta) = -(-1)^k m1 sin(m1 theta + m2)       d theta = -d cos(theta) / sin(theta)

With m2 > 0, psi is a cone around either pole: d theta has no limit at its tip, and is taken to be 0 there. On the last
1.2e-7 of the way, what m2 gives of the slope is multiplied by (2^23 sin(theta))^2.

It is slow, it is meant to be read, and it shares no code with the kernels that it judges. Sums of products are rounded
once, at their end.
"""

from libc.math cimport M_PI as pi, acos, atan2, cos, fma, isfinite, sin, sqrt

from math import fsum, log1p
from typing import NamedTuple

import numpy as np

from lsoftmax_op import _checks, _oracle_arguments as arguments


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


cdef double TIP = 2.0**-23  # the sine within which a cone's tip is rounded off


cdef class _Psi:
    """psi of a margin; it and its slope at an angle."""

    cdef readonly int m1
    cdef readonly double m2, m3
    cdef readonly bint linear

    def __init__(self, margin):
        self.m1, self.m2, self.m3 = margin.m1, margin.m2, margin.m3
        self.linear = margin.continuation == "linear"

    cdef int segment(self, double theta):
        """k, for which m1 theta + m2 lies in [k pi, (k+1) pi]."""
        cdef int k = 0
        # In this order, half a turn's edge is pi/2 to the last bit.
        while theta > pi * ((k + 1.0) / self.m1) - self.m2 / self.m1:
            k += 1
        return k

    cdef double at(self, double theta):
        cdef int k = self.segment(theta)
        if self.linear and k > 0:
            return cos(theta) - self.m2 * sin(self.m2) - self.m3
        return (1 if k % 2 == 0 else -1) * cos(self.m1 * theta + self.m2) - 2 * k - self.m3

    cdef double per_cos(self, double theta):
        """d psi / d cos(theta) = (-1)^k m1 sin(m1 theta + m2) / sin(theta)."""
        cdef int k = self.segment(theta), sign
        cdef double sine = sin(theta), limit
        if self.linear and k > 0:
            return 1
        sign = 1 if k % 2 == 0 else -1
        if sine >= (TIP if self.m2 > 0 else 1e-12):
            return sign * self.m1 * sin(self.m1 * theta + self.m2) / sine
        # sin(m1 theta + m2) is sin(m1 theta) cos(m2), which goes with sin(theta), and cos(m1 theta) sin(m2), which
        # does not.
        limit = self.m1 if theta < 1 or self.m1 % 2 == 1 else -self.m1  # of sin(m1 theta) / sin(theta)
        return sign * self.m1 * (limit * cos(self.m2) + cos(self.m1 * theta) * sin(self.m2) * sine / TIP**2)


def psi(theta, margin) -> float:
    """Returns psi(theta), as in the paper of the margin (L-Softmax: equation 6).

    Args:
        theta: the angle, in [0, pi].
        margin: the integer m from 1 to 64, or any of `lsoftmax_op.margins`.

    Raises:
        ValueError: theta outside [0, pi], or a margin out of range.
        TypeError: theta is no number, or the margin neither an integer nor a margin.
    """
    cdef _Psi of_margin
    angle = arguments.angle(theta)
    of_margin = _Psi(arguments.margin(margin))
    return of_margin.at(angle)


def segment(theta, margin) -> int:
    """Returns k, for which m1 theta + m2 is in [k pi, (k+1) pi].

    Args:
        theta: the angle, in [0, pi].
        margin: the integer m from 1 to 64, or any of `lsoftmax_op.margins`.

    Raises:
        TypeError, ValueError: as for `psi`.
    """
    cdef _Psi of_margin
    angle = arguments.angle(theta)
    of_margin = _Psi(arguments.margin(margin))
    return of_margin.segment(angle)


# One sample -----------------------------------------------------------------------------------------------------------


cdef class _Target:
    """The target logit of one sample x with the weights w of its class, and its derivatives in both."""

    cdef readonly double logit, cos_theta
    cdef readonly int k
    cdef readonly object in_x, in_w

    def __init__(self, x, w, _Psi psi, double lam):
        cdef double dot = _dot(x, w), norm_x = _norm(x), norm_w = _norm(w)
        cdef double theta, value, slope, share
        if norm_x == 0 or norm_w == 0:  # no angle: the plain logit
            self.cos_theta = 0
            self.k = psi.segment(pi / 2)
            self.logit, self.in_x, self.in_w = dot, w, x
            return
        self.cos_theta = dot / norm_x / norm_w
        if self.cos_theta > 1:
            self.cos_theta = 1
        if self.cos_theta < -1:
            self.cos_theta = -1
        theta = acos(self.cos_theta)  # NaN where a feature or a weight is NaN or infinite
        if psi.m2 > 0:
            theta = 2 * atan2(_norm(x / norm_x - w / norm_w), _norm(x / norm_x + w / norm_w))
        self.k = psi.segment(theta)
        if not isfinite(lam):
            self.logit, self.in_x, self.in_w = dot, w, x
            return
        value, slope = psi.at(theta), psi.per_cos(theta)
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


# Norms that are divided by -------------------------------------------------------------------------------------------


def _as_seen(x, w, margin):
    """Features and weights as the margin's layer sees them: divided by their norms where it normalises."""
    if margin.normalize_features:
        x = np.array([_unit(row) for row in x]).reshape(x.shape)
    if margin.normalize_weights:
        w = np.array([_unit(column) for column in w.T]).reshape(w.T.shape).T
    return x, w


def _divisor(v):
    """|v|; 0 where it is below 2^-60, and counts as zero."""
    norm = _norm(v)
    return 0.0 if norm < 2.0**-60 else norm


def _unit(v):
    """v / |v|, 0 where v is."""
    norm = _divisor(v)
    return np.zeros_like(v) if norm == 0 else v / norm


def _through_norm(grad, v):
    """What is d/d(v / |v|) as d/dv: (grad - u (u . grad)) / |v| with u = v / |v|; 0 where v is 0."""
    norm, u = _divisor(v), _unit(v)
    return np.zeros_like(v) if norm == 0 else (grad - u * _dot(u, grad)) / norm


# A batch --------------------------------------------------------------------------------------------------------------


def logits(features, weights, labels, bias=None, *, margin=4, lam=0.0) -> np.ndarray:
    """Returns the margin logits [N, C].

    Args:
        features: [N, D].
        weights: [D, C].
        labels: [N], each in [0, C), or -1 for a row of plain logits.
        bias: [C] or None.
        margin: the integer m from 1 to 64, or any of `lsoftmax_op.margins`.
        lam: the annealing weight lambda >= 0; infinity is the plain layer.

    Raises:
        TypeError, ValueError: arguments that do not fit; the message names the argument.
    """
    margin, lam = arguments.margin(margin), arguments.annealing(lam)
    x, w, y, b = arguments.batch(features, weights, labels, bias, lam, margin)
    x, w = _as_seen(x, w, margin)
    psi, z = _Psi(margin), np.empty((x.shape[0], w.shape[1]))
    for i in range(x.shape[0]):
        for c in range(w.shape[1]):
            z[i, c] = margin.scale * _dot(x[i], w[:, c])
        if y[i] >= 0:
            z[i, y[i]] = margin.scale * _Target(x[i], w[:, y[i]], psi, lam).logit
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
    margin, lam = arguments.margin(margin), arguments.annealing(lam)
    given_x, given_w, y, b = arguments.batch(features, weights, labels, bias, lam, margin)
    x, w = _as_seen(given_x, given_w, margin)
    psi = _Psi(margin)
    g = arguments.float64(grad, "grad")
    if g.shape != (x.shape[0], w.shape[1]):
        raise ValueError(f"grad: expected shape {[x.shape[0], w.shape[1]]}, got {list(g.shape)}")
    targets = {i: _Target(x[i], w[:, label], psi, lam) for i, label in enumerate(y) if label >= 0}
    in_x, in_w = np.empty_like(x), np.empty_like(w)
    for i in range(x.shape[0]):
        slopes = w.copy()  # d logits[i, c] / d x[i] in column c
        if y[i] >= 0:
            slopes[:, y[i]] = targets[i].in_x
        in_x[i] = [margin.scale * _dot(g[i], slope) for slope in slopes]
        if margin.normalize_features:
            in_x[i] = _through_norm(in_x[i], given_x[i])
    for c in range(w.shape[1]):
        slopes = x.copy()  # d logits[i, c] / d w[:, c] in row i
        for i in np.flatnonzero(y == c):
            slopes[i] = targets[i].in_w
        in_w[:, c] = [margin.scale * _dot(g[:, c], slope) for slope in slopes.T]
        if margin.normalize_weights:
            in_w[:, c] = _through_norm(in_w[:, c], given_w[:, c])
    in_b = None if b is None else np.array([_dot(column, np.ones(len(x))) for column in g.T])
    return Gradients(in_x, in_w, in_b)


def target_angles(features, weights, labels, *, margin=4) -> tuple:
    """Returns cos(theta) [N] and the segment k [N], int32, of every sample and the weights of its class.

    A zero norm gives 0 and its segment, a label of -1 gives NaN and -1.

    Args:
        features: [N, D].
        weights: [D, C].
        labels: [N], each in [0, C), or -1.
        margin: the integer m from 1 to 64, or any of `lsoftmax_op.margins`, which cuts [0, pi] into segments.

    Raises:
        TypeError, ValueError: arguments that do not fit; the message names the argument.
    """
    margin = arguments.margin(margin)
    psi = _Psi(margin)
    x, w, y, _ = arguments.batch(features, weights, labels, None, 0.0, margin)
    cosines, segments = np.full(len(x), np.nan), np.full(len(x), -1, np.int32)
    for i in range(x.shape[0]):
        if y[i] >= 0:
            target = _Target(x[i], w[:, y[i]], psi, 0.0)
            cosines[i], segments[i] = target.cos_theta, target.k
    return cosines, segments


def loss(features, weights, labels, bias=None, *, margin=4, lam=0.0, label_smoothing=0.0) -> np.ndarray:
    """Returns the softmax cross-entropy [N] of the margin logits; 0 where the label is -1.

    The target distribution is 1 - label_smoothing on the class, and label_smoothing / C on each of the C classes beside
    (Szegedy et al., CVPR 2016, section 7). The margin is on the class alone.

    Args:
        features: [N, D], as for `logits`.
        weights: [D, C], as for `logits`.
        labels: [N], as for `logits`.
        bias: [C] or None, as for `logits`.
        margin: as for `logits`.
        lam: as for `logits`.
        label_smoothing: a number in [0, 1).

    Raises:
        TypeError, ValueError: arguments that do not fit; the message names the argument.
    """
    labels = _checks.array(labels, "labels").copy()  # what is checked below is what is used here
    smoothing = arguments.smoothing(label_smoothing)
    z = logits(features, weights, labels, bias, margin=margin, lam=lam)
    losses = np.zeros(len(z))
    for i, label in enumerate(labels):
        if label >= 0:
            largest = z[i].argmax()
            e = np.exp(z[i] - z[i, largest])
            below = log1p(fsum(np.delete(e, largest)))
            losses[i] = below + (z[i, largest] - z[i, label])  # -log of the class's probability
            if smoothing > 0:
                losses[i] = (1 - smoothing) * losses[i] + smoothing * fsum(below + (z[i, largest] - z[i])) / len(z[i])
    return losses


def loss_grad(grad, features, weights, labels, bias=None, *, margin=4, lam=0.0, label_smoothing=0.0) -> Gradients:
    """Returns the derivatives of ``sum(grad * loss(...))`` in features, weights and bias.

    Args:
        grad: [N], what comes down to each sample's loss.
        features: [N, D], as for `logits`.
        weights: [D, C], as for `logits`.
        labels: [N], as for `logits`.
        bias: [C] or None, as for `logits`.
        margin: as for `logits`.
        lam: as for `logits`.
        label_smoothing: as for `loss`.

    Raises:
        TypeError, ValueError: arguments that do not fit; the message names the argument.
    """
    labels = _checks.array(labels, "labels").copy()  # what is checked below is what is used here
    smoothing = arguments.smoothing(label_smoothing)
    z = logits(features, weights, labels, bias, margin=margin, lam=lam)
    g = arguments.float64(grad, "grad")
    if g.shape != z.shape[:1]:
        raise ValueError(f"grad: expected shape {[z.shape[0]]}, got {list(g.shape)}")
    in_logits = np.zeros_like(z)
    for i, label in enumerate(labels):
        if label >= 0:
            e = np.exp(z[i] - z[i].max())
            in_logits[i] = g[i] * e / fsum(e)
            in_logits[i, label] = -g[i] * fsum(np.delete(e, label)) / fsum(e)  # p - 1 without its cancellation
            if smoothing > 0:
                in_logits[i, label] += g[i] * smoothing
                in_logits[i] -= g[i] * smoothing / len(e)
    return logits_grad(in_logits, features, weights, labels, bias, margin=margin, lam=lam)
