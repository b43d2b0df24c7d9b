"""Every margin in TensorFlow: values and gradients of every order, tensors for numbers, bad input."""

import math

import numpy as np
import pytest
from support import random_batch

from lsoftmax_op import library, margins, reference
from lsoftmax_op.margins import ArcFace, Combined, CosFace, LSoftmax, Margin, SphereFace

tf = pytest.importorskip("tensorflow")

from lsoftmax_op import margin_softmax_logits, margin_softmax_loss, target_angles

KINDS = [
    LSoftmax(4),
    SphereFace(3),
    CosFace(0.35, 8),
    ArcFace(0.5, 8),
    ArcFace(1.2, 8, "linear"),
    Combined(2, 0.7, 0.2, 6),
    Margin(3, 0.5, 0.1, 2, normalize_features=True),
    Margin(2, 0.5, 0.1),
]
kinds = pytest.mark.parametrize("margin", KINDS, ids=repr)
TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 5e-2, "float16": 1e-2}


def batch_for(margin, dtype="float64", shape=(23, 9, 7)):
    """A batch with a row without a target, a zero row and, where nothing is divided by their norms, a bias."""
    batch = random_batch(shape, dtype, seed=3)
    batch.labels[:4] = [-1, 2, 2, 0]
    batch.features[1] = 0
    return batch, None if margin.has_factors else batch.bias


def step(batch, bias, **settings):
    """The loss, and its gradients in features, weights and bias."""
    arguments = [tf.constant(array) for array in (batch.features, batch.weights, bias) if array is not None]
    with tf.GradientTape() as tape:
        tape.watch(arguments)
        features, weights, *rest = arguments
        loss = margin_softmax_loss(features, weights, batch.labels, *rest, **settings)
    return loss, *tape.gradient(loss, arguments, output_gradients=tf.constant(batch.loss_grad))


def assert_close(got, expected, dtype):
    for one, other in zip(got, expected, strict=True):
        other = np.asarray(other, np.float64)
        atol = TOLERANCE[dtype] * max(1, np.abs(other).max())
        np.testing.assert_allclose(np.asarray(one, np.float64), other, rtol=0, atol=atol)


@kinds
@pytest.mark.parametrize(
    ("dtype", "lam"), [("float64", 0.0), ("float64", np.inf), ("float32", 0.5), ("bfloat16", 0.0), ("float16", 0.0)]
)
def test_the_loss_and_its_gradients_are_the_oracles(margin, lam, dtype):
    batch, bias = batch_for(margin, dtype)
    exact = batch.exact()
    layer = (exact.features, exact.weights, exact.labels, None if bias is None else exact.bias)
    for smoothing in (0.0, 0.1) if dtype == "float64" else (0.1,):
        settings = {"margin": margin, "lam": lam, "label_smoothing": smoothing}
        gradients = [g for g in reference.loss_grad(exact.loss_grad, *layer, **settings) if g is not None]
        assert_close(step(batch, bias, **settings), [reference.loss(*layer, **settings), *gradients], dtype)


@kinds
def test_blocks_are_the_whole(margin):
    batch, bias = batch_for(margin)
    settings = {"margin": margin, "lam": 0.5, "label_smoothing": 0.1}
    for size in (3, 7, 100):
        assert_close(step(batch, bias, class_block_size=size, **settings), step(batch, bias, **settings), "float64")


@kinds
def test_the_logits_and_their_gradients_are_the_oracles(margin):
    batch, bias = batch_for(margin)
    arguments = [tf.constant(array) for array in (batch.features, batch.weights, bias) if array is not None]
    with tf.GradientTape() as tape:
        tape.watch(arguments)
        features, weights, *rest = arguments
        logits = margin_softmax_logits(features, weights, batch.labels, *rest, margin=margin, lam=0.5)
    got = tape.gradient(logits, arguments, output_gradients=tf.constant(batch.grad))
    layer = (batch.features, batch.weights, batch.labels, bias)
    expected = [g for g in reference.logits_grad(batch.grad, *layer, margin=margin, lam=0.5) if g is not None]
    assert_close([logits, *got], [reference.logits(*layer, margin=margin, lam=0.5), *expected], "float64")


@kinds
@pytest.mark.parametrize("function", [margin_softmax_loss, margin_softmax_logits])
def test_second_order_numerically(margin, function):
    batch = random_batch((5, 4, 3), "float64", seed=2)
    batch.labels[:] = [0, 2, 0, -1, 1]

    rng, step = np.random.default_rng(0), 1e-6
    direction = [tf.constant(rng.normal(size=array.shape)) for array in (batch.features, batch.weights)]

    def gradients(features, weights):
        with tf.GradientTape() as tape:
            tape.watch([features, weights])
            value = tf.reduce_sum(tf.sin(function(features, weights, batch.labels, margin=margin, lam=0.5)))
        return tape.gradient(value, [features, weights])

    def moved(by):
        return gradients(batch.features + by * direction[0], batch.weights + by * direction[1])

    here = [tf.constant(batch.features), tf.constant(batch.weights)]
    with tf.GradientTape() as tape:
        tape.watch(here)
        along = tf.add_n([tf.reduce_sum(g * d) for g, d in zip(gradients(*here), direction, strict=True)])
    for got, ahead, behind in zip(tape.gradient(along, here), moved(step), moved(-step), strict=True):
        expected = (ahead - behind) / (2 * step)
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-7 * np.abs(expected).max())


@pytest.mark.parametrize(
    "margin", [CosFace(0.35, 8), ArcFace(0.5, 8), SphereFace(4), Combined(2, 0.7, 0.2, 6)], ids=repr
)
@pytest.mark.parametrize("function", [margin_softmax_loss, margin_softmax_logits])
def test_zero_norms_and_poles_are_finite_in_every_order(margin, function):
    features = tf.constant([[2.0, 0.0], [-3.0, 0.0], [0.0, 0.0], [1.0, 1.0]], tf.float64)
    weights = tf.constant([[1.0, 0.5, 0.0], [0.0, 0.5, 0.0]], tf.float64)
    with tf.GradientTape() as outer:
        outer.watch([features, weights])
        with tf.GradientTape() as inner:
            inner.watch([features, weights])
            value = function(features, weights, [0, 0, 0, 2], margin=margin)
        first = inner.gradient(value, [features, weights])
        total = tf.add_n([tf.reduce_sum(g**2) for g in first])
    for array in (value, *first, *outer.gradient(total, [features, weights])):
        assert np.isfinite(array).all()
    if margin.normalize_features:
        np.testing.assert_array_equal(first[0][2], 0)
    np.testing.assert_array_equal(first[1][:, 2], 0)


def test_a_zero_row_of_a_margin_that_normalises_has_logits_of_zero():
    logits = margin_softmax_logits(np.zeros((1, 3)), np.ones((3, 5)), [2], margin=ArcFace(0.5, 64))
    np.testing.assert_array_equal(logits, np.zeros((1, 5)))


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "function"])
def test_numbers_may_be_tensors_and_never_retrace(compiled):
    batch = random_batch((6, 5, 4), "float64")
    scale, m2, m3 = (tf.Variable(value, dtype=tf.float32) for value in (8.0, 0.5, 0.25))
    traces = []

    def loss(features):
        traces.append(None)
        margin = Combined(2, m2, m3, scale)
        return margin_softmax_loss(features, batch.weights, batch.labels, margin=margin, label_smoothing=0.1)

    function = tf.function(loss) if compiled else loss
    for value in (8.0, 64.0):
        scale.assign(value)
        expected = margin_softmax_loss(
            *(batch.features, batch.weights, batch.labels), margin=Combined(2, 0.5, 0.25, value), label_smoothing=0.1
        )
        np.testing.assert_allclose(function(batch.features), expected, rtol=1e-12)
    assert not compiled or len(traces) == 1


def test_unknown_shapes():
    batch = random_batch((6, 5, 4), "float32")
    specs = [tf.TensorSpec([None, None]), tf.TensorSpec([None, None]), tf.TensorSpec([None], tf.int64)]

    @tf.function(input_signature=specs)
    def step(features, weights, labels):
        with tf.GradientTape() as tape:
            tape.watch([features, weights])
            loss = margin_softmax_loss(features, weights, labels, margin=ArcFace(0.5, 8), label_smoothing=0.2)
        return loss, *tape.gradient(loss, [features, weights])

    layer = (batch.features, batch.weights, batch.labels)
    settings = {"margin": ArcFace(0.5, 8), "label_smoothing": 0.2}
    gradients = reference.loss_grad(np.ones(6), *layer, **settings)[:2]
    got = step(*layer[:2], batch.labels.astype(np.int64))
    assert_close(got, [reference.loss(*layer, **settings), *gradients], "float32")


@pytest.mark.parametrize("function", [margin_softmax_loss, margin_softmax_logits])
def test_no_gradient_goes_to_the_numbers_of_a_margin(function):
    batch = random_batch((6, 5, 4), "float32")
    numbers = [tf.Variable(value) for value in (0.5, 0.25, 8.0)]
    with tf.GradientTape() as tape:
        value = function(batch.features, batch.weights, batch.labels, margin=Combined(2, *numbers))
    assert tape.gradient(value, numbers) == [None] * 3


@pytest.mark.parametrize("function", [margin_softmax_loss, margin_softmax_logits])
@pytest.mark.parametrize("norm", [1e-10, 1e-17, 1e-20, 1e-30, 1e-38, 1e-40])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_small_norms_are_divided_by_or_count_as_zero(function, norm, dtype):
    batch = random_batch((6, 5, 4), dtype, seed=1)
    batch.labels[:] = [0, 1, 2, 3, 1, 0]
    batch.features[1] *= norm
    batch.weights[:, 2] *= norm
    variables = [tf.constant(batch.features), tf.constant(batch.weights)]
    with tf.GradientTape() as tape:
        tape.watch(variables)
        value = function(*variables, batch.labels, margin=ArcFace(0.5, 64))
    for array in (value, *tape.gradient(value, variables)):
        assert np.isfinite(np.asarray(array, np.float64)).all()
    exact = batch.exact()
    name = "loss" if function is margin_softmax_loss else "logits"
    expected = getattr(reference, name)(exact.features, exact.weights, exact.labels, margin=ArcFace(0.5, 64))
    assert_close([value], [expected], dtype)


@pytest.mark.parametrize("ratio", [1e-2, 3e-3, 1e-3])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "xla"])
def test_a_class_of_a_small_norm_leaves_float16_finite(ratio, compiled):
    """One unit a row cannot fit classes of all norms; what does not fit must not become infinite."""
    batch = random_batch((8, 64, 50), "float16", seed=2)
    batch.weights[:, 7] = ratio * batch.features[0]  # the strongest rival of row 0
    batch.labels[batch.labels == 7] = 8

    @tf.function(jit_compile=compiled)
    def step(features, weights):
        with tf.GradientTape() as tape:
            tape.watch([features, weights])
            loss = margin_softmax_loss(features, weights, batch.labels, margin=ArcFace(0.5, 64))
        return loss, *tape.gradient(loss, [features, weights])

    for array in step(tf.constant(batch.features), tf.constant(batch.weights)):
        assert np.isfinite(array).all()


@pytest.mark.parametrize(
    ("flag", "given", "message"),
    [
        ("normalize_weights", (), r"terms: expected shape \[7\] where a margin normalises"),
        ("normalize_features", (), r"terms: expected shape \[7\] where a margin normalises"),
        ("linear_continuation", (), r"terms: expected shape \[7\] where a margin .* linear continuation, got none"),
        ("normalize_weights", ("terms",), r"class_factors: expected shape \[C\] where a margin normalises, got none"),
        (None, ("class_factors",), r"terms: expected shape \[7\] where there are class_factors, got none"),
    ],
)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "xla"])
def test_a_raw_loss_wants_what_its_margin_does(flag, given, message, compiled):
    batch = random_batch((3, 4, 5), "float32")
    terms = tf.constant([0, 1, 0, 0, 1, 0, 0] if "terms" in given else [], tf.float64)
    factors = tf.ones([5 if "class_factors" in given else 0])
    arguments = (batch.features @ batch.weights, *batch.layer[:3], tf.zeros([0]), tf.zeros([], tf.float64))
    flags = {} if flag is None else {flag: True}
    loss = tf.function(
        lambda: library.load().lsoftmax_loss(*arguments, terms, factors, margin=1, **flags)[0], jit_compile=compiled
    )
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        loss()


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_without_a_margin_smoothed_labels_are_those_of_keras(smoothing):
    batch = random_batch((9, 5, 4), "float64")
    loss = margin_softmax_loss(*batch.layer, margin=1, label_smoothing=smoothing)
    logits = batch.features @ batch.weights + batch.bias
    keras_loss = tf.keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=smoothing, reduction="none")
    np.testing.assert_allclose(loss, keras_loss(np.eye(4)[batch.labels], logits), rtol=1e-6)


def test_minus_infinity_is_a_probability_of_zero():
    """A logit of -inf (a masked class) has none, and no smoothed label either: its loss is infinite, as Keras' is."""
    batch = random_batch((4, 3, 5), "float64")
    batch.labels[:] = 0
    batch.bias[3] = -np.inf
    assert np.isfinite(margin_softmax_loss(*batch.layer, margin=4)).all()
    assert np.isposinf(margin_softmax_loss(*batch.layer, margin=4, label_smoothing=0.1)).all()


@kinds
def test_the_segments_are_those_of_phi(margin):
    angles = np.linspace(0.01, math.pi - 0.01, 50)
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    _, segment = target_angles(features, np.array([[2.0], [0.0]]), np.zeros(50, np.int64), margin=margin)
    np.testing.assert_array_equal(segment, np.floor((margin.m1 * angles + margin.m2) / math.pi))


def test_labels_smoothed_or_not_nothing_comes_of_rows_without_a_target():
    batch = random_batch((3, 4, 5), "float32")
    batch.labels[:] = -1
    loss, *gradients = step(batch, None, margin=ArcFace(0.5, 64), label_smoothing=0.1)
    for array in (loss, *gradients):
        np.testing.assert_array_equal(array, 0)


@pytest.mark.parametrize("function", [margin_softmax_loss, margin_softmax_logits])
@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"margin": 0}, ValueError, r"margin: expected an integer from 1 to 64, got 0"),
        ({"margin": 2.5}, TypeError, r"margin: expected an integer .* got 2.5; a margin of lsoftmax_op.margins is"),
        ({"margin": "ArcFace"}, TypeError, r"margin: expected an integer .* got 'ArcFace'; .* CosFace, ArcFace"),
        ({"margin": object()}, TypeError, r"margin: expected an integer"),
        ({"margin": ArcFace(0.5, 8), "lam": -1}, ValueError, r"lam: expected a number >= 0, got -1"),
    ],
)
def test_bad_settings(function, settings, error, message):
    batch = random_batch((3, 4, 5), "float32")
    with pytest.raises(error, match=message):
        function(batch.features, batch.weights, batch.labels, **settings)


@pytest.mark.parametrize("function", [margin_softmax_loss, margin_softmax_logits])
@pytest.mark.parametrize("margin", [ArcFace(0.5, 8), SphereFace(4), Margin(scale=2)], ids=repr)
def test_a_bias_beside_factors_is_refused(function, margin):
    batch = random_batch((3, 4, 5), "float32")
    with pytest.raises(ValueError, match=r"bias: expected None with a margin that normalises or scales"):
        function(*batch.layer, margin=margin)


@pytest.mark.parametrize("smoothing", [-0.1, 1, 1.5, math.nan])
def test_bad_smoothing(smoothing):
    batch = random_batch((3, 4, 5), "float32")
    with pytest.raises(ValueError, match=r"label_smoothing: expected a number in \[0, 1\), got"):
        margin_softmax_loss(*batch.layer, margin=4, label_smoothing=smoothing)


def test_the_integer_margin_is_lsoftmax():
    assert margins.margin_of(4) == LSoftmax(4)
    batch = random_batch((6, 5, 4), "float32")
    one, other = (step(batch, batch.bias, margin=margin, lam=0.5) for margin in (4, LSoftmax(4)))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)
