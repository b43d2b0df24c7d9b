"""``python tests/sharded_program.py PART REPLICAS``: what shards compute beside one replica with the joined batch.

REPLICAS is the number of logical CPUs of a MirroredStrategy, or 0: the workers of TF_CONFIG. Prints JSON.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import tensorflow as tf
from support import KINDS, Batch, random_batch, worst

import lsoftmax_op
from lsoftmax_op import _collectives, filtering, ops, sampling, sharded
from lsoftmax_op.margins import ArcFace

DEPTH, CLASSES = 5, 11
SHARES = {2: ([7, 4], [6, 3]), 4: ([4, 1, 3, 3], [5, 0, 1, 4])}  # of the classes and of the samples, by replicas
CLUSTERS, MATES = 16, 8  # classes of a cluster compete, others are at right angles
CLUSTERED = {2: [70, 58], 4: [40, 32, 30, 26]}
FILTERED = {
    "columns": {},
    "rows": {"class_major": True},
    "ArcFace": {"margin": ArcFace(0.2, 60), "class_major": True},
    "bias": {"has_bias": True},
}
UNFILTERED = {"not wanted": {"filter": False}, "smoothed": {"label_smoothing": 0.1}}
WHOLE = {"first_class": 0, "num_classes": 7}  # of a single replica
CASES = {
    **{f"{dtype}": {"dtype": dtype} for dtype in ("float16", "bfloat16", "float32", "float64")},
    **{f"kind {n}": {"margin": kind, "has_bias": not kind.has_factors} for n, kind in enumerate(KINDS) if n % 2},
    "lambda": {"lam": 0.7},
    "no margin": {"margin": 1, "has_bias": False},
    "smoothed": {"label_smoothing": 0.2, "has_bias": False},
    "smoothed ArcFace": {"label_smoothing": 0.2, "margin": KINDS[2], "has_bias": False},
    "blocks": {"class_block_size": 2},
    "blocks of ArcFace": {"class_block_size": 2, "margin": KINDS[2], "has_bias": False},
    "blocks of float16": {"class_block_size": 2, "dtype": "float16"},
    "class-major": {"class_major": True},
    "class-major ArcFace": {"class_major": True, "margin": KINDS[2], "has_bias": False},
    "blocks of class-major": {"class_major": True, "class_block_size": 2},
    "equal logits": {"spoil": "flat"},
    "a row of NaN": {"spoil": "nan"},
    "classes at -inf": {"spoil": "masked"},
}


class Team:
    """A strategy, and what each of its replicas has."""

    def __init__(self, replicas: int) -> None:
        if replicas:
            (cpu,) = tf.config.list_physical_devices("CPU")
            tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * replicas)
            self.strategy = tf.distribute.MirroredStrategy([f"CPU:{n}" for n in range(replicas)])
            self.own = list(range(replicas))
        else:
            self.strategy = tf.distribute.MultiWorkerMirroredStrategy()
            self.own = [self.strategy.cluster_resolver.task_id]
        self.replicas = self.strategy.num_replicas_in_sync
        self.classes, self.samples = (np.cumsum([0, *share]) for share in SHARES[self.replicas])
        self.rows = int(self.samples[-1])

    def each(self, of_replica: Callable[[int], Any]) -> Any:
        """Returns a value for each replica of this process, as strategy.run takes it."""
        first = self.own[0]

        def component(context: tf.distribute.InputReplicaContext | Any) -> Any:
            return of_replica(first + context.replica_id_in_sync_group if len(self.own) > 1 else first)

        return self.strategy.experimental_distribute_values_from_function(component)

    def run(self, step: Callable, *arguments: Any, is_eager: bool = False) -> list[Any]:
        """Returns what each replica of this process returns."""
        if is_eager:
            results = self.strategy.run(step, args=arguments)
        else:
            results = tf.function(lambda: self.strategy.run(step, args=arguments), autograph=False)()
        per_part = [self.strategy.experimental_local_results(part) for part in results]
        return [tuple(part.numpy() for part in of_replica) for of_replica in zip(*per_part, strict=True)]

    def rows_of(self, replica: int) -> slice:
        """The samples of a replica among those of all."""
        return slice(self.samples[replica], self.samples[replica + 1])

    def columns_of(self, replica: int) -> slice:
        """The classes of a replica."""
        return slice(self.classes[replica], self.classes[replica + 1])

    def shards(self, batch: Any) -> list[Any]:
        """Returns features, weights, labels, bias, first_class and the upstream gradient of each replica."""

        def each(array: np.ndarray, of: Callable[[int], slice]) -> Any:
            return self.each(lambda replica: tf.constant(array[..., of(replica)]))

        features = self.each(lambda replica: tf.constant(batch.features[self.rows_of(replica)]))
        weights, bias = each(batch.weights, self.columns_of), each(batch.bias, self.columns_of)
        labels, upstream = each(batch.labels, self.rows_of), each(batch.loss_grad, self.rows_of)
        first = self.each(lambda replica: tf.constant(self.classes[replica]))
        return [features, weights, labels, bias, first, upstream]

    def replica(self) -> int:
        """Returns which replica the function runs as that strategy.run was given."""
        own = tf.distribute.get_replica_context().replica_id_in_sync_group
        return self.own[0] if len(self.own) == 1 else int(tf.get_static_value(own))


def joined(batch: Any, has_bias: bool, **settings: Any) -> list[np.ndarray]:
    """Returns loss, predicted and gradients of one replica with all samples and classes."""
    x, w, b = tf.constant(batch.features), tf.constant(batch.weights), tf.constant(batch.bias)
    with tf.GradientTape() as tape:
        tape.watch([x, w, b])
        layer = ops.loss_layer(x, w, batch.labels, b if has_bias else None, **settings)
    gradients = tape.gradient(layer.loss, [x, w, b], output_gradients=batch.loss_grad, unconnected_gradients="zero")
    return [np.asarray(part) for part in (*layer, *gradients)]


def errors_of(team: Team, case: dict[str, Any], is_eager: bool = False) -> dict[str, float]:
    """Returns how far each part of a case is from one replica's, relative to its largest entry."""
    batch, settings = arguments_of(team, case)
    want = joined(batch, **{**settings, "class_major": False})
    names = ("loss", "predicted", "features_grad", "weights_grad", "bias_grad")
    found: dict[str, float] = {}
    for replica, got in zip(team.own, parts_of(team, batch, settings, is_eager), strict=True):
        rows, columns = team.rows_of(replica), team.columns_of(replica)
        own = (want[0][rows], want[1][rows], want[2][rows], want[3][:, columns], want[4][columns])
        for name, one, expected, whole in zip(names, got, own, want, strict=True):
            found[name] = worst([found.get(name, 0.0), error_of(one, expected, whole)])
    return found


def arguments_of(team: Team, case: dict[str, Any]) -> tuple[Batch, dict[str, Any]]:
    """Returns the batch of all replicas, and what the layer is told."""
    case = dict(case)
    has_bias, spoil = case.pop("has_bias", True), case.pop("spoil", "")
    batch = random_batch((team.rows, DEPTH, CLASSES), case.pop("dtype", "float64"), seed=len(case))
    if spoil == "flat":
        batch.features[:], batch.bias[:] = 0, 0
    elif spoil == "nan":
        batch.features[1] = np.nan
    elif spoil == "masked":  # all of the first shard's, which are no labels
        masked = team.columns_of(0)
        batch.bias[masked] = -np.inf
        batch.labels[(masked.start <= batch.labels) & (batch.labels < masked.stop)] = -1
    return batch, {"has_bias": has_bias, "margin": 4, "lam": 0.0, **case}


def parts_of(team: Team, batch: Batch, settings: dict[str, Any], is_eager: bool = False) -> list[Any]:
    """Returns what each replica of this process computes: loss, predicted and gradients, the weights' as [D, C_r]."""
    settings = dict(settings)
    has_bias, class_major = settings.pop("has_bias"), settings.get("class_major", False)

    def step(x: Any, w: Any, y: Any, b: Any, first: Any, upstream: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch([x, w, b])
            bias, own = b if has_bias else None, tf.transpose(w) if class_major else w
            shard = {"first_class": first, "num_classes": int(team.classes[-1])}
            layer = sharded.sharded_layer(x, own, y, bias, **shard, **settings)
        gradients = tape.gradient(layer.loss, [x, w, b], output_gradients=upstream, unconnected_gradients="zero")
        return (*layer, *gradients)

    return team.run(step, *team.shards(batch), is_eager=is_eager)


def error_of(got: np.ndarray, expected: np.ndarray, whole: np.ndarray) -> float:
    """Returns how far a part is from what it should be, relative to the largest entry of the whole."""
    assert got.shape == expected.shape, (got.shape, expected.shape)
    one, other = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    alike = (one == other) | (np.isnan(one) & np.isnan(other))
    size = max(np.nanmax(np.abs(whole.astype(np.float64)), initial=0), 1e-30)
    return float(np.where(alike, 0, np.abs(one - other)).max(initial=0) / size)


def below_rounding(team: Team) -> dict[str, Any]:
    """Gradients that leave out classes: beside those of all, and which they are beside those of one replica."""
    team = copy.copy(team)
    team.classes = np.cumsum([0, *CLUSTERED[team.replicas]])
    batch = clustered(team.rows)
    x, w, y, b = batch.layer
    found = {}
    for name, case in {**FILTERED, **UNFILTERED}.items():
        settings = {"has_bias": False, "margin": 4, "lam": 0.0, **case}
        alone = {**settings, "class_major": False}
        dense = joined(batch, **{**alone, "filter": False})

        def count(x: Any, w: Any, y: Any, b: Any, first: Any, upstream: Any, settings: dict = settings) -> Any:
            class_major = settings.get("class_major", False)
            own = tf.transpose(w) if class_major else w
            shard = {"first_class": first, "num_classes": CLUSTERS * MATES, "class_major": class_major}
            bias = b if settings["has_bias"] else None
            return (lsoftmax_op.kept_classes(x, own, y, bias, **shard, margin=settings["margin"]),)

        with mock.patch.multiple(filtering, LEAST_CLASSES=1, LEAST_WEIGHTS=1):
            one = joined(batch, **alone)
            parts = parts_of(team, batch, settings)
            counts = team.run(count, *team.shards(batch))
        replicas = []
        for replica, got, (kept,) in zip(team.own, parts, counts, strict=True):
            columns = team.columns_of(replica)
            left_out, by_one = (np.flatnonzero(~g.any(axis=0)).tolist() for g in (got[3], one[3][:, columns]))
            of_features = error_of(got[2], dense[2][team.rows_of(replica)], dense[2])
            of_classes = (error_of(got[n], dense[n][..., columns], dense[n]) for n in (3, 4))
            errors = [of_features, *of_classes]
            replicas.append({"errors": errors, "kept": int(kept), "left_out": left_out, "by_one": by_one})
        found[name] = {
            "replicas": replicas,
            "kept_by_one": int(
                lsoftmax_op.kept_classes(x, w, y, b if settings["has_bias"] else None, margin=settings["margin"])
            ),
            "left_out_of_all": int((~dense[3].any(axis=0)).sum()),
        }
    return found


def clustered(rows: int) -> Batch:
    """Returns samples of the first and of the last cluster: the classes of the others are far below rounding."""
    rng = np.random.default_rng(0)
    directions = np.linalg.qr(rng.normal(size=(CLUSTERS, CLUSTERS)))[0]
    classes = np.repeat(directions, MATES, axis=0) + 0.04 * rng.normal(size=(CLUSTERS * MATES, CLUSTERS))
    labels = rng.integers(0, MATES, rows) + np.arange(rows) % 2 * (CLUSTERS - 1) * MATES
    features = 60 * (classes[labels] + 0.02 * rng.normal(size=(rows, CLUSTERS)))
    labels[::9] = -1
    arrays = (features, classes.T, np.zeros(CLUSTERS * MATES), rng.normal(size=(rows, CLUSTERS * MATES)))
    x, w, b, g = (array.astype(np.float32) for array in arrays)
    return Batch(x, w, labels, b, g)


def training(team: Team, steps: int = 50) -> dict[str, Any]:
    """A backbone of one dense layer and a head, by gradient descent with momentum: weights after 50 steps."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(steps, team.rows, 3)).astype(np.float32)
    labels = rng.integers(-1, CLASSES, (steps, team.rows))
    start = rng.normal(size=(3, DEPTH)).astype(np.float32), rng.normal(size=(DEPTH, CLASSES)).astype(np.float32)
    settings = {"margin": 3, "lam": 0.5}

    def trained(loss_of: Callable, backbone: tf.Variable, head: tf.Variable, batches: Any, total: Callable) -> None:
        for x, y in batches:
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(loss_of(tf.tanh(x @ backbone), head, y)) / team.rows
            of_backbone, of_head = tape.gradient(loss, [backbone, head])
            backbone.assign_sub(0.1 * total(of_backbone))
            head.assign_sub(0.1 * of_head)

    one = [tf.Variable(array) for array in start]
    everything = list(zip(inputs, labels, strict=True))
    trained(lambda x, w, y: lsoftmax_op.lsoftmax_loss(x, w, y, **settings), *one, everything, lambda g: g)

    backbones = {r: tf.Variable(start[0]) for r in team.own}
    heads = {r: tf.Variable(start[1][:, team.columns_of(r)]) for r in team.own}

    def step(x: tf.Tensor, y: tf.Tensor) -> None:
        context = tf.distribute.get_replica_context()
        replica = team.replica()
        own = {"first_class": int(team.classes[replica]), "num_classes": CLASSES, **settings}

        def loss(x: tf.Tensor, w: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
            return lsoftmax_op.sharded_loss(x, w, y, **own)

        trained(loss, backbones[replica], heads[replica], [(x, y)], lambda g: context.all_reduce("SUM", g))

    @tf.function
    def distributed(x: Any, y: Any) -> None:
        team.strategy.run(step, args=(x, y))

    for x, y in everything:
        distributed(
            team.each(lambda r, x=x: tf.constant(x[team.rows_of(r)])),
            team.each(lambda r, y=y: tf.constant(y[team.rows_of(r)])),
        )
    moved = np.abs(one[1].numpy() - start[1]).max()
    backbone = worst(np.abs(backbones[r].numpy() - one[0].numpy()).max() for r in team.own)
    head = worst(np.abs(heads[r].numpy() - one[1].numpy()[:, team.columns_of(r)]).max() for r in team.own)
    return {"moved": float(moved), "backbone": backbone, "head": head}


def top_k(team: Team) -> dict[str, Any]:
    """The largest logits, with ties, and where a shard has fewer classes than are asked for."""
    found = {}
    for name, k, is_flat in (("one", 1, False), ("five", 5, False), ("ties", 5, True), ("all", CLASSES, False)):
        batch = random_batch((team.rows, DEPTH, CLASSES), "float64")
        if is_flat:
            batch.features[:], batch.bias[:] = 0, 0
        want = tf.math.top_k(batch.features @ batch.weights + batch.bias, k)

        def step(x: Any, w: Any, y: Any, b: Any, first: Any, upstream: Any, k: int = k) -> Any:
            return tuple(sharded.sharded_top_k(x, w, b, first_class=first, num_classes=CLASSES, k=k))

        errors = {"logits": 0.0, "classes": 0.0}
        for replica, got in zip(team.own, team.run(step, *team.shards(batch)), strict=True):
            for part, one, expected in zip(errors, got, want, strict=True):
                error = np.abs(one - expected.numpy()[team.rows_of(replica)]).max(initial=0)
                errors[part] = worst([errors[part], error])
        found[name] = errors
    return found


def traffic(team: Team) -> dict[str, Any]:
    """The bytes of the whole that each collective of a step is of: those that come, and those of `communication`."""
    found = {}
    for dtype, rate in (("float32", 1.0), ("bfloat16", 1.0), ("float32", 0.5)):
        arrived: dict[int, list] = {replica: [] for replica in team.own}

        class Counting(_collectives.Replicas):
            def _in_turn(self, *arguments: Any, arrived: dict = arrived) -> tf.Tensor:
                whole = super()._in_turn(*arguments)
                arrived[team.replica()].append(whole.dtype.size * tf.size(whole))
                return whole

        def step(arrived: dict = arrived, dtype: str = dtype, rate: float = rate) -> Any:
            replica = team.replica()
            x, w, b = tf.ones([3, DEPTH], dtype), tf.ones([DEPTH, 2], dtype), tf.zeros([2], dtype)
            y = tf.zeros([3], tf.int64)
            shard = {"first_class": 2 * replica, "num_classes": 2 * team.replicas}
            if rate < 1:
                of_sample = {"num_columns": 2, "sample_rate": rate, "seed": [1, 2]}
                sampled = lsoftmax_op.sharded_sample(y, first_class=2 * replica, **of_sample)
                w, b, y = tf.gather(w, sampled.columns, axis=1), tf.gather(b, sampled.columns), sampled.labels
                shard = {"first_class": sampled.first_class, "num_classes": sampled.num_classes}
            with tf.GradientTape() as tape:
                tape.watch([x, w])
                loss = lsoftmax_op.sharded_loss(x, w, y, b, **shard)
            tape.gradient(loss, [x, w])
            return (tf.stack(arrived[replica]),)

        with mock.patch.object(sharded, "Replicas", Counting), mock.patch.object(sampling, "Replicas", Counting):
            ((came,), *_) = team.run(step)
        sizes = (3 * team.replicas, DEPTH, 2 * team.replicas, team.replicas)
        told = lsoftmax_op.communication(*sizes, dtype, bias=True, sample_rate=rate)
        times, share = {"all-gather": 1, "all-reduce": 2}, (team.replicas - 1) / team.replicas
        found[f"{dtype}, {rate}"] = {
            "came": came.tolist(),
            "told": [round(one.sent / share / times[one.kind]) for one in told],
        }
    return found


def samples(team: Team) -> dict[str, Any]:
    """The loss and its gradients among sampled classes, beside one replica's among the same ones."""
    found = {}
    for name, rate in (("a third", 1 / 3), ("all", 1.0)):
        batch = random_batch((team.rows, DEPTH, CLASSES), "float64")
        heads = {r: tf.constant(batch.weights[:, team.columns_of(r)].T) for r in team.own}

        def step(
            x: Any, w: Any, y: Any, b: Any, first: Any, upstream: Any, rate: float = rate, heads: dict = heads
        ) -> Any:
            head = heads[team.replica()]
            of_sample = {"num_columns": head.shape[0], "sample_rate": rate, "seed": [1, 2]}
            taken = lsoftmax_op.sharded_sample(y, first_class=first, **of_sample)
            with tf.GradientTape() as tape:
                tape.watch([x, head])
                rows = tf.transpose(tf.gather(head, taken.columns))
                shard = {"first_class": taken.first_class, "num_classes": taken.num_classes}
                loss = lsoftmax_op.sharded_loss(x, rows, taken.labels, **shard)
            dx, dw = tape.gradient(loss, [x, head], output_gradients=upstream)
            return taken.columns + first, loss, dx, dw.indices, dw.values

        results = team.run(step, *team.shards(batch))
        taken = np.concatenate([columns for columns, *_ in results])
        places = np.where(batch.labels < 0, -1, np.searchsorted(taken, batch.labels))
        chosen = replace(batch, weights=batch.weights[:, taken], labels=places)
        want = joined(chosen, has_bias=False, margin=4, lam=0.0)
        loss, dx, indices, values = (np.concatenate(part) for part in list(zip(*results, strict=True))[1:])
        found[name] = {
            "taken": taken.tolist(),
            "labels": sorted({*batch.labels.tolist()} - {-1}),
            "errors": [
                float(np.abs(got - expected).max())
                for got, expected in ((loss, want[0]), (dx, want[2]), (values, want[3].T))
            ],
            "indices": indices.tolist(),
        }
    return found


def everything(team: Team) -> dict[str, Any]:
    """All that there is."""
    found = {name: errors_of(team, case) for name, case in CASES.items()}
    parts = {"training": training, "top k": top_k, "traffic": traffic, "sampling": samples}
    parts["below rounding"] = below_rounding
    return {
        **found,
        "eager": errors_of(team, CASES["float64"], is_eager=True),
        **{name: part(team) for name, part in parts.items()},
    }


def summary(team: Team) -> dict[str, Any]:
    """What is asked where starting is what takes long."""
    cases = {name: errors_of(team, CASES[name]) for name in ("float64", "smoothed ArcFace")}
    return {**cases, "training": training(team), "top k": top_k(team), "below rounding": below_rounding(team)}


def steps(team: Team) -> dict[str, Any]:
    """What four processes are asked on a few cores."""
    return {"float64": errors_of(team, CASES["float64"]), "training": training(team)}


PARTS = {"everything": everything, "summary": summary, "steps": steps}

if __name__ == "__main__":
    print(json.dumps(PARTS[sys.argv[1]](Team(int(sys.argv[2])))))
