"""What a head of many classes costs, on paper: sizes of samples, the bytes of collectives, and of arrays.

No TensorFlow is needed.

With N samples and C classes of all R replicas, and D features. A ring passes a whole of B bytes around in R pieces:

    all-gather    each replica sends the pieces of all others but its neighbour's:        B (R - 1) / R bytes
    all-reduce    each piece goes round twice, once to be added up, once to be told:   2 B (R - 1) / R bytes

The two wholes with N D numbers are the features and their gradient. All others have O(N) numbers, but the rows' sums,
of which each shard has its own: 4 N R, or 4 R / D as many as the features. C is in none of them.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import NamedTuple

from lsoftmax_op import _checks

_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
_AGREEMENT = 18  # numbers of a replica that all compare before a step (_agreement.py)
_ROUNDING = Fraction(4, 2**52)  # a rate may be so far from what was meant, relative to it


def sample_size(num_classes: int, sample_rate: float) -> int:
    """Tells how many classes `sample_classes` takes, and `sharded_sample` of each replica's, unless more are labels.

    They are ceil(sample_rate C), up to rounding: where the product is an integer but for a few units in the last place
    of the rate, it is this integer. 0.07 of 100 classes are 7, though the float64 next to 0.07 is above it.

    Args:
        num_classes: C, an integer.
        sample_rate: in (0, 1].

    Returns:
        From 1 to C.

    Raises:
        TypeError, ValueError: an argument of the wrong type, or out of range.
    """
    num_classes = _checks.positive_integer(num_classes, "num_classes")
    exact = Fraction(_checks.sample_rate(sample_rate)) * num_classes
    nearest = round(exact)
    return nearest if abs(exact - nearest) <= _ROUNDING * exact else math.ceil(exact)


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
    sample_rate: float = 1.0,
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
        sample_rate: as for `sharded_sample`. Below 1 its collectives come before the others, of as many bytes at any
            rate; with 1 it is taken not to be called, as nothing is sampled.

    Returns:
        The collectives; none with one replica. tf.distribute's own, which asks for the shapes before each gather, are
        not among them: a few numbers a replica.

    Raises:
        TypeError, ValueError: a size that is no positive integer, another dtype, or a rate out of range.
    """
    rows, depth, _, replicas = _sizes(num_samples, depth, num_classes, replicas)
    own, rate = _bytes(dtype), _checks.sample_rate(sample_rate)
    if replicas == 1:
        return ()
    of_samples = (
        _all_reduce("shards to sample from", 3 * replicas, 8, replicas),
        _all_gather("labels to sample", rows, 8, replicas),
        _all_reduce("sizes of the samples", replicas, 8, replicas),
        _all_reduce("places of the labels", rows, 8, replicas),
    )
    return (
        *(of_samples if rate < 1 else ()),
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
        TypeError, ValueError: a size that is no positive integer, another dtype, or a rate out of range.
    """
    rows, depth, classes, replicas = _sizes(num_samples, depth, num_classes, replicas)
    own, rate = _bytes(dtype), _checks.sample_rate(sample_rate)
    of_replica = -(-classes // replicas)
    taken = sample_size(of_replica, rate)
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
