"""The margin logits, the loss and their gradients on NumPy, PyTorch and CuPy arrays, without TensorFlow.

Arrays of one library go in, on the CPU or on one CUDA device, and the same kind comes out. The products are that
library's own (on its current stream); the margin comes from the same kernels as the TensorFlow ops'. Results are
bit-identical from run to run and for any number of threads, and the GIL is released while a kernel runs.

On a CUDA device nothing is copied to or from the host, and nobody waits: a label out of range makes its row NaN there,
as does a lambda on the device that is negative or NaN, instead of an error.
"""

from __future__ import annotations

from numbers import Real
from typing import Any, NamedTuple

from lsoftmax_op import _checks
from lsoftmax_op._array_libraries import FLOATS, Library, library_of


class Gradients(NamedTuple):
    """The derivatives of a loss in the arguments of the layer.

    Attributes:
        features: [N, D].
        weights: [D, C].
        bias: [C], None where the layer has no bias.
    """

    features: Any
    weights: Any
    bias: Any


class LossGradients(NamedTuple):
    """The derivatives of the loss in the arguments of the layer, and what the same pass gives for nothing.

    Attributes:
        features: [N, D].
        weights: [D, C].
        bias: [C], None where the layer has no bias.
        loss: [N], the loss of each sample.
        predicted: [N], int64, the class of each sample's largest logit without the margin.
    """

    features: Any
    weights: Any
    bias: Any
    loss: Any
    predicted: Any


def logits(
    features: Any,
    weights: Any,
    labels: Any,
    bias: Any = None,
    *,
    margin: int = 4,
    lam: float | Any = 0.0,
    num_threads: int | None = None,
) -> Any:
    """Computes the logits of Large-Margin Softmax (Liu et al., ICML 2016, equations 4 to 6).

    Args:
        features: [N, D], float16, bfloat16 (NumPy's is that of ml_dtypes), float32 or float64. Arrays that are
            read-only, strided or of the other byte order are fine.
        weights: [D, C], of the same library, device and dtype, a column for every class.
        labels: [N], integers, each in [0, C); -1 leaves its row the plain dense layer's.
        bias: [C], of the features' dtype, or None.
        margin: the integer m from 1 (no margin) to 64.
        lam: the annealing weight lambda >= 0, a number or a scalar array; infinity is the plain dense layer.
        num_threads: on the CPU, at most so many threads; by default one for each processor this process may use.

    Returns:
        The logits, [N, C], of the features' library and dtype.

    Raises:
        TypeError: an argument of the wrong dtype, type, library or device.
        ValueError: shapes that do not fit, or a label, margin or lambda out of range.
        ImportError: arrays on a CUDA device, and the package was built without CUDA.
    """
    layer = _Layer(features, weights, labels, bias, margin, lam, num_threads)
    with layer.array_library.device():
        geometry = layer.geometry()
        result = layer.array_library.product(layer.features, layer.weights)
        layer.run("logits", geometry=geometry, logits=result)
        if layer.bias is not None:
            result += layer.bias
    return result


def logits_grad(
    grad: Any,
    features: Any,
    weights: Any,
    labels: Any,
    bias: Any = None,
    *,
    margin: int = 4,
    lam: float | Any = 0.0,
    num_threads: int | None = None,
) -> Gradients:
    """Computes the gradient of ``sum(grad * logits(features, weights, labels, bias))``.

    Args:
        grad: [N, C], of the features' library and dtype: the loss's derivative in the logits.
        features: [N, D], as for `logits`.
        weights: [D, C], as for `logits`.
        labels: [N], as for `logits`.
        bias: [C] or None, as for `logits`. Its values do not matter.
        margin: as for `logits`.
        lam: as for `logits`.
        num_threads: as for `logits`.

    Returns:
        The derivatives in features [N, D], weights [D, C] and bias [C] (None without a bias).

    Raises:
        TypeError, ValueError, ImportError: as for `logits`.
    """
    layer = _Layer(features, weights, labels, bias, margin, lam, num_threads)
    library = layer.array_library
    grad = layer.array("grad", grad, "[N, C]")
    expected = (layer.rows, layer.classes)
    if tuple(grad.shape) != expected:
        raise ValueError(f"grad: expected shape [N, C] = {list(expected)}, got {list(grad.shape)}")
    with library.device():
        geometry_grad = library.empty((3, layer.rows), "float64")
        products_grad = library.copy(grad)
        layer.run("logits_grad", geometry=layer.geometry(), geometry_grad=geometry_grad, products_grad=products_grad)
        features_grad = library.product(products_grad, layer.weights.T)
        layer.run("features_grad", geometry_grad=geometry_grad, features_grad=features_grad)
        weights_grad = library.product(layer.features.T, products_grad)
        layer.run("weights_grad", geometry_grad=geometry_grad, weights_grad=weights_grad)
        bias_grad = None if layer.bias is None else library.column_sums(grad)
    return Gradients(features_grad, weights_grad, bias_grad)


def loss(
    features: Any,
    weights: Any,
    labels: Any,
    bias: Any = None,
    *,
    margin: int = 4,
    lam: float | Any = 0.0,
    num_threads: int | None = None,
) -> Any:
    """Computes the loss of Large-Margin Softmax (Liu et al., ICML 2016, equations 3 to 6), one number a sample.

    It is the softmax cross-entropy of `logits`. A training step needs `loss_grad` alone, which returns it, too.

    Args:
        features: [N, D], as for `logits`.
        weights: [D, C], as for `logits`.
        labels: [N], as for `logits`; -1 gives its row loss 0.
        bias: [C] or None, as for `logits`.
        margin: as for `logits`.
        lam: as for `logits`.
        num_threads: as for `logits`.

    Returns:
        The loss of each sample, [N], of the features' library and dtype, never negative.

    Raises:
        TypeError, ValueError, ImportError: as for `logits`.
    """
    layer = _Layer(features, weights, labels, bias, margin, lam, num_threads)
    with layer.array_library.device():
        return layer.loss()["loss"]


def loss_grad(
    grad: Any,
    features: Any,
    weights: Any,
    labels: Any,
    bias: Any = None,
    *,
    margin: int = 4,
    lam: float | Any = 0.0,
    num_threads: int | None = None,
) -> LossGradients:
    """Computes the gradient of ``sum(grad * loss(features, weights, labels, bias))``, and the loss itself.

    One pass over the [N, C] products makes the loss and, in their place, its gradient.

    Args:
        grad: [N], of the features' library and dtype: 1/N each for the mean; sample weights go here.
        features: [N, D], as for `logits`.
        weights: [D, C], as for `logits`.
        labels: [N], as for `logits`; -1 gives its row loss 0 and gradient 0.
        bias: [C] or None, as for `logits`.
        margin: as for `logits`.
        lam: as for `logits`.
        num_threads: as for `logits`.

    Returns:
        The derivatives in features [N, D], weights [D, C] and bias [C] (None without a bias), the loss [N], and the
        classes that the layer without a margin predicts [N].

    Raises:
        TypeError, ValueError, ImportError: as for `logits`.
    """
    layer = _Layer(features, weights, labels, bias, margin, lam, num_threads)
    library = layer.array_library
    grad = layer.array("grad", grad, "[N]")
    if tuple(grad.shape) != (layer.rows,):
        raise ValueError(f"grad: expected shape [N] = [{layer.rows}], got {list(grad.shape)}")
    with library.device():
        label_order = library.empty((2, layer.rows), "int64")
        state = layer.loss(label_order=label_order)
        products_grad = state["products_grad"]
        upstream = {"loss_grad": grad} | ({"grad_unit": state["grad_unit"]} if "grad_unit" in state else {})
        gradients = {
            "features_grad": library.product(products_grad, layer.weights.T),
            "weights_grad": library.product(layer.scaled_features(**upstream).T, products_grad),
        }
        if layer.bias is not None:
            gradients["bias_grad"] = library.empty((layer.classes,), layer.dtype)
        of_loss = {name: state[name] for name in ("products_grad", "geometry_grad", "target_grad", "target_weights")}
        layer.run("gradients", label_order=label_order, **gradients, **of_loss, **upstream)
    bias_grad = gradients.get("bias_grad")
    return LossGradients(
        gradients["features_grad"], gradients["weights_grad"], bias_grad, state["loss"], state["predicted"]
    )


class _Layer:
    """The checked arguments of a layer, and kernel calls over them."""

    def __init__(
        self, features: Any, weights: Any, labels: Any, bias: Any, margin: int, lam: Any, num_threads: int | None
    ) -> None:
        self.margin = _checks.margin(margin)
        if isinstance(lam, (bool, Real)):
            lam = _checks.host_lambda(lam)
        self.array_library: Library = library_of(features, num_threads)
        self.dtype = ""
        self.features = self.array("features", features, "[N, D]")
        self.weights = self.array("weights", weights, "[D, C]")
        self.labels = self._labels(labels)
        self.wide_labels = self.array_library.dtype(self.labels) == "int64"
        self.bias = None if bias is None else self.array("bias", bias, "[C]")
        self.rows, self.depth = map(int, self.features.shape)
        self.classes = int(self.weights.shape[1])
        self._check_shapes()
        with self.array_library.device():
            self.lam = self._lambda(lam)
        if self.array_library.checks_values:
            self._check_labels()

    def array(self, argument: str, value: Any, shape: str) -> Any:
        """Returns `value` as a dense array of the layer's library and dtype, and of the rank that `shape` spells."""
        array = self.array_library.array(argument, value)
        dtype = self.array_library.dtype(array)
        expected = (self.dtype,) if self.dtype else FLOATS
        if dtype not in expected:
            raise TypeError(f"{argument}: expected dtype {' or '.join(expected)}, got {dtype}")
        _checks.shape_has_rank(argument, list(array.shape), shape)
        self.dtype = dtype
        return array

    def geometry(self) -> Any:
        """Returns [3, N]: x . w_y, |x|^2 and |w_y|^2 of each row."""
        geometry = self.array_library.empty((3, self.rows), "float64")
        self.run("geometry", geometry=geometry)
        return geometry

    def loss(self, **shared: Any) -> dict[str, Any]:
        """Returns the loss and its gradient in the products, by the names that cc/core/arguments.h gives them.

        `shared`: arrays to be filled for kernels that come later.
        """
        library, rows = self.array_library, self.rows
        products = library.product(self.features, self.weights)
        state = {
            "geometry": library.empty((3, rows), "float64"),
            "target_weights": library.empty((rows, self.depth), self.dtype),
            "loss": library.empty((rows,), self.dtype),
            "products_grad": products,
            "geometry_grad": library.empty((3, rows), "float64"),
            "target_grad": library.empty((rows,), "float64"),
            "predicted": library.empty((rows,), "int64"),
        }
        if self.dtype == "float16":
            state["grad_unit"] = library.empty((rows,), "float32")
        self.run("geometry_and_loss", products=products, **state, **shared)
        return state

    def scaled_features(self, loss_grad: Any, grad_unit: Any = None) -> Any:
        """Returns diag(loss_grad grad_unit) times the features, in their dtype, rounded once (cc/core/grad_unit.h)."""
        features = self.features
        if grad_unit is not None:
            features, loss_grad = (self.array_library.cast(array, "float32") for array in (features, loss_grad))
            loss_grad = loss_grad * grad_unit
        return self.array_library.cast(features * loss_grad[:, None], self.dtype)

    def run(self, kernel: str, **arrays: Any) -> None:
        """Runs a kernel on the layer and `arrays`, each dense and of the shape that cc/core/arguments.h says."""
        kernels = self.array_library.kernels
        if "workspace" not in arrays:
            size = getattr(kernels, f"{kernel}_workspace")(self.rows, self.depth, self.classes)
            arrays["workspace"] = self.array_library.empty((size,), "uint8")
        getattr(kernels, kernel)(self._call(arrays), self.array_library.where)

    def _call(self, arrays: dict[str, Any]) -> Any:
        call = self.array_library.kernels.Call()
        call.dtype, call.margin = self.dtype, self.margin
        call.rows, call.depth, call.classes = self.rows, self.depth, self.classes
        call.wide_labels = self.wide_labels
        layer = {"features": self.features, "weights": self.weights, "labels": self.labels, "lam": self.lam}
        if self.bias is not None:
            layer["bias"] = self.bias
        for name, array in (layer | arrays).items():
            setattr(call, name, self.array_library.address(array))
        return call

    def _labels(self, labels: Any) -> Any:
        array = self.array_library.array("labels", labels)
        dtype = self.array_library.dtype(array)
        if dtype == "float64" and isinstance(labels, (list, tuple)) and not labels:
            dtype = "int8"  # an empty list has no dtype of its own
        if dtype not in ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64"):
            raise TypeError(f"labels: expected integers that fit in int64, got dtype {dtype}")
        _checks.shape_has_rank("labels", list(array.shape), "[N]")
        if dtype not in ("int32", "int64"):
            return self.array_library.cast(array, "int64")
        # Where they are checked they are copied before: another thread may write to the caller's until the kernels end.
        return self.array_library.copy(array) if self.array_library.checks_values else array

    def _lambda(self, lam: Any) -> Any:
        if isinstance(lam, float):
            return self.array_library.scalar(lam)
        array = self.array_library.array("lam", lam)
        dtype = self.array_library.dtype(array)
        if dtype not in FLOATS:
            raise TypeError(
                f"lam: expected a number >= 0 or a scalar array of {' or '.join(FLOATS)}, got dtype {dtype}"
            )
        if tuple(array.shape) != ():
            raise ValueError(f"lam: expected a number >= 0 or a scalar array, got shape {list(array.shape)}")
        if self.array_library.checks_values:
            return self.array_library.scalar(_checks.host_lambda(float(array)))
        return self.array_library.cast(array, "float64")

    def _check_shapes(self) -> None:
        features, weights, labels = (list(array.shape) for array in (self.features, self.weights, self.labels))
        _checks.batch_shapes(features, weights, labels)
        if self.bias is not None:
            _checks.bias_shape(list(self.bias.shape), weights)

    def _check_labels(self) -> None:
        row = self.array_library.kernels.first_bad_label(self._call({}))
        if row >= 0:
            raise ValueError(
                f"labels: expected values in [0, {self.classes}), or -1 for a row without a target, "
                f"got labels[{row}] = {int(self.labels[row])}"
            )
