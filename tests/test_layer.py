"""Logits and gradients against the oracle: every data type, margin, lambda, shape, segment, edge, pole and norm."""

import itertools

import numpy as np
import pytest
from conftest import LAYERS
from support import (
    KINDS,
    LAMBDAS,
    MARGINS,
    SHAPES,
    WIDER_SHAPES,
    angle_batch,
    assert_close_to_oracle,
    errors,
    random_batch,
)

# Each margin alone, and beside one lambda; one margin of every number beside each of them.
ANGLES = {(margin, 0.0) for margin in (*MARGINS, *KINDS)}
ANGLES |= set(zip((*MARGINS, *KINDS), itertools.cycle(LAMBDAS[1:]), strict=False))
ANGLES |= {(margin, lam) for margin in (4, KINDS[4], KINDS[5]) for lam in LAMBDAS}


@pytest.mark.parametrize(("margin", "lam"), sorted(ANGLES, key=repr), ids=repr)
def test_every_angle_and_norm(layer, dtype, margin, lam):
    assert_close_to_oracle(angle_batch(margin, dtype), dtype, layer, margin, lam)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("margin", MARGINS)
def test_every_shape(layer, dtype, shape, margin):
    batch = random_batch(shape, dtype, seed=margin)
    assert_close_to_oracle(batch, dtype, layer, margin, LAMBDAS[margin % len(LAMBDAS)])


@pytest.mark.parametrize("shape", WIDER_SHAPES, ids=str)
@pytest.mark.parametrize("margin", KINDS, ids=repr)
def test_every_shape_of_every_kind(layer, dtype, shape, margin):
    assert_close_to_oracle(random_batch(shape, dtype), dtype, layer, margin, 0.5)


@pytest.mark.parametrize("margin", [1, 4, *KINDS[::3]], ids=repr)
def test_inside_a_function(dtype, margin):
    pytest.importorskip("tensorflow")
    assert_close_to_oracle(random_batch((13, 33, 7), dtype), dtype, LAYERS["function"], margin, 0.5)


@pytest.mark.parametrize("margin", [17, 64])
def test_large_margins(layer, margin):
    # The slope of psi grows with the square of the margin, and with it what rounding of the cosine does.
    for batch in (angle_batch(margin, "float64"), random_batch((13, 33, 7), "float64")):
        logits, gradients = layer(batch, margin=margin, lam=0.0)
        found = errors(batch, logits, gradients, margin, 0.0)
        assert found[0].max() < 1e-15 * margin**2 * 10
        assert max(f.max() for f in found[1:]) < 1e-15 * margin**4 * 10


@pytest.mark.parametrize("pole", [1.0, -1.0])
@pytest.mark.parametrize("margin", [margin for margin in KINDS if margin.m2 > 0], ids=repr)
def test_a_shift_makes_a_tip_of_the_poles_without_a_slope(layer, margin, pole):
    """There the angle is known to 1e-8, and with it the logit; and the gradient is the limit of no direction, but 0."""
    batch = random_batch((24, 8, 3), "float64").beside(margin)
    batch.labels[:] = np.arange(24) % 3
    batch.features[:] = pole * np.geomspace(0.1, 10, 24)[:, None] * batch.weights[:, batch.labels].T
    logits, gradients = layer(batch, margin=margin, lam=0.0)
    found = errors(batch, logits, gradients, margin, 0.0)
    assert found[0].max() < 1e-7
    assert max(f.max() for f in found[1:]) < 1e-7


@pytest.mark.parametrize("margin", [margin for margin in KINDS if margin.normalizes], ids=repr)
def test_of_a_norm_of_zero_that_is_divided_by_comes_nothing(layer, dtype, margin):
    batch = random_batch((13, 33, 7), dtype).beside(margin)
    batch.labels[:4] = [3, 2, -1, 2]
    batch.features[[0, 2]], batch.weights[:, 2] = 0, 0
    logits, gradients = layer(batch, margin=margin, lam=0.0)
    loss, of_loss = layer.loss(batch, margin=margin, lam=0.0, label_smoothing=0.1)
    for values in (logits, loss, *gradients, *of_loss):
        assert np.isfinite(np.asarray(values, np.float64)).all()
    if margin.normalize_features:
        for zeros in (logits[[0, 2]], gradients[0][[0, 2]], of_loss[0][[0, 2]]):
            np.testing.assert_array_equal(zeros, 0)
    if margin.normalize_weights:
        for zeros in (logits[:, 2], gradients[1][:, 2], of_loss[1][:, 2]):
            np.testing.assert_array_equal(zeros, 0)


@pytest.mark.parametrize("kwargs", [{"margin": 1}, {"lam": np.inf}], ids=str)
def test_without_a_margin_it_is_the_dense_layer_to_the_last_bit(layer, dtype, kwargs):
    batch = random_batch((13, 33, 7), dtype)
    logits, gradients = layer(batch, **{"margin": 4, "lam": 0.0, **kwargs})
    plain_logits, plain_gradients = layer.plain(batch)
    for got, expected in zip((logits, *gradients), (plain_logits, *plain_gradients), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_rows_without_a_target_are_the_dense_layers(layer, dtype):
    batch = random_batch((13, 33, 7), dtype)
    batch.labels[:] = -1
    logits, gradients = layer(batch, margin=4, lam=0.0)
    plain_logits, plain_gradients = layer.plain(batch)
    for got, expected in zip((logits, *gradients), (plain_logits, *plain_gradients), strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, 1e-40], ids=str)
def test_strange_numbers_stay_in_their_row(layer, value):
    batch = random_batch((13, 33, 7), "float32")
    batch.labels[:] = np.arange(13) % 7
    clean, clean_gradients = layer(batch, margin=4, lam=0.0)
    batch.features[5, 3] = value
    logits, gradients = layer(batch, margin=4, lam=0.0)
    others = np.arange(13) != 5
    np.testing.assert_array_equal(logits[others], clean[others])
    np.testing.assert_array_equal(gradients[0][others], clean_gradients[0][others])
    assert np.isfinite(logits[5, batch.labels[5]]) == np.isfinite(value)
