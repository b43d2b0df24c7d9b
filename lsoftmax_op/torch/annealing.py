"""Lambda in step with a PyTorch training: what `torch.optim.lr_scheduler` is to the learning rate."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from lsoftmax_op import _checks
from lsoftmax_op.torch.linear import LSoftmaxLinear


class LambdaScheduler:
    """Sets the lambda of layers to ``schedule(steps taken)``.

    Call `step` after each of the optimizer's::

        annealing = LambdaScheduler(model.head, LambdaSchedule(gamma=0.5 / steps, minimum=5.0))
        for features, labels in batches:
            ...
            optimizer.step()
            annealing.step()

    Beside the optimizer's, its state belongs into a checkpoint, since that of a layer is `torch.nn.Linear`'s.

    Args:
        layers: a `LSoftmaxLinear`, or several.
        schedule: `lsoftmax_op.LambdaSchedule`, or any other function of the number of steps taken that returns a
            number.

    Raises:
        TypeError: a layer or schedule that is none.
        ValueError: no layer; or the schedule returns a number that is no lambda.

    Attributes:
        steps: how many steps have been taken.
    """

    def __init__(self, layers: LSoftmaxLinear | Iterable[LSoftmaxLinear], schedule: Callable[[int], float]) -> None:
        is_one = isinstance(layers, torch.nn.Module) or not isinstance(layers, Iterable)
        given: list[Any] = [layers] if is_one else list(layers)
        self._layers = [getattr(layer, "_orig_mod", layer) for layer in given]  # within torch.compile's wrapper
        for layer in self._layers:
            if not isinstance(layer, LSoftmaxLinear):
                raise TypeError(f"layers: expected layers of LSoftmaxLinear, got {_checks.described(layer)}")
        if not self._layers:
            raise ValueError("layers: expected a LSoftmaxLinear or several, got none")
        if not callable(schedule):
            raise TypeError(f"schedule: expected a function of the step, got {_checks.shown(schedule)}")
        self.schedule = schedule
        self.steps = 0
        self._set()

    def step(self) -> None:
        """Counts a step of the optimizer, and sets lambda.

        Raises:
            TypeError, ValueError: the schedule returns no lambda.
        """
        self.steps += 1
        self._set()

    def state_dict(self) -> dict[str, Any]:
        """Returns the number of steps taken, for a checkpoint."""
        return {"steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a checkpoint, and sets lambda.

        Args:
            state_dict: what `state_dict` returned.

        Raises:
            TypeError, ValueError: the number of steps is no integer >= 0, or is not there.
        """
        expected = "steps: expected an integer >= 0"
        if "steps" not in state_dict:
            raise ValueError(f"state_dict: expected what state_dict() returned, with steps, got {sorted(state_dict)}")
        steps = _checks.integer(state_dict["steps"], expected)
        if steps < 0:
            raise ValueError(f"{expected}, got {steps}")
        self.steps = steps
        self._set()

    def _set(self) -> None:
        lam = self.schedule(self.steps)
        for layer in self._layers:
            layer.set_lambda(lam)
