"""The classes that one replica has, and no other: their rows of W, and how these begin.

    C = q R + e      shard r of R has q + 1 classes for r < e, and q for the others, in the order of the classes
    W                [C_r, D], a row for each class: a column of a Dense kernel

The first values are drawn block by block of `BLOCK` classes, each with a seed of its own, so that a class begins with
the same numbers whoever has it.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import keras
import numpy as np
import tensorflow as tf

BLOCK = 2**16

T = TypeVar("T")


class Range(NamedTuple):
    """Consecutive classes."""

    first: int
    size: int


def ranges(num_classes: int, shards: int) -> list[Range]:
    """Returns the classes of each shard.

    Raises:
        ValueError: there are more shards than classes.
    """
    if num_classes < shards:
        raise ValueError(f"num_classes: expected at least one for each of the {shards} replicas, got {num_classes}")
    counts = [num_classes // shards + (shard < num_classes % shards) for shard in range(shards)]
    return [Range(sum(counts[:shard]), counts[shard]) for shard in range(shards)]


def local_ranges(num_classes: int, strategy: tf.distribute.Strategy) -> list[tuple[Range, str | None]]:
    """Returns the classes of each replica of this process, and the device that it computes on, None for the default.

    Raises:
        ValueError: there are more replicas than classes.
    """
    every = ranges(num_classes, strategy.num_replicas_in_sync)
    if len(every) == 1 and strategy is without_scopes(tf.distribute.get_strategy):
        return [(every[0], None)]

    @tf.function
    def replica_ids() -> Any:
        return strategy.run(lambda: tf.identity(tf.distribute.get_replica_context().replica_id_in_sync_group))

    ids = strategy.experimental_local_results(without_scopes(replica_ids))
    return [(every[int(one)], device) for one, device in zip(ids, strategy.extended.worker_devices, strict=True)]


def replica_of_process(replicas_of_process: int) -> int:
    """Returns which of this process' replicas the function runs in that is being traced or executed.

    Raises:
        RuntimeError: it runs in none, but between them.
    """
    context = tf.distribute.get_replica_context()
    if context is None:
        strategy = type(tf.distribute.get_strategy()).__name__
        raise RuntimeError(f"expected a replica context, got the cross-replica context of {strategy}: use strategy.run")
    return int(tf.get_static_value(context.replica_id_in_sync_group)) % replicas_of_process


def without_scopes(function: Callable[[], T]) -> T:
    """Returns what a function returns, run eagerly and out of every scope: the variables it makes are no strategy's.

    The scopes of strategies, graphs and Keras are those of a thread, and so another thread is outside of all.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(function).result()


def first_rows(initializer: Any, classes: Range, num_classes: int, depth: int, dtype: str, seed: int) -> np.ndarray:
    """Returns the rows that classes begin with.

    Args:
        initializer: as `drawn_by_class` returns it.
        classes: which.
        num_classes: C, how many there are together.
        depth: D.
        dtype: of the rows.
        seed: that of the model.

    Returns:
        [size, D], for the same class the same row however the classes are shared out.
    """
    rows = np.empty([classes.size, depth], tf.as_dtype(dtype).as_numpy_dtype)
    end = classes.first + classes.size
    for block in range(classes.first // BLOCK, -(-end // BLOCK)):
        first, last = block * BLOCK, min((block + 1) * BLOCK, num_classes)
        drawn = np.asarray(_of_block(initializer, num_classes, last - first, depth, dtype, seed, block))
        begin, stop = max(first, classes.first), min(last, end)
        rows[begin - classes.first : stop - classes.first] = drawn[begin - first : stop - first]
    return rows


def drawn_by_class(initializer: Any) -> keras.initializers.Initializer:
    """Returns an initializer that was looked at: it must draw each number alone.

    Raises:
        TypeError: it is another one, such as an orthogonal one, which needs all rows at once.
    """
    known = keras.initializers
    kinds = (known.VarianceScaling, known.RandomNormal, known.RandomUniform, known.TruncatedNormal, known.Constant)
    found = known.get(initializer)
    if not isinstance(found, (*kinds, known.Zeros, known.Ones)):
        raise TypeError(
            "kernel_initializer: expected a constant, normal, uniform or variance-scaling one, which draws every "
            f"number alone, got {initializer!r}"
        )
    return found


def _of_block(
    initializer: Any, num_classes: int, count: int, depth: int, dtype: str, seed: int, block: int
) -> tf.Tensor:
    """Draws the rows of a block, with the variance that the whole kernel [D, C] would have."""
    kind, config = type(initializer), initializer.get_config()
    if isinstance(initializer, keras.initializers.VarianceScaling):
        kind = keras.initializers.VarianceScaling
        # The variance is scale / fan. The fan of the kernel is not that of the block, whose fan_in is `count`.
        fan = {"fan_in": depth, "fan_out": num_classes, "fan_avg": (depth + num_classes) / 2}[initializer.mode]
        config = {"scale": initializer.scale * count / fan, "distribution": initializer.distribution, "seed": None}
    if "seed" in config:
        config["seed"] = int(np.random.SeedSequence([seed, block]).generate_state(1)[0] >> 1)
    return kind.from_config(config)((count, depth), dtype=dtype)
