"""The present lambda, kept beside a layer's weights instead of among them.

A layer's weights are then those of Dense, so that lists, files and checkpoints of weights fit a softmax network and one
with a margin alike. What a file brings follows from lambda's nature: a schedule takes the value that was reached (and
from the next training pass on, that of the optimizer's step); a number stays what the constructor was told.
"""

from __future__ import annotations

from typing import Any

import keras


class LambdaState(keras.losses.Loss):
    """lambda [], float32. Keras saves an attribute that is a Loss with its layer, and tracks no variable of it.

    Args:
        initial: the value to begin with.
        follows_steps: whether it is that of a schedule.
    """

    def __init__(self, initial: float, follows_steps: bool) -> None:
        super().__init__(name="lambda_state")
        self.follows_steps = follows_steps
        self.variable = keras.Variable(
            keras.initializers.Constant(initial),
            shape=(),
            dtype="float32",
            trainable=False,
            autocast=False,
            aggregation="only_first_replica",
            name="lam",
        )

    def restore(self, value: Any) -> None:
        """Takes a saved value, where lambda is a schedule's."""
        if self.follows_steps:
            self.variable.assign(value)

    def save_own_variables(self, store: Any) -> None:
        """Saves the value in Keras' files."""
        store["lam"] = self.variable

    def load_own_variables(self, store: Any) -> None:
        """Takes the value of Keras' files; those of a plain Dense layer have none."""
        if "lam" in store.keys():  # noqa: SIM118 (Keras' stores before 3.8 are no containers)
            self.restore(store["lam"])
