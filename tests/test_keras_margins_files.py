"""Every margin in Keras' files, exports, clones, LoRA and int8: plain ops, and an equal margin back."""

import json
import warnings

import numpy as np
import pytest

import lsoftmax_op
from lsoftmax_op.margins import ArcFace, Combined, CosFace, LSoftmax, Margin, SphereFace

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")

from lsoftmax_op.keras import LSoftmaxClassifier, LSoftmaxDense

pytestmark = pytest.mark.usefixtures("seeded_keras")
N, D, F, C = 24, 6, 3, 5
MARGINS = [
    LSoftmax(3),
    SphereFace(2),
    CosFace(0.2, 16),
    ArcFace(0.3, 8, "linear"),
    Combined(2, 0.1, 0.1, 8),
    Margin(scale=3),
    Margin(m2=0.3, normalize_features=True),
]


@pytest.fixture
def data():
    """Of the samples one has features of zero."""
    rng = np.random.default_rng(0)
    return np.where(np.arange(N)[:, None] == 3, 0, rng.normal(size=(N, D))).astype("float32"), rng.integers(0, C, N)


def backbone():
    return keras.Sequential([keras.Input((D,)), keras.layers.Dense(F, "tanh", use_bias=False)])


def classifier(margin, **options):
    model = LSoftmaxClassifier(backbone(), C, margin=margin, lam=0.5, **options)
    model.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
    return model


def reloaded(model, folder, of="save"):
    getattr(model, of)(folder / "model.keras")
    return keras.saving.load_model(folder / "model.keras")


# ---- configs and copies


@pytest.mark.parametrize("margin", MARGINS, ids=repr)
def test_configs_and_clones_have_an_equal_margin(margin):
    layer = LSoftmaxDense(C, margin=margin, name="head")
    assert repr(layer) == f"<LSoftmaxDense name=head, margin={margin!r}, built=False>"
    again = LSoftmaxDense.from_config(json.loads(json.dumps(layer.get_config())))
    assert again.margin == margin
    assert again.get_config() == layer.get_config()
    features, labels = keras.Input((F,)), keras.Input((), dtype="int32")
    cloned = keras.models.clone_model(keras.Model([features, labels], layer(features, labels)))
    assert cloned.get_layer("head").margin == margin
    model = classifier(margin, label_smoothing=0.1)
    again = LSoftmaxClassifier.from_config(json.loads(json.dumps(model.get_config())))
    assert (again.head.margin, again.label_smoothing) == (margin, 0.1)


@pytest.mark.parametrize("margin", [4, np.int64(2)])
def test_an_integer_stays_one(margin):
    """Configs of today, which know neither margins nor smoothed labels, are read as ever."""
    model = classifier(margin)
    config = model.get_config()
    assert json.loads(json.dumps(config))["margin"] == margin
    assert type(config["margin"]) is type(model.head.margin) is int
    del config["label_smoothing"]
    again = LSoftmaxClassifier.from_config(config)
    assert (again.head.margin, again.label_smoothing) == (margin, 0.0)


@pytest.mark.parametrize("make", [tf.Variable, keras.Variable, tf.constant])
def test_a_variable_or_tensor_is_saved_by_its_present_value(data, tmp_path, make):
    x, y = data
    scale = make(8.0)
    model = classifier(ArcFace(0.5, scale))
    if hasattr(scale, "assign"):
        scale.assign(12.0)
    model.train_on_batch(x, y)
    present = ArcFace(0.5, float(scale))
    loaded = reloaded(model, tmp_path)
    assert loaded.head.margin == present
    np.testing.assert_array_equal(loaded(x), model(x))
    np.testing.assert_allclose(reloaded(model, tmp_path, "export")(x), model(x), rtol=1e-5)


# ---- files and exports


@pytest.mark.parametrize("margin", MARGINS, ids=repr)
def test_a_saved_model_goes_on_and_its_export_is_plain(data, tmp_path, margin):
    x, y = data
    model = classifier(margin, label_smoothing=0.1)
    model.head(model.backbone(x))
    model.head.kernel.assign(np.where(np.arange(C) == 2, 0, model.head.kernel.numpy()))
    model.embed(x, verbose=0)
    want = model(x)
    loaded, plain = reloaded(model, tmp_path), reloaded(model, tmp_path, "export")
    assert loaded.head.margin == margin
    np.testing.assert_array_equal(loaded(x), want)
    np.testing.assert_allclose(plain(x), want, rtol=1e-5)
    assert {type(layer).__module__.split(".")[0] for layer in plain.layers} == {"keras"}
    for one in (model, loaded):
        one.reset_metrics()
    assert loaded.train_on_batch(x, y) == model.train_on_batch(x, y)


@pytest.mark.parametrize("margin", [SphereFace(2), CosFace(0.2, 16)], ids=repr)
def test_served_by_tensorflow_alone(data, tmp_path, margin):
    x, _ = data
    model = classifier(margin)
    want = model(x)
    model.export(tmp_path / "export")
    tf.saved_model.save(model, str(tmp_path / "saved"))
    for name in ("export", "saved"):
        saved = tf.saved_model.load(str(tmp_path / name))
        served = saved.signatures["serving_default"]
        (got,) = served(tf.constant(x)).values()
        np.testing.assert_allclose(got, want, rtol=1e-5)
        assert not [op for op in served.graph.get_operations() if op.type.startswith("Lsoftmax")]
    assert b"Lsoftmax" not in (tmp_path / "export" / "saved_model.pb").read_bytes()


def test_a_saved_model_has_the_variables_of_its_margin(data, tmp_path):
    scale = tf.Variable(8.0)

    class Module(tf.Module):
        def __init__(self):
            self.layer = LSoftmaxDense(C, margin=CosFace(0.2, scale), lam=2.0)
            self.layer.build((None, D))

        @tf.function(input_signature=[tf.TensorSpec((None, D)), tf.TensorSpec((None,), tf.int64)])
        def logits(self, features, labels):
            return self.layer(features, labels, training=True)

    module = Module()
    tf.saved_model.save(module, str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    np.testing.assert_array_equal(loaded.logits(*data), module.logits(*data))


@pytest.mark.parametrize("margin", [SphereFace(2), CosFace(0.2, 16)], ids=repr)
def test_tensorflow_lite(data, tmp_path, margin):
    if not hasattr(tf, "lite"):
        pytest.skip(f"TensorFlow {tf.__version__} has no tf.lite")
    x, _ = data
    model = classifier(margin)
    model.export(tmp_path / "saved")
    for converter in (
        tf.lite.TFLiteConverter.from_saved_model(str(tmp_path / "saved")),
        tf.lite.TFLiteConverter.from_keras_model(model),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tf.lite says that it moves to another package
            lite = tf.lite.Interpreter(model_content=converter.convert())
        lite.resize_tensor_input(0, [N, D])
        lite.allocate_tensors()
        lite.set_tensor(lite.get_input_details()[0]["index"], x)
        lite.invoke()
        got = lite.get_tensor(lite.get_output_details()[0]["index"])
        np.testing.assert_allclose(got, model.predict(x, verbose=0), rtol=1e-4)


# ---- LoRA and quantisation


def cosine_probabilities(x, kernel, scale):
    """softmax(scale cos(theta)) of features, of which some are zero."""
    cosines = x @ kernel / np.maximum(np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(kernel, axis=0), 1e-30)
    exponentials = np.exp(scale * cosines)
    return exponentials / exponentials.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("mode", [None, "int8"])
def test_lora(data, tmp_path, mode):
    """The margin normalises the kernel that is there: the frozen one, dequantised, with the product of the factors."""
    x, y = data
    margin = ArcFace(0.3, 16)
    model = classifier(margin)
    head = model.head
    if mode:
        head.quantize(mode)
    head.enable_lora(2)
    head.lora_kernel_b.assign(np.random.default_rng(0).normal(size=(2, C)))
    model.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
    frozen = head._kernel.numpy() / (head.kernel_scale.numpy() if mode else 1)
    merged = frozen + head.lora_kernel_a.numpy() @ head.lora_kernel_b.numpy()
    features, rounding = model.backbone(x).numpy(), 0.05 if mode else 1e-5  # int8 rounds the features, too
    want = cosine_probabilities(features, merged, 16)
    np.testing.assert_allclose(model(x), want, atol=rounding)
    for of in ("save", "export"):
        np.testing.assert_allclose(reloaded(model, tmp_path, of)(x), want, atol=rounding)
    want = lsoftmax_op.reference.loss(features, merged, y, margin=margin, lam=0.5).mean()
    before = head.lora_kernel_b.numpy()
    assert model.train_on_batch(x, y)[0] == pytest.approx(want, rel=1e-5)
    assert np.abs(head.lora_kernel_b.numpy() - before).max() > 1e-4


@pytest.mark.parametrize("margin", [SphereFace(2), CosFace(0.2, 16), Margin(scale=3)], ids=repr)
def test_int8(data, tmp_path, margin):
    x, y = data
    model = classifier(margin, label_smoothing=0.2)
    model.head.kernel.assign(np.where(np.arange(C) == 2, 0, model.head.kernel.numpy()))
    full, embedded = np.asarray(model(x)), model.embed(x, verbose=0)
    model.quantize("int8")
    want = np.asarray(model(x))
    np.testing.assert_allclose(want, full, atol=0.1)
    assert np.abs(want - full).max() > 0
    assert 0 < np.abs(model.embed(x, verbose=0) - embedded).max() < 0.1
    for of in ("save", "export"):
        np.testing.assert_allclose(reloaded(model, tmp_path, of)(x), want, rtol=1e-5)
    logs = np.log(want)
    loss = np.mean(-0.8 * logs[np.arange(N), y] - 0.2 * logs.mean(axis=1))
    assert model.evaluate(x, y, verbose=0)[0] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("margin", [CosFace(0.2, 16), Margin(scale=3)], ids=repr)
def test_other_modes_are_refused(margin):
    layer = LSoftmaxDense(C, margin=margin)
    layer.build((None, D))
    with pytest.raises(ValueError, match="mode: expected one to infer in, .* got 'float8'"):
        layer.quantize("float8")
    try:
        keras.dtype_policies.get("int4_from_float32")
    except ValueError:
        pytest.skip(f"Keras {keras.__version__} has no int4")
    with pytest.raises(ValueError, match="mode: expected the quantisation mode 'int8' or none .* got 'int4'"):
        layer.quantize("int4")
    assert layer.quantization_mode is None
    with pytest.raises(ValueError, match="dtype: expected the quantisation mode 'int8' or none .* got 'int4'"):
        LSoftmaxDense(C, margin=margin, dtype="int4_from_float32")
