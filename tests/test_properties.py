"""What must hold for any batch (hypothesis)."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from support import KINDS, random_batch

from lsoftmax_op import arrays, reference

batches = st.builds(
    random_batch,
    st.tuples(st.integers(1, 20), st.integers(1, 40), st.integers(1, 9)),
    st.just("float64"),
    st.integers(0, 10**6),
)
margins = st.integers(1, 12)
every_kind = st.one_of(margins, st.sampled_from(KINDS))
lambdas = st.one_of(st.just(0.0), st.floats(0, 1e6))
quick = settings(max_examples=60, deadline=None)


def targets(batch, logits):
    """The target entries of the rows that have one."""
    rows = np.flatnonzero(batch.labels >= 0)
    return logits[rows, batch.labels[rows]]


@quick
@given(batches, lambdas)
def test_margin_one_is_the_dense_layer(batch, lam):
    plain = batch.features @ batch.weights + batch.bias
    np.testing.assert_array_equal(arrays.logits(*batch.layer, margin=1, lam=lam), plain)


@quick
@given(batches, margins)
def test_infinite_lambda_is_the_dense_layer(batch, margin):
    plain = batch.features @ batch.weights + batch.bias
    np.testing.assert_array_equal(arrays.logits(*batch.layer, margin=margin, lam=np.inf), plain)


@quick
@given(batches, margins, lambdas, st.floats(1e-6, 1e6))
def test_scaling_the_features_scales_the_logits(batch, margin, lam, scale):
    logits = arrays.logits(*batch.layer[:3], margin=margin, lam=lam)
    scaled = arrays.logits(scale * batch.features, *batch.layer[1:3], margin=margin, lam=lam)
    np.testing.assert_allclose(scaled, scale * logits, rtol=1e-9, atol=1e-9 * scale)


@quick
@given(batches, margins, lambdas, st.randoms(use_true_random=False))
def test_permuting_the_batch_permutes_the_result(batch, margin, lam, random):
    order = list(range(len(batch.labels)))
    random.shuffle(order)
    logits = arrays.logits(*batch.layer, margin=margin, lam=lam)
    permuted = arrays.logits(
        batch.features[order],
        batch.weights,
        batch.labels[order],
        batch.bias,
        margin=margin,
        lam=lam,
    )
    np.testing.assert_allclose(permuted, logits[order], rtol=1e-12, atol=1e-12)
    gradients = [
        arrays.logits_grad(batch.grad[o], batch.features[o], batch.weights, batch.labels[o], margin=margin, lam=lam)
        for o in (slice(None), order)
    ]
    np.testing.assert_allclose(gradients[1].features, gradients[0].features[order], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(gradients[1].weights, gradients[0].weights, rtol=1e-9, atol=1e-9)


@quick
@given(batches, margins, lambdas)
def test_the_margin_never_helps(batch, margin, lam):
    """psi(theta) <= cos(theta): the target logit only ever falls."""
    plain = targets(batch, batch.features @ batch.weights)
    large = targets(batch, arrays.logits(*batch.layer[:3], margin=margin, lam=lam))
    assert (large <= plain + 1e-11 * (1 + np.abs(plain)) * margin).all()


@quick
@given(batches, margins, lambdas)
def test_more_lambda_is_closer_to_the_dense_layer(batch, margin, lam):
    less = targets(batch, arrays.logits(*batch.layer[:3], margin=margin, lam=lam))
    more = targets(batch, arrays.logits(*batch.layer[:3], margin=margin, lam=2 * lam + 1))
    assert (less <= more + 1e-10 * margin * (1 + np.abs(more))).all()


@quick
@given(batches, margins, lambdas)
def test_a_row_without_a_target_is_the_dense_layers(batch, margin, lam):
    ignored = batch.labels < 0
    plain = batch.features @ batch.weights + batch.bias
    logits = arrays.logits(*batch.layer, margin=margin, lam=lam)
    np.testing.assert_array_equal(logits[ignored], plain[ignored])
    gradient = arrays.logits_grad(batch.grad, *batch.layer, margin=margin, lam=lam).features
    np.testing.assert_allclose(gradient[ignored], (batch.grad @ batch.weights.T)[ignored], rtol=1e-12, atol=1e-12)


@quick
@given(batches, every_kind, lambdas)
def test_any_number_of_threads_gives_the_same_bits(batch, margin, lam):
    batch = batch.beside(margin)
    batch.features = np.tile(batch.features, (40, 12))  # enough work for several
    batch.weights = np.tile(batch.weights, (12, 1))
    batch.labels, batch.grad = np.tile(batch.labels, 40), np.tile(batch.grad, (40, 1))
    results = []
    for n in (1, 2, 3):
        options = {"margin": margin, "lam": lam, "num_threads": n}
        logits = arrays.logits(*batch.layer, **options)
        results.append([logits, *arrays.logits_grad(batch.grad, *batch.layer, **options)])
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(one, two)


@quick
@given(batches, margins, lambdas)
def test_any_batch_agrees_with_the_oracle(batch, margin, lam):
    np.testing.assert_allclose(
        arrays.logits(*batch.layer, margin=margin, lam=lam),
        reference.logits(*batch.layer, margin=margin, lam=lam),
        rtol=1e-10,
        atol=1e-10,
    )


@quick
@given(batches, every_kind, lambdas)
def test_the_loss_is_the_cross_entropy_of_the_logits(batch, margin, lam):
    batch = batch.beside(margin)
    logits = arrays.logits(*batch.layer, margin=margin, lam=lam)
    largest = logits.max(axis=1)
    log_sum_exp = largest + np.log(np.exp(logits - largest[:, None]).sum(axis=1))
    expected = np.where(batch.labels >= 0, log_sum_exp - logits[np.arange(len(logits)), batch.labels], 0)
    loss = arrays.loss(*batch.layer, margin=margin, lam=lam)
    assert (loss >= 0).all()
    np.testing.assert_allclose(loss, expected, rtol=1e-11, atol=1e-11)


@quick
@given(batches, every_kind, lambdas, st.floats(0, 0.99))
def test_smoothed_labels_mix_the_losses_of_all_classes(batch, margin, lam, smoothing):
    """As far as the margin stays where it is: the loss of each class j is that of the label's, by z_y - z_j."""
    batch = batch.beside(margin)
    logits = arrays.logits(*batch.layer, margin=margin, lam=lam)
    loss = arrays.loss(*batch.layer, margin=margin, lam=lam)
    of_target = logits[np.arange(len(logits)), batch.labels]
    expected = np.where(batch.labels >= 0, loss + smoothing * (of_target - logits.mean(axis=1)), 0)
    smoothed = arrays.loss(*batch.layer, margin=margin, lam=lam, label_smoothing=smoothing)
    np.testing.assert_allclose(smoothed, expected, rtol=1e-10, atol=1e-10)


@quick
@given(batches, st.sampled_from(KINDS), st.floats(1e-6, 1e6), st.floats(1e-6, 1e6))
def test_what_is_normalised_has_no_length(batch, margin, of_features, of_weights):
    of_features, of_weights = (
        size if normalized else 1.0
        for size, normalized in zip(
            (of_features, of_weights), (margin.normalize_features, margin.normalize_weights), strict=True
        )
    )
    layer = batch.features, batch.weights, batch.labels
    scaled = batch.features * of_features, batch.weights * of_weights, batch.labels
    # Where m2 makes a tip of the poles, which a single feature is at, what rounding does to the angle is 1e-8.
    tolerance = 1e-7 if batch.features.shape[1] == 1 else 1e-9
    for function in (arrays.logits, arrays.loss):
        expected = function(*layer, margin=margin)
        np.testing.assert_allclose(function(*scaled, margin=margin), expected, rtol=tolerance, atol=tolerance * 100)
    gradients = arrays.loss_grad(batch.loss_grad, *layer, margin=margin)
    if margin.normalize_features:
        radial = (gradients.features * batch.features).sum(axis=1)
        np.testing.assert_allclose(radial, 0, atol=1e-8 * (1 + np.abs(gradients.features * batch.features).max()))
    if margin.normalize_weights:
        radial = (gradients.weights * batch.weights).sum(axis=0)
        np.testing.assert_allclose(radial, 0, atol=1e-8 * (1 + np.abs(gradients.weights * batch.weights).max()))


@quick
@given(batches, margins, lambdas)
def test_the_loss_with_a_margin_is_larger(batch, margin, lam):
    plain, large = (arrays.loss(*batch.layer, margin=m, lam=lam) for m in (1, margin))
    assert (large >= plain - 1e-9 * margin * (1 + plain)).all()


@quick
@given(batches, margins, lambdas, st.floats(-1e3, 1e3))
def test_a_constant_on_every_bias_changes_no_loss(batch, margin, lam, constant):
    loss, shifted = (
        arrays.loss(*batch.layer[:3], bias, margin=margin, lam=lam) for bias in (batch.bias, batch.bias + constant)
    )
    np.testing.assert_allclose(shifted, loss, rtol=1e-9, atol=1e-9)


@quick
@given(batches, margins, lambdas)
def test_the_gradients_of_the_loss_in_the_bias_sum_to_zero(batch, margin, lam):
    bias = arrays.loss_grad(batch.loss_grad, *batch.layer, margin=margin, lam=lam).bias
    np.testing.assert_allclose(bias.sum(), 0, atol=1e-12 * (1 + np.abs(batch.loss_grad).sum()))


@quick
@given(batches, every_kind, lambdas)
def test_any_number_of_threads_gives_the_same_loss(batch, margin, lam):
    batch = batch.beside(margin)
    batch.features, batch.labels = np.tile(batch.features, (200, 1)), np.tile(batch.labels, 200)
    grad = np.tile(batch.loss_grad, 200)
    options = {"margin": margin, "lam": lam, "label_smoothing": 0.1}
    results = [arrays.loss_grad(grad, *batch.layer, **options, num_threads=n) for n in (1, 2, 3)]
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(one, two)
