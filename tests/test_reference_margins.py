"""The oracle's own proof for every margin: hand values, the shape of psi, poles, edges, and mpmath at 50 digits.

mpmath knows the definitions alone: logits from norms and an arc cosine, the segment by rounding down, and derivatives
as differences.
"""

import math

import mpmath
import numpy as np
import pytest
from support import random_batch

from lsoftmax_op import reference
from lsoftmax_op.margins import ArcFace, Combined, CosFace, LSoftmax, Margin, SphereFace

MARGINS = (
    LSoftmax(3),
    SphereFace(4),
    CosFace(0.35, 64),
    ArcFace(0.5, 64),
    ArcFace(0.5, 64, "linear"),
    ArcFace(3.1, 10),
    Combined(2, 0.3, 0.2, 30),
    Combined(3, 1.5, 0.1, 16),
    Combined(1, 0.3, 0.2, 30, "linear"),
    Combined(64, 3.1, 1.9, 1),
    Margin(m1=2, m2=0.4, m3=0.1, scale=2),
    Margin(m2=0.5, scale=8, normalize_features=True),
    Margin(m1=5, m2=1.0, normalize_weights=True),
)
EVERY_MARGIN = pytest.mark.parametrize("margin", MARGINS, ids=repr)
GRID = np.linspace(0, math.pi, 4001)
TIP = 2.0**-23


@pytest.mark.parametrize(
    ("margin", "theta", "value"),
    [
        (CosFace(0.35, 64), 0, 0.65),
        (CosFace(0.35, 64), math.pi / 3, 0.15),
        (CosFace(0.35, 64), math.pi, -1.35),
        (SphereFace(4), math.pi / 2, -3),
        (ArcFace(math.pi / 6, 64), 0, math.sqrt(0.75)),
        (ArcFace(math.pi / 6, 64), math.pi / 3, 0),
        (ArcFace(math.pi / 6, 64), 5 * math.pi / 6, -1),
        (ArcFace(math.pi / 6, 64), math.pi, math.sqrt(0.75) - 2),
        (ArcFace(math.pi / 6, 64, "linear"), math.pi / 3, 0),
        (ArcFace(math.pi / 6, 64, "linear"), math.pi, -1 - math.pi / 12),
        (Combined(2, math.pi / 3, 0.25, 64), math.pi / 3, -1.25),
        (Combined(2, math.pi / 3, 0.25, 64), 2 * math.pi / 3, -2.75),
        (Combined(2, math.pi / 3, 0.25, 64), math.pi, -3.75),
    ],
)
def test_psi_by_hand(margin, theta, value):
    assert reference.psi(theta, margin) == pytest.approx(value, abs=1e-14)


@EVERY_MARGIN
def test_the_figure_of_psi(margin):
    """Falling everywhere, never above the cosine; continuous but for the jump of the linear continuation."""
    psi = np.array([reference.psi(theta, margin) for theta in GRID])
    steps = np.diff(psi)
    assert (steps < 0).all()
    assert (psi <= np.cos(GRID) + 1e-14).all()
    steep = np.abs(steps) > 1.01 * margin.m1 * (GRID[1] - GRID[0])
    if margin.continuation == "linear":
        (jump,) = np.flatnonzero(steep)
        assert GRID[jump] <= math.pi - margin.m2 < GRID[jump + 1]
        assert steps[jump] == pytest.approx(1 - math.cos(margin.m2) - margin.m2 * math.sin(margin.m2), abs=1e-3)
    else:
        assert not steep.any()
        slopes = steps / (GRID[1] - GRID[0])
        assert np.abs(np.diff(slopes)).max() < 1.01 * margin.m1**2 * (GRID[1] - GRID[0])


def test_a_large_margin_jumps_up_in_the_linear_continuation():
    """From m2 = 2.3312 on, where cos(m2) + m2 sin(m2) = 1, what is published falls no more."""
    for m2, falls in ((2.33, True), (2.34, False)):
        margin = ArcFace(m2, 64, "linear")
        edge = math.pi - m2
        assert (reference.psi(edge + 1e-9, margin) < reference.psi(edge - 1e-9, margin)) == falls


@EVERY_MARGIN
def test_segments(margin):
    """k counts the edges (k pi - m2) / m1 below theta."""
    edges = (np.arange(1, margin.m1 + 2) * math.pi - margin.m2) / margin.m1
    for theta in np.linspace(0.01, math.pi - 0.01, 77):
        assert reference.segment(theta, margin) == (edges < theta).sum()


@pytest.mark.parametrize("margin", range(1, 65))
def test_an_integer_is_l_softmax(margin):
    batch = random_batch((6, 4, 3), "float64", margin)
    for call in (reference.logits, reference.loss):
        of_integer, of_margin = (call(*batch.layer, margin=m, lam=0.5) for m in (margin, LSoftmax(margin)))
        np.testing.assert_array_equal(of_integer, of_margin)


# mpmath ---------------------------------------------------------------------------------------------------------------


def mp_cosine(x, w):
    cosine = mpmath.fdot(x, w) / mpmath.sqrt(mpmath.fdot(x, x) * mpmath.fdot(w, w))
    return max(-1, min(1, cosine))


def mp_psi(theta, margin):
    phi = margin.m1 * theta + mpmath.mpf(margin.m2)
    k = int(phi / mpmath.pi)
    if margin.continuation == "linear" and k > 0:
        return mpmath.cos(theta) - margin.m2 * mpmath.sin(margin.m2) - margin.m3
    return (-1) ** k * mpmath.cos(phi) - 2 * k - margin.m3


def mp_logit(x, w, margin, share):
    """The logit of a class, of which psi has a share: 0 of another's, 1 / (1 + lambda) of the target's."""
    radius = mpmath.mpf(margin.scale)
    radius *= 1 if margin.normalize_features else mpmath.norm(x)
    radius *= 1 if margin.normalize_weights else mpmath.norm(w)
    cosine = mp_cosine(x, w)
    return radius * (cosine + share * (mp_psi(mpmath.acos(cosine), margin) - cosine))


def mp_gradient(function, v):
    """Central differences: good to about 20 digits at 50."""
    step = mpmath.norm(v) * mpmath.mpf(10) ** -20
    for d in range(len(v)):
        up, down = list(v), list(v)
        up[d] += step
        down[d] -= step
        yield (function(up) - function(down)) / (2 * step)


def mp_radius(x, w, margin):
    """What psi is multiplied by."""
    norms = 1 if margin.normalize_features else mpmath.norm(x), 1 if margin.normalize_weights else mpmath.norm(w)
    return margin.scale * norms[0] * norms[1]


def mp_tip(x, w, margin):
    """What is left away of d psi / d cos(theta) in the tip of a cone, within a sine of 2^-23: a share of what m2 makes.

    The derivative is (-1)^k m1 (sin(m1 theta) cos(m2) + cos(m1 theta) sin(m2)) / sin(theta).
    """
    theta = mpmath.acos(mp_cosine(x, w))
    sine, k = mpmath.sin(theta), int((margin.m1 * theta + margin.m2) / mpmath.pi)
    if margin.continuation == "linear" and k > 0:
        return 0
    of_m2 = (-1) ** k * margin.m1 * mpmath.cos(margin.m1 * theta) * mpmath.sin(margin.m2) / sine
    return of_m2 * (1 - min(1, (sine / TIP) ** 2))


def mp_target_gradients(x, w, margin, share):
    """The gradients of the target's logit in x and in w."""
    left_away = share * mp_radius(x, w, margin) * mp_tip(x, w, margin)

    def gradient(v, logit, cosine):
        slopes = zip(mp_gradient(logit, v), mp_gradient(cosine, v), strict=True)
        return [slope - left_away * turn for slope, turn in slopes]

    return (
        gradient(x, lambda v: mp_logit(v, w, margin, share), lambda v: mp_cosine(v, w)),
        gradient(w, lambda v: mp_logit(x, v, margin, share), lambda v: mp_cosine(x, v)),
    )


def mp_rows(matrix):
    return [[mpmath.mpf(float(v)) for v in row] for row in matrix]


def angles_of(margin):
    """Both poles and next to them, both sides of edges, and the middles between edges."""
    edges = (np.arange(margin.m1 + 2) * math.pi - margin.m2) / margin.m1
    edges = edges[(edges > 0) & (edges < math.pi)]
    edges = edges[[0, len(edges) // 2, -1]] if len(edges) else edges
    near_zero = np.array([1e-9, 1e-7, 1.3e-7, 1e-4])
    return np.concatenate([near_zero, math.pi - near_zero, edges - 1e-9, edges + 1e-9, edges + 0.5 / margin.m1, [1, 2]])


def batch_of(angles, seed):
    """Samples x [N, 4] at the angles to weights w [4, N] of their own, with norms from 0.1 to 10."""
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(4, len(angles))) * 10 ** rng.uniform(-1, 1, len(angles))
    along = w / np.linalg.norm(w, axis=0)
    across = rng.normal(size=w.shape)
    across -= along * (along * across).sum(axis=0)
    across /= np.linalg.norm(across, axis=0)
    x = (np.cos(angles) * along + np.sin(angles) * across) * 10 ** rng.uniform(-1, 1, len(angles))
    return x.T.copy(), w


@EVERY_MARGIN
@pytest.mark.parametrize("lam", [0.0, 0.5])
def test_target_logits_and_gradients(margin, lam):
    angles = angles_of(margin)
    x, w = batch_of(angles, margin.m1)
    labels = np.arange(len(angles))
    logits = reference.logits(x, w, labels, margin=margin, lam=lam)
    gradients = reference.logits_grad(np.eye(len(angles)), x, w, labels, margin=margin, lam=lam)
    with mpmath.workdps(50):
        share = 1 / (1 + mpmath.mpf(lam))
        for i, (xi, wi) in enumerate(zip(mp_rows(x), mp_rows(w.T), strict=True)):
            radius = mp_radius(xi, wi, margin)
            assert abs(logits[i, i] - mp_logit(xi, wi, margin, share)) <= 4e-15 * margin.m1**2 * radius
            # A direction across has 16 digits of the radius, and so fewer of its own, which is sin(theta) times it.
            digits = 1 + mpmath.sin(margin.m2) / max(mpmath.sin(mpmath.acos(mp_cosine(xi, wi))), TIP)
            found = gradients.features[i], gradients.weights[:, i]
            for v, got, want in zip((xi, wi), found, mp_target_gradients(xi, wi, margin, share), strict=True):
                tolerance = 1e-14 * margin.m1**2 * digits * radius / mpmath.norm(v)
                assert max(abs(g - s) for g, s in zip(got, want, strict=True)) <= tolerance


@EVERY_MARGIN
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_and_gradients(margin, smoothing):
    """-sum_j q_j log(p_j), with q of 1 - smoothing on the class and smoothing / C on all."""
    batch = random_batch((4, 3, 4), "float64", margin.m1)
    batch.labels[:] = [2, 0, -1, 2]
    x, w, labels, _ = batch.layer
    options = {"margin": margin, "lam": 0.5, "label_smoothing": smoothing}
    loss = reference.loss(x, w, labels, **options)
    gradients = reference.loss_grad(batch.loss_grad, x, w, labels, **options)
    assert loss[2] == 0
    assert not gradients.features[2].any()
    with mpmath.workdps(50):
        eps, share = mpmath.mpf(smoothing), 2 / mpmath.mpf(3)

        def mp_loss(xi, columns, label):
            z = [mp_logit(xi, wj, margin, share * (j == label)) for j, wj in enumerate(columns)]
            normalizer = mpmath.log(sum(mpmath.exp(zj) for zj in z))
            return sum((eps / 4 + (1 - eps) * (j == label)) * (normalizer - zj) for j, zj in enumerate(z))

        def mp_total(rows, columns):
            return sum(
                g * mp_loss(rows[i], columns, labels[i]) for i, g in enumerate(batch.loss_grad) if labels[i] >= 0
            )

        rows, columns = mp_rows(x), mp_rows(w.T)
        size = margin.scale * np.linalg.norm(x, axis=1).max() * np.linalg.norm(w, axis=0).max() * margin.m1**2
        for i in (0, 1, 3):
            assert abs(loss[i] - mp_loss(rows[i], columns, labels[i])) <= 1e-14 * size
        for i, row in enumerate(rows):
            slopes = mp_gradient(lambda v, i=i: mp_total([*rows[:i], v, *rows[i + 1 :]], columns), row)
            np.testing.assert_allclose(
                gradients.features[i], [float(slope) for slope in slopes], rtol=0, atol=1e-13 * size
            )
        for j, column in enumerate(columns):
            slopes = mp_gradient(lambda v, j=j: mp_total(rows, [*columns[:j], v, *columns[j + 1 :]]), column)
            np.testing.assert_allclose(
                gradients.weights[:, j], [float(slope) for slope in slopes], rtol=0, atol=1e-13 * size
            )


# Poles, zeros and scale -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("margin", "at_zero", "at_pi"),
    [
        (ArcFace(0.5, 64), 64 * math.cos(0.5), 64 * (math.cos(0.5) - 2)),
        (ArcFace(0.5, 64, "linear"), 64 * math.cos(0.5), 64 * (-1 - 0.5 * math.sin(0.5))),
        (CosFace(0.35, 64), 64 * 0.65, 64 * -1.35),
        (SphereFace(4), 2, -14),
        (Margin(m1=2, m2=0.5), 6 * math.cos(0.5), 6 * (math.cos(0.5) - 4)),
    ],
    ids=repr,
)
def test_at_the_poles(margin, at_zero, at_pi):
    """What is left of the gradient is along x, where x is not normalised, and along w likewise."""
    for sign, logit in ((1, at_zero), (-1, at_pi)):
        x, w = [[2.0 * sign, 0.0]], [[3.0], [0.0]]
        assert reference.logits(x, w, [0], margin=margin)[0, 0] == pytest.approx(logit, rel=1e-15)
        gradients = reference.logits_grad([[1.0]], x, w, [0], margin=margin)
        in_x = 0 if margin.normalize_features else logit / (2 * sign)
        in_w = 0 if margin.normalize_weights else logit / 3
        np.testing.assert_allclose(gradients.features, [[in_x, 0]], atol=1e-13)
        np.testing.assert_allclose(gradients.weights, [[in_w], [0]], atol=1e-13)


@pytest.mark.parametrize("pole", [1.0, -1.0])
@pytest.mark.parametrize("side", [1.0, -1.0])
@pytest.mark.parametrize("turn", [1e-5, 1.2e-7, 1.1e-7, 1e-8, 1e-12])
def test_both_sides_of_the_poles(pole, side, turn):
    """The slope of the cone is scale sin(m2) / |x| down to its tip, 2^-23 wide, where it falls to 0."""
    x, w = [[2.0 * pole, 2.0 * side * turn]], [[1.0], [0.0]]
    slope = reference.logits_grad([[1.0]], x, w, [0], margin=ArcFace(0.5, 64)).features[0, 1]
    of_m2, of_theta = 32 * math.sin(0.5) * min(1, (turn / TIP) ** 2), 32 * math.cos(0.5) * turn
    assert slope == pytest.approx(-side * (pole * of_m2 + of_theta), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("margin", [SphereFace(2), CosFace(0.35, 64), ArcFace(0.5, 64), Combined(2, 0.3, 0.2, 30)])
def test_zero_norms_that_are_divided_by(margin):
    """Each of their logits is 0, whatever the margin asks, and so is each gradient."""
    x, w = np.array([[0.0, 0.0], [1.0, 2.0]]), np.array([[0.0, 1.0], [0.0, 3.0]])
    logits = reference.logits(x, w, [1, 0], margin=margin)
    gradients = reference.logits_grad(np.ones((2, 2)), x, w, [1, 0], margin=margin)
    np.testing.assert_array_equal(logits[0], 0)
    assert logits[1, 0] == 0
    assert not gradients.weights[:, 0].any()
    if margin.normalize_features:
        assert not gradients.features[0].any()
    else:  # a norm that is not divided by leaves the plain logit, scale x . w / |w|
        np.testing.assert_allclose(gradients.features[0], w[:, 1] / math.sqrt(10))
    loss = reference.loss(x, w, [1, 0], margin=margin)
    assert loss[0] == pytest.approx(math.log(2))
    assert np.isfinite(reference.loss_grad(np.ones(2), x, w, [1, 0], margin=margin).weights).all()


def test_scale_and_lambda():
    batch = random_batch((6, 4, 3), "float64")
    x, w, labels, _ = batch.layer
    whole = reference.logits(x, w, labels, margin=ArcFace(0.5, 64), lam=3.0)
    np.testing.assert_array_equal(whole, 64 * reference.logits(x, w, labels, margin=ArcFace(0.5, 1), lam=3.0))
    cosines = x @ w / np.outer(np.linalg.norm(x, axis=1), np.linalg.norm(w, axis=0))
    plain = reference.logits(x, w, labels, margin=ArcFace(0.5, 64), lam=np.inf)
    np.testing.assert_allclose(plain, 64 * cosines, rtol=1e-13)
    full = reference.logits(x, w, labels, margin=ArcFace(0.5, 64))
    np.testing.assert_allclose(whole, (3 * plain + full) / 4, rtol=1e-13)


def test_tensors_as_margins():
    tf = pytest.importorskip("tensorflow")
    batch = random_batch((6, 4, 3), "float64")
    scale = tf.Variable(1.0)
    margin = ArcFace(tf.constant(0.5), scale)
    scale.assign(64.0)
    np.testing.assert_array_equal(
        reference.loss(*batch.layer[:3], margin=margin), reference.loss(*batch.layer[:3], margin=ArcFace(0.5, 64))
    )


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"margin": "ArcFace"}, TypeError, "margin: expected an integer from 1 to 64, got 'ArcFace'; a margin of"),
        ({"margin": 0}, ValueError, "margin: expected an integer from 1 to 64, got 0"),
        ({"margin": ArcFace(0.5, 64), "bias": [0.0]}, ValueError, "bias: expected None with a margin that normalises"),
        ({"margin": SphereFace(2), "bias": [0.0]}, ValueError, r"bias: .*SphereFace\(m=2\)"),
        ({"label_smoothing": 1.0}, ValueError, r"label_smoothing: expected a number in \[0, 1\), got 1.0"),
        ({"label_smoothing": -0.1}, ValueError, r"label_smoothing: expected a number in \[0, 1\), got -0.1"),
        ({"label_smoothing": math.nan}, ValueError, r"label_smoothing: expected a number in \[0, 1\), got nan"),
        ({"label_smoothing": "0.1"}, TypeError, r"label_smoothing: expected a number in \[0, 1\), got '0.1'"),
    ],
)
@pytest.mark.parametrize(
    "call", [reference.loss, lambda *batch, **options: reference.loss_grad([1.0], *batch, **options)]
)
def test_bad_input(call, arguments, error, message):
    with pytest.raises(error, match=f"^{message}"):
        call([[1.0]], [[1.0]], [0], **arguments)


def test_a_bias_beside_a_margin_without_factors():
    margin = Margin(m2=0.5)
    without = reference.logits([[1.0]], [[2.0]], [0], margin=margin)
    assert reference.logits([[1.0]], [[2.0]], [0], [3.0], margin=margin) == without + 3
