"""``python tests/sharded_mistakes.py PART REPLICAS``: what is said where shards do not fit together. Prints JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import tensorflow as tf
from sharded_program import CLASSES, DEPTH, WHOLE, Team
from support import KINDS, random_batch

import lsoftmax_op


def complaint(team: Team, spoil: Callable, dtype: str = "float32", is_compiled: bool = False, **settings: Any) -> str:
    """Returns the error of a step of whose arguments one replica's were spoilt."""
    batch = random_batch((team.rows, DEPTH, CLASSES), dtype)
    last = team.replicas - 1

    def step(*arguments: Any) -> Any:
        names = ("features", "weights", "labels", "bias", "first_class", "upstream")
        call = {**dict(zip(names, arguments, strict=True)), "num_classes": CLASSES, "margin": 3, **settings}
        call.pop("upstream")
        return (lsoftmax_op.sharded_loss(**(spoil(call) if team.replica() == last else call)),)

    arguments = team.shards(batch)
    function = tf.function(
        lambda: team.strategy.run(step, args=tuple(arguments)), autograph=False, jit_compile=is_compiled or None
    )
    try:
        function()
    except (tf.errors.InvalidArgumentError, ValueError, TypeError, NotImplementedError) as error:
        return str(error)
    return "no error"


def second_order(team: Team) -> str:
    """Returns the error of a gradient of a gradient."""

    def step(x: Any, w: Any, y: Any, b: Any, first: Any, upstream: Any) -> Any:
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                loss = lsoftmax_op.sharded_loss(x, w, y, first_class=first, num_classes=CLASSES)
            gradient = inner.gradient(loss, x)
        return (outer.gradient(gradient, x),)

    try:
        team.run(step, *team.shards(random_batch((team.rows, DEPTH, CLASSES), "float32")))
    except LookupError as error:
        return str(error)
    return "no error"


def cross_replica(team: Team) -> str:
    """Returns the error of a call outside of a replica's function."""
    batch = random_batch((3, DEPTH, CLASSES), "float32")
    try:
        with team.strategy.scope():
            lsoftmax_op.sharded_loss(batch.features, batch.weights, batch.labels, **WHOLE)
    except RuntimeError as error:
        return str(error)
    return "no error"


def one_feature_more(call: dict[str, Any]) -> dict[str, Any]:
    """A replica whose D is larger."""
    features, weights = tf.pad(call["features"], [[0, 0], [0, 1]]), tf.pad(call["weights"], [[0, 1], [0, 0]])
    return {**call, "features": features, "weights": weights}


def errors(team: Team) -> dict[str, str]:
    """What is said where replicas do not fit together."""

    def of(**wrong: Any) -> Callable:
        return lambda call: {**call, **wrong}

    def in_bfloat16(call: dict[str, Any]) -> dict[str, Any]:
        return {**call, **{name: tf.cast(call[name], tf.bfloat16) for name in ("features", "weights", "bias")}}

    without_bias = {"bias": None, "margin": KINDS[1]}
    return {
        "num_classes": complaint(team, of(num_classes=CLASSES + 1)),
        "depth": complaint(team, one_feature_more),
        "dtype": complaint(team, in_bfloat16),
        "margin": complaint(team, of(margin=4)),
        "scale": complaint(team, of(margin=lsoftmax_op.margins.CosFace(0.35, 17)), **without_bias),
        "lambda": complaint(team, of(lam=1.0)),
        "smoothing": complaint(team, of(label_smoothing=0.1)),
        "bias": complaint(team, of(bias=None)),
        "first_class": complaint(team, lambda call: {**call, "first_class": call["first_class"] - 1}),
        "too few": complaint(team, of(), num_classes=CLASSES + 1),
        "label": complaint(team, lambda call: {**call, "labels": tf.fill(tf.shape(call["labels"]), 11)}),
        "negative label": complaint(team, lambda call: {**call, "labels": tf.fill(tf.shape(call["labels"]), -2)}),
        "no class": complaint(team, lambda call: {**call, "weights": call["weights"][:, :0], "bias": None}),
        "compiled": complaint(team, of(), is_compiled=True),
        "second order": second_order(team),
        "cross-replica": cross_replica(team),
    }


def disagreement(team: Team) -> dict[str, Any]:
    """One worker's features are wider."""
    return {"depth": complaint(team, one_feature_more)}


PARTS = {"errors": errors, "disagreement": disagreement}

if __name__ == "__main__":
    print(json.dumps(PARTS[sys.argv[1]](Team(int(sys.argv[2])))))
