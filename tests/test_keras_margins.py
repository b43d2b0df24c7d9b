"""Every margin in Keras: the oracle's loss in training, scale cos(theta) elsewhere, smoothed labels, embeddings."""

import itertools
import warnings

import ml_dtypes
import numpy as np
import pytest
from support import DTYPES

import lsoftmax_op
from lsoftmax_op import LambdaSchedule
from lsoftmax_op.margins import ArcFace, Combined, CosFace, LSoftmax, Margin, SphereFace

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")

from lsoftmax_op.keras import LSoftmaxClassifier, LSoftmaxDense, LSoftmaxMonitor
from lsoftmax_op.keras.loss import PlainLoss

pytestmark = pytest.mark.usefixtures("seeded_keras")
N, D, F, C = 24, 6, 3, 5
MARGINS = [
    LSoftmax(3),
    SphereFace(2),
    CosFace(0.2, 16),
    ArcFace(0.3, 16),
    ArcFace(1.0, 8, "linear"),
    Combined(2, 0.1, 0.1, 8),
    Margin(m3=0.2, scale=3.0),
    Margin(m2=0.3, normalize_features=True),
]
NORMALISED = [CosFace(0.2, 16), ArcFace(0.3, 16)]
every_margin = pytest.mark.parametrize("margin", MARGINS, ids=repr)


@pytest.fixture
def data():
    """Samples around a point for each class."""
    rng = np.random.default_rng(0)
    y = np.arange(N) % C
    return (rng.normal(size=(C, D))[y] + 0.3 * rng.normal(size=(N, D))).astype("float32"), y


def backbone():
    return keras.Sequential([keras.Input((D,)), keras.layers.Dense(4, activation="tanh"), keras.layers.Dense(F)])


def classifier(margin, lam=0.5, optimizer="sgd", compile_options=None, **options):
    model = LSoftmaxClassifier(backbone(), C, margin=margin, lam=lam, **options)
    model.compile(optimizer, **(compile_options or {}))
    return model


def unit(rows):
    norms = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.where(norms > 0, rows / np.where(norms > 0, norms, 1), 0)


def plain_logits(features, kernel, margin):
    features, kernel = (np.asarray(one).astype("float64") for one in (features, kernel))
    features = unit(features) if margin.normalize_features else features
    return float(margin.scale) * features @ (unit(kernel.T).T if margin.normalize_weights else kernel)


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def probabilities(model, x):
    """What the model should predict, from its features and kernel."""
    return softmax(plain_logits(model.backbone(x), model.head.kernel, model.head.margin))


# ---- training, evaluation, inference


@every_margin
def test_the_layer(data, margin):
    x, y = data
    layer = LSoftmaxDense(C, margin=margin, lam=0.5)
    want = plain_logits(x, layer(x) is not None and layer.kernel, margin)
    for logits in (layer(x), layer(x, y), layer(x, y, training=False), layer(x[:, None])[:, 0]):
        np.testing.assert_allclose(logits, want, rtol=1e-5, atol=1e-5)
    want = lsoftmax_op.reference.logits(x, layer.kernel.numpy(), y, margin=margin, lam=0.5)
    np.testing.assert_allclose(layer(x, y, training=True), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("margin", "label_smoothing"), list(zip(MARGINS, itertools.cycle([0.0, 0.2]))), ids=repr)
def test_fit_evaluate_and_predict(data, margin, label_smoothing):
    x, y = data
    y = np.where(np.arange(N) % 5, y, -1)
    model = classifier(margin, label_smoothing=label_smoothing)
    kernel, of_loss = model.head.kernel.numpy(), {"label_smoothing": label_smoothing}
    want = lsoftmax_op.reference.loss(model.backbone(x).numpy(), kernel, y, margin=margin, lam=0.5, **of_loss)
    plain = probabilities(model, x)
    np.testing.assert_allclose(model.predict(x, verbose=0), plain, rtol=1e-4)
    log = np.log(plain)
    losses = (1 - label_smoothing) * -log[np.arange(N), y] + label_smoothing * -log.mean(axis=1)
    logs = model.evaluate(x, y, verbose=0, return_dict=True)
    hits = np.mean(plain.argmax(axis=1)[y >= 0] == y[y >= 0])
    assert logs == pytest.approx({"loss": losses[y >= 0].sum() / N, "accuracy": hits}, rel=1e-5)
    assert float(model.loss(y, model(x))) == pytest.approx(logs["loss"], rel=1e-5)
    model.reset_metrics()
    logs = model.train_on_batch(x, y, return_dict=True)
    assert logs == pytest.approx({"loss": want.mean(), "accuracy": hits, "lam": 0.5}, rel=1e-5)


@every_margin
def test_every_margin_trains(data, margin):
    model = classifier(margin, lam=LambdaSchedule(base=10.0, gamma=1.0), optimizer=keras.optimizers.Adam(0.1))
    logs = model.fit(*data, epochs=15, batch_size=N, verbose=0, callbacks=[LSoftmaxMonitor()]).history
    assert logs["lam"][0] > 4 * logs["lam"][-1]
    assert logs["angle"][-1] < 0.7 * logs["angle"][0]
    assert logs["loss"][-1] < 0.7 * logs["loss"][0]
    assert logs["accuracy"][-1] > 0.6


@pytest.mark.parametrize("margin", NORMALISED, ids=repr)
def test_one_step_of_gradient_descent(data, margin):
    x, y = data
    model = classifier(margin, optimizer=keras.optimizers.SGD(0.1), label_smoothing=0.1)
    features, before = model.backbone(x).numpy(), model.head.kernel.numpy()
    options = {"margin": margin, "lam": 0.5, "label_smoothing": 0.1}
    grad = lsoftmax_op.reference.loss_grad(np.full(N, 1 / N), features, before, y, **options).weights
    model.train_on_batch(x, y)
    np.testing.assert_allclose(model.head.kernel.numpy(), before - 0.1 * grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("margin", NORMALISED, ids=repr)
def test_mixed_precision(data, margin, policy):
    x, y = data
    model = classifier(margin, optimizer=keras.optimizers.Adam(0.1), dtype=policy, label_smoothing=0.1)
    loss = model.fit(x, y, epochs=15, batch_size=N, verbose=0).history["loss"]
    assert loss[-1] < 0.7 * loss[0]
    got = model.predict(x, verbose=0)
    assert got.dtype == np.float32
    half = DTYPES[policy.removeprefix("mixed_")]
    rows = unit(np.asarray(model.backbone(x)).astype(half).astype("float64")).astype(half)
    kernel = model.head.kernel.numpy().astype(half).astype("float64")
    logits = margin.scale * rows.astype("float64") @ unit(kernel.T).T
    # Beside features and kernel, the products and the logits are rounded, each to eps / 2. Where no logit moves by more
    # than d, no probability does by more than d / 2.
    bound = float(ml_dtypes.finfo(half).eps) * margin.scale
    assert np.abs(np.asarray(model.head(model.backbone(x)), "float64") - logits).max() < bound
    assert np.abs(got - softmax(logits)).max() < bound / 2


def test_float64_has_the_margins_own_digits(data):
    """0.35 and 0.1 are no numbers of float32, nor beside a variable."""
    x, y = (data[0].astype("float64"), data[1])
    for scale in (30.1, tf.Variable(30.1, dtype=tf.float64)):
        layer = LSoftmaxDense(C, margin=CosFace(0.35, scale), lam=0.1, dtype="float64")
        np.testing.assert_allclose(layer(x), plain_logits(x, layer.kernel, CosFace(0.35, 30.1)), rtol=1e-12, atol=1e-12)
        loss = layer.compute_loss(x, y, training=True, label_smoothing=0.1).loss
        options = {"margin": CosFace(0.35, 30.1), "lam": float(layer.lam), "label_smoothing": 0.1}
        want = lsoftmax_op.reference.loss(x, layer.kernel.numpy(), y, **options)
        np.testing.assert_allclose(loss, want, rtol=1e-12)


def test_a_mirrored_strategy_of_one_cpu(data):
    x, y = data

    def fitted(strategy):
        keras.utils.set_random_seed(1)
        with strategy.scope():
            model = classifier(ArcFace(0.3, 16), label_smoothing=0.1)
        logs = model.fit(x, y, batch_size=8, epochs=2, verbose=0, shuffle=False).history
        return [*logs["loss"], *model.evaluate(x, y, verbose=0), *model.embed(x, batch_size=5, verbose=0).ravel()]

    one = fitted(tf.distribute.get_strategy())
    np.testing.assert_allclose(fitted(tf.distribute.MirroredStrategy(["CPU:0"])), one, rtol=1e-5, atol=1e-6)


# ---- norms


@pytest.mark.parametrize("margin", [SphereFace(2), *NORMALISED, MARGINS[-1]], ids=repr)
def test_zero_norms(data, margin):
    """A sample and a class without a direction: logits and gradients of 0, plain or with the margin; no NaN."""
    x, y = data
    x[3] = 0
    layer = LSoftmaxDense(C, margin=margin, lam=0.5)
    layer.build((N, D))
    layer.kernel.assign(np.where(np.arange(C) == y[5], 0, layer.kernel.numpy()))
    for labels, training in ((None, False), (y, True)):
        inputs = tf.constant(x)
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            logits = layer(inputs, labels, training=training)
            total = tf.reduce_sum(tf.sin(logits))
        of_inputs, of_kernel = tape.gradient(total, [inputs, layer.kernel])
        assert all(np.isfinite(one).all() for one in (logits, of_inputs, of_kernel))
        assert (logits.numpy()[3] == 0).all()
        assert (logits.numpy()[:, y[5]] == 0).all()
        assert not margin.normalize_features or (of_inputs.numpy()[3] == 0).all()
        assert not margin.normalize_weights or (of_kernel.numpy()[:, y[5]] == 0).all()


@pytest.mark.parametrize("margin", NORMALISED, ids=repr)
def test_lengths_without_a_square(data, margin):
    """Of features of 1e25 no square is in float32's range, of 1e-15 the weights' are not; their angles are the same."""
    x, _ = data
    layer = LSoftmaxDense(C, margin=margin)
    want = layer(x)
    lengths = 10.0 ** np.array([-15, 0, 25])[np.arange(N) % 3, None]
    layer.kernel.assign(layer.kernel.numpy() * 10.0 ** np.array([-12, 0, 12, -3, 5]))
    np.testing.assert_allclose(layer((x * lengths).astype("float32")), want, rtol=1e-5, atol=1e-5)


# ---- a scale that is a variable


def test_a_variable_scale_is_read_at_every_step(data):
    x, y = data
    scale = tf.Variable(8.0, trainable=False)
    model = classifier(CosFace(0.2, scale), optimizer=keras.optimizers.SGD(0.0))
    for number in (8.0, 20.0):
        scale.assign(number)
        model.reset_metrics()
        features, kernel = model.backbone(x).numpy(), model.head.kernel.numpy()
        want = lsoftmax_op.reference.loss(features, kernel, y, margin=CosFace(0.2, number), lam=0.5).mean()
        assert model.train_on_batch(x, y)[0] == pytest.approx(want, rel=1e-5)
        np.testing.assert_allclose(model.predict(x, verbose=0), probabilities(model, x), rtol=1e-4)
    assert model.head.margin.scale is scale
    assert not any(variable is scale for variable in model.trainable_variables)


# ---- smoothed labels


@pytest.mark.parametrize("one_hot", [False, True])
def test_smoothed_labels_beside_keras(data, one_hot):
    """Without a margin: the model that is compiled with Keras' own loss."""
    x, y = data
    model = classifier(1, label_smoothing=0.3, optimizer=keras.optimizers.SGD(0.1))
    plain = keras.Sequential([backbone(), keras.layers.Dense(C, use_bias=False)])
    plain.set_weights(model.get_weights())
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.3)
    plain.compile(keras.optimizers.SGD(0.1), loss, metrics=["accuracy"])
    rows = np.eye(C, dtype="float32")[y]
    got, want = (
        one.fit(x, labels, batch_size=7, epochs=2, verbose=0, shuffle=False).history
        for one, labels in ((model, rows if one_hot else y), (plain, rows))
    )
    assert [*got["loss"], *got["accuracy"]] == pytest.approx([*want["loss"], *want["accuracy"]], rel=2e-6)
    np.testing.assert_allclose(model.head.kernel, plain.layers[-1].kernel, rtol=1e-5, atol=1e-7)
    assert model.evaluate(x, y, verbose=0) == pytest.approx(plain.evaluate(x, rows, verbose=0), rel=2e-6)
    sure = tf.one_hot((y + 1) % C, C)  # zeros, which have no logarithm
    for predicted in (model(x), sure):
        want = keras.losses.CategoricalCrossentropy(label_smoothing=0.3)(rows, predicted)
        assert float(model.loss(y, predicted)) == pytest.approx(float(want), rel=1e-5)


def test_a_loss_object_of_other_labels_is_refused(data):
    model = classifier(2, label_smoothing=0.1)
    again = keras.losses.deserialize(keras.losses.serialize(model.loss))
    model.compile("sgd", again)
    assert model.loss.label_smoothing == 0.1
    with pytest.raises(ValueError, match="loss: expected None, as LSoftmaxClassifier has its own loss"):
        classifier(2).compile("sgd", again)


# ---- embeddings


FORMS = {
    "array": lambda x: x,
    "tensor": tf.constant,
    "data set": lambda x: tf.data.Dataset.from_tensor_slices(x).batch(7),
    "data set with labels": lambda x: tf.data.Dataset.from_tensor_slices((x, np.arange(len(x)))).batch(7),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("margin", [4, SphereFace(2), ArcFace(0.3, 16)], ids=repr)
def test_embeddings(data, margin, form):
    x, _ = data
    x[3] = 0  # of which this backbone without biases makes features of 0
    model = classifier(margin)
    want = model.backbone.predict(x, verbose=0)
    got = model.embed(FORMS[form](x), verbose=0)
    assert got.shape == (N, F)
    assert got.dtype == np.float32
    if margin == ArcFace(0.3, 16):
        np.testing.assert_allclose(np.linalg.norm(got, axis=1), np.arange(N) != 3, rtol=1e-6)
        np.testing.assert_allclose(got, unit(want), rtol=1e-5, atol=1e-7)
        weights = unit(model.head.kernel.numpy().T)
        np.testing.assert_allclose(softmax(16 * got @ weights.T), model.predict(x, verbose=0), rtol=1e-5)
    else:
        np.testing.assert_allclose(got, want, rtol=1e-6)


class Features(keras.Model):
    """A subclassed backbone over a dict, which declares no inputs."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(F)

    def call(self, inputs):
        return self.dense(inputs["left"] - inputs["right"])


def test_embeddings_of_a_backbone_that_declares_no_inputs(data):
    x, y = data
    model = LSoftmaxClassifier(Features(), C, margin=CosFace(0.2, 16), lam=0.5)
    model.compile("sgd")
    inputs = {"left": x, "right": x[::-1]}
    with pytest.raises(ValueError, match="embed: expected a model that has been built"):
        model.embed(inputs)
    model.fit(inputs, y, verbose=0)
    want = unit((x - x[::-1]) @ model.backbone.dense.kernel.numpy() + model.backbone.dense.bias.numpy())
    np.testing.assert_allclose(model.embed(inputs, verbose=0), want, rtol=1e-5, atol=1e-6)


def test_embeddings_follow_the_training(data):
    x, y = data
    model = classifier(ArcFace(0.3, 16), optimizer=keras.optimizers.SGD(0.5))
    before = model.embed(x, verbose=0)
    model.fit(x, y, verbose=0)
    after = model.embed(x, verbose=0)
    assert np.abs(after - before).max() > 1e-3
    np.testing.assert_allclose(after, unit(model.backbone(x).numpy()), rtol=1e-5, atol=1e-6)
    assert [layer.name for layer in model.layers] == [model.backbone.name, "head"]


# ---- bad input


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"margin": "arcface"}, TypeError, "margin: expected an integer from 1 to 64, got 'arcface'; .* ArcFace"),
        ({"margin": True}, TypeError, "margin: expected an integer from 1 to 64, got True"),
        ({"margin": 65}, ValueError, "margin: expected an integer from 1 to 64, got 65"),
        ({"margin": ArcFace(0.5, 64), "use_bias": True}, ValueError, r"use_bias: expected False .*ArcFace.*got True"),
        ({"margin": Margin(scale=2), "use_bias": True}, ValueError, r"use_bias: .* normalises or scales"),
    ],
)
@pytest.mark.parametrize("of", ["layer", "classifier"])
def test_bad_arguments(options, error, match, of):
    with pytest.raises(error, match=match):
        LSoftmaxDense(C, **options) if of == "layer" else LSoftmaxClassifier(backbone(), C, **options)


@pytest.mark.parametrize(
    ("value", "error"), [(1.0, ValueError), (-0.1, ValueError), (np.nan, ValueError), ("0.1", TypeError)]
)
def test_bad_label_smoothing(data, value, error):
    with pytest.raises(error, match=r"label_smoothing: expected a number in \[0, 1\), got"):
        LSoftmaxClassifier(backbone(), C, label_smoothing=value)
    with pytest.raises(error, match=r"label_smoothing: expected a number in \[0, 1\), got"):
        LSoftmaxDense(C).compute_loss(*data, label_smoothing=value)
    with pytest.raises(error, match=r"label_smoothing: expected a number in \[0, 1\), got"):
        PlainLoss(label_smoothing=value)


def test_training_without_labels(data):
    x, _ = data
    with pytest.raises(ValueError, match="labels: expected .* in training, got None"):
        LSoftmaxDense(C, margin=CosFace(0.2, 16))(x, training=True)
    layer = LSoftmaxDense(C, margin=ArcFace(0.3, 16))
    with pytest.warns(UserWarning, match=r"without its margin of ArcFace\(m2=0.3, scale=16.0\)"), tf.GradientTape():
        layer(x)
    with warnings.catch_warnings(), tf.GradientTape():
        warnings.simplefilter("error")
        layer = LSoftmaxDense(C, margin=CosFace(0, 16))  # has nothing to leave out
        np.testing.assert_array_equal(layer(x, training=True), layer(x))
