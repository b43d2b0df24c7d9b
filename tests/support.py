"""What the tests share: batches that meet every corner, and how far a result may be from the oracle."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import ml_dtypes
import numpy as np

from lsoftmax_op import library, reference
from lsoftmax_op.margins import ArcFace, Combined, CosFace, Margin, SphereFace, margin_of

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path(library.__file__).resolve().parent  # in the clone, or where a wheel of it was installed

# Where LSOFTMAX_TEST_XLA is cuda-on-cpu, XLA's calls of our kernels are those that it makes on a GPU, over the CUDA
# kernels as they run on the CPU (tests/test_xla_cuda.py).
XLA_CUDA_ON_CPU = "_lsoftmax_xla_cuda_on_cpu.so"
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
# Of every kind a margin that no integer is; beside the last two of them a bias is allowed.
KINDS = (
    SphereFace(3),
    CosFace(0.35, 16),
    ArcFace(0.5, 16),
    ArcFace(1.2, 16, "linear"),
    Combined(2, 0.7, 0.2, 6),
    Margin(3, 0.5, 0.1, 2, normalize_features=True),
    Margin(scale=0.25),
    Margin(2, 0.5, 0.1),
    Margin(m3=0.4),
)
LAMBDAS = (0.0, 0.5, 5.0, 1000.0, np.inf)
SHAPES = ((1, 1, 1), (1, 5, 1), (7, 1, 3), (5, 17, 2), (13, 33, 7), (130, 19, 6), (0, 4, 3))

# Those in which a sample is at some angle to its class, not at a pole, where m2 makes a tip.
WIDER_SHAPES = tuple(shape for shape in SHAPES if shape[1] > 1)

# Relative to the natural scale of each entry: its own size plus |x||w| for a logit, and sums of those for a gradient.
LOGITS_TOLERANCE = {"float64": 1e-12, "float32": 2e-6}
GRADIENT_TOLERANCE = {"float64": 1e-10, "float32": 2e-5}

# The raw ops, and of each the input that its GPU kernel takes from the host's memory, or the output that it has there,
# if any.
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
    "KeptClasses": "kept",
    "TakeColumns": "columns",
    "SpreadColumns": "columns",
}


@dataclass
class Batch:
    """A layer's arguments, and the gradient that comes down to it."""

    features: np.ndarray
    weights: np.ndarray
    labels: np.ndarray
    bias: np.ndarray | None
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
        x, w, b, g = (
            None if a is None else a.astype(np.float64) for a in (self.features, self.weights, self.bias, self.grad)
        )
        return Batch(x, w, self.labels, b, g)

    def beside(self, margin: Margin | int) -> Batch:
        """Returns the batch, without its bias where the margin allows none."""
        return replace(self, bias=None) if margin_of(margin).has_factors else self


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


def angles_of(margin: Margin | int) -> np.ndarray:
    """Every segment's middle, every edge, both poles and next to them.

    Where m2 makes a tip of the poles, they are as near as 0.01: from s, |x|^2 and |w|^2 in float64 the gradient at an
    angle is known to 1e-16 over its square. And not at the jump of a linear continuation, but beside it.
    """
    margin = margin_of(margin)
    edges = np.pi * np.arange(margin.m1 + 1) / margin.m1
    near = np.array([1e-9, 1e-4])
    if margin.m2 > 0:
        edges, near = edges[1:] - margin.m2 / margin.m1, np.array([0.01, 0.3])
    middles = (edges[1:] + edges[:-1]) / 2
    if margin.continuation == "linear":
        edges = np.array([edges[0] - 0.02, edges[0] + 0.02])
    return np.concatenate([edges, middles, near, np.pi - near])


def angle_batch(margin: Margin | int, dtype: str, norms: tuple[float, ...] | None = None) -> Batch:
    """Rows at the angles that matter to a margin; norms tiny and huge; zeros."""
    angles = angles_of(margin)
    rng = np.random.default_rng(margin_of(margin).m1)
    depth, classes = 11, 4
    weights = rng.normal(size=(depth, classes))
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


def errors(batch: Batch, logits: np.ndarray, gradients: tuple, margin: Margin | int, lam: float) -> list[np.ndarray]:
    """How far logits, and the gradients of features, weights and bias, are from the oracle's: entry by entry, each
    relative to its natural scale."""
    exact = batch.exact()
    expected = reference.logits(*exact.layer, margin=margin, lam=lam)
    expected_gradients = reference.logits_grad(exact.grad, *exact.layer, margin=margin, lam=lam)
    x, w, per_x, per_w = _sizes(exact, margin)
    g = np.abs(exact.grad)
    scales = (
        x[:, None] * max(w.max(), 1e-300) + (0 if exact.bias is None else np.abs(exact.bias)),
        (g @ np.maximum(w, w.mean()) * per_x)[:, None],
        (g.T @ x * per_w)[None, :],
        g.sum(axis=0),
    )
    return _relative((logits, *gradients), (expected, *expected_gradients), scales)


def loss_errors(
    batch: Batch, loss: np.ndarray, gradients: tuple, margin: Margin | int, lam: float, label_smoothing: float = 0.0
) -> list[np.ndarray]:
    """The same of the loss. What rounding does to a probability grows with the size of the logits."""
    exact = batch.exact()
    settings = {"margin": margin, "lam": lam, "label_smoothing": label_smoothing}
    expected = reference.loss(*exact.layer, **settings)
    expected_gradients = reference.loss_grad(exact.loss_grad, *exact.layer, **settings)
    x, w, per_x, per_w = _sizes(exact, margin)
    z = x * w.max() + (0 if exact.bias is None else np.abs(exact.bias).max())
    g = np.abs(exact.loss_grad) * (1 + z)
    scales = (z, (g * w.max() * per_x)[:, None], (g @ x * per_w)[None, :], g.sum())
    return _relative((loss, *gradients), (expected, *expected_gradients), scales)


def _sizes(exact: Batch, margin: Margin | int) -> tuple[np.ndarray, ...]:
    """What the logits have for |x| and |w|, scaled; and what their derivatives in x and w are multiples of."""
    margin = margin_of(margin)
    x, w = np.linalg.norm(exact.features, axis=1), np.linalg.norm(exact.weights, axis=0)
    per_x, per_w = np.ones_like(x), np.ones_like(w)
    if margin.normalize_features:
        x, per_x = np.sign(x), np.divide(1, x, out=np.zeros_like(x), where=x > 0)
    if margin.normalize_weights:
        w, per_w = np.sign(w), np.divide(1, w, out=np.zeros_like(w), where=w > 0)
    return margin.scale * x, w, margin.scale * per_x, per_w


def _relative(got: tuple, expected: tuple, scales: tuple) -> list[np.ndarray]:
    found = []
    expected = tuple(want for want in expected if want is not None)  # there may be no bias
    for one, want, scale in zip(got, expected, scales[: len(expected)], strict=True):
        assert one.shape == want.shape
        error = np.abs(np.asarray(one, np.float64) - want)
        found.append(np.where(error == 0, 0, error / np.maximum(scale + np.abs(want), 1e-300)))
    return found


def assert_close_to_oracle(batch: Batch, dtype: str, layer: object, margin: Margin | int, lam: float) -> None:
    """`layer` (of conftest.py) is as close to the oracle as its dtype allows. Of a bias only where the margin does."""
    batch = batch.beside(margin)
    found = errors(batch, *layer(batch, margin=margin, lam=lam), margin, lam)
    _assert_close(found, dtype, lambda: errors(batch, *layer.plain(batch), 1, 0.0))


def assert_loss_close_to_oracle(
    batch: Batch, dtype: str, layer: object, margin: Margin | int, lam: float, label_smoothing: float = 0.0
) -> None:
    """So is its loss."""
    batch = batch.beside(margin)
    results = layer.loss(batch, margin=margin, lam=lam, label_smoothing=label_smoothing)
    found = loss_errors(batch, *results, margin, lam, label_smoothing)
    _assert_close(found, dtype, lambda: loss_errors(batch, *layer.plain_loss(batch), 1, 0.0))


def _assert_close(found: list[np.ndarray], dtype: str, plain: Callable) -> None:
    names = ("value", "features_grad", "weights_grad", "bias_grad")[: len(found)]
    if dtype in LOGITS_TOLERANCE:
        for name, error in zip(names, found, strict=True):
            tolerance = (LOGITS_TOLERANCE if name == "value" else GRADIENT_TOLERANCE)[dtype]
            assert error.size == 0 or error.max() <= tolerance, (name, error.max())
        return
    # A half-precision result may be twice as far from the oracle as the framework's own plain layer in that dtype.
    epsilon = float(ml_dtypes.finfo(DTYPES[dtype]).eps)
    for name, error, plain_error in zip(names, found, plain(), strict=True):
        if error.size:
            bound = 2 * max(rms(plain_error), epsilon / 4)
            assert rms(error) <= bound, (name, rms(error), rms(plain_error))


def gradient_error(function: Callable, arguments: list) -> float:
    """The largest difference between TensorFlow's and the numerical Jacobian, relative to the Jacobian's size."""
    import tensorflow as tf

    analytic, numerical = tf.test.compute_gradient(function, arguments, delta=1e-5)
    size = max(np.abs(a).max() for a in analytic)
    return worst(np.abs(a - n).max() for a, n in zip(analytic, numerical, strict=True)) / size


def worst(errors: Iterable[float]) -> float:
    """The largest of some errors; NaN if one is, which Python's own max may pass over."""
    return float(np.max(list(errors)))


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
        timeout=300,
        check=False,
        cwd=ROOT,
    )
    if check:
        assert finished.returncode == 0, finished.stderr[-3000:]
    return finished
