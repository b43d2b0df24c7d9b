"""Whether the replicas of a sharded layer fit together, found before they wait for one another in vain.

A collective of shapes or types that differ hangs, or ends a process. So the first one of a step is of a row of numbers
that is always of one shape and type: what must be the same everywhere, and which classes and samples are whose. Each
replica compares the rows of all, and if they do not fit, each raises the same error.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf

from lsoftmax_op import _terms
from lsoftmax_op._collectives import Replicas
from lsoftmax_op._tensors import FLOATS
from lsoftmax_op.margins import Margin

_NAMES = {
    "features.dtype": [dtype.name for dtype in FLOATS],
    "margin.continuation": ["unfolded", "linear"],
}


class Shards(NamedTuple):
    """What each replica has, in the order of the replicas."""

    first_classes: tf.Tensor  # [R], int64
    classes: tf.Tensor  # [R], int64, how many
    samples: tf.Tensor  # [R], int64, how many

    def own_rows(self, rows: tf.Tensor, replicas: Replicas, like: tf.Tensor) -> tf.Tensor:
        """Returns those of this replica, as many as `like` has, among the rows of all replicas' samples."""
        if replicas.count == 1:
            return rows
        first = tf.cumsum(self.samples, exclusive=True)[replicas.index]
        own = rows[first : first + tf.shape(like, tf.int64)[0]]
        return tf.ensure_shape(own, [like.shape[0], *rows.shape[1:]])


def of_margin(margin: Margin) -> dict[str, Any]:
    """Returns what replicas must agree in of a margin, by name."""
    attributes = _terms.attributes(margin)
    return {
        "margin.m1": margin.m1,
        "margin.m2": margin.m2,
        "margin.m3": margin.m3,
        "margin.scale": margin.scale,
        "margin.normalize_features": attributes["normalize_features"],
        "margin.normalize_weights": attributes["normalize_weights"],
        "margin.continuation": attributes["linear_continuation"],
    }


def agree(
    replicas: Replicas,
    features: tf.Tensor,
    weights: tf.Tensor,
    labels: tf.Tensor | None,
    first_class: tf.Tensor,
    num_classes: tf.Tensor,
    **same: Any,
) -> Shards:
    """Returns what each replica has, once they are known to fit together.

    Args:
        replicas: those of the step. Their next collective waits for the judgement.
        features: [N_r, D], this replica's samples.
        weights: [D, C_r], this replica's classes.
        labels: [N_r], or None.
        first_class: [], int64, the global class index of the first column.
        num_classes: [], int64, C of all replicas.
        same: further numbers that must be the same everywhere, by name.

    Raises:
        tf.errors.InvalidArgumentError: on every replica, when it runs: they do not agree, the shards do not tile the
            classes, or a label is none of them.
    """
    depth, classes = tf.unstack(tf.shape(weights, tf.int64), num=2)
    same = {
        "num_classes": num_classes,
        "features.dtype": FLOATS.index(features.dtype),
        "D, the features of a sample": depth,
        **same,
    }
    samples = tf.shape(features, tf.int64)[0]
    if replicas.is_compiled:  # by XLA, where there is one replica and nothing can raise an error
        return Shards(first_class[None], classes[None], samples[None])
    no_label = tf.constant([-1], tf.int64)
    labels = no_label if labels is None else tf.concat([tf.cast(labels, tf.int64), no_label], 0)
    own = [first_class, classes, samples, tf.reduce_min(labels), tf.reduce_max(labels)]
    row = tf.stack([_float64(value) for value in (*same.values(), *own)])
    table = replicas.table(tf.stop_gradient(row))
    shared, (first_classes, classes, samples, lowest, highest) = (
        tf.unstack(part, axis=1) for part in tf.split(table, [len(same), len(own)], axis=1)
    )

    differs = [~tf.reduce_all((v == v[0]) | (tf.math.is_nan(v) & tf.math.is_nan(v[0]))) for v in shared]
    order = tf.argsort(first_classes, stable=True)
    begins, ends = tf.gather(first_classes, order), tf.gather(first_classes + classes, order)
    bounds = tf.concat([[0.0], ends], 0), tf.concat([begins, shared[0][:1]], 0)
    no_tiling = ~tf.reduce_all(tf.concat([bounds[0] == bounds[1], classes >= 1], 0))
    bad_label = tf.reduce_any((lowest < -1) | (highest >= shared[0]))
    wrong = tf.stack([*differs, no_tiling, bad_label])

    def complain() -> tf.Tensor:
        sentences = [_sentence(name, values) for name, values in zip(same, shared, strict=True)]
        shown = (first_classes, classes, shared[0][0], lowest, highest)
        shown = tuple(tf.cast(numbers, tf.int64) for numbers in shown)
        tiling = (
            "first_class: expected the shards to tile the {} classes, got first_class {} with {} columns of weights"
        )
        sentences.append(_format(tiling, shown[2], shown[0], shown[1]))
        of_labels = "labels: expected values in [0, {}), or -1 for a row without a target, got values from {} to {}"
        sentences.append(_format(of_labels, shown[2], shown[3], shown[4]))
        text = tf.strings.reduce_join(tf.boolean_mask(tf.stack(sentences), wrong), separator="; ")
        failed = tf.debugging.Assert(False, [text, "(a number for each replica)"])
        with tf.control_dependencies([] if failed is None else [failed]):
            return tf.constant(False)

    judged = tf.cond(tf.reduce_any(wrong), complain, lambda: tf.constant(True))
    replicas.wait_for(judged)
    with tf.control_dependencies([judged]):
        return Shards(*(tf.cast(numbers, tf.int64) for numbers in (first_classes, classes, samples)))


def _float64(value: Any) -> tf.Tensor:
    if isinstance(value, (bool, int, float)):
        return tf.constant(value, tf.float64)
    return tf.cast(value, tf.float64)


def _sentence(name: str, values: tf.Tensor) -> tf.Tensor:
    sentence = name + ": expected the same on every replica, got "
    if name not in _NAMES:
        return _format(sentence + "{}", values)
    names = tf.gather(_NAMES[name], tf.cast(values, tf.int32))
    return tf.strings.join([sentence, "[", tf.strings.reduce_join(names, separator=" "), "]"])


def _format(template: str, *values: tf.Tensor) -> tf.Tensor:
    return tf.strings.format(template, values, summarize=-1)
