"""What Keras users do around a model: data sets of their own, optimizers' options, LoRA, masks, TensorFlow Lite. Beside
it, a Dense layer and Keras' own loss: at a lambda that leaves nothing of the margin, the numbers are the same."""

import warnings

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")

from lsoftmax_op.keras import LSoftmaxClassifier

N, D, C = 23, 6, 5  # of batches of 8, the last is short
NO_MARGIN = {"margin": 4, "lam": 1e30}  # computed all the same
ROUNDING = {"rtol": 2e-6, "atol": 2e-7}


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(N, D)).astype("float32"), rng.integers(0, C, N)


def dense():
    return [keras.Input((D,)), keras.layers.Dense(4, "tanh", kernel_regularizer="l2")]


def sgd():
    return keras.optimizers.SGD(0.1, momentum=0.9)


def beside(layers=dense, optimizer=sgd, prepare=lambda network: None):
    """Returns a plain and a margin model of the same weights, compiled."""
    models = []
    for kind in ("plain", "margin"):
        keras.utils.set_random_seed(1)
        network = keras.Sequential(layers())
        prepare(network)
        if kind == "plain":
            model = keras.Sequential([network, keras.layers.Dense(C, use_bias=False)])
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        else:
            model, loss = LSoftmaxClassifier(network, C, **NO_MARGIN), None
        metrics = ["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(2, name="top 2")]
        model.compile(optimizer(), loss, metrics=metrics)
        models.append(model)
    return models


def trained(model, x, y=None, **options):
    """What two epochs log, what evaluate says then, and the weights."""
    logs = model.fit(x, y, epochs=2, verbose=0, shuffle=False, **options).history
    evaluated = model.evaluate(x, y, verbose=0, return_dict=True, **options)
    names = ("loss", "accuracy", "top 2")
    return [*([*logs[name], evaluated[name]] for name in names), *model.get_weights()]


def assert_same(got, want):
    for one, other in zip(got, want, strict=True):
        assert np.isfinite(other).all()
        np.testing.assert_allclose(one, other, **ROUNDING)


class Batches(keras.utils.PyDataset):
    """Arrays in batches of 8, made by two threads."""

    def __init__(self, *arrays):
        super().__init__(workers=2)
        self.arrays = arrays

    def __len__(self):
        return -(-N // 8)

    def __getitem__(self, n):
        return tuple(array[8 * n : 8 * (n + 1)] for array in self.arrays)


def test_a_pydataset_with_a_short_last_batch(data):
    plain, margin = beside()
    batches = Batches(*data)
    assert_same(trained(margin, batches), trained(plain, batches))
    want = keras.ops.softmax(plain.predict(batches, verbose=0))
    np.testing.assert_allclose(margin.predict(batches, verbose=0), want, **ROUNDING)


def test_the_loss_does_not_depend_on_the_batch_size(data):
    plain, margin = beside(optimizer=lambda: keras.optimizers.SGD(0.0))
    want = trained(plain, *data, batch_size=N)
    for size in (1, 7, 16):
        assert_same(trained(margin, *data, batch_size=size), want)


def test_a_batch_twice_is_a_batch_once(data):
    (_, once), (_, twice) = beside(), beside()
    for model in (once, twice):
        model.head.lam.assign(0.5)
    logs = once.train_on_batch(*data)
    assert_same(twice.train_on_batch(*(np.concatenate([one, one]) for one in data)), logs)
    assert_same(twice.get_weights(), once.get_weights())


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_accumulation_steps": 3, "use_ema": True, "ema_momentum": 0.5, "clipnorm": 0.3},
        {"gradient_accumulation_steps": 2, "use_ema": True, "ema_overwrite_frequency": 2, "global_clipnorm": 0.6},
    ],
)
def test_accumulated_averaged_and_clipped(data, options):
    plain, margin = beside(optimizer=lambda: keras.optimizers.SGD(0.5, momentum=0.9, **options))
    assert_same(trained(margin, *data, batch_size=4), trained(plain, *data, batch_size=4))
    assert_same([one.numpy() for one in margin.optimizer.variables], [one.numpy() for one in plain.optimizer.variables])


def test_lora_on_the_backbone(data, tmp_path):
    def enable(network):
        network.layers[0].enable_lora(2)
        network.layers[0].lora_kernel_a.assign(np.ones((D, 2)))
        network.layers[0].lora_kernel_b.assign(np.ones((2, 4)))

    plain, margin = beside(prepare=enable)
    frozen = margin.backbone.layers[0]._kernel.numpy()
    assert len(margin.trainable_weights) == 4
    assert_same(trained(margin, *data, batch_size=8), trained(plain, *data, batch_size=8))
    np.testing.assert_array_equal(margin.backbone.layers[0]._kernel, frozen)
    margin.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(data[0], verbose=0), margin.predict(data[0], verbose=0))


def steps(x):
    lengths = 1 + np.arange(N)[:, None] % 3
    return np.where(np.arange(3) < lengths, np.abs(4 * x[:, :3]).astype("int32") % 8 + 1, 0)


def some_samples(x):
    return np.where(np.arange(N)[:, None] % 3, x, 0)


MASKS = {
    "of steps": (steps, lambda: [keras.layers.Embedding(9, 4, mask_zero=True), keras.layers.SimpleRNN(3, unroll=True)]),
    "of samples": (some_samples, lambda: [keras.layers.Masking(), keras.layers.Dense(4)]),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", MASKS)
def test_masks_of_the_backbone(data, case):
    values, layers = MASKS[case]
    x = values(data[0])
    plain, margin = beside(lambda: [keras.Input(x.shape[1:], dtype=x.dtype.name), *layers()])
    kept = x.any(axis=1)
    accuracy, of_kept = (plain.evaluate(x[i], data[1][i], verbose=0)[1] for i in (slice(None), kept))
    if accuracy != pytest.approx(of_kept):
        pytest.skip(f"Keras {keras.__version__} counts masked samples")
    weighted = Batches(x, data[1], np.linspace(0, 2, N))
    assert_same(trained(margin, weighted), trained(plain, weighted))


def test_tensorflow_lite_with_weights_of_8_bits(data, tmp_path):
    """Dynamic-range quantisation, which leaves small weights alone: the head is a large one."""
    if not hasattr(tf, "lite"):
        pytest.skip(f"TensorFlow {tf.__version__} has no tf.lite")
    plain, margin = beside(lambda: [keras.Input((D,)), keras.layers.Dense(400, "tanh")])
    margin.set_weights(plain.get_weights())
    plain.add(keras.layers.Softmax())
    outputs = []
    for model in (plain, margin):
        model.export(tmp_path / "saved")
        converter = tf.lite.TFLiteConverter.from_saved_model(str(tmp_path / "saved"))
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tf.lite says that it moves to another package
            resolver = tf.lite.experimental.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES  # that of 2.18 is 0.2 off
            lite = tf.lite.Interpreter(model_content=converter.convert(), experimental_op_resolver_type=resolver)
        lite.resize_tensor_input(0, [N, D])
        lite.allocate_tensors()
        kernels = [one for one in lite.get_tensor_details() if sorted(one["shape"]) == [C, 400]]
        assert [one["dtype"] for one in kernels] == [np.int8]
        lite.set_tensor(lite.get_input_details()[0]["index"], data[0])
        lite.invoke()
        outputs.append(lite.get_tensor(lite.get_output_details()[0]["index"]))
    np.testing.assert_array_equal(outputs[1], outputs[0])
    np.testing.assert_allclose(outputs[1], margin.predict(data[0], verbose=0), atol=0.02)
