"""A layer of `lsoftmax_op.arrays`: its checked arguments, and the kernels over them."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

from lsoftmax_op import _array_factors, _checks, _terms
from lsoftmax_op._array_libraries import FLOATS, Library
from lsoftmax_op.margins import Margin, margin_of

# What the gradients are made of, by the names of cc/core/arguments.h, beside the upstream gradient.
_OF_LOSS = ("products_grad", "geometry_grad", "target_grad", "target_weights", "label_order")


class Layer:
    """The checked arguments of a layer, arrays of one library, and kernel calls over them."""

    def __init__(
        self,
        library: Library,
        features: Any,
        weights: Any,
        labels: Any,
        bias: Any,
        margin: Margin | int,
        lam: Any,
        label_smoothing: float = 0.0,
        class_major: bool = False,
    ) -> None:
        self.margin = known_margin(margin_of(margin))
        label_smoothing = _checks.label_smoothing(label_smoothing)
        self.class_major = _checks.flag(class_major, "class_major")
        _checks.bias_beside(bias, self.margin)
        if isinstance(lam, (bool, Real)):
            lam = _checks.host_lambda(lam)
            if math.isinf(lam):
                self.margin = _terms.without_psi(self.margin)
        attributes = _terms.attributes(self.margin)
        self.attributes = {name: value for name, value in attributes.items() if value}  # False is a call's own
        self.array_library = library
        self.dtype = ""
        self.features = self.array("features", features, "[N, D]")
        with library.device():
            self.weights = self.array("weights", weights, _checks.layout(self.class_major))
            self.columns = self.weights.T if self.class_major else self.weights  # [D, C], for products
            self.labels = self._labels(labels)
            self.wide_labels = self.array_library.dtype(self.labels) == "int64"
            self.bias = None if bias is None else self.array("bias", bias, "[C]")
            self.rows, self.depth = map(int, self.features.shape)
            self.classes = int(self.columns.shape[1])
            self._check_shapes()
            self.lam = self._lambda(lam)
            self.terms = _array_factors.terms(library, self.margin, label_smoothing, self.classes)
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

    def class_factors(self) -> Any:
        """Returns what the logits of each class are multiples of, [C], in the type that the kernels compute in.

        That is 1 / |w|, 0 of a zero column, where the margin divides by it, else 1; None where it has no factors.
        """
        if not self.margin.has_factors:
            return None
        wide = "float64" if self.dtype == "float64" else "float32"
        if not self.margin.normalize_weights:
            return self.array_library.full((self.classes,), 1.0, wide)
        factors = self.array_library.empty((self.classes,), wide)
        self.run("class_factors", class_factors=factors)
        return factors

    def upstream(self, grad: Any, spelled: str, shape: tuple[int, ...]) -> Any:
        """Returns an upstream gradient as `array` does, once it is known to have the shape, spelled "[N, C]" or so."""
        grad = self.array("grad", grad, spelled)
        if tuple(grad.shape) != shape:
            raise ValueError(f"grad: expected shape {spelled} = {list(shape)}, got {list(grad.shape)}")
        return grad

    def logits(self) -> Any:
        """Returns the margin logits, [N, C]."""
        geometry = self.geometry()
        logits = self._plain_logits()
        self.run("logits", geometry=geometry, logits=logits)
        if self.bias is not None:
            logits += self.bias
        return logits

    def logits_gradients(self, grad: Any) -> tuple[Any, Any, Any]:
        """Returns the derivatives of sum(grad * logits) in features, weights and bias, None for no bias."""
        library = self.array_library
        grad = self.upstream(grad, "[N, C]", (self.rows, self.classes))
        with library.device():
            geometry_grad = library.empty((3, self.rows), "float64")
            products_grad = library.copy(grad)
            self.run("logits_grad", geometry=self.geometry(), geometry_grad=geometry_grad, products_grad=products_grad)
            features_grad, weights_grad = self._through_products(products_grad)
            self.run("features_grad", geometry_grad=geometry_grad, features_grad=features_grad)
            self.run("weights_grad", geometry_grad=geometry_grad, weights_grad=weights_grad)
            bias_grad = None if self.bias is None else library.column_sums(grad)
        return features_grad, weights_grad, bias_grad

    def loss(self, **shared: Any) -> dict[str, Any]:
        """Returns the loss and its gradient in the products, by the names that cc/core/arguments.h gives them.

        `shared`: arrays to be filled for kernels that come later.
        """
        library, rows = self.array_library, self.rows
        products = library.product(self.features, self.columns)
        state = {
            "geometry": library.empty((3, rows), "float64"),
            "loss": library.empty((rows,), self.dtype),
            "products_grad": products,
            "geometry_grad": library.empty((3, rows), "float64"),
            "target_grad": library.empty((rows,), "float64"),
            "predicted": library.empty((rows,), "int64"),
        }
        if not self.class_major:  # strided columns are read once; a row is read where it lies
            state["target_weights"] = library.empty((rows, self.depth), self.dtype)
        if self.dtype == "float16":
            state["grad_unit"] = library.empty((rows,), "float32")
        factors = self.class_factors()
        if factors is not None:
            shared["class_factors"] = factors
        self.run("geometry_and_loss", products=products, **state, **shared)
        return state

    def loss_gradients(
        self, grad: Any, state: dict[str, Any], of_features: bool = True, of_weights: bool = True
    ) -> tuple[Any, Any, Any]:
        """Returns the derivatives of sum(grad * loss) in features, weights and bias; None of what is not wanted.

        `grad`: of `upstream`. `state`: what `loss` returned, and, where it filled one, label_order.
        """
        library = self.array_library
        with library.device():
            grad = library.zeroed(grad, self.labels == -1)  # whose gradient is 0, be it infinite
            upstream = {"loss_grad": grad} | ({"grad_unit": state["grad_unit"]} if "grad_unit" in state else {})
            products_grad = state["products_grad"]
            gradients = {}
            if of_features:
                gradients["features_grad"] = library.product(products_grad, self.columns.T)
            if of_weights:
                gradients["weights_grad"] = self._weights_product(self._scaled_features(**upstream), products_grad)
            if self.bias is not None:
                gradients["bias_grad"] = library.empty((self.classes,), self.dtype)
            of_loss = {name: state[name] for name in _OF_LOSS if name in state}
            if of_features and of_weights:
                self.run("gradients", **gradients, **of_loss, **upstream)
            else:
                for kernel, gradient in gradients.items():
                    self.run(kernel, **{kernel: gradient}, **of_loss, **upstream)
        return gradients.get("features_grad"), gradients.get("weights_grad"), gradients.get("bias_grad")

    def run(self, kernel: str, **arrays: Any) -> None:
        """Runs a kernel on the layer and `arrays`, each dense and of the shape that cc/core/arguments.h says."""
        kernels = self.array_library.kernels
        if "workspace" not in arrays:
            size = getattr(kernels, f"{kernel}_workspace")(self.rows, self.depth, self.classes)
            arrays["workspace"] = self.array_library.empty((size,), "uint8")
        getattr(kernels, kernel)(self._call(arrays), self.array_library.where)

    def _plain_logits(self) -> Any:
        """Returns the logits without the margin and without a bias, [N, C]."""
        library = self.array_library
        rows = _array_factors.row_factors(library, self.margin, self.features)
        products = library.product(_array_factors.scale_rows(library, self.features, rows), self.columns)
        return _array_factors.scale_columns(library, products, self.class_factors())

    def _through_products(self, logits_grad: Any) -> tuple[Any, Any]:
        """Returns what comes through the plain logits to features and weights; its radial parts, too."""
        library = self.array_library
        rows = _array_factors.row_factors(library, self.margin, self.features)
        products_grad = _array_factors.scale_columns(library, logits_grad, self.class_factors())
        features_grad = library.product(products_grad, self.columns.T)
        features = _array_factors.scale_rows(library, self.features, rows)
        return (
            _array_factors.scale_rows(library, features_grad, rows),
            self._weights_product(features, products_grad),
        )

    def _weights_product(self, features: Any, products_grad: Any) -> Any:
        """Returns features^T products_grad in the layout of the weights."""
        factors = (products_grad.T, features) if self.class_major else (features.T, products_grad)
        return self.array_library.product(*factors)

    def _scaled_features(self, loss_grad: Any, grad_unit: Any = None) -> Any:
        """Returns diag(loss_grad grad_unit) times the features, in their dtype, rounded once (cc/core/grad_unit.h)."""
        features = self.features
        if grad_unit is not None:
            features, loss_grad = (self.array_library.cast(array, "float32") for array in (features, loss_grad))
            loss_grad = loss_grad * grad_unit
        return self.array_library.cast(features * loss_grad[:, None], self.dtype)

    def _call(self, arrays: dict[str, Any]) -> Any:
        call = self.array_library.kernels.Call()
        call.dtype = self.dtype
        for name, value in self.attributes.items():
            setattr(call, name, value)
        call.rows, call.depth, call.classes = self.rows, self.depth, self.classes
        call.wide_labels, call.class_major = self.wide_labels, self.class_major
        layer = {"features": self.features, "weights": self.weights, "labels": self.labels, "lam": self.lam}
        if self.bias is not None:
            layer["bias"] = self.bias
        if self.terms is not None:
            layer["terms"] = self.terms
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
        _checks.batch_shapes(features, weights, labels, class_major=self.class_major)
        if self.bias is not None:
            _checks.bias_shape(list(self.bias.shape), weights, class_major=self.class_major)

    def _check_labels(self) -> None:
        row = self.array_library.kernels.first_bad_label(self._call({}))
        if row >= 0:
            raise ValueError(
                f"labels: expected values in [0, {self.classes}), or -1 for a row without a target, "
                f"got labels[{row}] = {int(self.labels[row])}"
            )


def known_margin(margin: Margin) -> Margin:
    """Refuses a margin whose numbers are TensorFlow's: of no library here."""
    for name in ("m2", "m3", "scale"):
        value = getattr(margin, name)
        if not isinstance(value, float):
            raise TypeError(f"margin: expected one whose {name} is a number, among arrays, got {_checks.shown(value)}")
    return margin
