"""Arrays of PyTorch go in and come out; libraries and devices that do not fit together are refused."""

import re

import numpy as np
import pytest
from support import LAMBDAS, ROOT, random_batch

from lsoftmax_op import _libraries, arrays

torch = pytest.importorskip("torch", reason="PyTorch is not installed")


def tensors(batch):
    def tensor(array):
        if array.dtype.name == "bfloat16":
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)

    return [tensor(array) for array in (*batch.layer, batch.grad)]


@pytest.mark.parametrize("lam", LAMBDAS)
def test_tensors_on_the_cpu(dtype, lam):
    batch = random_batch((13, 33, 7), dtype)
    *layer, grad = tensors(batch)
    logits = arrays.logits(*layer, lam=lam)
    gradients = arrays.logits_grad(grad, *layer, lam=lam)
    expected = arrays.logits(*batch.layer, lam=lam), *arrays.logits_grad(batch.grad, *batch.layer, lam=lam)
    tolerance = {"float64": 1e-12, "float32": 1e-5, "float16": 1e-2, "bfloat16": 1e-1}[dtype]
    for got, want in zip((logits, *gradients), expected, strict=True):
        assert isinstance(got, torch.Tensor)
        assert got.dtype == layer[0].dtype
        want = np.asarray(want, np.float64)
        np.testing.assert_allclose(got.double().numpy(), want, atol=tolerance * np.abs(want).max())


def test_the_loss_of_tensors_on_the_cpu(dtype):
    batch = random_batch((13, 33, 7), dtype)
    *layer, grad = tensors(batch)
    got = arrays.loss_grad(grad[:, 0], *layer, lam=0.5)
    expected = arrays.loss_grad(batch.loss_grad, *batch.layer, lam=0.5)
    tolerance = {"float64": 1e-12, "float32": 1e-5, "float16": 1e-2, "bfloat16": 1e-1}[dtype]
    for one, want in zip(got, expected, strict=True):
        assert isinstance(one, torch.Tensor)
        want = np.asarray(want, np.float64)
        np.testing.assert_allclose(one.double().numpy(), want, atol=tolerance * np.abs(want).max())
    assert torch.equal(got.loss, arrays.loss(*layer, lam=0.5))


def test_arguments_are_left_as_they_are_and_views_work():
    batch = random_batch((13, 33, 7), "float32")
    *layer, grad = tensors(batch)
    expected = arrays.logits_grad(grad, *layer)
    strided = [tensor.t().contiguous().t() if tensor.ndim == 2 else tensor for tensor in layer]
    before = [tensor.clone() for tensor in (*strided, grad)]
    strided[0].requires_grad_(True)
    for got, want in zip(arrays.logits_grad(grad, *strided), expected, strict=True):
        assert torch.equal(got, want)
        assert not got.requires_grad
    assert all(torch.equal(a, b) for a, b in zip((*strided, grad), before, strict=True))


def test_lambda_as_a_tensor():
    *layer, _ = tensors(random_batch((13, 33, 7), "float32"))
    assert torch.equal(arrays.logits(*layer, lam=torch.tensor(0.5)), arrays.logits(*layer, lam=0.5))
    with pytest.raises(ValueError, match=r"lam: expected a number >= 0, got -1"):
        arrays.logits(*layer, lam=torch.tensor(-1.0))
    with pytest.raises(ValueError, match=r"lam: .* got shape \[2\]"):
        arrays.logits(*layer, lam=torch.zeros(2))


@pytest.mark.parametrize("argument", ["weights", "labels", "bias", "grad"])
def test_libraries_do_not_mix(argument):
    batch = random_batch((13, 33, 7), "float32")
    names = ("features", "weights", "labels", "bias", "grad")
    arguments = dict(zip(names, tensors(batch), strict=True))
    arguments[argument] = arguments[argument].numpy()
    with pytest.raises(TypeError, match=rf"{argument}: expected a PyTorch tensor on cpu, .* got numpy.ndarray"):
        arrays.logits_grad(**arguments)


def test_a_device_that_nobody_serves():
    *layer, _ = tensors(random_batch((13, 33, 7), "float32"))
    with pytest.raises(TypeError, match=r"features: expected a tensor on a CPU or CUDA device, got one on meta"):
        arrays.logits(*[tensor.to("meta") for tensor in layer])


@pytest.mark.parametrize("name", ["LSoftmaxLoss", "LSoftmaxLogits"])
def test_the_autograd_functions_of_the_docs(name):
    blocks = re.findall(r"```python\nimport torch\n(.*?)```", (ROOT / "docs" / "arrays.md").read_text(), re.DOTALL)
    (code,) = (block for block in blocks if f"class {name}" in block)
    names = {"torch": torch}
    exec(code, names)
    function = names[name]
    batch = random_batch((6, 5, 4), "float64")
    features, weights, labels, _, _ = tensors(batch)
    features.requires_grad_(True)
    weights.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x, w: function.apply(x, w, labels, 3, 0.5), (features, weights))


class OnCuda:
    """What an array on a CUDA device looks like from outside."""

    def __dlpack_device__(self):
        return 2, 0


def test_arrays_on_a_device_and_arrays_on_the_cpu_do_not_mix():
    with pytest.raises(TypeError, match=r"weights: expected an array on the CPU, .* CUDA device"):
        arrays.logits(np.ones((3, 2)), OnCuda(), [0, 1, 0])


def test_arrays_on_a_device_need_cupy_and_kernels():
    assert _libraries._is_on_cuda("features", OnCuda())
    with pytest.raises((ImportError, AttributeError, RuntimeError)):
        arrays.logits(OnCuda(), OnCuda(), OnCuda())
    with pytest.raises(ValueError, match=r"num_threads: expected None"):
        _libraries.library_of(OnCuda(), 3)
