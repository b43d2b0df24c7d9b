"""What does a head of many classes cost in one process, and in each of two that share its classes?

Each process has half of the samples, and columns of the weights with their optimizer's slots: Adam over all classes, or
momentum over a sample of them (Partial FC). The processes meet on the loopback device and share this machine's cores,
so that two are not meant to be faster than one. Memory is the peak during the steps, less what the process held before
there was a head.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import harness, local_cluster, memory

MINUTES = 3
ROWS, MARGIN, LAMBDA = 256, 4, 5.0
STEPS = 7
PARTS = 50  # of the weights, as they are made
TARGETS = 0.55, 1.5  # memory of one of two processes, over that of one alone; step of samples over that of COMPARED


class Case(NamedTuple):
    """A head: with momentum where there are samples or one compares with them, else with Adam."""

    depth: int
    classes: int
    sample_rate: float = 1.0
    slots: int = 2

    @property
    def optimizer(self) -> str:
        """The optimizer that has so many slots."""
        return "Adam" if self.slots == 2 else "momentum"


WIDEST, COMPARED, SAMPLED = Case(128, 1_000_000), Case(64, 100_000, slots=1), Case(64, 10_000_000, 0.01, slots=1)
CASES = (Case(128, 10_000), Case(128, 100_000), WIDEST, COMPARED, SAMPLED)
TINY = (Case(4, 40, 0.25, slots=1),)


def main(output: Path | None, quick: bool = False) -> None:
    """Measures every head in one process and in two."""
    rows: list[dict[str, Any]] = []
    milliseconds: dict[tuple[Case, int], float] = {}
    for case in TINY if quick else CASES:
        alone: dict[str, Any] = {}
        for processes in (1, 2):
            harness.progress(f"{case.classes} classes, {processes} process{'es' if processes > 1 else ''}")
            found = _run(case, processes)
            alone = alone or found
            milliseconds[case, processes] = 1e3 * found["seconds"]
            rows.append(_row(case, processes, found, alone))
            compared = milliseconds.get((COMPARED, processes))
            if case == SAMPLED and compared:
                rows[-1] |= {"step": milliseconds[case, processes] / compared, "its target": TARGETS[1]}
    harness.report("shards", __doc__.splitlines()[0], rows, output)


def _row(case: Case, processes: int, found: dict[str, Any], alone: dict[str, Any]) -> dict[str, Any]:
    from lsoftmax_op import communication

    collectives = communication(ROWS, case.depth, case.classes, processes, sample_rate=case.sample_rate)
    return {
        "N,D,C": f"{ROWS},{case.depth},{case.classes}",
        "sampled": case.sample_rate,
        "optimizer": case.optimizer,
        "processes": processes,
        "ms": 1e3 * found["seconds"],
        "MB of each": found["peak"] / 1e6,
        "over one": found["peak"] / alone["peak"],
        "target": TARGETS[0] if processes == 2 and case == WIDEST else "",
        "step": "",
        "its target": "",
        "sent MB": sum(one.sent for one in collectives) / 1e6,
        "loss": found["loss"],
    }


def _run(case: Case, processes: int) -> dict[str, Any]:
    """Returns the median time of a step and the largest peak of the processes, and the first loss."""

    def worker(config: str) -> dict[str, Any]:
        own = {"TF_CONFIG": config} if processes > 1 else {}
        command = (sys.executable, "-m", "benchmarks.shards", *map(str, case))
        return json.loads(harness.child(*command, **memory.GIVES_BACK, **own).splitlines()[-1])

    with ThreadPoolExecutor(processes) as pool:
        found = list(pool.map(worker, local_cluster.tf_configs(processes)))
    return {
        "seconds": max(one["seconds"] for one in found),
        "peak": max(one["peak"] for one in found),
        "loss": sum(one["loss"] for one in found),
    }


def _measure(case: Case) -> dict[str, Any]:
    """What one process sees."""
    import tensorflow as tf

    if "TF_CONFIG" in os.environ:
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
        worker, workers = strategy.cluster_resolver.task_id, strategy.num_replicas_in_sync
    else:
        strategy, worker, workers = tf.distribute.get_strategy(), 0, 1
    small = _step(Case(4, 12, case.sample_rate, case.slots), worker, workers)
    tf.function(lambda: strategy.run(small))()  # whatever TensorFlow and its thread pools set up once
    before = memory.resident("VmRSS")
    step = tf.function(strategy.run).get_concrete_function(_step(case, worker, workers))
    loss = float(step())  # in which TensorFlow copies what it first gave its variables
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts afresh
    seconds = []
    for _ in range(STEPS):
        began = time.perf_counter()
        step().numpy()
        seconds.append(time.perf_counter() - began)
    return {"seconds": statistics.median(seconds), "peak": memory.resident("VmHWM") - before, "loss": loss}


def _step(case: Case, worker: int, workers: int) -> Callable[[], Any]:
    """Returns a training step of a worker, which returns the sum of its losses over N."""
    import tensorflow as tf

    import lsoftmax_op

    rng = tf.random.Generator.from_seed(0)
    own_rows = slice(worker * ROWS // workers, (worker + 1) * ROWS // workers)
    features = rng.normal([ROWS, case.depth])[own_rows]
    labels = rng.uniform([ROWS], maxval=case.classes, dtype=tf.int64)[own_rows]
    first, end = (n * PARTS // workers * case.classes // PARTS for n in (worker, worker + 1))
    axis = 1 if case.sample_rate == 1 else 0  # of the classes: their rows are together where some are gathered
    head = _head(case, axis, worker, workers)
    slots = [tf.Variable(tf.zeros(head.shape)) for _ in range(case.slots)]
    count = tf.Variable(0, dtype=tf.int64)
    settings = {"margin": MARGIN, "lam": LAMBDA}

    def with_all() -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(features)
            shard = {"first_class": first, "num_classes": case.classes}
            loss = tf.reduce_sum(lsoftmax_op.sharded_loss(features, head, labels, **shard, **settings)) / ROWS
        _, gradient = tape.gradient(loss, [features, head])
        if case.slots == 1:
            accumulated = {"var": head.handle, "accum": slots[0].handle}
            tf.raw_ops.ResourceApplyMomentum(**accumulated, lr=0.1, grad=gradient, momentum=0.9)
            return loss
        tf.raw_ops.ResourceApplyAdam(
            var=head.handle,
            m=slots[0].handle,
            v=slots[1].handle,
            beta1_power=0.9,
            beta2_power=0.999,
            lr=1e-3,
            beta1=0.9,
            beta2=0.999,
            epsilon=1e-7,
            grad=gradient,
        )
        return loss

    def with_samples() -> tf.Tensor:
        sampled = lsoftmax_op.sharded_sample(
            labels,
            first_class=first,
            num_columns=end - first,
            sample_rate=case.sample_rate,
            seed=tf.stack([17, count.assign_add(1)]),
        )
        shard = {"first_class": sampled.first_class, "num_classes": sampled.num_classes}
        with tf.GradientTape() as tape:
            tape.watch(features)
            rows = tf.gather(head, sampled.columns)
            losses = lsoftmax_op.sharded_loss(features, rows, sampled.labels, class_major=True, **shard, **settings)
            loss = tf.reduce_sum(losses) / ROWS
        _, gradient = tape.gradient(loss, [features, head])
        # In rows that are gathered, as Keras' heads do it: ResourceSparseApplyMomentum takes one after the other.
        momentum = 0.9 * tf.gather(slots[0], sampled.columns) + gradient.values
        for variable, updated in ((slots[0], momentum), (head, rows - 0.1 * momentum)):
            variable.scatter_update(tf.IndexedSlices(updated, sampled.columns))
        return loss

    return with_all if case.sample_rate == 1 else with_samples


def _head(case: Case, axis: int, worker: int, workers: int) -> Any:
    """Returns a worker's weights: the same numbers for a class, whoever has it, of fiftieths that have each a seed."""
    import tensorflow as tf

    bounds = [n * case.classes // PARTS for n in range(PARTS + 1)]
    own = range(worker * PARTS // workers, (worker + 1) * PARTS // workers)
    shape = [case.depth, case.depth]
    shape[axis] = bounds[own.stop] - bounds[own.start]
    head = tf.Variable(tf.zeros(shape))
    for n in own:  # a part at a time: what TensorFlow needs to make one is small beside the whole
        part = slice(bounds[n] - bounds[own.start], bounds[n + 1] - bounds[own.start])
        place = (slice(None), part) if axis == 1 else part
        head[place].assign(0.05 * tf.random.stateless_normal(head[place].shape, [n, 1]))
    return head


if __name__ == "__main__":
    depth, classes, rate, slots = sys.argv[1:]
    print(json.dumps(_measure(Case(int(depth), int(classes), float(rate), int(slots)))))
