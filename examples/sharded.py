"""Trains a head whose classes are shared out among the workers of TF_CONFIG: `python -m examples.sharded`.

Alone, in two terminals, or on a cluster: the script is the same, and so is what it learns. Each worker has a part of
every batch and of the classes, and never sees the others' columns.
"""

from __future__ import annotations

import argparse
import os

import numpy as np
import tensorflow as tf

import lsoftmax_op

CLASSES, DEPTH, INPUTS, BATCH = 10_000, 32, 64, 128
MARGIN = lsoftmax_op.margins.CosFace(0.2, 32)


def strategy_of(resolver: str) -> tf.distribute.Strategy:
    """Returns the strategy of the workers that the environment names; of one alone, TensorFlow's own."""
    if resolver == "slurm":
        nodes = tf.distribute.cluster_resolver.SlurmClusterResolver()
        return tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=nodes)
    if "TF_CONFIG" in os.environ:
        return tf.distribute.MultiWorkerMirroredStrategy()
    return tf.distribute.get_strategy()


class Worker:
    """One worker's columns of the head, and its copy of the backbone."""

    def __init__(self, strategy: tf.distribute.Strategy) -> None:
        self.strategy, self.workers = strategy, strategy.num_replicas_in_sync
        devices = strategy.extended.worker_devices if self.workers > 1 else ()
        if len(devices) > 1:
            raise SystemExit(f"expected one device a worker, got {', '.join(devices)}: set CUDA_VISIBLE_DEVICES")
        resolver = strategy.cluster_resolver
        self.index = resolver.task_id if resolver is not None and self.workers > 1 else 0
        self.first, end = (n * CLASSES // self.workers for n in (self.index, self.index + 1))
        head = tf.random.stateless_normal([DEPTH, CLASSES], [0, 1])[:, self.first : end]
        self.head = tf.Variable(head)  # outside of the strategy's scope: this worker's own
        self.backbone = tf.Variable(tf.random.stateless_normal([INPUTS, DEPTH], [0, 2]) / INPUTS**0.5)
        self.shard = {"first_class": self.first, "num_classes": CLASSES, "margin": MARGIN}

    def share(self, batch: np.ndarray) -> np.ndarray:
        """Returns this worker's part of a batch."""
        first, end = (n * len(batch) // self.workers for n in (self.index, self.index + 1))
        return batch[first:end]

    @tf.function(reduce_retracing=True)
    def train(self, inputs: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """Takes a step, and returns the mean loss of the whole batch."""

        def step(inputs: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
            replica = tf.distribute.get_replica_context()
            with tf.GradientTape() as tape:
                losses = lsoftmax_op.sharded_loss(inputs @ self.backbone, self.head, labels, **self.shard)
                loss = tf.reduce_sum(losses) / BATCH
            of_backbone, of_head = tape.gradient(loss, [self.backbone, self.head])
            self.backbone.assign_sub(0.05 * replica.all_reduce("SUM", of_backbone))
            self.head.assign_sub(10.0 * of_head)  # complete: the others have other classes
            return replica.all_reduce("SUM", loss)

        return self.strategy.run(step, args=(inputs, labels))

    @tf.function(reduce_retracing=True)
    def hits(self, inputs: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """Returns how many samples of the whole batch have their class among the five likeliest."""

        def step(inputs: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
            best = lsoftmax_op.sharded_top_k(inputs @ self.backbone, self.head, k=5, **self.shard)
            found = tf.reduce_sum(tf.cast(best.classes == labels[:, None], tf.float32))
            return tf.distribute.get_replica_context().all_reduce("SUM", found)

        return self.strategy.run(step, args=(inputs, labels))


def main(arguments: list[str] | None = None) -> int:
    """Trains and evaluates."""
    parser = argparse.ArgumentParser(prog="python -m examples.sharded", description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--resolver", choices=("tf_config", "slurm"), default="tf_config", help="who names the workers")
    options = parser.parse_args(arguments)
    worker = Worker(strategy_of(options.resolver))
    columns = worker.head.shape[1]
    print(f"worker {worker.index + 1} of {worker.workers}: classes {worker.first} to {worker.first + columns - 1}")
    sent = sum(one.sent for one in lsoftmax_op.communication(BATCH, DEPTH, CLASSES, worker.workers))
    print(f"head {worker.head.shape.num_elements() * 4 / 1e6:.2f} MB, sent in a step {sent / 1e3:.1f} kB")

    rng = np.random.default_rng(0)  # every worker draws the same batches, and takes its part of each
    centres = rng.standard_normal((CLASSES, INPUTS), np.float32)

    def batch() -> tuple[tf.Tensor, tf.Tensor]:
        labels = rng.integers(0, 500, BATCH)  # few of the classes, so that a short training sees each often
        inputs = centres[labels] + 0.3 * rng.standard_normal((BATCH, INPUTS), np.float32)
        return tf.constant(worker.share(inputs)), tf.constant(worker.share(labels))

    for step in range(options.steps):
        loss = worker.train(*batch())
        if step % 50 == 0 or step == options.steps - 1:
            print(f"step {step}: loss {float(loss):.4f}", flush=True)
    found = sum(float(worker.hits(*batch())) for _ in range(8))
    print(f"class among the best five: {found / (8 * BATCH):.3f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
