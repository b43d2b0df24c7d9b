"""A layer whose weights lie as torch.nn.Linear keeps them, [C, D]: a row for every class.

The layers of arrays hand kernels [D, C], but of the weights, and of their gradient, most touch the columns of the
labels alone. So they are given these, [D, N], as a layer of N classes: that of row i is n = min {j: y_j = y_i}. What is
transposed is O(N D) numbers, not O(C D).
"""

from __future__ import annotations

from typing import Any

import torch

from lsoftmax_op._array_layer import Layer
from lsoftmax_op._array_libraries import Torch


def layer_of(library: Torch, features: Any, weights: Any, labels: Any, bias: Any, margin: Any, *options: Any) -> Layer:
    """Returns the layer of weights [C, D].

    Where a margin normalises the weights, all columns are touched; and where there are as many rows as classes, those
    of the labels are as many. Then the kernels are given a transposed copy. Results differ by the products' rounding.

    Args:
        library: that of the tensors.
        features: [N, D].
        weights: [C, D].
        labels: [N].
        bias: [C] or None.
        margin: of `lsoftmax_op.margins`.
        options: what else `Layer` takes: lam and label_smoothing.
    """
    rows = features.shape[0] if features.dim() == 2 else 0  # Layer says what else is wrong
    if 0 < rows < len(weights) and not margin.normalize_weights:
        return ClassMajorLayer(library, features, weights, labels, bias, margin, *options)
    return Layer(library, features, weights.T, labels, bias, margin, *options)


class ClassMajorLayer(Layer):
    """A layer of weights [C, D], more classes than rows, that does not divide by the norms of its weights."""

    def __init__(self, library: Torch, features: Any, *rest: Any) -> None:
        super().__init__(library, features, *rest)
        with library.device():
            self._classes = self.labels.long().clamp(0, self.classes - 1)  # without a target any, as nothing is added
            self._first = _first_of_its_kind(self._classes)
            # Of a label that is no class, where nobody looks, the kernels that see all classes make the row NaN.
            places = torch.where(self.labels == self._classes, self._first, -1)
            columns = self.weights.T.index_select(0, self._classes).T
            self._targets = Layer(library, self.features, columns, places, None, self.margin, self.lam)

    def array(self, argument: str, value: Any, shape: str) -> Any:
        """Returns `value` as `Layer.array` does; the weights as a view [D, C]."""
        if argument != "weights":
            return super().array(argument, value, shape)
        return super().array(argument, value, "[C, D]").T

    def run(self, kernel: str, **arrays: Any) -> None:
        """Runs a kernel on the layer, or on the label columns alone."""
        arrays.pop("label_order", None)  # that of the columns is another one
        if kernel == "geometry_and_loss":
            self._targets.run("geometry", geometry=arrays["geometry"], target_weights=arrays["target_weights"])
            super().run("loss", **arrays)
        elif kernel == "gradients":
            for name in ("features_grad", "weights_grad", "bias_grad"):
                if name in arrays:
                    self.run(name, **arrays)
        elif kernel == "weights_grad":
            self._complete_weights_grad(**arrays)
        elif kernel in ("geometry", "features_grad"):
            self._targets.run(kernel, **arrays)
        else:  # it reads no weights
            super().run(kernel, **arrays)

    def _complete_weights_grad(self, weights_grad: Any, **arrays: Any) -> None:
        columns = weights_grad.T.index_select(0, self._classes).T
        columns = self._targets.array("weights_grad", columns, "[D, N]")
        self._targets.run("weights_grad", weights_grad=columns, **arrays)
        # Rows of one class all write the same.
        weights_grad.T.index_copy_(0, self._classes, columns.T.index_select(0, self._first))

    def _weights_product(self, features: Any, products_grad: Any) -> Any:
        return self.array_library.product(products_grad.T, features).T


def _first_of_its_kind(values: Any) -> Any:
    """Returns the place of the first entry that equals each, [N]; on a device, nobody waits."""
    order = torch.argsort(values, stable=True)
    ordered = values[order]
    places = torch.arange(len(values), device=values.device)
    begins = torch.where(ordered == ordered.roll(1), 0, places)  # of equal entries, the first; 0 is one in any case
    return torch.empty_like(order).index_copy_(0, order, order[begins.cummax(0).values])
