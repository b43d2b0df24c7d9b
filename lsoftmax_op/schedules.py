"""How the annealing weight lambda falls while a network trains.

    lambda(step) = max(minimum, base (1 + gamma step)^(-power))

A large lambda keeps the target logit close to the plain one, |w||x| cos(theta): the margin grows as lambda falls. This
is the schedule of the authors' own Caffe layer.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable
from numbers import Real
from typing import Any

import numpy as np

from lsoftmax_op import _checks


@dataclasses.dataclass(frozen=True)
class LambdaSchedule:
    """The annealing weight lambda as a function of the optimizer's step.

    It falls, and never below a minimum::

        schedule(step) = max(minimum, base * (1 + gamma * step) ** -power)

    The defaults are the authors' for MNIST with a margin of 4. As a rule, lambda should have fallen to a few units by
    the middle of the training: with T steps in all, ``gamma = 0.5 / T`` and ``power = 35`` do that, and so for every
    T; ``minimum`` keeps a hard margin (4 and more, many classes) trainable, the authors of later work use 5.

    Numbers of any type are kept as floats.

    Attributes:
        base: lambda at step 0, finite and >= 0.
        gamma: how fast a step counts, >= 0.
        power: how steeply lambda falls, >= 0.
        minimum: where lambda stops falling, within 0 and `base`.

    >>> schedule = LambdaSchedule(base=1000.0, gamma=2.5e-5, power=35.0, minimum=5.0)
    >>> [round(schedule(step), 2) for step in (0, 1000, 5000, 10000)]
    [1000.0, 421.37, 16.21, 5.0]
    """

    base: float = 1000.0
    gamma: float = 2.5e-5
    power: float = 35.0
    minimum: float = 0.0

    def __post_init__(self) -> None:
        for name in ("base", "gamma", "power", "minimum"):
            given = getattr(self, name)
            value = _checks.real(given, f"{name}: expected a number")
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name}: expected a finite number >= 0, got {_checks.shown(given)}")
            object.__setattr__(self, name, value)
        if self.minimum > self.base:
            raise ValueError(f"minimum: expected a number within 0 and base = {self.base!r}, got {self.minimum!r}")

    def __call__(self, step: Any) -> Any:
        """Computes lambda at a step.

        Args:
            step: the number of optimizer steps taken, >= 0: a number, a NumPy array, or a TensorFlow tensor or variable
                of any shape.

        Returns:
            A float for a number, a float64 array for an array, a float64 tensor for a tensor or variable.

        Raises:
            TypeError: a step that is none of these.
            ValueError: a negative or NaN step, as far as it is known when called.
        """
        tf = sys.modules.get("tensorflow")
        if tf is not None and (tf.is_tensor(step) or isinstance(step, tf.Variable)):
            if not (step.dtype.is_integer or step.dtype.is_floating):
                raise TypeError(f"step: expected a tensor of numbers, got {step.dtype.name}")
            return tf.maximum(self._falling(tf.cast(step, tf.float64), tf.zeros_like), self.minimum)
        expected = "step: expected a number"
        array = _checks.array(_checks.real(step, expected) if isinstance(step, Real) else step, "step")
        if array.dtype.kind not in "iuf" or (array.ndim > 0 and not isinstance(step, np.ndarray)):
            raise TypeError(f"{expected}, an array or a tensor, got {_checks.shown(step)}")
        array = array.astype(np.float64)
        if not (array >= 0).all():
            raise ValueError(f"{expected} >= 0, got {_checks.shown(step)}")
        value = np.maximum(self._falling(array, np.zeros_like), self.minimum)
        return value if isinstance(step, np.ndarray) else float(value)

    def plot(self, steps: int, ax: Any = None) -> Any:
        """Draws what a training will see: lambda, and the margin's share 1 / (1 + lambda) of the target logit.

        Args:
            steps: how many optimizer steps the training takes, >= 1.
            ax: the Matplotlib axes to draw in, or None for those of a new figure.

        Returns:
            The axes of lambda; ``ax.figure.savefig("lambda.png")`` saves the picture.

        Raises:
            ImportError: Matplotlib is not installed.
            TypeError, ValueError: `steps` is no positive integer.
        """
        steps = _checks.positive_integer(steps, "steps")
        import matplotlib.pyplot as plt

        if ax is None:
            _, ax = plt.subplots(figsize=(8, 4.5), layout="constrained")
        x = np.linspace(0, steps, 1001)
        lam = self(x)
        blue, red = "#4477AA", "#BB5566"
        ax.plot(x, lam, color=blue, linewidth=2)
        ax.set(xlabel="optimizer step", xlim=(0, steps), yscale="log" if lam[-1] > 0 else "linear", title=str(self))
        ax.set_ylabel("λ", color=blue, rotation=0, fontsize=13)
        ax.tick_params(axis="y", which="both", colors=blue)
        ax.grid(alpha=0.25)
        right = ax.twinx()
        right.plot(x, 100 / (1 + lam), color=red, linewidth=2)
        right.fill_between(x, 100 / (1 + lam), color=red, alpha=0.1, linewidth=0)
        right.set(ylim=(0, 105))
        right.set_ylabel("the margin's share of the target logit, 1 / (1 + λ)", color=red)
        right.tick_params(axis="y", colors=red)
        right.yaxis.set_major_formatter("{x:.0f} %")
        for axes in (ax, right):
            axes.spines["top"].set_visible(False)
        return ax

    def get_config(self) -> dict[str, float]:
        """Returns the attributes, for Keras to save."""
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config: dict[str, float]) -> LambdaSchedule:
        """Returns the schedule that `get_config` told of."""
        return cls(**config)

    def _falling(self, step: Any, zeros_like: Callable[[Any], Any]) -> Any:
        grown = self.gamma * step if self.gamma > 0 else zeros_like(step)  # 0 times infinity is no number
        return self.base * (1.0 + grown) ** -self.power
