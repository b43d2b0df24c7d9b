"""On a real GPU: the ops inside TensorFlow, and Keras. Skips without one.

What takes a device (`device`) runs on the CPU as well, so that it is known to be right before it meets a GPU.
"""

import json

import numpy as np
import pytest
from conftest import require_gpu
from support import angle_batch, assert_close_to_oracle, assert_loss_close_to_oracle, random_batch, run_python


@pytest.fixture
def tf():
    tf = pytest.importorskip("tensorflow")
    require_gpu(bool(tf.config.list_physical_devices("GPU")), "TensorFlow sees no GPU")
    return tf


def needs_gpu(device):
    """Returns TensorFlow, where it has the device."""
    tf = pytest.importorskip("tensorflow")
    require_gpu("CPU" in device or bool(tf.config.list_physical_devices("GPU")), "TensorFlow sees no GPU")
    return tf


@pytest.fixture
def without_tf32():
    """Products of float32 in float32."""
    tf = pytest.importorskip("tensorflow")
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    yield
    tf.config.experimental.enable_tensor_float_32_execution(before)


DEVICES = pytest.mark.parametrize("device", ["CPU:0", "GPU:0"])


class OnGpu:
    """lsoftmax_op.lsoftmax_logits, lsoftmax_loss and their gradients, placed on the GPU."""

    def __init__(self, tf, how, block_size=None):
        self.tf, self.how, self.block_size = tf, how, block_size

    def __call__(self, batch, margin, lam):
        import lsoftmax_op

        def layer(x, w, y, b):
            return lsoftmax_op.lsoftmax_logits(x, w, y, b, margin=margin, lam=lam)

        return self._run(batch, layer, batch.grad)

    def plain(self, batch):
        return self._run(batch, lambda x, w, _, b: self.tf.nn.bias_add(self.tf.matmul(x, w), b), batch.grad)

    def loss(self, batch, margin, lam):
        import lsoftmax_op

        def layer(x, w, y, b):
            return lsoftmax_op.lsoftmax_loss(x, w, y, b, margin=margin, lam=lam, class_block_size=self.block_size)

        return self._run(batch, layer, batch.loss_grad)

    def plain_loss(self, batch):
        tf = self.tf

        def layer(x, w, y, b):
            logits = tf.nn.bias_add(tf.matmul(x, w), b)
            loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=tf.maximum(y, 0), logits=logits)
            return tf.where(y >= 0, loss, 0)

        return self._run(batch, layer, batch.loss_grad)

    def _run(self, batch, layer, grad):
        tf = self.tf

        def step(x, w, y, b, g):
            with tf.GradientTape() as tape:
                tape.watch([x, w, b])
                value = layer(x, w, y, b)
            return value, tape.gradient(value, [x, w, b], output_gradients=g)

        if self.how != "eager":
            step = tf.function(step, jit_compile=self.how == "xla")
        with tf.device("GPU:0"):
            value, gradients = step(*[tf.constant(array) for array in (*batch.layer, grad)])
        assert all("GPU" in tensor.device for tensor in (value, *gradients))
        return value.numpy(), [gradient.numpy() for gradient in gradients]


@pytest.mark.parametrize("how", ["eager", "function", "xla"])
@pytest.mark.parametrize("margin", [1, 4])
def test_tensorflow(tf, dtype, margin, how):
    tf.config.experimental.enable_tensor_float_32_execution(False)
    for batch in (angle_batch(margin, dtype), random_batch((130, 33, 7), dtype)):
        assert_close_to_oracle(batch, dtype, OnGpu(tf, how), margin, 0.5)


@pytest.mark.parametrize("block_size", [None, 5])
@pytest.mark.parametrize("how", ["eager", "function", "xla"])
def test_the_loss_in_tensorflow(tf, dtype, block_size, how):
    tf.config.experimental.enable_tensor_float_32_execution(False)
    on_gpu = OnGpu(tf, how, block_size)
    for batch in (angle_batch(4, dtype, norms=(1.0, 1e-2, 1e2)), random_batch((130, 33, 7), dtype)):
        assert_loss_close_to_oracle(batch, dtype, on_gpu, 4, 0.5)


def test_tensorflow_gradients_numerically(tf):
    import lsoftmax_op

    batch = random_batch((5, 6, 4), "float64", seed=3)
    with tf.device("GPU:0"):
        theory, numeric = tf.test.compute_gradient(
            lambda x, w: lsoftmax_op.lsoftmax_logits(x, w, batch.labels, margin=3, lam=0.5),
            [batch.features, batch.weights],
        )
    for a, b in zip(theory, numeric, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_tensorflow_bad_values_make_nan_rows(tf):
    import lsoftmax_op

    batch = random_batch((5, 6, 4), "float32")
    batch.labels[:] = [0, 9, 1, 2, 3]
    with tf.device("GPU:0"):
        logits = lsoftmax_op.lsoftmax_logits(batch.features, batch.weights, batch.labels)
        assert np.isnan(logits.numpy()).all(axis=1).tolist() == [False, True, False, False, False]


def margin_layer(tf):
    import lsoftmax_op

    class Head(tf.keras.layers.Layer):
        def build(self, shape):
            self.kernel = self.add_weight(shape=(shape[0][-1], 10), name="kernel")

        def call(self, inputs):
            features, labels = inputs
            return lsoftmax_op.lsoftmax_logits(features, tf.cast(self.kernel, features.dtype), labels, lam=5.0)

    return Head()


def plain_layer(tf):
    dense = tf.keras.layers.Dense(10, use_bias=False)

    class Head(tf.keras.layers.Layer):
        def call(self, inputs):
            return inputs[0]

    return lambda inputs: dense(Head()(inputs))


def images():
    """Features [512, 32] of ten classes, and labels."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 512).astype(np.int32)
    return (np.eye(10, 32)[labels] + rng.uniform(0, 0.1, (512, 32))).astype(np.float32), labels


def losses_of_training(tf, device, head, policy, jit_compile):
    x, y = images()
    before = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy(policy)
    try:
        with tf.distribute.MirroredStrategy([device]).scope():
            inputs = [tf.keras.Input([32]), tf.keras.Input([], dtype="int32")]
            logits = head(tf)([tf.keras.layers.Dense(16)(inputs[0]), inputs[1]])
            model = tf.keras.Model(inputs, tf.keras.layers.Activation("linear", dtype="float32")(logits))
            loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            model.compile("adam", loss, jit_compile=jit_compile)
        return model.fit([x, y], y, epochs=5, batch_size=64, verbose=0).history["loss"]
    finally:
        tf.keras.mixed_precision.set_global_policy(before)


POLICIES = ("float32", "mixed_float16", "mixed_bfloat16")


@pytest.mark.parametrize(
    ("device", "policy", "jit_compile"),
    [("GPU:0", policy, jit_compile) for policy in POLICIES for jit_compile in (False, True)]
    + [("CPU:0", "mixed_float16", True), ("CPU:0", "float32", False)],
)
@pytest.mark.parametrize("head", [margin_layer, plain_layer])
def test_a_keras_model_trains(device, policy, jit_compile, head):
    """Where the same model without our layer fails, it is not our layer that fails."""
    tf = needs_gpu(device)
    try:
        losses = losses_of_training(tf, device, head, policy, jit_compile)
    except Exception as failure:
        try:
            losses_of_training(tf, device, plain_layer, policy, jit_compile)
        except Exception as of_plain:
            if "GPU" in device and str(of_plain)[:60] == str(failure)[:60]:
                pytest.xfail(f"Keras' own: a plain model fails as well, {type(of_plain).__name__}: {of_plain}")
        raise
    assert losses[-1] < losses[0]


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@DEVICES
def test_a_classifier_trains_predicts_and_is_exported(device, without_tf32, tmp_path):
    tf = needs_gpu(device)
    import keras

    from lsoftmax_op import LambdaSchedule
    from lsoftmax_op.keras import LSoftmaxClassifier

    keras.utils.set_random_seed(0)
    x, y = images()
    with tf.distribute.MirroredStrategy([device]).scope():
        backbone = keras.Sequential([keras.Input((32,)), keras.layers.Dense(16, "relu")])
        model = LSoftmaxClassifier(backbone, 10, margin=4, lam=LambdaSchedule(gamma=0.01, minimum=1.0))
        model.compile(keras.optimizers.Adam(0.01))
    logs = model.fit(x, y, epochs=8, batch_size=64, verbose=0).history
    assert logs["lam"][0] > logs["lam"][-1] == 1
    assert model.evaluate(x, y, verbose=0, return_dict=True)["accuracy"] > 0.5  # of ten classes

    kernel, bias, head = (np.asarray(weight) for weight in model.get_weights()[:3])
    want = softmax(np.maximum(x @ kernel + bias, 0) @ head)
    np.testing.assert_allclose(model.predict(x, batch_size=100, verbose=0), want, rtol=1e-4, atol=1e-6)
    model.export(tmp_path / "served", verbose=False)
    with tf.device(device):
        served = tf.saved_model.load(str(tmp_path / "served"))
        got = served.serve(tf.constant(x))
    assert device in got.device
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


@DEVICES
@pytest.mark.parametrize("how", ["eager", "function", "xla"])
def test_classes_in_blocks(device, how, without_tf32):
    """They give the loss and the gradients of one pass, and on a GPU, where that can be told, in less memory."""
    tf = needs_gpu(device)
    import lsoftmax_op

    rows, depth, classes, block_size = 300, 16, 30_001, 1000
    batch = random_batch((rows, depth, classes), "float32")

    def step(block_size):
        def run(x, w, b, labels):
            with tf.GradientTape() as tape:
                tape.watch([x, w, b])
                loss = lsoftmax_op.lsoftmax_loss(x, w, labels, b, lam=0.5, class_block_size=block_size)
                mean = tf.reduce_mean(loss)
            return [loss, *tape.gradient(mean, [x, w, b])]

        return run if how == "eager" else tf.function(run, jit_compile=how == "xla")

    results, peaks = [], []
    with tf.device(device):
        arguments = [tf.constant(array) for array in (batch.features, batch.weights, batch.bias, batch.labels)]
        for function in (step(None), step(block_size)):
            function(*arguments)
            if "GPU" in device:
                tf.config.experimental.reset_memory_stats(device)
                before = tf.config.experimental.get_memory_info(device)["current"]
            results.append([result.numpy() for result in function(*arguments)])
            if "GPU" in device:
                peaks.append(tf.config.experimental.get_memory_info(device)["peak"] - before)
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * np.abs(one).max())
    if peaks:
        assert peaks[1] < peaks[0]


TWO_REPLICAS = """
import json
import numpy as np, tensorflow as tf
kind = KIND
device, = tf.config.list_physical_devices(kind)[:1]
options = {"memory_limit": 2048} if kind == "GPU" else {}
tf.config.set_logical_device_configuration(device, [tf.config.LogicalDeviceConfiguration(**options)] * 2)
tf.config.experimental.enable_tensor_float_32_execution(False)
import keras
from lsoftmax_op import LambdaSchedule
from lsoftmax_op.keras import LSoftmaxClassifier

rng = np.random.default_rng(0)
y = rng.integers(0, 5, 64)
x = (rng.normal(size=(5, 8))[y] + 0.5 * rng.normal(size=(64, 8))).astype("float32")
for count in (2, 1):
    keras.utils.set_random_seed(0)
    # NCCL, which would serve two GPUs, does not serve one twice.
    devices, together = [f"{kind}:{n}" for n in range(count)], tf.distribute.ReductionToOneDevice()
    with tf.distribute.MirroredStrategy(devices, together).scope():
        backbone = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, "tanh")])
        model = LSoftmaxClassifier(backbone, 5, margin=3, lam=LambdaSchedule(gamma=0.1, minimum=0.5))
        model.compile(keras.optimizers.SGD(0.1), jit_compile=False)
    logs = model.fit(x, y, batch_size=16, epochs=3, shuffle=False, verbose=0).history
    weights = np.concatenate([np.ravel(weight) for weight in model.get_weights()]).tolist()
    print(json.dumps({"lam": logs["lam"], "weights": weights, "predicted": model.predict(x, verbose=0).tolist()}))
"""


@DEVICES
@pytest.mark.slow
def test_two_replicas_train_as_one(device):
    needs_gpu(device)
    told = run_python(TWO_REPLICAS.replace("KIND", repr(device.partition(":")[0]))).stdout
    two, one = map(json.loads, told.splitlines()[-2:])
    assert two["lam"] == one["lam"]
    for name in ("weights", "predicted"):
        np.testing.assert_allclose(two[name], one[name], rtol=1e-4, atol=1e-5)
