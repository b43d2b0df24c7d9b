"""How many graph nodes do forward and gradient of the logits make, and do they grow with the batch?"""

from __future__ import annotations

from pathlib import Path

from benchmarks import harness


def main(output: Path | None, quick: bool = False) -> None:
    """Counts the nodes of the traced graph, function bodies included."""
    import tensorflow as tf

    from benchmarks import peers
    from benchmarks.per_sample_loop import L_softmax

    def loop(features: tf.Tensor, weights: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        bias = tf.zeros([weights.shape[1]])
        return L_softmax(features, labels, weights, bias, features.shape[0])[0]

    def nodes(layer: object, rows: int) -> int:
        @tf.function
        def both(x: tf.Tensor, w: tf.Tensor, y: tf.Tensor, g: tf.Tensor) -> list:
            with tf.GradientTape() as tape:
                tape.watch([x, w])
                logits = layer(x, w, y)
            return tape.gradient(logits, [x, w], output_gradients=g)

        shapes = ([rows, 16], [16, 10], [rows], [rows, 10])
        dtypes = (tf.float32, tf.float32, tf.int64, tf.float32)
        specs = [tf.TensorSpec(s, d) for s, d in zip(shapes, dtypes, strict=True)]
        graph = both.get_concrete_function(*specs).graph.as_graph_def()
        return len(graph.node) + sum(len(f.node_def) for f in graph.library.function)

    batches = (2, 4) if quick else (8, 128, 1024)
    layers = {
        "plain": peers.plain,
        "ours": peers.ours,
        "vectorised": peers.vectorised,
        "per-sample loop": loop,
    }
    rows = [
        {
            "layer": name,
            **{f"N={n}": nodes(layer, n) if name != "per-sample loop" or n <= 128 else "-" for n in batches},
            "target": "< 60, constant" if name == "ours" else "",
        }
        for name, layer in layers.items()
    ]
    harness.report("graph", __doc__, rows, output)
