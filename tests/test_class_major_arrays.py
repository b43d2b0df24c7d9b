"""lsoftmax_op.arrays with weights [C, D]: the oracle's results, in every library, and no copy in the other layout."""

import contextlib
from unittest import mock

import numpy as np
import pytest
from conftest import ArraysLayer, CudaLayer, CudaOnCpu, TorchLayer, require_gpu, torch_sees_a_gpu
from support import (
    KINDS,
    LAMBDAS,
    angle_batch,
    assert_close_to_oracle,
    assert_loss_close_to_oracle,
    random_batch,
)

from lsoftmax_op import _core, arrays
from lsoftmax_op.margins import ArcFace

SHAPES = ((13, 33, 7), (5, 19, 40), (1, 1, 1), (0, 4, 3))


class ClassMajorLayer(ArraysLayer):
    """NumPy's arrays, weights and their gradient [C, D] there and [D, C] outside. The plain layer is [D, C]."""

    library = contextlib.nullcontext

    def given(self, *layer):
        return layer

    def taken(self, value, gradients):
        return value, [one for one in gradients if one is not None]

    def __call__(self, batch, margin, lam):
        options = {"margin": margin, "lam": lam, "class_major": True}
        grad, layer = self.arguments(batch.grad, batch.layer)
        with self.library():
            return self.results(batch, arrays.logits(*layer, **options), arrays.logits_grad(grad, *layer, **options))

    def loss(self, batch, margin, lam, bias=True, **settings):
        options = {"margin": margin, "lam": lam, "class_major": True, **settings}
        grad, layer = self.arguments(batch.loss_grad, batch.layer if bias else batch.layer[:3])
        with self.library():
            found = arrays.loss_grad(grad, *layer, **options)
            np.testing.assert_array_equal(
                *(self.taken(one, [])[0] for one in (arrays.loss(*layer, **options), found.loss))
            )
        return self.results(batch, found.loss, found[:3])

    def arguments(self, grad, layer):
        features, weights, *rest = layer
        grad, *layer = self.given(grad, features, np.ascontiguousarray(weights.T), *rest)
        return grad, layer

    def results(self, batch, value, gradients):
        value, (of_features, of_weights, *rest) = self.taken(value, gradients)
        assert of_weights.shape == batch.weights.shape[::-1]
        return value, [of_features, of_weights.T, *rest]


class OnTheDevice(ClassMajorLayer):
    """The CUDA kernels, run on the CPU."""

    def library(self):
        return mock.patch.object(arrays, "library_of", return_value=CudaOnCpu())


class Tensors(ClassMajorLayer):
    """PyTorch's tensors."""

    def __init__(self, device):
        self.device = device

    def given(self, *layer):
        return TorchLayer(self.device).tensors(*layer)

    def taken(self, value, gradients):
        return CudaLayer._arrays(value, gradients)


@pytest.fixture(params=["numpy", "cuda-on-cpu", "cpu", "cuda"])
def layer(request):
    if request.param == "numpy":
        return ClassMajorLayer()
    if request.param == "cuda-on-cpu":
        pytest.importorskip("lsoftmax_op._cuda_on_cpu", reason="built without LSOFTMAX_TESTING=ON")
        return OnTheDevice()
    pytest.importorskip("torch", reason="PyTorch is not installed")
    require_gpu(request.param == "cpu" or torch_sees_a_gpu(), "PyTorch with a GPU is not here")
    return Tensors(request.param)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("margin", [4, *KINDS], ids=repr)
def test_every_margin_and_dtype(layer, dtype, margin, shape):
    batch = random_batch(shape, dtype)
    assert_close_to_oracle(batch, dtype, layer, margin, 0.5)
    assert_loss_close_to_oracle(batch, dtype, layer, margin, 0.5, label_smoothing=0.1)


@pytest.mark.parametrize("lam", LAMBDAS)
@pytest.mark.parametrize("margin", [4, ArcFace(0.5, 16)], ids=repr)
def test_every_lambda(layer, margin, lam):
    batch = random_batch((13, 33, 7), "float64")
    assert_close_to_oracle(batch, "float64", layer, margin, lam)
    assert_loss_close_to_oracle(batch, "float64", layer, margin, lam)


@pytest.mark.parametrize("margin", [4, *KINDS[::3]], ids=repr)
def test_angles_that_matter(layer, margin):
    assert_close_to_oracle(angle_batch(margin, "float64"), "float64", layer, margin, 0.0)


def class_major(batch):
    """Features, weights [C, D], labels and bias."""
    features, weights, *rest = batch.layer
    return features, np.ascontiguousarray(weights.T), *rest


@pytest.mark.parametrize("margin", [4, ArcFace(0.5, 16)], ids=repr)
def test_the_same_bits_for_any_number_of_threads(dtype, margin):
    batch = random_batch((700, 130, 19), dtype).beside(margin)
    layer, options = class_major(batch), {"margin": margin, "lam": 0.5, "class_major": True}

    def bits(threads):
        gradients = arrays.logits_grad(batch.grad, *layer, num_threads=threads, **options)
        loss = arrays.loss_grad(batch.loss_grad, *layer, num_threads=threads, **options)
        return [None if one is None else one.tobytes() for one in (*gradients, *loss)]

    assert bits(1) == bits(2) == bits(5)


@pytest.mark.parametrize("function", ["logits", "logits_grad", "loss_grad"])
@pytest.mark.parametrize("margin", [4, ArcFace(0.5, 16)], ids=repr)
def test_the_kernels_are_given_the_weights_themselves(monkeypatch, function, margin):
    batch = random_batch((13, 33, 7), "float32").beside(margin)
    layer = class_major(batch)
    seen = []

    def noting(kernel):
        def note(call, where):
            seen.append((call.weights, call.class_major))
            return kernel(call, where)

        return note

    for name in ("geometry", "geometry_and_loss", "class_factors", "features_grad", "weights_grad", "gradients"):
        monkeypatch.setattr(_core, name, noting(getattr(_core, name)))
    grad = {"logits": [], "logits_grad": [batch.grad], "loss_grad": [batch.loss_grad]}[function]
    getattr(arrays, function)(*grad, *layer, margin=margin, class_major=True)
    assert set(seen) == {(layer[1].ctypes.data, True)}


@pytest.mark.parametrize("function", ["logits", "loss"])
def test_what_is_wrong_is_named(function):
    call = getattr(arrays, function)
    x, w, y, b = np.ones((3, 2)), np.ones((5, 2)), np.zeros(3, np.int64), np.zeros(2)
    with pytest.raises(ValueError, match=r"^weights: expected shape \[C, D\] with the D = 2 of features .* \[2, 5\]"):
        call(x, w.T, y, class_major=True)
    with pytest.raises(ValueError, match=r"^weights: expected shape \[C, D\] with at least one class, got \[0, 2\]"):
        call(x, w[:0], y, class_major=True)
    with pytest.raises(ValueError, match=r"^weights: expected shape \[C, D\], got \[2\]"):
        call(x, w[0], y, class_major=True)
    with pytest.raises(ValueError, match=r"^bias: expected shape \[C\] with the C = 5 of weights \[5, 2\], got \[2\]"):
        call(x, w, y, b, class_major=True)
    with pytest.raises(ValueError, match=r"^labels: expected values in \[0, 5\)"):
        call(x, w, y + 5, class_major=True)
    with pytest.raises(TypeError, match="^class_major: expected True or False, got 1"):
        call(x, w, y, class_major=1)
