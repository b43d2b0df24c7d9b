"""What the tests share: batches that meet every corner, and how far a result may be from the oracle."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import ml_dtypes
import numpy as np

from lsoftmax_op import library, reference

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "lsoftmax_op"

# Where LSOFTMAX_TEST_XLA is cuda-on-cpu, XLA's calls of our kernels are those that it makes on a GPU, over the CUDA
# kernels as they run on the CPU (tests/test_xla_cuda.py).
XLA_CUDA_ON_CPU = PACKAGE / "_lsoftmax_xla_cuda_on_cpu.so"
XLA_CALLS_ARE_CUDA = os.environ.get("LSOFTMAX_TEST_XLA") == "cuda-on-cpu"
if XLA_CALLS_ARE_CUDA:
    library._XLA_LIBRARY = XLA_CUDA_ON_CPU
DTYPES = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}
MARGINS = range(1, 9)
LAMBDAS = (0.0, 0.5, 5.0, 1000.0, np.inf)
SHAPES = ((1, 1, 1), (1, 5, 1), (7, 1, 3), (5, 17, 2), (13, 33, 7), (130, 19, 6), (0, 4, 3))

# Relative to the natural scale of each entry: its own size plus |x||w| for a logit, and sums of those for a gradient.
LOGITS_TOLERANCE = {"float64": 1e-12, "float32": 2e-6}
GRADIENT_TOLERANCE = {"float64": 1e-10, "float32": 2e-5}

# The raw ops, and of each the input that its GPU kernel takes from the host's memory, if any.
RAW_OPS = {
    "TargetGeometry": None,
    "ClassFactors": None,
    "FeaturesGrad": None,
    "WeightsGrad": None,
    "Logits": None,
    "LogitsGrad": None,
    "Loss": None,
    "LossWithGradient": None,
    "LossGradient": None,
    "BiasGrad": "first_class",
    "Sums": "first_class",
    "Finish": "depth",
    "ProductsGrad": "first_class",
    "SetColumns": "first_column",
}


@dataclass
class Batch:
    """A layer's arguments, and the gradient that comes down to it."""

    features: np.ndarray
    weights: np.ndarray
    labels: np.ndarray
    bias: np.ndarray
    grad: np.ndarray

    @property
    def layer(self) -> tuple[np.ndarray, ...]:
        """Returns features, weights, labels and bias, in the order that every layer takes them."""
        return self.features, self.weights, self.labels, self.bias

    @property
    def loss_grad(self) -> np.ndarray:
        """Returns a gradient that comes down to a loss [N]."""
        return self.grad[:, 0].copy()

    def exact(self) -> Batch:
        """Returns the same numbers in float64, for the oracle."""
        wide = [a.astype(np.float64) for a in (self.features, self.weights, self.bias, self.grad)]
        return Batch(wide[0], wide[1], self.labels, wide[2], wide[3])


def random_batch(shape: tuple[int, int, int], dtype: str, seed: int = 0) -> Batch:
    """A random batch of N, D, C in which some rows have no target."""
    rows, depth, classes = shape
    rng = np.random.default_rng([seed, *shape])
    labels = rng.integers(0, classes, rows)
    labels[rng.random(rows) < 0.1] = -1
    return Batch(
        rng.normal(size=(rows, depth)).astype(DTYPES[dtype]),
        rng.normal(size=(depth, classes)).astype(DTYPES[dtype]),
        labels.astype(np.int32 if seed % 2 else np.int64),
        rng.normal(size=classes).astype(DTYPES[dtype]),
        rng.normal(size=(rows, classes)).astype(DTYPES[dtype]),
    )


def angle_batch(margin: int, dtype: str, norms: tuple[float, ...] | None = None) -> Batch:
    """Rows at every segment's middle, every edge, both poles and next to them; norms tiny and huge; zeros."""
    rng = np.random.default_rng(margin)
    depth, classes = 11, 4
    weights = rng.normal(size=(depth, classes))
    edges = np.pi * np.arange(margin + 1) / margin
    middles = (edges[1:] + edges[:-1]) / 2
    angles = np.concatenate([edges, middles, [1e-9, 1e-4, np.pi - 1e-9, np.pi - 1e-4]])
    features, labels = [], []
    for norm in norms or ((1.0, 1e-2, 1e2) if dtype == "float16" else (1.0, 1e-20, 1e18)):
        for n, angle in enumerate(angles):
            target = weights[:, n % classes]
            along = target / np.linalg.norm(target)
            across = rng.normal(size=depth)
            across -= along * (along @ across)
            across /= np.linalg.norm(across)
            features.append(norm * (np.cos(angle) * along + np.sin(angle) * across))
            labels.append(n % classes)
    features += [np.zeros(depth), rng.normal(size=depth), np.zeros(depth)]
    labels += [1, classes, classes]
    weights = np.concatenate([weights, np.zeros((depth, 1))], axis=1)
    rows = len(labels)
    return Batch(
        np.array(features).astype(DTYPES[dtype]),
        weights.astype(DTYPES[dtype]),
        np.array(labels),
        rng.normal(size=classes + 1).astype(DTYPES[dtype]),
        rng.normal(size=(rows, classes + 1)).astype(DTYPES[dtype]),
    )


def errors(batch: Batch, logits: np.ndarray, gradients: tuple, margin: int, lam: float) -> list[np.ndarray]:
    """How far logits, and the gradients of features, weights and bias, are from the oracle's: entry by entry, each
    relative to its natural scale."""
    exact = batch.exact()
    expected = reference.logits(*exact.layer, margin=margin, lam=lam)
    expected_gradients = reference.logits_grad(exact.grad, *exact.layer, margin=margin, lam=lam)
    x = np.linalg.norm(exact.features, axis=1)
    w = np.linalg.norm(exact.weights, axis=0)
    g = np.abs(exact.grad)
    scales = (
        x[:, None] * max(w.max(), 1e-300) + np.abs(exact.bias),
        (g @ np.maximum(w, w.mean()))[:, None],
        (g.T @ x)[None, :],
        g.sum(axis=0),
    )
    return _relative((logits, *gradients), (expected, *expected_gradients), scales)


def loss_errors(batch: Batch, loss: np.ndarray, gradients: tuple, margin: int, lam: float) -> list[np.ndarray]:
    """The same of the loss. What rounding does to a probability grows with the size of the logits."""
    exact = batch.exact()
    expected = reference.loss(*exact.layer, margin=margin, lam=lam)
    expected_gradients = reference.loss_grad(exact.loss_grad, *exact.layer, margin=margin, lam=lam)
    x = np.linalg.norm(exact.features, axis=1)
    w = np.linalg.norm(exact.weights, axis=0).max()
    z = x * w + np.abs(exact.bias).max()
    g = np.abs(exact.loss_grad) * (1 + z)
    scales = (z, (g * w)[:, None], g @ x, g.sum())
    return _relative((loss, *gradients), (expected, *expected_gradients), scales)


def _relative(got: tuple, expected: tuple, scales: tuple) -> list[np.ndarray]:
    found = []
    for one, want, scale in zip(got, expected, scales, strict=True):
        assert one.shape == want.shape
        error = np.abs(np.asarray(one, np.float64) - want)
        found.append(np.where(error == 0, 0, error / np.maximum(scale + np.abs(want), 1e-300)))
    return found


def assert_close_to_oracle(batch: Batch, dtype: str, layer: object, margin: int, lam: float) -> None:
    """`layer` (of conftest.py) is as close to the oracle as its dtype allows."""
    _assert_close(batch, dtype, errors, layer(batch, margin=margin, lam=lam), layer.plain, margin, lam)


def assert_loss_close_to_oracle(batch: Batch, dtype: str, layer: object, margin: int, lam: float) -> None:
    """So is its loss."""
    _assert_close(batch, dtype, loss_errors, layer.loss(batch, margin=margin, lam=lam), layer.plain_loss, margin, lam)


def _assert_close(
    batch: Batch, dtype: str, errors: Callable, results: tuple, plain: Callable, margin: int, lam: float
) -> None:
    found = errors(batch, *results, margin, lam)
    names = ("value", "features_grad", "weights_grad", "bias_grad")
    if dtype in LOGITS_TOLERANCE:
        for name, error in zip(names, found, strict=True):
            tolerance = (LOGITS_TOLERANCE if name == "value" else GRADIENT_TOLERANCE)[dtype]
            assert error.size == 0 or error.max() <= tolerance, (name, error.max())
        return
    # A half-precision result may be twice as far from the oracle as the framework's own plain layer in that dtype.
    plain_found = errors(batch, *plain(batch), 1, 0.0)
    epsilon = float(ml_dtypes.finfo(DTYPES[dtype]).eps)
    for name, error, plain_error in zip(names, found, plain_found, strict=True):
        if error.size:
            bound = 2 * max(rms(plain_error), epsilon / 4)
            assert rms(error) <= bound, (name, rms(error), rms(plain_error))


def gradient_error(function: Callable, arguments: list) -> float:
    """The largest difference between TensorFlow's and the numerical Jacobian, relative to the Jacobian's size."""
    import tensorflow as tf

    analytic, numerical = tf.test.compute_gradient(function, arguments, delta=1e-5)
    size = max(np.abs(a).max() for a in analytic)
    return max(np.abs(a - n).max() for a, n in zip(analytic, numerical, strict=True)) / size


def call_of(kernels: ModuleType, dtype: str, margin: int = 1, **arrays: np.ndarray) -> object:
    """A call of the kernels of `_core` or `_cuda_on_cpu` over the arrays, by the names of cc/core/arguments.h."""
    call = kernels.Call()
    call.dtype, call.margin = dtype, margin
    for name, array in arrays.items():
        setattr(call, name, array.ctypes.data)
    return call


def rms(values: np.ndarray) -> float:
    """The root of the mean square."""
    return float(np.sqrt(np.mean(np.square(values))))


def run_python(code: str, *, check: bool = True, **environment: str) -> subprocess.CompletedProcess:
    """Runs `code` in a new Python process, from the folder above the package."""
    finished = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=ROOT,
    )
    if check:
        assert finished.returncode == 0, finished.stderr[-3000:]
    return finished
