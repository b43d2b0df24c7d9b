"""What layers with a lambda share: its variable, the steps that it follows, and what files know of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from lsoftmax_op.keras import annealing
from lsoftmax_op.keras.lambda_state import LambdaState


class AnnealedLayer(keras.layers.Layer):
    """A layer with a lambda. Its constructor sets `_lam` to a number or schedule that was looked at."""

    _lam: float | annealing.Schedule
    _steps: Callable[[], Any] | None = None

    def build(self, input_shape: Any) -> None:
        """Creates lambda []."""
        self._lambda_state = LambdaState(annealing.initial(self._lam), self.has_schedule)
        super().build(input_shape)

    @property
    def lam(self) -> keras.Variable:
        """The present lambda [], float32."""
        if not self.built:
            raise AttributeError(f"{self.name} has no lam yet: call it first, or build it")
        return self._lambda_state.variable

    @property
    def has_schedule(self) -> bool:
        """Whether lambda is a function of the optimizer's step."""
        return callable(self._lam)

    def follow(self, optimizer: keras.optimizers.Optimizer) -> None:
        """Has lambda follow the steps of an optimizer: call it before the first training step, and once.

        Args:
            optimizer: the one that trains the layer's model.

        Raises:
            TypeError: it is no Keras optimizer.
        """
        self._steps = annealing.steps_of(optimizer)

    def _annealed(self) -> tf.Tensor:
        """Returns lambda, having set it from the optimizer's step."""
        if callable(self._lam):
            if self._steps is not None:
                self.lam.assign(annealing.at(self._lam, self._steps()))
            else:
                warnings.warn(
                    f"{self.name} trains with lambda at {self._lam!r} of step 0, as it follows no optimizer: call "
                    f"{self.name}.follow(optimizer), or add LSoftmaxMonitor() to the callbacks of fit",
                    stacklevel=2,
                )
        return tf.convert_to_tensor(self.lam)

    def _lambda_of_config(self) -> Any:
        """Returns what the layer's config holds of lambda; of one that is no schedule, the present value."""
        lam = self._lam
        if not self.has_schedule and self.built and self.lam.numpy() != annealing.initial(lam):
            lam = float(self.lam.numpy())
        return annealing.serialize(lam)

    def _serialize_to_tensors(self) -> dict[str, tf.Tensor]:
        """What tf.train.Checkpoint records of the layer itself; a variable would have to be in every checkpoint."""
        return {"lam": tf.convert_to_tensor(self.lam)} if self.built and tf.executing_eagerly() else {}

    def _restore_from_tensors(self, restored: dict[str, tf.Tensor]) -> None:
        """Takes what a checkpoint recorded."""
        if restored:
            self._lambda_state.restore(restored["lam"])
