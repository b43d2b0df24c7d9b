"""The Keras layer, classifier and monitor: the oracle's numbers, plain softmax elsewhere, lambda in optimizer steps."""

import importlib
import warnings
from unittest import mock

import numpy as np
import pytest
from support import DTYPES, run_python

import lsoftmax_op
from lsoftmax_op import LambdaSchedule, ops

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")

from lsoftmax_op.keras import LSoftmaxClassifier, LSoftmaxDense, LSoftmaxMonitor

pytestmark = pytest.mark.usefixtures("seeded_keras")
N, D, C = 24, 6, 5
FALLING = LambdaSchedule(gamma=0.1)


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, C, N)
    return rng.normal(size=(N, D)).astype("float32"), labels


def backbone():
    return keras.Sequential([keras.Input((D,)), keras.layers.Dense(4, activation="tanh"), keras.layers.Dense(3)])


def classifier(lam=FALLING, optimizer="sgd", compile_options=None, **options):
    model = LSoftmaxClassifier(backbone(), C, lam=lam, **options)
    model.compile(optimizer, **(compile_options or {}))
    return model


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def oracle_loss(model, x, labels, **options):
    """The losses of the samples, from the features that the backbone makes now."""
    head = model.head
    bias = None if head.bias is None else head.bias.numpy()
    return lsoftmax_op.reference.loss(model.backbone(x).numpy(), head.kernel.numpy(), labels, bias, **options)


# ---- LSoftmaxDense


@pytest.mark.parametrize("use_bias", [False, True])
def test_the_layer_is_dense_without_labels_and_in_inference(data, use_bias):
    x, y = data
    layer = LSoftmaxDense(C, use_bias=use_bias, bias_initializer="ones")
    dense = keras.layers.Dense(C, use_bias=use_bias, bias_initializer="ones")
    layer(x), dense(x)
    dense.kernel.assign(layer.kernel)
    for logits in (layer(x), layer(x, y), layer(x, y, training=False)):
        np.testing.assert_array_equal(logits, dense(x))
    np.testing.assert_array_equal(layer(x[:, None]), dense(x[:, None]))


LABELS = {
    "int64": lambda y: y,
    "uint8": lambda y: y.astype("uint8"),
    "column": lambda y: y[:, None].astype("int32"),
    "one-hot": lambda y: np.eye(C, dtype="float32")[y],
    "one-hot int": lambda y: np.eye(C, dtype="int64")[y],
}


@pytest.mark.parametrize("form", LABELS)
def test_margin_logits_in_training(data, form):
    x, y = data
    layer = LSoftmaxDense(C, margin=3, lam=0.5, use_bias=True, bias_initializer="ones")
    got = layer(x, LABELS[form](y), training=True)
    want = lsoftmax_op.reference.logits(x, layer.kernel.numpy(), y, layer.bias.numpy(), margin=3, lam=0.5)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_rows_without_a_target(data):
    x, _ = data
    layer = LSoftmaxDense(C, lam=0.5)
    nothing = np.full(N, -1)
    for labels in (nothing, np.zeros((N, C))):
        np.testing.assert_array_equal(layer(x, labels, training=True), layer(x))


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_dtype_policies(data, policy):
    x, y = data
    layer = LSoftmaxDense(C, lam=LambdaSchedule(base=12345.0), dtype=policy)
    logits = layer(x, y)
    assert keras.backend.standardize_dtype(logits.dtype) == layer.compute_dtype
    assert float(layer.lam) == 12345.0
    layer.lam.assign(0.5)
    layer.follow(keras.optimizers.SGD())  # at step 0
    with mock.patch.object(ops, "margin_softmax_logits", wraps=ops.margin_softmax_logits) as spy:
        logits = np.asarray(layer(x, y, training=True)).astype("float64")
    assert spy.call_args.kwargs["lam"].dtype == tf.float32
    dtype = DTYPES[layer.compute_dtype]
    cast = [a.astype(dtype).astype("float64") for a in (x, layer.kernel.numpy())]
    want = lsoftmax_op.reference.logits(*cast, y, lam=12345.0)
    np.testing.assert_allclose(logits, want, atol={"float16": 4e-3, "bfloat16": 4e-2, "float64": 1e-13}[dtype.name])


@pytest.mark.parametrize("lam", [5.0, FALLING, keras.optimizers.schedules.PolynomialDecay(100.0, 50)])
def test_the_config_tells_everything(lam):
    layer = LSoftmaxDense(
        C,
        margin=2,
        lam=lam,
        use_bias=True,
        kernel_regularizer=keras.regularizers.L2(0.1),
        bias_constraint="non_neg",
        dtype="mixed_bfloat16",
    )
    again = LSoftmaxDense.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    assert again.kernel_regularizer.get_config() == {"l2": 0.1}
    for made in (layer, again):
        made.build((None, D))
        assert float(made.lam) == pytest.approx(lam if isinstance(lam, float) else float(lam(0)))


def test_functional_model_with_its_labels_as_an_input(data, tmp_path):
    x, y = data
    images, labels = keras.Input((D,)), keras.Input((), dtype="int32")
    features = keras.layers.Dense(3)(images)
    layer = LSoftmaxDense(C, lam=FALLING)
    model = keras.Model([images, labels], layer(features, labels))
    served = keras.Model(images, layer(features))
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    logs = model.fit([x, y], y, batch_size=8, epochs=2, verbose=0, callbacks=[LSoftmaxMonitor()]).history
    assert logs["lam"] == pytest.approx([FALLING(2), FALLING(5)], rel=1e-6)
    np.testing.assert_allclose(model.predict([x, y], verbose=0), served.predict(x, verbose=0), rtol=1e-5)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert float(loaded.get_layer(layer.name).lam) == float(layer.lam)
    np.testing.assert_array_equal(loaded([x, y]), model([x, y]))


class OwnModel(keras.Model):
    """A subclassed model, trained by its own loop."""

    def __init__(self):
        super().__init__()
        self.features = keras.layers.Dense(3)
        self.head = LSoftmaxDense(C, lam=FALLING)

    def call(self, inputs, labels=None, training=None):
        return self.head(self.features(inputs), labels, training=training)


def test_subclassed_model_in_a_loop_of_its_own(data):
    x, y = data
    model, optimizer = OwnModel(), keras.optimizers.SGD(0.1)
    model.head.follow(optimizer)

    @tf.function
    def step():
        for _ in range(2):  # two passes a step
            with tf.GradientTape() as tape:
                logits = model(x, y, training=True)
                loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=logits))
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)

    for n in range(3):
        step()
        assert float(model.head.lam) == pytest.approx(FALLING(n), rel=1e-6)


def test_sequential_model(data, tmp_path):
    x, y = data
    model = keras.Sequential([keras.Input((D,)), keras.layers.Dense(3), LSoftmaxDense(C)])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.evaluate(x, y, verbose=0)
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(keras.saving.load_model(tmp_path / "model.keras")(x), model(x))
    with pytest.raises(ValueError, match="labels: expected .* got None.*LSoftmaxClassifier"):
        model.fit(x, y, verbose=0)


def test_a_schedule_that_nobody_advances_is_told(data):
    x, y = data
    layer = LSoftmaxDense(C, lam=FALLING)
    with pytest.warns(UserWarning, match="follows no optimizer.*LSoftmaxMonitor"):
        layer(x, y, training=True)
    layer.follow(keras.optimizers.SGD())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(x, y, training=True)


# ---- LSoftmaxClassifier


@pytest.mark.parametrize("form", LABELS)
@pytest.mark.parametrize("use_bias", [False, True])
def test_the_loss_is_the_oracles(data, form, use_bias):
    x, y = data
    model = classifier(lam=2.0, margin=3, use_bias=use_bias, compile_options={"run_eagerly": True})
    want = oracle_loss(model, x, y, margin=3, lam=2.0).mean()
    hits = np.mean(model.predict(x, verbose=0).argmax(axis=1) == y)
    logs = model.train_on_batch(x, LABELS[form](y), return_dict=True)
    assert logs == pytest.approx({"loss": want, "accuracy": hits, "lam": 2.0}, rel=1e-5)


def test_weights_of_samples_and_classes_and_regularisers(data):
    x, y = data
    y = y.copy()
    y[::5] = -1
    model = classifier(lam=2.0, kernel_regularizer="l2", compile_options={"weighted_metrics": []})
    penalty = 0.01 * np.sum(model.head.kernel.numpy() ** 2)
    hits = (model.predict(x, verbose=0).argmax(axis=1) == y)[y >= 0].mean()
    losses = oracle_loss(model, x, y, lam=2.0)
    assert (losses[::5] == 0).all()
    weights = np.random.default_rng(1).random(N)
    logs = model.train_on_batch(x, y, sample_weight=weights, return_dict=True)
    assert logs["loss"] == pytest.approx(np.mean(weights * losses) + penalty, rel=1e-5)
    assert logs["accuracy"] == pytest.approx(hits)
    model = classifier(lam=2.0)
    y = np.maximum(y, 0)
    losses = oracle_loss(model, x, y, lam=2.0)
    logs = model.train_on_batch(x, y, class_weight={c: 1.0 + c for c in range(C)}, return_dict=True)
    assert logs["loss"] == pytest.approx(np.mean((1 + y) * losses), rel=1e-5)


def test_one_step_of_gradient_descent(data):
    """The weights move by the oracle's gradient, weighted as the loss is."""
    x, y = data
    weights = np.random.default_rng(1).random(N)
    model = classifier(lam=2.0, optimizer=keras.optimizers.SGD(0.1))
    features, before = model.backbone(x).numpy(), model.head.kernel.numpy()
    grad = lsoftmax_op.reference.loss_grad(weights / N, features, before, y, lam=2.0).weights
    model.train_on_batch(x, y, sample_weight=weights)
    np.testing.assert_allclose(model.head.kernel.numpy(), before - 0.1 * grad, rtol=1e-4, atol=1e-6)


def test_evaluate_and_predict_are_plain_softmax(data):
    x, y = data
    model = classifier(
        lam=0.0, use_bias=True, compile_options={"metrics": ["accuracy", "sparse_categorical_crossentropy"]}
    )
    want = softmax(model.backbone(x).numpy() @ model.head.kernel.numpy() + model.head.bias.numpy())
    got = model.predict(x, batch_size=7, verbose=0)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=1e-5)
    logs = model.evaluate(x, y, batch_size=7, verbose=0, return_dict=True)
    loss = -np.log(want[np.arange(N), y]).mean()
    hits = np.mean(want.argmax(axis=1) == y)
    assert logs == pytest.approx({"loss": loss, "accuracy": hits, "sparse_categorical_crossentropy": loss}, rel=1e-5)


def test_the_accuracy_that_is_asked_for_is_the_one_that_is_there():
    assert len(classifier(compile_options={"metrics": ["accuracy"]}).metrics) == 2


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_learns(data, policy):
    x, y = data
    keras.config.set_dtype_policy(policy)
    try:
        model = classifier(lam=1.0, margin=2, optimizer=keras.optimizers.Adam(0.05))
    finally:
        keras.config.set_dtype_policy("float32")
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer) == (policy == "mixed_float16")
    loss = model.fit(x, y, epochs=30, verbose=0).history["loss"]
    assert loss[-1] < 0.6 * loss[0]
    assert model.predict(x, verbose=0).dtype == np.float32


class Features(keras.Model):
    """A subclassed backbone, which knows no shapes beforehand."""

    def __init__(self, **options):
        super().__init__(**options)
        self.dense = keras.layers.Dense(3)

    def call(self, inputs):
        return self.dense(inputs)


def two_inputs():
    left, right = keras.Input((2,), name="left"), keras.Input((D - 2,), name="right")
    features = keras.layers.Dense(3)(keras.layers.Concatenate()([left, right]))
    return keras.Model({"left": left, "right": right}, features)


BACKBONES = {"sequential": backbone, "subclassed": Features, "layer": lambda: keras.layers.Dense(3), "dict": two_inputs}


@pytest.mark.parametrize("kind", BACKBONES)
def test_saving_and_loading_any_backbone(data, tmp_path, kind):
    x, y = data
    x = {"left": x[:, :2], "right": x[:, 2:]} if kind == "dict" else x
    model = LSoftmaxClassifier(BACKBONES[kind](), C, margin=3, lam=FALLING, kernel_constraint="unit_norm")
    model.compile(keras.optimizers.Adam(0.01), metrics=["sparse_categorical_crossentropy"])
    for _ in range(2):
        model.train_on_batch(x, y)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", custom_objects={"Features": Features})
    assert loaded.head.get_config() == model.head.get_config()
    assert float(loaded.head.lam) == float(model.head.lam) == pytest.approx(FALLING(1), rel=1e-6)
    for one in (model, loaded):
        one.reset_metrics()
    for _ in range(2):  # the optimizer goes on, too
        assert loaded.train_on_batch(x, y) == model.train_on_batch(x, y)
    model.export(tmp_path / "plain.keras")
    plain = keras.saving.load_model(tmp_path / "plain.keras", custom_objects={"Features": Features})
    np.testing.assert_allclose(plain.predict(x, verbose=0), model.predict(x, verbose=0), rtol=1e-6)


SERVE = """
import sys
sys.modules["lsoftmax_op"] = None  # may not be imported
import numpy as np, tensorflow as tf, keras
x, want = np.load("FOLDER/x.npy"), np.load("FOLDER/y.npy")
saved = tf.saved_model.load("FOLDER/saved")
np.testing.assert_allclose(saved.serve(x), want, rtol=1e-5)
np.testing.assert_allclose(keras.saving.load_model("FOLDER/model.keras")(x), want, rtol=1e-5)
"""


@pytest.mark.slow
def test_the_export_is_served_without_lsoftmax_op(data, tmp_path):
    x, y = data
    model = classifier(use_bias=True)
    model.fit(x, y, verbose=0)
    model.export(tmp_path / "saved")
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", model.predict(x, verbose=0))
    model.export(tmp_path / "model.keras")
    assert b"softmax" in (tmp_path / "saved" / "saved_model.pb").read_bytes().lower()
    assert b"Lsoftmax" not in (tmp_path / "saved" / "saved_model.pb").read_bytes()
    run_python(SERVE.replace("FOLDER", str(tmp_path)))
    for converter in (
        tf.lite.TFLiteConverter.from_saved_model(str(tmp_path / "saved")),
        tf.lite.TFLiteConverter.from_keras_model(model),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tf.lite says that it moves to another package
            lite = tf.lite.Interpreter(model_content=converter.convert())
        lite.allocate_tensors()
        lite.set_tensor(lite.get_input_details()[0]["index"], x[:1])
        lite.invoke()
        got = lite.get_tensor(lite.get_output_details()[0]["index"])
        np.testing.assert_allclose(got, model.predict(x[:1], verbose=0), rtol=1e-5)


# ---- lambda


@pytest.mark.parametrize("accumulate", [None, 3])
def test_lambda_counts_optimizer_steps(data, accumulate):
    x, y = data
    model = classifier(optimizer=keras.optimizers.SGD(0.1, gradient_accumulation_steps=accumulate))
    for passes in range(5):
        logs = model.train_on_batch(x, y, return_dict=True)
        assert float(logs["lam"]) == pytest.approx(FALLING(passes // (accumulate or 1)), rel=1e-6)
    model.evaluate(x, y, verbose=0)
    model.predict(x, verbose=0)
    assert float(model.head.lam) == float(logs["lam"])


def test_steps_that_loss_scaling_skips_do_not_count(data):
    x, y = data
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=2.0)
    model = classifier(optimizer=optimizer)
    bad = np.where(np.arange(N)[:, None] == 3, np.inf, x)
    lambdas = [float(model.train_on_batch(batch, y, return_dict=True)["lam"]) for batch in (x, bad, bad, x, x)]
    assert lambdas == pytest.approx([FALLING(n) for n in (0, 1, 1, 1, 2)], rel=1e-6)


def test_steps_within_one_execution_count(data):
    x, y = data
    model = classifier(compile_options={"steps_per_execution": 3})
    logs = model.fit(x, y, batch_size=4, epochs=2, verbose=0).history
    assert logs["lam"] == pytest.approx([FALLING(5), FALLING(11)], rel=1e-6)


def test_a_number_stays_and_may_be_assigned(data):
    x, y = data
    model = classifier(lam=3.0)
    assert model.train_on_batch(x, y, return_dict=True)["lam"] == 3.0
    model.head.lam.assign(0.5)
    want = oracle_loss(model, x, y, lam=0.5).mean()
    model.reset_metrics()
    logs = model.train_on_batch(x, y, return_dict=True)
    assert logs["lam"] == 0.5
    assert logs["loss"] == pytest.approx(want, rel=1e-5)


def test_keras_own_schedules(data):
    x, y = data
    model = classifier(lam=keras.optimizers.schedules.PolynomialDecay(8.0, 4))
    lambdas = [float(model.train_on_batch(x, y, return_dict=True)["lam"]) for _ in range(6)]
    assert lambdas == pytest.approx([8.0, 6.0, 4.0, 2.0, 0.0, 0.0], abs=1e-3)


TRAIN = """
import os, sys
sys.path.insert(0, "tests")
import numpy as np, keras
from lsoftmax_op import LambdaSchedule
from lsoftmax_op.keras import LSoftmaxClassifier
keras.utils.set_random_seed(0)
backbone = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, "relu"), keras.layers.Dense(3)])
model = LSoftmaxClassifier(backbone, 5, lam=LambdaSchedule(gamma=0.1))
model.compile(keras.optimizers.Adam(0.01))
for step in range(6):
    if step == 3:
        model.save("FOLDER/model.keras")
    rng = np.random.default_rng(step)
    model.reset_metrics()
    logs = model.train_on_batch(rng.normal(size=(16, 6)), rng.integers(0, 5, 16), return_dict=True)
    print(float(logs["loss"]).hex(), float(logs["lam"]).hex(), flush=True)
os.kill(os.getpid(), 9)
"""


def test_a_killed_training_resumes_bit_for_bit(tmp_path):
    killed = run_python(TRAIN.replace("FOLDER", str(tmp_path)), check=False)
    assert killed.returncode == -9, killed.stderr
    expected = [line.split() for line in killed.stdout.splitlines()]
    model = keras.saving.load_model(tmp_path / "model.keras")
    for step in range(3, 6):
        rng = np.random.default_rng(step)
        model.reset_metrics()
        logs = model.train_on_batch(rng.normal(size=(16, 6)), rng.integers(0, 5, 16), return_dict=True)
        assert [float(logs["loss"]).hex(), float(logs["lam"]).hex()] == expected[step]


def losses_of(model, steps):
    """The losses and lambdas of the batches of some steps, to the bit."""
    lines = []
    for step in steps:
        rng = np.random.default_rng(step)
        model.reset_metrics()
        logs = model.train_on_batch(rng.normal(size=(16, D)), rng.integers(0, C, 16), return_dict=True)
        lines.append((float(logs["loss"]).hex(), float(logs["lam"]).hex()))
    return lines


def test_a_checkpoint_of_tensorflow_resumes_bit_for_bit(tmp_path):
    model = classifier(optimizer="adam")
    losses_of(model, range(3))
    path = tf.train.Checkpoint(model=model).write(str(tmp_path / "checkpoint"))
    expected = losses_of(model, range(3, 6))
    other = classifier(optimizer="adam")
    losses_of(other, [77])  # so that the optimizer's variables exist, with other values
    tf.train.Checkpoint(model=other).read(path).assert_consumed()
    assert losses_of(other, range(3, 6)) == expected


def test_backup_and_restore_resumes_bit_for_bit(data, tmp_path):
    class Interrupt(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise InterruptedError

    def fit(*callbacks):
        keras.utils.set_random_seed(1)
        model = classifier(optimizer="adam")
        return model.fit(*data, batch_size=8, epochs=4, shuffle=False, verbose=0, callbacks=callbacks).history

    expected = fit()
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    with pytest.raises(InterruptedError):
        fit(backup, Interrupt())
    resumed = fit(keras.callbacks.BackupAndRestore(tmp_path / "backup"))
    assert resumed == {name: values[2:] for name, values in expected.items()}


# ---- LSoftmaxMonitor


def test_the_monitor_shows_and_writes_lambda_and_angle(data, tmp_path):
    x, y = data
    model = classifier(optimizer=keras.optimizers.SGD(0.0))
    cosines, _ = lsoftmax_op.reference.target_angles(model.backbone(x).numpy(), model.head.kernel.numpy(), y)
    angle = np.degrees(np.arccos(cosines)).mean()
    turn = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: model.head.kernel.assign((-1) ** epoch * model.head.kernel.numpy())
    )
    logs = model.fit(x, y, batch_size=8, epochs=2, verbose=0, callbacks=[turn, LSoftmaxMonitor(tmp_path)]).history
    assert logs["angle"] == pytest.approx([angle, 180 - angle], rel=1e-4)
    assert logs["lam"] == pytest.approx([FALLING(2), FALLING(5)], rel=1e-6)
    written = {}
    for file in sorted(tmp_path.iterdir()):
        for record in tf.data.TFRecordDataset(str(file)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                assert value.metadata.plugin_data.plugin_name == "scalars"
                written[value.tag, event.step] = tf.make_ndarray(value.tensor).item()
    assert written == pytest.approx(
        {("lsoftmax/lam", 3): FALLING(2), ("lsoftmax/lam", 6): FALLING(5)}
        | {("lsoftmax/angle", 3): angle, ("lsoftmax/angle", 6): 180 - angle},
        rel=1e-4,
    )
    assert "angle" not in model.fit(x, y, verbose=0).history


def test_the_monitor_leaves_out_samples_without_a_target(data):
    x, y = data
    model = classifier(optimizer=keras.optimizers.SGD(0.0))
    cosines, _ = lsoftmax_op.reference.target_angles(model.backbone(x).numpy(), model.head.kernel.numpy(), y)
    some = np.where(np.arange(N) % 2, y, -1)
    logs = model.fit(x, some, verbose=0, callbacks=[LSoftmaxMonitor()]).history
    assert logs["angle"][0] == pytest.approx(np.degrees(np.arccos(cosines[1::2])).mean(), rel=1e-4)


def test_the_monitor_wants_a_margin_layer(data):
    model = backbone()
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="LSoftmaxDense"):
        model.fit(data[0], np.zeros((N, 3)), verbose=0, callbacks=[LSoftmaxMonitor()])


# ---- bad input


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"units": 0}, ValueError, "units: expected a positive integer, got 0"),
        ({"units": 2.5}, TypeError, "units: expected a positive integer, got 2.5"),
        ({"units": True}, TypeError, "units: expected a positive integer, got True"),
        ({"margin": 0}, ValueError, "margin: expected an integer from 1 to 64, got 0"),
        ({"lam": -1.0}, ValueError, "lam: expected a number >= 0, got -1.0"),
        ({"lam": "5"}, TypeError, "lam: expected a number, a LambdaSchedule .* got '5'"),
        ({"lam": lambda step: tf.where(step > 4000, -9.0, 2.0)}, ValueError, "lam: .* >= 0, got -9.0 at step 4217"),
        ({"lam": lambda step: 1.0 - tf.cast(step, tf.float32)}, ValueError, "lam: .* >= 0, got -1.0 at step 2"),
        ({"activation": "softmax"}, TypeError, "activation: expected none, .* got 'softmax'"),
    ],
)
def test_bad_arguments_of_the_layer(options, error, match):
    with pytest.raises(error, match=match):
        LSoftmaxDense(**{"units": C, **options})


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"num_classes": 0}, ValueError, "num_classes: expected a positive integer, got 0"),
        ({"backbone": "resnet"}, TypeError, "backbone: expected a Keras model or layer, got 'resnet'"),
        (
            {"backbone": keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Conv2D(3, 3)])},
            ValueError,
            r"backbone: expected outputs \[N, D\], got shape \(None, 2, 2, 3\)",
        ),
    ],
)
def test_bad_arguments_of_the_classifier(options, error, match):
    with pytest.raises(error, match=match):
        LSoftmaxClassifier(**{"backbone": backbone(), "num_classes": C, **options})


def test_bad_arguments_of_compile_follow_and_export():
    model = LSoftmaxClassifier(Features(), C)
    with pytest.raises(ValueError, match="loss: expected None, .* got 'mse'"):
        model.compile("sgd", "mse")
    with pytest.raises(TypeError, match="optimizer: expected a Keras optimizer, got 'sgd'"):
        model.head.follow("sgd")
    with pytest.raises(ValueError, match="export: expected a model that has been built"):
        model.export("model.keras")


@pytest.mark.parametrize(
    ("labels", "error", "match"),
    [
        (None, ValueError, r"y: expected integers \[N\] or one-hot \[N, 5\], got None"),
        (np.zeros((N, 1, 1), int), ValueError, r"got shape \(24, 1, 1\)"),
        (np.eye(C + 1)[np.zeros(N, int)], ValueError, r"got shape \(24, 6\)"),
        (np.full(N, 0.5, "float32"), tf.errors.InvalidArgumentError, "0.5"),
        (np.full((N, C), 1 / C), tf.errors.InvalidArgumentError, "got rows of other numbers"),
        (np.ones((N, C)), tf.errors.InvalidArgumentError, "got rows of other numbers"),
        (np.full(N, C), tf.errors.InvalidArgumentError, "5"),
    ],
)
def test_bad_labels(data, labels, error, match):
    model = classifier(compile_options={"run_eagerly": True})
    with pytest.raises(error, match=match):
        model.train_on_batch(data[0], labels)
    if labels is not None:
        with pytest.raises(error, match=match.replace("y:", "labels:")):
            LSoftmaxDense(C, lam=1.0)(data[0], labels, training=True)


def test_another_backend(monkeypatch):
    monkeypatch.setattr(keras.config, "backend", lambda: "torch")
    with pytest.raises(ImportError, match="needs the backend 'tensorflow' of Keras, the backend here is 'torch'"):
        importlib.reload(lsoftmax_op.keras)


@pytest.mark.parametrize("backend", ["jax", "abacus"])
def test_a_backend_that_keras_cannot_import(backend):
    blocked = "import sys; sys.modules['jax'] = None; import lsoftmax_op; lsoftmax_op.keras"
    run = run_python(blocked, check=False, KERAS_BACKEND=backend)
    assert "ImportError: lsoftmax_op.keras needs Keras 3 on its TensorFlow backend" in run.stderr
    assert f"KERAS_BACKEND is {backend!r}" in run.stderr


def test_the_package_imports_keras_only_when_asked():
    run_python("import sys, lsoftmax_op; assert not {'keras', 'tensorflow', 'lsoftmax_op.keras'} & set(sys.modules)")


# ---- XLA


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_compiled_by_xla(data, policy):
    if lsoftmax_op.build_info()["xla"] != "yes":
        pytest.skip(f"XLA: {lsoftmax_op.build_info()['xla']}")

    def losses(jit_compile):
        keras.utils.set_random_seed(1)
        model = classifier(dtype=policy, compile_options={"jit_compile": jit_compile})
        assert model.jit_compile == jit_compile
        history = model.fit(*data, batch_size=N // 2, epochs=3, shuffle=False, verbose=0).history
        return [*history["loss"], *history["accuracy"], *history["lam"], model.evaluate(*data, verbose=0)[0]]

    np.testing.assert_allclose(losses(True), losses(False), rtol=1e-5 if policy == "float32" else 2e-2)


def test_without_xla_kernels_keras_compiles_nothing():
    with mock.patch("lsoftmax_op.library.load_xla", return_value=False):
        model = classifier()
        with pytest.warns(UserWarning, match="jit_compile"):
            model.compile("adam", jit_compile=True)
    assert not model.jit_compile
