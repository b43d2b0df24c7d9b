"""The margin logits, the loss and their gradients on NumPy, PyTorch and CuPy arrays, without TensorFlow.

Arrays of one library go in, on the CPU or on one CUDA device, and the same kind comes out. The products are that
library's own (on its current stream); the margin comes from the same kernels as the TensorFlow ops'. Results are
bit-identical from run to run and for any number of threads, and the GIL is released while a kernel runs.

With theta the angle between a sample x and the weights w of a class, its plain logit is::

    scale |x||w| cos(theta) + bias    |x|: 1 if the margin normalises the features; |w|: 1 if it normalises the weights

and for the sample's own class cos(theta) becomes (lam cos(theta) + psi(theta)) / (1 + lam), with psi of
`lsoftmax_op.margins`.

On a CUDA device nothing is copied to or from the host, and nobody waits: a label out of range makes its row NaN there,
as does a lambda on the device that is negative or NaN, instead of an error.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from lsoftmax_op._array_layer import Layer
from lsoftmax_op._array_libraries import library_of
from lsoftmax_op.margins import Margin


class Gradients(NamedTuple):
    """The derivatives of a loss in the arguments of the layer.

    Attributes:
        features: [N, D].
        weights: [D, C], or [C, D] as the weights are.
        bias: [C], None where the layer has no bias.
    """

    features: Any
    weights: Any
    bias: Any


class LossGradients(NamedTuple):
    """The derivatives of the loss in the arguments of the layer, and what the same pass gives for nothing.

    Attributes:
        features: [N, D].
        weights: [D, C], or [C, D] as the weights are.
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
    margin: Margin | int = 4,
    lam: float | Any = 0.0,
    class_major: bool = False,
    num_threads: int | None = None,
) -> Any:
    """Computes the logits of Large-Margin Softmax (Liu et al., ICML 2016, equations 4 to 6), or of another margin.

    Args:
        features: [N, D], float16, bfloat16 (NumPy's is that of ml_dtypes), float32 or float64. Arrays that are
            read-only, strided or of the other byte order are fine.
        weights: [D, C], a column for every class; [C, D] if `class_major`. Of the same dtype and device, and of the
            same library, or of one whose arrays that one takes, as NumPy takes PyTorch's.
        labels: [N], integers, each in [0, C); -1 leaves its row the plain dense layer's.
        bias: [C], of the features' dtype, or None; None with a margin that normalises or scales.
        margin: the integer m from 1 (no margin) to 64, or any of `lsoftmax_op.margins` whose m2, m3 and scale are
            numbers, not tensors.
        lam: the annealing weight lambda >= 0, a number or a scalar array; infinity is the plain dense layer.
        class_major: whether the weights are [C, D], a row for every class: as they are in ``torch.nn.Linear``, and for
            heads whose classes are gathered. Dense ones are not copied, and their gradient is [C, D], too.
        num_threads: on the CPU, at most so many threads; by default one for each processor this process may use.

    Returns:
        The logits, [N, C], of the features' library and dtype; 0 where a norm is zero that the margin divides by.

    Raises:
        TypeError: an argument of the wrong dtype, type, library or device.
        ValueError: shapes that do not fit, or a label, margin or lambda out of range.
        ImportError: arrays on a CUDA device, and the package was built without CUDA.
    """
    library = library_of(features, num_threads)
    layer = Layer(library, features, weights, labels, bias, margin, lam, class_major=class_major)
    with library.device():
        return layer.logits()


def logits_grad(
    grad: Any,
    features: Any,
    weights: Any,
    labels: Any,
    bias: Any = None,
    *,
    margin: Margin | int = 4,
    lam: float | Any = 0.0,
    class_major: bool = False,
    num_threads: int | None = None,
) -> Gradients:
    """Computes the gradient of ``sum(grad * logits(features, weights, labels, bias))``.

    Args:
        grad: [N, C], of the features' library and dtype: the loss's derivative in the logits.
        features: [N, D], as for `logits`.
        weights: [D, C], or [C, D], as for `logits`.
        labels: [N], as for `logits`.
        bias: [C] or None, as for `logits`. Its values do not matter.
        margin: as for `logits`.
        lam: as for `logits`.
        class_major: as for `logits`.
        num_threads: as for `logits`.

    Returns:
        The derivatives in features [N, D], weights (in their layout) and bias [C] (None without a bias).

    Raises:
        TypeError, ValueError, ImportError: as for `logits`.
    """
    library = library_of(features, num_threads)
    layer = Layer(library, features, weights, labels, bias, margin, lam, class_major=class_major)
    return Gradients(*layer.logits_gradients(grad))


def loss(
    features: Any,
    weights: Any,
    labels: Any,
    bias: Any = None,
    *,
    margin: Margin | int = 4,
    lam: float | Any = 0.0,
    label_smoothing: float = 0.0,
    class_major: bool = False,
    num_threads: int | None = None,
) -> Any:
    """Computes the loss of Large-Margin Softmax (Liu et al., ICML 2016, equations 3 to 6), or of another margin.

    It is the softmax cross-entropy of `logits`, one number a sample. A training step needs `loss_grad` alone, which
    returns it, too.

    Args:
        features: [N, D], as for `logits`.
        weights: [D, C], or [C, D], as for `logits`.
        labels: [N], as for `logits`; -1 gives its row loss 0.
        bias: [C] or None, as for `logits`.
        margin: as for `logits`.
        lam: as for `logits`.
        label_smoothing: epsilon in [0, 1): the target distribution is 1 - epsilon on the sample's class, and
            epsilon / C on each of the C classes (Szegedy et al., CVPR 2016, section 7). The margin stays on the
            target's logit alone.
        class_major: as for `logits`.
        num_threads: as for `logits`.

    Returns:
        The loss of each sample, [N], of the features' library and dtype, never negative.

    Raises:
        TypeError, ValueError, ImportError: as for `logits`.
    """
    library = library_of(features, num_threads)
    layer = Layer(library, features, weights, labels, bias, margin, lam, label_smoothing, class_major)
    with library.device():
        return layer.loss()["loss"]


def loss_grad(
    grad: Any,
    features: Any,
    weights: Any,
    labels: Any,
    bias: Any = None,
    *,
    margin: Margin | int = 4,
    lam: float | Any = 0.0,
    label_smoothing: float = 0.0,
    class_major: bool = False,
    num_threads: int | None = None,
) -> LossGradients:
    """Computes the gradient of ``sum(grad * loss(features, weights, labels, bias))``, and the loss itself.

    One pass over the [N, C] products makes the loss and, in their place, its gradient.

    Args:
        grad: [N], of the features' library and dtype: 1/N each for the mean; sample weights go here.
        features: [N, D], as for `logits`.
        weights: [D, C], or [C, D], as for `logits`.
        labels: [N], as for `logits`; -1 gives its row loss 0 and gradient 0.
        bias: [C] or None, as for `logits`.
        margin: as for `logits`.
        lam: as for `logits`.
        label_smoothing: as for `loss`.
        class_major: as for `logits`.
        num_threads: as for `logits`.

    Returns:
        The derivatives in features [N, D], weights (in their layout) and bias [C] (None without a bias), the loss [N],
        and the classes that the layer without a margin predicts [N].

    Raises:
        TypeError, ValueError, ImportError: as for `logits`.
    """
    library = library_of(features, num_threads)
    layer = Layer(library, features, weights, labels, bias, margin, lam, label_smoothing, class_major)
    grad = layer.upstream(grad, "[N]", (layer.rows,))
    with library.device():
        label_order = library.empty((2, layer.rows), "int64")
        state = layer.loss(label_order=label_order) | {"label_order": label_order}
    return LossGradients(*layer.loss_gradients(grad, state), state["loss"], state["predicted"])
