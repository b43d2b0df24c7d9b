"""Logits and gradients against the oracle: every data type, margin, lambda, shape, segment, edge, pole and norm."""

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


@pytest.mark.parametrize("lam", LAMBDAS)
@pytest.mark.parametrize("margin", [*MARGINS, *KINDS], ids=repr)
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
