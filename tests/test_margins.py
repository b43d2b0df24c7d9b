"""Margins as values: what they are equal to, how they print, what they keep of themselves, and what they refuse."""

import copy
import doctest
import json
import math
import pickle

import numpy as np
import pytest
from support import run_python

from lsoftmax_op import margins, reference
from lsoftmax_op.margins import ArcFace, Combined, CosFace, LSoftmax, Margin, SphereFace, margin_of

NAMED = {
    "LSoftmax(m=4)": LSoftmax(4),
    "SphereFace(m=4)": SphereFace(4),
    "CosFace(m3=0.35, scale=64.0)": CosFace(0.35, 64),
    "ArcFace(m2=0.5, scale=64.0)": ArcFace(0.5, 64),
    "ArcFace(m2=0.5, scale=64.0, continuation='linear')": ArcFace(0.5, 64, "linear"),
    "Combined(m1=2, m2=0.3, m3=0.2, scale=30.0)": Combined(2, 0.3, 0.2, 30),
    "Combined(m1=1, m2=0.3, m3=0.2, scale=30.0, continuation='linear')": Combined(1, 0.3, 0.2, 30, "linear"),
    "Margin(m2=0.5, scale=8.0, normalize_features=True)": Margin(m2=0.5, scale=8, normalize_features=True),
}
SHOWN = pytest.mark.parametrize("shown", NAMED)
TENSORFLOW = "lsoftmax_op.margins is to be had without TensorFlow"


@SHOWN
def test_a_margin_prints_as_what_makes_it(shown):
    assert repr(NAMED[shown]) == shown
    assert eval(shown, vars(margins)) == NAMED[shown]


@SHOWN
def test_only_equal_margins_are_equal(shown):
    margin, others = NAMED[shown], [other for name, other in NAMED.items() if name != shown]
    assert margin not in others
    assert margin != shown
    assert len({*NAMED.values(), eval(shown, vars(margins))}) == len(NAMED)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (ArcFace(0.5, 64), Combined(1, 0.5, 0, 64)),
        (CosFace(0.35, 64), Combined(1, 0, 0.35, 64.0)),
        (CosFace(0, 30), ArcFace(-0.0, 30)),
        (LSoftmax(3), Margin(np.int64(3))),
        (SphereFace(3), Margin(3, normalize_weights=np.True_)),
        (LSoftmax(4), margin_of(4)),
        (CosFace(np.float32(0.25), np.int8(64)), CosFace(0.25, 64)),
        (ArcFace(0.5, 30), ArcFace(0.5, 64).scaled(30)),
    ],
)
def test_equality_is_by_meaning(one, other):
    assert one == other
    assert hash(one) == hash(other)
    assert repr(one) == repr(other)


@SHOWN
@pytest.mark.parametrize(
    "again",
    [
        lambda margin: Margin.from_config(json.loads(json.dumps(margin.get_config()))),
        lambda margin: pickle.loads(pickle.dumps(margin)),
        copy.copy,
        copy.deepcopy,
        margin_of,
    ],
    ids=["config", "pickle", "copy", "deepcopy", "margin_of"],
)
def test_a_margin_comes_back_equal(shown, again):
    assert again(NAMED[shown]) == NAMED[shown]


def test_a_margin_is_frozen():
    with pytest.raises(AttributeError):
        ArcFace(0.5, 64).scale = 30.0


@pytest.mark.parametrize("shown", NAMED)
def test_what_is_normalised(shown):
    margin = NAMED[shown]
    assert margin.normalizes == (not shown.startswith("LSoftmax"))
    assert margin.normalize_weights == (not shown.startswith(("LSoftmax", "Margin")))
    assert margin.normalize_features == (not shown.startswith(("LSoftmax", "SphereFace")))


@pytest.mark.parametrize(
    ("margin", "is_plain", "moves_target", "has_factors"),
    [
        (LSoftmax(1), True, False, False),
        (LSoftmax(2), True, True, False),
        (Margin(m2=0.1), False, True, False),
        (Margin(m3=0.1), False, True, False),
        (Margin(scale=2), False, False, True),
        (SphereFace(1), False, False, True),
        (CosFace(0, 1), False, False, True),
        (ArcFace(0.5, 64), False, True, True),
    ],
    ids=repr,
)
def test_what_a_margin_changes(margin, is_plain, moves_target, has_factors):
    assert (margin.is_plain, margin.moves_target, margin.has_factors) == (is_plain, moves_target, has_factors)


@SHOWN
def test_psi_is_the_oracles(shown):
    margin, angles = NAMED[shown], np.linspace(0, math.pi, 1001)
    want = [reference.psi(angle, margin) for angle in angles]
    np.testing.assert_allclose(margin.psi(angles), want, atol=1e-14)
    assert margin.psi(angles.reshape(7, 143)).shape == (7, 143)
    assert isinstance(margin.psi(1), float)
    np.testing.assert_array_equal(margin.psi([0, 1]), margin.psi(np.array([0.0, 1.0])))


@pytest.mark.parametrize(
    ("theta", "error"), [(-0.1, ValueError), ([1, 3.2], ValueError), (math.nan, ValueError), ("1", TypeError)]
)
def test_bad_angles(theta, error):
    with pytest.raises(error, match="theta: expected angles from 0 to pi, got"):
        ArcFace(0.5, 64).psi(theta)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: LSoftmax(0), ValueError, "m: expected an integer from 1 to 64, got 0"),
        (lambda: SphereFace(65), ValueError, "m: expected an integer from 1 to 64, got 65"),
        (lambda: SphereFace(1.35), TypeError, "m: expected an integer from 1 to 64, got 1.35"),
        (lambda: Combined(True, 0, 0, 64), TypeError, "m1: expected an integer from 1 to 64, got True"),
        (lambda: Combined(0, 0, 0, 64), ValueError, "m1: expected an integer from 1 to 64, got 0"),
        (lambda: ArcFace(28.6, 64), ValueError, r"m2: expected a number of radians in \[0, pi\), got 28.6"),
        (lambda: ArcFace(math.pi, 64), ValueError, r"m2: expected a number of radians in \[0, pi\), got 3.14"),
        (lambda: ArcFace(-0.1, 64), ValueError, "m2: .*, got -0.1"),
        (lambda: ArcFace(math.nan, 64), ValueError, "m2: .*, got nan"),
        (lambda: ArcFace("0.5", 64), TypeError, "m2: .*, got '0.5'"),
        (lambda: CosFace(2, 64), ValueError, r"m3: expected a number in \[0, 2\), got 2"),
        (lambda: CosFace(-0.35, 64), ValueError, "m3: .*, got -0.35"),
        (lambda: CosFace(None, 64), TypeError, "m3: .*, got None"),
        (lambda: CosFace(0.35, 0), ValueError, "scale: expected a finite number > 0, got 0"),
        (lambda: ArcFace(0.5, -64), ValueError, "scale: expected a finite number > 0, got -64"),
        (lambda: ArcFace(0.5, math.nan), ValueError, "scale: expected a finite number > 0, got nan"),
        (lambda: ArcFace(0.5, math.inf), ValueError, "scale: expected a finite number > 0, got inf"),
        (lambda: ArcFace(0.5, True), TypeError, "scale: expected a finite number > 0, got True"),
        (lambda: ArcFace(0.5, 64).scaled(0), ValueError, "scale: expected a finite number > 0, got 0"),
        (lambda: ArcFace(0.5, 64, "easy"), ValueError, "continuation: expected 'unfolded' or 'linear', got 'easy'"),
        (lambda: ArcFace(0.5, 64, None), TypeError, "continuation: expected 'unfolded' or 'linear', got None"),
        (lambda: Combined(2, 0, 0, 64, "linear"), ValueError, "continuation: expected 'unfolded' with m1 = 2"),
        (lambda: Margin(normalize_weights=1), TypeError, "normalize_weights: expected True or False, got 1"),
        (lambda: Margin(normalize_features="no"), TypeError, "normalize_features: expected True or False, got 'no'"),
    ],
)
def test_bad_parameters(make, error, message):
    with pytest.raises(error, match=f"^{message}"):
        make()


class ArcFaceLoss:
    """A margin of another library."""


@pytest.mark.parametrize("value", ["4", 2.5, True, None, ArcFaceLoss(), ArcFace, {"m1": 1}])
def test_what_is_no_margin(value):
    with pytest.raises(
        TypeError, match=r"^margin: expected an integer from 1 to 64, got .*ArcFace.*, Combined or Margin"
    ):
        margin_of(value)


@pytest.mark.parametrize("value", [0, 65, -1])
def test_integers_that_are_no_margin(value):
    with pytest.raises(ValueError, match=f"^margin: expected an integer from 1 to 64, got {value}$"):
        margin_of(value)


def test_tensors_and_variables():
    tf = pytest.importorskip("tensorflow", reason=TENSORFLOW)
    scale = tf.Variable(64.0)
    margin = ArcFace(0.5, scale)
    assert margin.scale is scale
    assert margin == ArcFace(0.5, scale)
    assert hash(margin) == hash(ArcFace(0.5, scale))
    assert margin not in (ArcFace(0.5, tf.Variable(64.0)), ArcFace(0.5, 64))
    assert repr(margin).startswith("ArcFace(m2=0.5, scale=<tf.Variable")
    assert copy.deepcopy(margin).scale is scale
    scale.assign(30.0)
    assert Margin.from_config(margin.get_config()) == ArcFace(0.5, 30)
    assert CosFace(tf.constant(0.25), 64).psi(0.0) == 0.75
    of_zero = Margin(m3=tf.Variable(0.0))  # which may change
    assert (of_zero.is_plain, of_zero.moves_target) == (False, True)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ([1.0], ValueError, r"scale: expected shape \[\], got \(1,\)"),
        ("64", TypeError, "scale: expected a scalar tensor of numbers, got string"),
        (True, TypeError, "scale: expected a scalar tensor of numbers, got bool"),
    ],
)
def test_bad_tensors(value, error, message):
    tf = pytest.importorskip("tensorflow", reason=TENSORFLOW)
    with pytest.raises(error, match=message):
        CosFace(0.35, tf.constant(value))


def test_a_symbolic_tensor_is_taken_and_has_no_config():
    tf = pytest.importorskip("tensorflow", reason=TENSORFLOW)

    @tf.function
    def traced(scale):
        margin = CosFace(0.35, scale)
        assert margin.scale is scale
        with pytest.raises(TypeError, match="scale: expected a number, got .*, which has no value yet"):
            margin.get_config()
        return scale

    traced(tf.constant(64.0))


@pytest.mark.parametrize("shown", NAMED)
def test_plot(shown, tmp_path):
    pytest.importorskip("matplotlib").use("Agg")
    margin = NAMED[shown]
    axes = margin.plot()
    assert axes.get_title() == shown
    cosine, psi = (line.get_ydata() for line in axes.lines)
    drawn = np.radians(axes.lines[1].get_xdata())
    assert np.isnan(psi).sum() == (margin.continuation == "linear")  # the jump is no line
    np.testing.assert_allclose(psi[~np.isnan(psi)], margin.psi(drawn[~np.isnan(drawn)].clip(0, math.pi)), atol=1e-9)
    assert (cosine[0], cosine[-1]) == (1, -1)
    axes.figure.savefig(tmp_path / "margin.png")
    assert margin.plot(axes) is axes


def test_the_docstrings_are_true():
    assert doctest.testmod(margins).failed == 0


def test_neither_margins_nor_the_oracle_import_tensorflow():
    run_python("""
import sys
from lsoftmax_op import margins, reference
reference.psi(1.0, margins.ArcFace(0.5, 64))
assert "tensorflow" not in sys.modules and "matplotlib" not in sys.modules
""")
