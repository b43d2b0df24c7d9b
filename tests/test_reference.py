"""The oracle's own proof: hand values, the shape of psi, and mpmath at 50 digits."""

import math

import mpmath
import numpy as np
import pytest
from support import LAMBDAS, MARGINS, angle_batch, random_batch

from lsoftmax_op import reference

GRID = np.linspace(0, math.pi, 2001)


@pytest.mark.parametrize(
    ("theta", "margin", "value"),
    [
        (0, 1, 1),
        (math.pi / 3, 1, 0.5),
        (math.pi, 1, -1),
        (0, 2, 1),
        (math.pi / 4, 2, 0),
        (math.pi / 2, 2, -1),
        (3 * math.pi / 4, 2, -2),
        (math.pi, 2, -3),
        (math.pi / 6, 3, 0),
        (math.pi / 3, 3, -1),
        (math.pi, 3, -5),
        (math.pi / 8, 4, 0),
        (math.pi / 4, 4, -1),
        (math.pi / 2, 4, -3),
        (math.pi, 4, -7),
    ],
)
def test_psi_by_hand(theta, margin, value):
    assert reference.psi(theta, margin) == pytest.approx(value, abs=1e-14)


@pytest.mark.parametrize("margin", MARGINS)
def test_the_figure_of_psi(margin):
    """Figure 3 of the paper: continuous, falling from 1 to 1 - 2m, never above the cosine."""
    psi = np.array([reference.psi(theta, margin) for theta in GRID])
    assert (np.diff(psi) < 0).all()
    assert np.abs(np.diff(psi)).max() < 1.01 * margin * (GRID[1] - GRID[0])
    assert (psi <= np.cos(GRID) + 1e-15).all()
    assert psi[0] == 1
    assert psi[-1] == pytest.approx(1 - 2 * margin)


@pytest.mark.parametrize("margin", MARGINS)
def test_segments(margin):
    for k in range(margin):
        assert reference.segment((k + 0.5) * math.pi / margin, margin) == k


@pytest.mark.parametrize("features", [[0.0, 1.0], [0.0, 0.0]])
def test_the_segment_of_a_right_angle(features):
    """k counts the edges cos(j pi/m) above 0; for an even margin, the middle edge is 0 itself and does not count."""
    for margin in range(1, 65):
        cos_theta, k = reference.target_angles([features], [[1.0], [0.0]], [0], margin=margin)
        assert (cos_theta[0], k[0]) == (0, sum(2 * j < margin for j in range(1, margin)))


def test_angles_without_a_target_or_a_number():
    cos_theta, k = reference.target_angles([[3.0], [-3.0], [1.0], [np.nan]], [[1.0]], [0, 0, -1, 0])
    np.testing.assert_array_equal(cos_theta, [1, -1, np.nan, np.nan])
    np.testing.assert_array_equal(k, [0, 3, -1, 0])
    assert k.dtype == np.int32


def test_infinities_of_both_signs_give_nan():
    with np.errstate(invalid="ignore"):
        logits = reference.logits([[np.inf, np.inf], [1.0, 2.0]], [[1.0], [-1.0]], [0, -1])
    np.testing.assert_array_equal(logits, [[np.nan], [-1]])


def test_sums_are_rounded_once():
    third = 1 / 3
    row, column = [1 / 3, -1.0, 2.0**60, -(2.0**60)], [[3.0], [third * 3], [1.0], [1.0]]
    left = -(2.0**-54)  # of 3 (1/3) - 1, which rounds to 0
    assert reference.logits([row], column, [-1])[0, 0] == left
    gradients = reference.logits_grad([row], [[1.0]], [[c for (c,) in column]], [-1])
    assert gradients.features[0, 0] == left
    gradients = reference.logits_grad([[g] for g in row], column, [[1.0]], [-1] * 4)
    assert gradients.weights[0, 0] == left


def test_the_loss_of_a_certain_answer():
    """exp(-40), where the loss of a large logit is far below that logit's own rounding."""
    arguments = [[1000.0]], [[1.0, 0.96]], [0]
    rest = math.exp(-40)
    assert reference.loss(*arguments)[0] == pytest.approx(rest, rel=1e-12, abs=0)
    gradient = reference.loss_grad([1.0], *arguments).weights
    np.testing.assert_allclose(gradient, [[-1000 * rest, 1000 * rest]], rtol=1e-12)


def mp_target(x, w, margin, lam):
    """The target logit from its definition, at mpmath's precision; the segment by rounding down."""
    dot, a, b = mpmath.fdot(x, w), mpmath.sqrt(mpmath.fdot(x, x)), mpmath.sqrt(mpmath.fdot(w, w))
    theta = mpmath.acos(max(-1, min(1, dot / (a * b))))
    k = min(int(margin * theta / mpmath.pi), margin - 1)
    psi = (-1) ** k * mpmath.cos(margin * theta) - 2 * k
    return (lam * dot + a * b * psi) / (1 + lam)


CASES = [(m, lam, case) for m in MARGINS for lam in LAMBDAS[:4] for case in ("random", "angles")]


@pytest.mark.parametrize(("margin", "lam", "case"), CASES)
def test_against_mpmath_at_50_digits(margin, lam, case):
    batch = angle_batch(margin, "float64") if case == "angles" else random_batch((8, 5, 3), "float64", margin)
    x, w = batch.features, batch.weights
    logits = reference.logits(x, w, batch.labels, margin=margin, lam=lam)
    grad = np.zeros_like(logits)
    with mpmath.workdps(50):
        for i in range(0, len(x), 1 if case == "random" else 4):
            y = batch.labels[i]
            if y < 0 or not x[i].any() or not w[:, y].any():
                continue
            xi, wi = [mpmath.mpf(v) for v in x[i]], [mpmath.mpf(v) for v in w[:, y]]
            scale = np.linalg.norm(x[i]) * np.linalg.norm(w[:, y])
            want = mp_target(xi, wi, margin, mpmath.mpf(lam))
            assert abs(logits[i, y] - want) <= 4e-15 * margin**2 * scale
            # Central differences at 50 digits are good to about 30.
            grad[:] = 0
            grad[i, y] = 1
            gradients = reference.logits_grad(grad, x, w, batch.labels, margin=margin, lam=lam)
            for v, other, gradient in ((xi, wi, gradients.features[i]), (wi, xi, gradients.weights[:, y])):
                step = mpmath.norm(v) * mpmath.mpf(10) ** -20
                for d in (0, len(v) - 1):
                    up, down = list(v), list(v)
                    up[d] += step
                    down[d] -= step
                    slope = (mp_target(up, other, margin, lam) - mp_target(down, other, margin, lam)) / (2 * step)
                    assert abs(gradient[d] - slope) <= 1e-14 * margin**2 * mpmath.norm(other)


@pytest.mark.parametrize("margin", [1, 2, 4])
def test_weight_and_loss_gradients_numerically(margin):
    batch = random_batch((4, 3, 3), "float64", margin)
    g = np.array([1.0, -0.5, 2.0, 0.3])
    options = {"margin": margin, "lam": 0.5}
    analytic = reference.loss_grad(g, *batch.layer, **options)
    for n, gradient in enumerate(analytic):
        argument = batch.layer[(0, 1, 3)[n]]
        for index in np.ndindex(argument.shape):
            kept, values = argument[index], []
            for step in (1e-6, -1e-6):
                argument[index] = kept + step
                values.append(g @ reference.loss(*batch.layer, **options))
            argument[index] = kept
            assert gradient[index] == pytest.approx((values[0] - values[1]) / 2e-6, abs=1e-8)


def test_limits():
    batch = random_batch((6, 4, 3), "float64")
    plain = batch.features @ batch.weights + batch.bias
    np.testing.assert_allclose(reference.logits(*batch.layer, lam=np.inf), plain, rtol=1e-13)
    batch.labels[:] = -1
    np.testing.assert_allclose(reference.logits(*batch.layer), plain, rtol=1e-13)
    assert (reference.loss(*batch.layer) == 0).all()
    assert not reference.loss_grad(np.ones(6), *batch.layer).weights.any()
    zero = reference.logits_grad(np.ones((1, 2)), np.zeros((1, 3)), np.ones((3, 2)), [0])
    np.testing.assert_array_equal(zero.features, [[2, 2, 2]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: reference.psi(-0.1, 2), "theta"),
        (lambda: reference.psi(0.1, 0), "margin"),
        (lambda: reference.logits([[1.0]], [[1.0]], [0], lam=-1), "lam"),
        (lambda: reference.logits([[1.0]], [[1.0]], [1]), "labels"),
        (lambda: reference.logits([1.0], [[1.0]], [0]), "features"),
        (lambda: reference.logits([[1.0]], [[1.0], [1.0]], [0]), "weights"),
        (lambda: reference.logits([[1.0]], [[1.0]], [0], [1.0, 2.0]), "bias"),
        (lambda: reference.logits_grad([1.0], [[1.0]], [[1.0]], [0]), "grad"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
