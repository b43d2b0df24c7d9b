"""Margins: what the target's logit asks of theta, the angle between a sample and the weights of its class.

In formulas::

    psi(theta) = cos(m1 theta + m2) - m3              where phi = m1 theta + m2 <= pi
    "unfolded"   (-1)^k cos(phi) - 2k - m3            beyond, k = floor(phi / pi)
    "linear"     cos(theta) - m2 sin(m2) - m3         beyond, m1 = 1 alone

Over psi stand the features and weights as the layer takes them: of a sample x and the weights w of a class::

    logit  = scale |x| |w| cos(theta)                 |x|, |w|: 1 where they are normalised
    target = scale |x| |w| (cos(theta) + (psi(theta) - cos(theta)) / (1 + lambda))

A margin is a value: frozen, and equal to another that means the same. Importing this module imports no TensorFlow.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from lsoftmax_op import _checks

if TYPE_CHECKING:
    import tensorflow as tf
    from numpy.typing import ArrayLike

CONTINUATIONS = ("unfolded", "linear")
_NAMES = "LSoftmax, SphereFace, CosFace, ArcFace, Combined or Margin"
_RANGES = {
    "m2": ("a number of radians in [0, pi)", lambda m2: 0 <= m2 < math.pi),
    "m3": ("a number in [0, 2)", lambda m3: 0 <= m3 < 2),
    "scale": ("a finite number > 0", lambda scale: 0 < scale < math.inf),
}


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Margin:
    """Any of the margins: what `LSoftmax`, `SphereFace`, `CosFace`, `ArcFace` and `Combined` return.

    Two margins are equal where their attributes are: ``Combined(1, 0.5, 0, 64) == ArcFace(0.5, 64)``. They print as
    the plainest of the five names that makes an equal one.

    m2, m3 and scale may also be TensorFlow's: scalar tensors or variables of any floating or integer type, whose value
    may change from step to step. Their type and shape are checked, their value is not, and they equal themselves alone.

    Attributes:
        m1: what theta is multiplied by, an integer from 1 to 64.
        m2: what is added to it, in radians, in [0, pi).
        m3: what psi is lowered by, in [0, 2).
        scale: what every logit is multiplied by, finite and > 0.
        normalize_features: whether samples are divided by their norms; one of norm zero has logits of 0.
        normalize_weights: whether the weights of each class are; one of norm zero has logits of 0.
        continuation: how psi goes on beyond m1 theta + m2 = pi. "unfolded": as in L-Softmax, continuous, with a
            continuous slope, and falling on all of [0, pi]. "linear": as in ArcFace's published code (m1 = 1 alone),
            with a jump at theta = pi - m2.

    Raises:
        TypeError: an attribute of the wrong type.
        ValueError: one out of range, or "linear" with m1 > 1.

    >>> Margin(m2=0.5, scale=64, normalize_features=True, normalize_weights=True)
    ArcFace(m2=0.5, scale=64.0)
    """

    m1: int = 1
    m2: float | tf.Tensor | tf.Variable = 0.0
    m3: float | tf.Tensor | tf.Variable = 0.0
    scale: float | tf.Tensor | tf.Variable = 1.0
    normalize_features: bool = False
    normalize_weights: bool = False
    continuation: str = "unfolded"

    def __post_init__(self) -> None:
        checked: dict[str, Any] = {"m1": _checks.margin(self.m1, "m1")}
        for name, (expected, within) in _RANGES.items():
            checked[name] = _scalar(getattr(self, name), name, expected, within)
        for name in ("normalize_features", "normalize_weights"):
            flag = getattr(self, name)
            if not isinstance(flag, (bool, np.bool_)):
                raise TypeError(f"{name}: expected True or False, got {_checks.shown(flag)}")
            checked[name] = bool(flag)
        _check_continuation(self.continuation, checked["m1"])
        checked["continuation"] = str(self.continuation)
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @property
    def normalizes(self) -> bool:
        """Whether features or weights are normalised."""
        return self.normalize_features or self.normalize_weights

    @functools.cached_property
    def is_plain(self) -> bool:
        """Whether m1 is all of it, as with `LSoftmax`: no m2, no m3, nothing normalised or scaled."""
        return not self.has_factors and not self._is_shifted

    @functools.cached_property
    def moves_target(self) -> bool:
        """Whether the target's logit may be another than the plain one, as with any m2 or m3 that is a tensor."""
        return self.m1 > 1 or self._is_shifted

    @functools.cached_property
    def _is_shifted(self) -> bool:
        return any(not isinstance(value, float) or value != 0 for value in (self.m2, self.m3))

    @property  # uncached: torch.compile cannot follow the lock of a cache
    def has_factors(self) -> bool:
        """Whether a layer's plain logits are multiples of X W: it normalises or scales. It has no bias then."""
        return self.normalizes or not isinstance(self.scale, float) or self.scale != 1

    def psi(self, theta: ArrayLike) -> Any:
        """Computes what psi is at an angle.

        Args:
            theta: angles in [0, pi], in radians: a number, or an array of any shape.

        Returns:
            A float for a number, a float64 array of the same shape for an array.

        Raises:
            TypeError: angles that are no numbers, or an m2 or m3 that is a tensor without a value yet.
            ValueError: an angle outside [0, pi], or NaN.
        """
        angle = _checks.array(theta, "theta")
        if angle.dtype.kind not in "iuf":
            raise TypeError(f"theta: expected angles from 0 to pi, got {_checks.shown(theta)}")
        angle = angle.astype(np.float64)
        if not ((angle >= 0) & (angle <= math.pi)).all():
            raise ValueError(f"theta: expected angles from 0 to pi, got {_checks.shown(theta)}")
        m2, m3 = self._number("m2"), self._number("m3")
        phi = self.m1 * angle + m2
        if self.continuation == "linear":
            value = np.where(angle > math.pi - m2, np.cos(angle) - m2 * math.sin(m2), np.cos(phi)) - m3
        else:
            k = np.floor(phi / math.pi)
            value = np.where(k % 2 == 0, 1, -1) * np.cos(phi) - 2 * k - m3
        return value if isinstance(theta, np.ndarray) or value.ndim else float(value)

    def plot(self, ax: Any = None) -> Any:
        """Draws psi(theta) beside the cosine of the layer without a margin.

        Args:
            ax: the Matplotlib axes to draw in, or None for those of a new figure.

        Returns:
            The axes; ``ax.figure.savefig("margin.png")`` saves the picture.

        Raises:
            ImportError: Matplotlib is not installed; the extra ``demo`` of this package brings it.
            TypeError: as for `psi`.
        """
        angles = np.linspace(0, np.pi, 1441)
        psi = self.psi(angles)
        if self.continuation == "linear":  # no line across the jump
            edge = int(np.searchsorted(angles, math.pi - self._number("m2"), side="right"))
            angles, psi = np.insert(angles, edge, np.nan), np.insert(psi, edge, np.nan)
        import matplotlib.pyplot as plt

        if ax is None:
            _, ax = plt.subplots(figsize=(8, 5), layout="constrained")
        ax.plot(np.degrees(angles), np.cos(angles), color="#888888", linestyle="--", linewidth=1.5, label="cos θ")
        ax.plot(np.degrees(angles), psi, color="#BB5566", linewidth=2, label="ψ(θ)")
        ax.set(xlabel="angle θ between the sample and the weights of its class", ylabel="ψ(θ)", title=repr(self))
        ax.set(xlim=(0, 180), xticks=range(0, 181, 30))
        ax.xaxis.set_major_formatter("{x:.0f}°")
        ax.grid(alpha=0.25)
        ax.legend(frameon=False, loc="lower left")
        ax.spines[["top", "right"]].set_visible(False)
        return ax

    def scaled(self, scale: float | tf.Tensor | tf.Variable) -> Margin:
        """Returns the same margin with another scale.

        Args:
            scale: finite and > 0, or a scalar tensor or variable of TensorFlow.

        Raises:
            TypeError, ValueError: it is none of these.
        """
        return dataclasses.replace(self, scale=scale)

    def get_config(self) -> dict[str, Any]:
        """Returns the attributes, for JSON to save; of a tensor or variable, its present value.

        Raises:
            TypeError: a tensor without a value yet.
        """
        numbers = {name: self._number(name) for name in _RANGES}
        return {field.name: numbers.get(field.name, getattr(self, field.name)) for field in dataclasses.fields(self)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Margin:
        """Returns the margin that `get_config` told of."""
        return cls(**config)

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, Margin) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        for name, fields, default in _SPELLED:
            rest = {field.name for field in dataclasses.fields(self)} - set(fields)
            if all(_same(getattr(self, field), getattr(default, field)) for field in rest):
                shown = [field for field in fields if field != "continuation" or self.continuation != "unfolded"]
                words = (f"{fields[field]}={getattr(self, field)!r}" for field in shown)
                return f"{name}({', '.join(words)})"
        changed = (
            field.name for field in dataclasses.fields(self) if not _same(getattr(self, field.name), field.default)
        )
        return f"Margin({', '.join(f'{name}={getattr(self, name)!r}' for name in changed)})"

    def __copy__(self) -> Margin:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Margin:
        return self  # frozen; and a variable among the attributes stays the one that is assigned to

    def _number(self, name: str) -> float:
        value: Any = getattr(self, name)
        try:
            return value if isinstance(value, float) else np.asarray(value).astype(np.float64).item()
        except Exception as error:  # a symbolic tensor raises what it likes
            raise TypeError(f"{name}: expected a number, got {_checks.shown(value)}, which has no value yet") from error

    def _key(self) -> tuple[Any, ...]:
        values = [getattr(self, field.name) for field in dataclasses.fields(self)]
        return tuple(value if isinstance(value, (int, float, str)) else (id(value),) for value in values)


def LSoftmax(m: int) -> Margin:
    """Large-Margin Softmax (Liu, Wen, Yu, Yang, ICML 2016, equation 6): psi = cos(m theta), unfolded.

    Nothing is normalised. It is what the integer m means wherever a margin is taken.

    Args:
        m: the integer m from 1 (no margin) to 64.

    Raises:
        TypeError, ValueError: m is no such integer.
    """
    return Margin(m1=_checks.margin(m, "m"))


def SphereFace(m: int) -> Margin:
    """SphereFace, or A-Softmax (Liu et al., CVPR 2017, equation 7): psi = cos(m theta), unfolded.

    The weights of every class are normalised.

    Args:
        m: the integer m from 1 to 64.

    Raises:
        TypeError, ValueError: m is no such integer.
    """
    return Margin(m1=_checks.margin(m, "m"), normalize_weights=True)


def CosFace(m3: float | tf.Tensor | tf.Variable, scale: float | tf.Tensor | tf.Variable) -> Margin:
    """CosFace, or AM-Softmax (Wang et al., CVPR 2018, equation 4): psi = cos(theta) - m3.

    Features and weights are normalised.

    Args:
        m3: the paper's m, in [0, 2); 0.35 there.
        scale: the paper's s, finite and > 0; 64 there.

    Raises:
        TypeError, ValueError: m3 or scale is no such number.
    """
    return Combined(1, 0.0, m3, scale)


def ArcFace(
    m2: float | tf.Tensor | tf.Variable,
    scale: float | tf.Tensor | tf.Variable,
    continuation: str = "unfolded",
) -> Margin:
    """ArcFace (Deng, Guo, Xue, Zafeiriou, CVPR 2019, equation 3): psi = cos(theta + m2).

    Features and weights are normalised.

    Args:
        m2: the paper's m in radians, in [0, pi); 0.5 there.
        scale: the paper's s, finite and > 0; 64 there.
        continuation: "unfolded", or "linear" as in the published code.

    Raises:
        TypeError, ValueError: m2 or scale is no such number, or the continuation unknown.
    """
    return Combined(1, m2, 0.0, scale, continuation)


def Combined(
    m1: int,
    m2: float | tf.Tensor | tf.Variable,
    m3: float | tf.Tensor | tf.Variable,
    scale: float | tf.Tensor | tf.Variable,
    continuation: str = "unfolded",
) -> Margin:
    """The combined margin of the ArcFace paper (CVPR 2019, equation 4): psi = cos(m1 theta + m2) - m3.

    Features and weights are normalised.

    Args:
        m1: an integer from 1 to 64.
        m2: in radians, in [0, pi).
        m3: in [0, 2).
        scale: the paper's s, finite and > 0.
        continuation: "unfolded", or "linear", which wants m1 = 1.

    Raises:
        TypeError, ValueError: an argument that is no such number, or the continuation unknown.
    """
    return Margin(m1, m2, m3, scale, True, True, continuation)


def margin_of(value: object) -> Margin:
    """Returns what a `margin` argument means: an integer m is `LSoftmax` (m).

    Args:
        value: an integer from 1 to 64, or a `Margin`.

    Raises:
        TypeError: it is neither.
        ValueError: an integer out of range.
    """
    if isinstance(value, Margin):
        return value
    try:
        return _lsoftmax(_checks.margin(value))
    except TypeError as error:
        raise TypeError(f"{error}; a margin of lsoftmax_op.margins is accepted, too: {_NAMES}") from None


@functools.lru_cache(maxsize=_checks.MAX_MARGIN)
def _lsoftmax(m: int) -> Margin:
    return LSoftmax(m)


# Checks ---------------------------------------------------------------------------------------------------------------


def _scalar(value: Any, name: str, expected: str, within: Any) -> Any:
    """Returns a number within its range as a float, a scalar tensor or variable as it is."""
    tf = sys.modules.get("tensorflow")
    if tf is not None and (tf.is_tensor(value) or hasattr(value, "__tf_tensor__")):
        dtype, shape = tf.as_dtype(value.dtype), tf.TensorShape(value.shape)
        if not (dtype.is_floating or dtype.is_integer):
            raise TypeError(f"{name}: expected a scalar tensor of numbers, got {dtype.name}")
        if shape.rank not in (0, None):
            raise ValueError(f"{name}: expected shape [], got {tuple(shape.as_list())}")
        return value
    number = _checks.real(value, f"{name}: expected {expected}")
    if not within(number):
        raise ValueError(f"{name}: expected {expected}, got {_checks.shown(value)}")
    return number + 0.0  # of the two zeros, the one without a sign


def _check_continuation(value: object, m1: int) -> None:
    expected = "continuation: expected 'unfolded' or 'linear'"
    if not isinstance(value, str):
        raise TypeError(f"{expected}, got {_checks.shown(value)}")
    if value not in CONTINUATIONS:
        raise ValueError(f"{expected}, got {_checks.shown(value)}")
    if value == "linear" and m1 != 1:
        raise ValueError(f"continuation: expected 'unfolded' with m1 = {m1}, as 'linear' is for m1 = 1, got 'linear'")


def _same(value: Any, other: Any) -> bool:
    return value is other or (
        isinstance(value, (int, float, str)) and isinstance(other, type(value)) and value == other
    )


# A name, the attributes that it takes with their names in its signature, and a margin that has its other ones.
_SPELLED: tuple[tuple[str, dict[str, str], Margin], ...] = (
    ("LSoftmax", {"m1": "m"}, LSoftmax(1)),
    ("SphereFace", {"m1": "m"}, SphereFace(1)),
    ("CosFace", {"m3": "m3", "scale": "scale"}, CosFace(0, 1)),
    ("ArcFace", {"m2": "m2", "scale": "scale", "continuation": "continuation"}, ArcFace(0, 1)),
    (
        "Combined",
        {name: name for name in ("m1", "m2", "m3", "scale", "continuation")},
        Combined(1, 0, 0, 1),
    ),
)
