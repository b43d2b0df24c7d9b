"""What Keras' own fit and evaluate (of Keras 3, to 3.15 at least) get wrong on several replicas, with any model.

- The gradients of replicas with unequal batches are averaged, each as if its batch were as large as the others'.
- The logs of an epoch are the last step's of the replicas, averaged likewise, where a step returns more than metrics.
- With ``steps_per_epoch`` the first batch, which the model is built with, is not trained with (Keras 3.5 to 3.7).
- The first batch must be cut evenly, and in several processes nothing works: Keras takes a nested batch for a single
  value when it looks at the first one, and averages scalar logs along an axis that they do not have. A model here hands
  Keras the batch of one replica, and logs of shape [1].
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


def share_of_batch(rows: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Returns the share of a replica's batch in the joined one: its means, so weighted, add up to the joined batch's.

    Args:
        rows: [], int32, how many samples the replica has.
        dtype: that of the share.
    """
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    if replicas == 1:
        return tf.ones([], dtype)
    of_all = sum_over_replicas(rows)
    equal = tf.constant(1 / replicas, dtype)
    return tf.where(of_all > 0, tf.cast(rows, dtype) / tf.cast(of_all, dtype), equal)


def sum_over_replicas(value: tf.Tensor) -> tf.Tensor:
    """Sums a scalar that lies in the host's memory, where the strategy allows it without a collective op on devices."""
    context = tf.distribute.get_replica_context()
    if tf.__internal__.distribute.strategy_supports_no_merge_call():
        return context.all_reduce(tf.distribute.ReduceOp.SUM, value)
    return context.merge_call(lambda strategy, values: strategy.reduce("SUM", values, axis=None), args=(value,))


class MultiWorkerModel(keras.Model):
    """A model whose ``fit`` and ``evaluate`` work on several replicas, in one process or more.

    Its ``train_step`` and ``test_step`` return ``self.logs_of_step(logs)``.
    """

    def logs_of_step(self, logs: dict[str, Any]) -> dict[str, Any]:
        """Returns the logs of a replica, scalars that are the same on all of them, as Keras can average them."""
        if not spans_workers(tf.distribute.get_strategy()):
            return logs
        return {name: tf.reshape(value, [1]) for name, value in logs.items()}

    def _get_metrics_result_or_logs(self, logs: dict[str, Any]) -> dict[str, Any]:
        """Takes an epoch's logs from the metrics of all replicas, as Keras does where each is of a metric."""
        return {**logs, **{name: value for name, value in self.get_metrics_result().items() if name in logs}}

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        strategy = self.distribute_strategy
        if iterator is not None and strategy.num_replicas_in_sync > 1:
            # Not of enumerate_epoch, which keeps the batch from the training (Keras 3.5 to 3.7).
            batches = next(iter(iterator._distributed_dataset))
            data_batch = keras.tree.map_structure(lambda value: strategy.experimental_local_results(value)[0], batches)
            iterator = None
        super()._maybe_symbolic_build(iterator=iterator, data_batch=data_batch)
