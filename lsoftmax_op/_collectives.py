"""The replicas of a strategy that take one step together, and what they tell one another: sums and rows.

Nothing here moves bytes. Each call is one of ``tf.distribute``'s collectives, over gRPC between CPUs and over NCCL
between GPUs; and each waits for the one before, so that all replicas take them in the same order.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf
from tensorflow.python.ops import control_flow_util


def is_compiled() -> bool:
    """Whether XLA compiles the function that is being traced."""
    return bool(control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph()))


class Replicas:
    """Those of the replica context that a function is called in.

    Attributes:
        count: how many there are.
    """

    def __init__(self, function: str) -> None:
        """Finds them.

        Args:
            function: who asks, for the error.

        Raises:
            RuntimeError: there is no replica context here.
            NotImplementedError: XLA compiles this function, and there is more than one replica.
        """
        self._function = function
        self._last: tf.Tensor | None = None
        context = self._context()
        self.count: int = context.num_replicas_in_sync
        self.is_compiled = is_compiled()
        if self.is_compiled and self.count > 1:
            raise NotImplementedError(
                f"{function}: expected a function without jit_compile=True, got one: XLA cannot compile the "
                f"collectives of {self.count} replicas. Compile what comes before and after instead"
            )

    def wait_for(self, tensor: tf.Tensor) -> None:
        """Has the next collective wait for a tensor."""
        self._last = tensor

    def sum(self, value: tf.Tensor) -> tf.Tensor:
        """Returns the sum of all replicas' values, which have one shape."""
        if self.count == 1:
            return value
        total = self._in_turn(value, lambda own: self._context().all_reduce(tf.distribute.ReduceOp.SUM, own))
        return tf.ensure_shape(total, value.shape)

    def rows(self, value: tf.Tensor) -> tf.Tensor:
        """Returns the rows of all replicas' values, replica by replica: [sum of n_r, ...] from [n_r, ...]."""
        if self.count == 1:
            return value
        # A gather moves bits, and that of TensorFlow knows no bfloat16.
        carried = tf.bitcast(value, tf.float16) if value.dtype == tf.bfloat16 else value
        rows = self._in_turn(carried, lambda own: self._context().all_gather(own, axis=0))
        if value.dtype == tf.bfloat16:
            rows = tf.bitcast(rows, tf.bfloat16)
        return tf.ensure_shape(rows, [None, *value.shape[1:]])

    def stacked(self, value: tf.Tensor) -> tf.Tensor:
        """Returns all replicas' values, [R, ...] from [...], which have one shape."""
        stacked = self.rows(value[None])
        return tf.ensure_shape(stacked, [self.count, *value.shape])

    def table(self, row: tf.Tensor) -> tf.Tensor:
        """Returns a few numbers of every replica, [R, K] from [K], by one sum: without first asking for shapes."""
        if self.count == 1:
            return row[None]
        own = tf.cast(tf.reshape(self.index, [1, 1]), tf.int32)
        return self.sum(tf.scatter_nd(own, row[None], [self.count, *row.shape]))

    @property
    def index(self) -> tf.Tensor:
        """This replica's place among them."""
        return tf.convert_to_tensor(self._context().replica_id_in_sync_group)

    def _in_turn(self, value: tf.Tensor, collective: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
        with tf.control_dependencies([] if self._last is None else [self._last]):
            value = tf.identity(tf.stop_gradient(value))
        self._last = collective(value)
        return self._last

    def _context(self) -> tf.distribute.ReplicaContext:
        context = tf.distribute.get_replica_context()
        if context is None:
            strategy = type(tf.distribute.get_strategy()).__name__
            raise RuntimeError(
                f"{self._function}: expected a replica context, got the cross-replica context of {strategy}: call it, "
                "and differentiate it, in a function that you give to strategy.run"
            )
        return context
