"""The signature of the per-sample loop, and where the results differ from the loop's on purpose."""

import inspect

import numpy as np
import pytest
from support import random_batch

import lsoftmax_op
from lsoftmax_op import reference

pytest.importorskip("tensorflow")


def test_signature():
    names = list(inspect.signature(lsoftmax_op.L_softmax).parameters)
    assert names == [
        "feature",
        "labels",
        "softmax_w",
        "softmax_b",
        "batch_size",
        "labmda",
        "margin",
    ]
    assert inspect.signature(lsoftmax_op.L_softmax).parameters["labmda"].default == 100


@pytest.mark.parametrize("margin", [1, 3, 4])
def test_results(margin):
    batch = random_batch((9, 6, 4), "float64")
    assert (batch.bias < 0).any()  # a negative bias is added as it is
    logits, (cos_theta, k) = lsoftmax_op.L_softmax(
        batch.features, batch.labels, batch.weights, batch.bias, 9, 2.5, margin
    )
    want_cos, want_k = reference.target_angles(*batch.layer[:3], margin=margin)
    np.testing.assert_allclose(logits, reference.logits(*batch.layer, margin=margin, lam=2.5))
    np.testing.assert_allclose(cos_theta, want_cos)
    np.testing.assert_array_equal(k, want_k)


def test_a_cosine_that_rounds_past_one_and_zero_norms():
    x = np.array([[0.1, 0.7, 0.3], [0, 0, 0]], np.float32)
    w = np.stack([3 * x[0], x[0] * 0.3], axis=1)
    logits, (cos_theta, k) = lsoftmax_op.L_softmax(x, [0, 1], w, None, 2, 0)
    assert np.isfinite(logits).all()
    assert abs(cos_theta[0] - 1) < 1e-6
    assert cos_theta[1] == 0
    assert list(k) == [0, 1]
