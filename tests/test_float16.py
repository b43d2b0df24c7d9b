"""float16 under loss scaling: gradients as near to float64's as those of the plain layer, whatever the scale."""

import numpy as np
import pytest
from conftest import LAYERS
from support import Batch

SCALES = (1, 32, 1024, 32768)


def scaled_batch(kind: str, classes: int, scale: float, rows: int = 64, depth: int = 8) -> Batch:
    """A batch whose products float16 holds exactly, so that gradients alone are rounded.

    Of a row's probabilities all are about even, or a few far above the others, or that of its own class is nearly 1;
    or the features are small.
    """
    rng = np.random.default_rng([rows, classes])
    size = 1 if kind in ("few", "own") else 2.0**-7
    features, weights, bias = (
        np.rint(4 * rng.normal(size=shape)).clip(-8, 8) / 4 for shape in ((rows, depth), (depth, classes), (classes,))
    )
    labels = rng.integers(0, classes - 4, rows)
    if kind == "own":
        features = weights[:, labels].T / 2
    if kind == "small":
        features /= 300
    weights, bias, grad = size * weights, size * bias, np.full((rows, classes), scale)
    return Batch(
        *(a.astype(np.float16) for a in (features, weights)), labels, bias.astype(np.float16), grad.astype("f2")
    )


def relative_errors(gradients: tuple, exact: tuple, labels: np.ndarray) -> dict[str, float]:
    """The root of the mean square error over that of the gradient; of other classes than the samples', too."""
    others = np.setdiff1d(np.arange(exact[1].shape[1]), labels)
    parts = dict(zip(("features", "weights", "bias"), zip(gradients, exact, strict=True), strict=True))
    for name in ("weights", "bias"):
        got, true = parts[name]
        parts[f"{name} of other classes"] = got[..., others], true[..., others]
    with np.errstate(invalid="ignore"):
        return {
            name: np.sqrt(np.mean((got.astype(np.float64) - true) ** 2) / np.mean(true**2))
            for name, (got, true) in parts.items()
            if true.size
        }


def assert_as_near_as_plain(layer, batch: Batch) -> None:
    true = LAYERS["arrays"].plain_loss(batch.exact())[1]
    plain = relative_errors(LAYERS["arrays"].plain_loss(batch)[1], true, batch.labels)
    ours = relative_errors(layer.loss(batch, margin=1, lam=0.0)[1], true, batch.labels)
    for name, error in plain.items():
        if np.isfinite(error):  # else the plain layer's gradient overflows
            assert ours[name] <= 1.5 * error, name


@pytest.mark.parametrize("kind", ["even", "few", "own", "small"])
@pytest.mark.parametrize("classes", [10, 1000])
@pytest.mark.parametrize("scale", SCALES)
def test_gradients_are_as_near_as_the_plain_layers(layer, kind, classes, scale):
    for upstream in (scale, scale / 512):  # of a sum, and of a mean
        assert_as_near_as_plain(layer, scaled_batch(kind, classes, upstream, rows=512 if classes == 10 else 64))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["even", "few", "own"])
@pytest.mark.parametrize(
    ("name", "scale"), [*(("arrays", scale) for scale in SCALES), ("function", SCALES[0]), ("function", SCALES[-1])]
)
def test_small_probabilities_of_many_classes(name, scale, kind):
    """Nearly all of them below 2^-14, where float16 has fewer digits."""
    assert_as_near_as_plain(LAYERS[name], scaled_batch(kind, 100_000, scale, rows=8))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["function", "blocks", "xla", "xla-formulas", "xla-blocks"])
@pytest.mark.parametrize(
    ("kind", "scale", "depth"), [("even", 1, 8), ("few", 1024, 33), ("own", 32768, 8), ("own", 32768, 33)]
)
def test_every_way_through_tensorflow(name, kind, scale, depth):
    """The depth is less or more than the classes."""
    pytest.importorskip("tensorflow")
    assert_as_near_as_plain(LAYERS[name], scaled_batch(kind, 20, scale, depth=depth))


def test_probabilities_below_the_smallest_number_are_kept(layer):
    """A class at 1e-8 has a gradient, once scaled, and half of float16's digits."""
    features, weights = np.ones((1, 1), np.float16), np.array([[20, 1.5]], np.float16)
    batch = Batch(features, weights, np.array([0]), np.zeros(2, np.float16), np.full((1, 2), 32768, np.float16))
    _, (_, for_weights, for_bias) = layer.loss(batch, margin=1, lam=0.0)
    expected = 32768 / (1 + np.exp(18.5))
    np.testing.assert_allclose([for_weights[0, 1], for_bias[1]], expected, rtol=1e-3)


def test_keras_finds_the_loss_scale_of_a_plain_model():
    pytest.importorskip("tensorflow")
    import keras

    from lsoftmax_op.keras import LSoftmaxClassifier

    rng = np.random.default_rng(0)
    y = rng.integers(0, 50, 256)
    x = (rng.normal(size=(50, 12))[y] + 0.3 * rng.normal(size=(256, 12))).astype(np.float32)

    def scales(ours: bool) -> list:
        keras.utils.set_random_seed(0)
        backbone = keras.Sequential([keras.Input((12,)), keras.layers.Dense(32, "relu"), keras.layers.Dense(16)])
        optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), 2.0**24, dynamic_growth_steps=8)
        if ours:
            model = LSoftmaxClassifier(backbone, 50, margin=1, lam=0.0)
            model.compile(optimizer)
        else:
            model = keras.Sequential([backbone, keras.layers.Dense(50, use_bias=False)])
            model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        found = []
        log = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: found.append(float(optimizer.dynamic_scale)))
        model.fit(x, y, batch_size=32, epochs=6, shuffle=False, verbose=0, callbacks=[log])
        return found

    policy = keras.mixed_precision.dtype_policy()
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        assert scales(ours=True) == scales(ours=False)
    finally:
        keras.mixed_precision.set_global_policy(policy)
