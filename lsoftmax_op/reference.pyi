from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from lsoftmax_op.margins import Margin

class Gradients(NamedTuple):
    features: np.ndarray
    weights: np.ndarray
    bias: np.ndarray | None

def psi(theta: float, margin: int | Margin) -> float: ...
def segment(theta: float, margin: int | Margin) -> int: ...
def logits(
    features: ArrayLike,
    weights: ArrayLike,
    labels: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    margin: int | Margin = 4,
    lam: float = 0.0,
) -> np.ndarray: ...
def logits_grad(
    grad: ArrayLike,
    features: ArrayLike,
    weights: ArrayLike,
    labels: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    margin: int | Margin = 4,
    lam: float = 0.0,
) -> Gradients: ...
def target_angles(
    features: ArrayLike, weights: ArrayLike, labels: ArrayLike, *, margin: int | Margin = 4
) -> tuple[np.ndarray, np.ndarray]: ...
def loss(
    features: ArrayLike,
    weights: ArrayLike,
    labels: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    margin: int | Margin = 4,
    lam: float = 0.0,
    label_smoothing: float = 0.0,
) -> np.ndarray: ...
def loss_grad(
    grad: ArrayLike,
    features: ArrayLike,
    weights: ArrayLike,
    labels: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    margin: int | Margin = 4,
    lam: float = 0.0,
    label_smoothing: float = 0.0,
) -> Gradients: ...
