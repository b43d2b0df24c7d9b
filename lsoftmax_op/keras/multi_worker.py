"""Keras' own fit and evaluate under MultiWorkerMirroredStrategy, where Keras 3 (to 3.15 at least) fails with any model.

Keras takes a nested batch for a single value when it looks at the first one, and averages scalar logs along an axis
that they do not have. A model here hands Keras the batch of its own worker, and logs of shape [1].
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf


def spans_workers(strategy: tf.distribute.Strategy) -> bool:
    """Whether a strategy trains in more than one process."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return False
    return bool(strategy.cluster_resolver.cluster_spec().jobs)


class MultiWorkerModel(keras.Model):
    """A model whose ``fit`` and ``evaluate`` work in several processes, too.

    Its ``train_step`` and ``test_step`` return ``self.logs_of_step(logs)``.
    """

    def logs_of_step(self, logs: dict) -> dict:
        """Returns the logs of a replica, scalars that are the same on all of them, as Keras can average them."""
        if not spans_workers(tf.distribute.get_strategy()):
            return logs
        return {name: tf.reshape(value, [1]) for name, value in logs.items()}

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        strategy = self.distribute_strategy
        if iterator is not None and spans_workers(strategy):
            for _, _, batches in iterator:
                data_batch = keras.tree.map_structure(
                    lambda value: strategy.experimental_local_results(value)[0], next(batches)
                )
                break
            iterator = None
        super()._maybe_symbolic_build(iterator=iterator, data_batch=data_batch)
