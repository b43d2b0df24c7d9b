"""Parameters of the suite: the layer under test, and its data type."""

from __future__ import annotations

import dataclasses
import functools
import gc
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from unittest import mock

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # several processes share a GPU

import numpy as np
import pytest
from support import DTYPES, Batch

from lsoftmax_op import arrays
from lsoftmax_op._array_libraries import NumPy
from lsoftmax_op.margins import Margin

# Files that start processes, or train: a worker begins with one, so that none is left for the end of the suite.
LONGEST = (
    "test_keras_sharded.py",
    "test_sharded.py",
    "test_keras_shards.py",
    "test_distribute.py",
    "test_xla_cuda.py",
    "test_paper.py",
    "test_docs.py",
    "test_library.py",
    "test_benchmarks.py",
    "test_raw_ops.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sorts files, which is the order in which they are shared out."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def pytest_collection_finish() -> None:
    """What has been imported and collected by now stays: the garbage collector need not look at it again and again."""
    gc.collect()
    gc.freeze()


def present(values: Iterable) -> list:
    """Those of arguments or gradients that there are: a bias need not be one."""
    return [value for value in values if value is not None]


class ArraysLayer:
    """lsoftmax_op.arrays on the CPU."""

    def __call__(self, batch: Batch, margin: Margin | int, lam: float) -> tuple:
        options = {"margin": margin, "lam": lam}
        gradients = arrays.logits_grad(batch.grad, *batch.layer, **options)
        return arrays.logits(*batch.layer, **options), present(gradients)

    def plain(self, batch: Batch) -> tuple:
        dtype = batch.features.dtype
        wide = np.float64 if dtype == np.float64 else np.float32
        x, w, g = (a.astype(wide) for a in (batch.features, batch.weights, batch.grad))
        logits = (x @ w).astype(dtype)
        gradients = [a.astype(dtype) for a in (g @ w.T, x.T @ g, g.sum(axis=0))]
        return (logits, gradients[:2]) if batch.bias is None else (logits + batch.bias, gradients)

    def loss(self, batch: Batch, margin: Margin | int, lam: float, bias: bool = True, **settings: float) -> tuple:
        layer = batch.layer if bias else batch.layer[:3]
        results = arrays.loss_grad(batch.loss_grad, *layer, margin=margin, lam=lam, **settings)
        return results.loss, present(results[:3])

    def plain_loss(self, batch: Batch) -> tuple:
        """The cross-entropy of the plain logits; what a framework stores in the dtype is rounded to it."""
        dtype = batch.features.dtype
        wide = np.float64 if dtype == np.float64 else np.float32
        logits = self.plain(batch)[0].astype(wide)
        rows = np.arange(len(logits))
        logits -= logits.max(axis=1, keepdims=True)
        p = np.exp(logits)
        total = p.sum(axis=1)
        loss = np.log(total) - logits[rows, batch.labels]
        p /= total[:, None]
        p[rows, batch.labels] -= 1
        has_target = batch.labels >= 0
        g = (p * (batch.loss_grad.astype(wide) * has_target)[:, None]).astype(dtype)
        gradients = self.plain(dataclasses.replace(batch, grad=g))[1]
        return np.where(has_target, loss, 0).astype(dtype), gradients


class CudaOnCpu(NumPy):
    """NumPy arrays for device memory, and the CUDA kernels as cc/cuda/testing runs them on the CPU."""

    checks_values = False

    def __init__(self) -> None:
        from lsoftmax_op import _cuda_on_cpu

        self.kernels = _cuda_on_cpu
        self.where = 0


class CudaOnCpuLayer(ArraysLayer):
    """lsoftmax_op.arrays as on a CUDA device, its kernels run on the CPU."""

    def __call__(self, batch: Batch, margin: Margin | int, lam: float) -> tuple:
        with mock.patch.object(arrays, "library_of", return_value=CudaOnCpu()):
            return super().__call__(batch, margin, lam)

    def loss(self, batch: Batch, margin: Margin | int, lam: float, bias: bool = True, **settings: float) -> tuple:
        with mock.patch.object(arrays, "library_of", return_value=CudaOnCpu()):
            return super().loss(batch, margin, lam, bias, **settings)


def require_gpu(has_one: bool, reason: str) -> None:
    """Skips where there is no GPU; with LSOFTMAX_REQUIRE_GPU=1 that is a failure."""
    if not has_one:
        (pytest.fail if os.environ.get("LSOFTMAX_REQUIRE_GPU") == "1" else pytest.skip)(reason)


class CudaLayer:
    """lsoftmax_op.arrays on PyTorch tensors on a CUDA device."""

    def __call__(self, batch: Batch, margin: Margin | int, lam: float) -> tuple:
        options = {"margin": margin, "lam": lam}
        *layer, grad = map(self._tensor, (*batch.layer, batch.grad))
        return self._arrays(arrays.logits(*layer, **options), arrays.logits_grad(grad, *layer, **options))

    def plain(self, batch: Batch) -> tuple:
        x, w, _, b, g = map(self._tensor, (*batch.layer, batch.grad))
        if b is None:
            return self._arrays(x @ w, (g @ w.T, x.T @ g))
        return self._arrays(x @ w + b, (g @ w.T, x.T @ g, g.sum(dim=0)))

    def loss(self, batch: Batch, margin: Margin | int, lam: float, bias: bool = True, **settings: float) -> tuple:
        *layer, grad = map(self._tensor, (*(batch.layer if bias else batch.layer[:3]), batch.loss_grad))
        results = arrays.loss_grad(grad, *layer, margin=margin, lam=lam, **settings)
        return self._arrays(results.loss, results[:3])

    def plain_loss(self, batch: Batch) -> tuple:
        import torch

        x, w, y, b, g = map(self._tensor, (*batch.layer, batch.loss_grad))
        leaves = [tensor.requires_grad_(True) for tensor in present((x, w, b))]
        logits = x @ w if b is None else x @ w + b
        loss = torch.nn.functional.cross_entropy(logits, y.long(), ignore_index=-1, reduction="none")
        return self._arrays(loss.detach(), torch.autograd.grad(loss, leaves, g))

    @staticmethod
    def _tensor(array: np.ndarray | None) -> object:
        import torch

        if array is None:
            return None
        if array.dtype.name == "bfloat16":
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16).cuda()
        return torch.from_numpy(array).cuda()

    @staticmethod
    def _arrays(logits: object, gradients: tuple) -> tuple:
        logits, *gradients = (tensor.double().cpu().numpy() for tensor in (logits, *present(gradients)))
        return logits, gradients


class TorchLayer(ArraysLayer):
    """lsoftmax_op.torch; the weights [D, C] or, as torch.nn.Linear has them, [C, D]. The plain layer is NumPy's."""

    def __init__(self, device: str = "cpu", class_major: bool = False) -> None:
        self.device = device
        self.class_major = class_major

    def __call__(self, batch: Batch, margin: Margin | int, lam: float) -> tuple:
        from lsoftmax_op import torch as functions

        logits = functions.lsoftmax_logits if isinstance(margin, int) else functions.margin_softmax_logits
        return self._run(logits, batch.layer, batch.grad, margin=margin, lam=lam)

    def loss(self, batch: Batch, margin: Margin | int, lam: float, bias: bool = True, **settings: float) -> tuple:
        from lsoftmax_op import torch as functions

        loss = functions.lsoftmax_loss if isinstance(margin, int) else functions.margin_softmax_loss
        layer = batch.layer if bias else batch.layer[:3]
        return self._run(loss, layer, batch.loss_grad, margin=margin, lam=lam, **settings)

    def tensors(self, *arrays: np.ndarray | None) -> list:
        """The arrays of a layer, and others behind it, on the device; the weights in their layout."""
        import torch

        found = []
        for array in arrays:
            if array is not None and array.dtype.name == "bfloat16":
                found.append(torch.from_numpy(array.view(np.int16)).view(torch.bfloat16).to(self.device))
            else:
                found.append(None if array is None else torch.from_numpy(array).to(self.device))
        if self.class_major:
            found[1] = found[1].T.contiguous()
        return found

    def _run(self, function: Callable, layer: tuple, grad: np.ndarray, **options: object) -> tuple:
        import torch

        *layer, grad = self.tensors(*layer, grad)
        leaves = [tensor.requires_grad_() for tensor in present(layer) if tensor.is_floating_point()]
        value = function(*layer, **options, class_major=self.class_major)
        gradients = list(torch.autograd.grad(value, leaves, grad))
        assert gradients[1].shape == leaves[1].shape
        gradients[1] = gradients[1].T if self.class_major else gradients[1]
        return CudaLayer._arrays(value.detach(), gradients)


class TensorFlowLayer:
    """lsoftmax_op.lsoftmax_logits, lsoftmax_loss and their gradients, eagerly or in a tf.function."""

    def __init__(
        self, compiled: bool, class_block_size: int | None = None, xla: bool = False, xla_calls: bool = True
    ) -> None:
        self.compiled = compiled
        self.xla = xla
        self.xla_calls = xla_calls  # of our kernels, where XLA can; else its own of our formulas
        self.class_block_size = class_block_size  # of the loss

    def __call__(self, batch: Batch, margin: Margin | int, lam: float) -> tuple:
        import lsoftmax_op

        of_integer = isinstance(margin, int)
        logits = lsoftmax_op.lsoftmax_logits if of_integer else lsoftmax_op.margin_softmax_logits
        return self._run(batch, lambda x, w, b=None: logits(x, w, batch.labels, b, margin=margin, lam=lam), batch.grad)

    def plain(self, batch: Batch) -> tuple:
        return self._run(batch, self._plain_logits, batch.grad)

    def loss(self, batch: Batch, margin: Margin | int, lam: float, bias: bool = True, **settings: float) -> tuple:
        import lsoftmax_op

        loss = lsoftmax_op.lsoftmax_loss if isinstance(margin, int) else lsoftmax_op.margin_softmax_loss
        options = {"margin": margin, "lam": lam, "class_block_size": self.class_block_size, **settings}
        return self._run(batch, lambda x, w, b=None: loss(x, w, batch.labels, b, **options), batch.loss_grad, bias)

    def plain_loss(self, batch: Batch) -> tuple:
        import tensorflow as tf

        def loss(*layer: tf.Tensor) -> tf.Tensor:
            logits = self._plain_logits(*layer)
            labels = tf.maximum(batch.labels, 0)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
            return tf.where(batch.labels >= 0, losses, 0)

        return self._run(batch, loss, batch.loss_grad)

    @staticmethod
    def _plain_logits(x: object, w: object, b: object = None) -> object:
        import tensorflow as tf

        products = tf.matmul(x, w)
        return products if b is None else tf.nn.bias_add(products, b)

    def _run(self, batch: Batch, layer: object, grad: np.ndarray, bias: bool = True) -> tuple:
        import tensorflow as tf

        def step(*arguments: object) -> tuple:
            with tf.GradientTape() as tape:
                tape.watch(arguments)
                value = layer(*arguments)
            return value, tape.gradient(value, arguments, output_gradients=tf.constant(grad))

        if self.compiled:
            step = tf.function(step, jit_compile=self.xla)
        arguments = present((batch.features, batch.weights, batch.bias if bias else None))
        with mock.patch.dict(os.environ, LSOFTMAX_XLA_CALLS="ON" if self.xla_calls else "OFF"):
            value, gradients = step(*map(tf.constant, arguments))
        return value.numpy(), [g.numpy() for g in gradients]


@functools.cache
def torch_sees_a_gpu() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()


LAYERS = {
    "arrays": ArraysLayer(),
    "cuda-on-cpu": CudaOnCpuLayer(),
    "cuda": CudaLayer(),
    "eager": TensorFlowLayer(compiled=False),
    "function": TensorFlowLayer(compiled=True),
    "blocks": TensorFlowLayer(compiled=True, class_block_size=3),
    "xla": TensorFlowLayer(compiled=True, xla=True),
    "xla-formulas": TensorFlowLayer(compiled=True, xla=True, xla_calls=False),
    "xla-blocks": TensorFlowLayer(compiled=True, class_block_size=3, xla=True),
}


@pytest.fixture(params=DTYPES)
def dtype(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=["arrays", "cuda-on-cpu", "cuda", "eager"])
def layer(request: pytest.FixtureRequest) -> object:
    if request.param == "cuda-on-cpu":
        pytest.importorskip("lsoftmax_op._cuda_on_cpu", reason="built without LSOFTMAX_TESTING=ON")
    if request.param == "cuda":
        require_gpu(torch_sees_a_gpu(), "PyTorch with a GPU is not here")
    if request.param == "eager":
        pytest.importorskip("tensorflow")
    return LAYERS[request.param]


@pytest.fixture
def seeded_keras() -> None:
    """The same weights and batches in every test."""
    pytest.importorskip("keras").utils.set_random_seed(1)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable:
    """device(KB, multiprocessors): from now on the emulator is one with clusters; returns who tells their sizes."""
    log = tmp_path / "log"
    monkeypatch.setenv("CUDA_ON_CPU_LOG", str(log))

    def become(shared: int, multiprocessors: int, cluster: int = 16) -> Callable:
        monkeypatch.setenv("CUDA_ON_CPU_SHARED", str(shared << 10))
        monkeypatch.setenv("CUDA_ON_CPU_MULTIPROCESSORS", str(multiprocessors))
        monkeypatch.setenv("CUDA_ON_CPU_CLUSTER", str(cluster))
        log.write_text("")

        def launches() -> list[tuple[int, int]]:
            lines = [line.split() for line in log.read_text().splitlines()]
            return [(int(line[0]), int(line[-1]) if len(line) > 2 else 1) for line in lines]

        return launches

    return become
