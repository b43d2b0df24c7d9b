"""How many graph nodes do the loss and its gradients make, and do they grow with the batch?"""

from __future__ import annotations

from pathlib import Path

from benchmarks import harness

MINUTES = 0.5


def main(output: Path | None, quick: bool = False) -> None:
    """Counts the nodes of the traced graph, function bodies included."""
    import tensorflow as tf

    from benchmarks import peers
    from benchmarks.per_sample_loop import L_softmax

    def loop(features: tf.Tensor, weights: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        bias = tf.zeros([weights.shape[1]])
        return L_softmax(features, labels, weights, bias, features.shape[0])[0]

    def nodes(loss: peers.Loss, rows: int) -> int:
        @tf.function
        def both(x: tf.Tensor, w: tf.Tensor, y: tf.Tensor) -> list:
            with tf.GradientTape() as tape:
                tape.watch([x, w])
                mean = tf.reduce_mean(loss(x, w, y))
            return tape.gradient(mean, [x, w])

        shapes, dtypes = ([rows, 16], [16, 10], [rows]), (tf.float32, tf.float32, tf.int64)
        specs = [tf.TensorSpec(s, d) for s, d in zip(shapes, dtypes, strict=True)]
        graph = both.get_concrete_function(*specs).graph.as_graph_def()
        return len(graph.node) + sum(len(f.node_def) for f in graph.library.function)

    batches = (2, 4) if quick else (8, 128, 1024)
    losses = {**peers.LOSSES, "ours, in blocks": peers.fused(4), "per-sample loop": peers.cross_entropy(loop)}
    rows = [
        {
            "loss": name,
            **{f"N={n}": nodes(loss, n) if name != "per-sample loop" or n <= 128 else "-" for n in batches},
            "target": {"ours": "<= 30, constant", "logits": "< 60, constant"}.get(name, ""),
        }
        for name, loss in losses.items()
    ]
    harness.report("graph", __doc__, rows, output)
