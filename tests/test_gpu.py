"""On a real GPU: PyTorch and CuPy arrays, and the ops inside TensorFlow. Skips without one."""

import numpy as np
import pytest
from conftest import CudaLayer, require_gpu, torch_sees_a_gpu
from support import angle_batch, assert_close_to_oracle, assert_loss_close_to_oracle, errors, random_batch

from lsoftmax_op import arrays


@pytest.fixture
def torch():
    require_gpu(torch_sees_a_gpu(), "PyTorch with a GPU is not here")
    return pytest.importorskip("torch")


@pytest.fixture
def cupy():
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError:
        count = 0
    require_gpu(count > 0, "CuPy sees no GPU")
    return cupy


@pytest.fixture
def tf():
    tf = pytest.importorskip("tensorflow")
    require_gpu(bool(tf.config.list_physical_devices("GPU")), "TensorFlow sees no GPU")
    return tf


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_cupy_arrays(cupy, dtype):
    batch = random_batch((130, 33, 7), dtype)
    *layer, grad = map(cupy.asarray, (*batch.layer, batch.grad))
    logits, gradients = arrays.logits(*layer, lam=0.5), arrays.logits_grad(grad, *layer, lam=0.5)
    assert all(isinstance(array, cupy.ndarray) and array.dtype == dtype for array in (logits, *gradients))
    found = errors(batch, logits.get(), tuple(g.get() for g in gradients), 4, 0.5)
    assert max(error.max() for error in found) < {"float16": 1e-2, "float32": 2e-5, "float64": 1e-10}[dtype]


def test_the_callers_stream_and_the_same_bits(torch):
    batch = random_batch((3000, 64, 10), "float32")
    *layer, grad = map(CudaLayer._tensor, (*batch.layer, batch.grad))
    expected = arrays.logits_grad(grad, *layer)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        again = arrays.logits_grad(grad, *layer)
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))


def test_devices_do_not_mix(torch):
    *layer, _ = map(CudaLayer._tensor, (*random_batch((13, 33, 7), "float32").layer, np.zeros(1)))
    layer[1] = layer[1].cpu()
    with pytest.raises(TypeError, match=r"weights: expected a PyTorch tensor on cuda:0, .* on cpu"):
        arrays.logits(*layer)


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


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_a_keras_model_trains(tf, policy, jit_compile):
    import lsoftmax_op

    class Head(tf.keras.layers.Layer):
        def build(self, shape):
            self.kernel = self.add_weight(shape=(shape[0][-1], 10), name="kernel")

        def call(self, inputs):
            features, labels = inputs
            return lsoftmax_op.lsoftmax_logits(features, tf.cast(self.kernel, features.dtype), labels, lam=5.0)

    labels = np.random.default_rng(0).integers(0, 10, 512).astype(np.int32)
    images = (np.eye(10, 32)[labels] + 0.1).astype(np.float32)
    strategy = tf.distribute.MirroredStrategy(["GPU:0"])
    before = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy(policy)
    try:
        with strategy.scope():
            x, y = tf.keras.Input([32]), tf.keras.Input([], dtype="int32")
            logits = Head()([tf.keras.layers.Dense(16)(x), y])
            model = tf.keras.Model([x, y], tf.keras.layers.Activation("linear", dtype="float32")(logits))
            loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            model.compile("adam", loss, jit_compile=jit_compile)
        losses = model.fit([images, labels], labels, epochs=5, batch_size=64, verbose=0).history["loss"]
    finally:
        tf.keras.mixed_precision.set_global_policy(before)
    assert losses[-1] < losses[0]
