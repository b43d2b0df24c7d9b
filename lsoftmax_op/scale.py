"""What a sharded head costs, on paper: the bytes of its collectives, and of its arrays. No TensorFlow is needed.

With N samples and C classes of all R replicas, and D features. A ring passes a whole of B bytes around in R pieces:

    all-gather    each replica sends the pieces of all others but its neighbour's:        B (R - 1) / R bytes
    all-reduce    each piece goes round twice, once to be added up, once to be told:   2 B (R - 1) / R bytes

The two wholes with N D numbers are the features and their gradient. All others have O(N) numbers, but the rows' sums,
of which each shard has its own: 4 N R, or 4 R / D as many as the features. C is in none of them.
"""

from __future__ import annotations

from typing import NamedTuple

from lsoftmax_op import _checks

_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
_AGREEMENT = 18  # numbers of a replica that all compare before a step (_agreement.py)


class Collective(NamedTuple):
    """One of a step's collectives."""

    name: str
    """What of."""
    kind: str
    """"all-gather" or "all-reduce"."""
    numbers: int
    """How many the whole has, that each replica has afterwards."""
    sent: int
    """The bytes that each replica sends, and receives, on a ring."""


def communication(
    num_samples: int,
    depth: int,
    num_classes: int,
    replicas: int,
    dtype: str = "float32",
    *,
    bias: bool = False,
    label_smoothing: bool = False,
) -> tuple[Collective, ...]:
    """Tells the collectives of a step with `lsoftmax_op.sharded_loss` and its gradient, in their order.

    Args:
        num_samples: N, of all replicas, which have equal parts of them: a gather passes parts as large as the largest.
        depth: D, the features of a sample.
        num_classes: C, of all replicas. No collective depends on it.
        replicas: R.
        dtype: of the features, "float16", "bfloat16", "float32" or "float64". The gradient of a half travels as
            float32, the numbers of a row as float64.
        bias: whether there is one.
        label_smoothing: whether labels are smoothed.

    Returns:
        The collectives; none with one replica. tf.distribute's own, which asks for the shapes before each gather, are
        not among them: a few numbers a replica.

    Raises:
        TypeError, ValueError: a size that is no positive integer, or another dtype.
    """
    rows, depth, _, replicas = _sizes(num_samples, depth, num_classes, replicas)
    own = _bytes(dtype)
    if replicas == 1:
        return ()
    return (
        _all_reduce("agreement", _AGREEMENT * replicas, 8, replicas),
        _all_gather("features", rows * depth, own, replicas),
        _all_gather("labels", rows, 8, replicas),
        _all_reduce("geometry", (4 if bias else 3) * rows, 8, replicas),
        _all_gather("sums", (5 if label_smoothing else 4) * rows * replicas, 8, replicas),
        _all_gather("upstream gradient", rows, own, replicas),
        _all_reduce("gradient of the features", rows * depth, max(own, 4), replicas),
    )


class Memory(NamedTuple):
    """The bytes of a replica's large arrays in a step."""

    weights: int
    """This replica's columns, D C / R numbers."""
    gradient: int
    """Theirs, of as many."""
    slots: int
    """Those of the optimizer."""
    products: int
    """N C / R numbers, or N B with blocks of B classes; of samples K / R."""
    features: int
    """Those of all replicas, scaled, and their gradient: 3 N D."""

    @property
    def total(self) -> int:
        """Their sum."""
        return sum(self)


def memory(
    num_samples: int,
    depth: int,
    num_classes: int,
    replicas: int,
    dtype: str = "float32",
    *,
    slots: int = 2,
    class_block_size: int | None = None,
    sample_rate: float = 1.0,
) -> Memory:
    """Tells the memory that the head of one replica takes at the peak of a step.

    Args:
        num_samples: N, of all replicas.
        depth: D, the features of a sample.
        num_classes: C, of all replicas, which have equal parts of them; the last may have fewer.
        replicas: R.
        dtype: of features, weights and slots.
        slots: the numbers that the optimizer keeps for each weight: 2 for Adam, 1 for momentum, 0.
        class_block_size: as for `sharded_loss`.
        sample_rate: the share of the classes that a step computes with, as for `sharded_sample`. The gradient is of
            these alone, beside a copy of their weights.

    Returns:
        The bytes of each kind of array.

    Raises:
        TypeError, ValueError: a size that is no positive integer, or another dtype.
    """
    rows, depth, classes, replicas = _sizes(num_samples, depth, num_classes, replicas)
    own, rate = _bytes(dtype), _checks.sample_rate(sample_rate)
    of_replica = -(-classes // replicas)
    taken = min(of_replica, round(rate * of_replica))
    width = taken if class_block_size is None else min(taken, class_block_size)
    weights = depth * of_replica * own
    copies = 0 if rate == 1 else depth * taken * own
    return Memory(
        weights=weights,
        gradient=depth * taken * own + copies,
        slots=slots * weights,
        products=rows * width * own,
        features=3 * rows * depth * own,
    )


def _all_gather(name: str, numbers: int, width: int, replicas: int) -> Collective:
    return Collective(name, "all-gather", numbers, numbers * width * (replicas - 1) // replicas)


def _all_reduce(name: str, numbers: int, width: int, replicas: int) -> Collective:
    return Collective(name, "all-reduce", numbers, 2 * numbers * width * (replicas - 1) // replicas)


def _sizes(num_samples: int, depth: int, num_classes: int, replicas: int) -> list[int]:
    sizes = {"num_samples": num_samples, "depth": depth, "num_classes": num_classes, "replicas": replicas}
    return [_checks.positive_integer(value, name) for name, value in sizes.items()]


def _bytes(dtype: str) -> int:
    if dtype not in _BYTES:
        raise ValueError(f"dtype: expected {' or '.join(_BYTES)}, got {_checks.shown(dtype)}")
    return _BYTES[dtype]
