"""What does a training step with the margin cost, beside one without and one in TensorFlow's own ops?"""

from __future__ import annotations

from pathlib import Path

from benchmarks import harness

SHAPES = {
    (256, 512, 1000): 1.10,
    (256, 512, 10000): 1.06,
    (128, 512, 100000): 1.06,
    (512, 256, 10000): 1.06,
}


def main(output: Path | None, quick: bool = False) -> None:
    """Measures forward and backward of logits and cross-entropy, float32, inside a tf.function."""
    import tensorflow as tf

    from benchmarks import peers

    rows = []
    for shape, target in ({(8, 4, 6): 1.10} if quick else SHAPES).items():
        features, weights, labels = peers.arguments(*shape)
        grad = tf.ones([shape[0], shape[2]])
        repeats = 3 if quick else 151 if shape[2] < 5000 else 41 if shape[2] < 50000 else 15
        seconds = harness.interleave(
            {
                "ours": peers.step(peers.ours, features, weights, labels),
                "plain": peers.step(peers.plain, features, weights, labels),
                "vectorised": peers.step(peers.vectorised, features, weights, labels),
                "products": peers.products(features, weights, grad),
            },
            repeats,
            warm_up=3,
        )
        ours = seconds["ours"]
        rows.append(
            {
                "N,D,C": ",".join(map(str, shape)),
                "plain ms": harness.milliseconds(seconds["plain"]),
                "ours ms": harness.milliseconds(ours),
                "ours/plain": harness.ratio(ours, seconds["plain"]),
                "quartiles": harness.spread(ours, seconds["plain"]),
                "target": target,
                "ours/pure TF": harness.ratio(ours, seconds["vectorised"]),
                "its target": 0.90,
                "ours/products": harness.ratio(ours, seconds["products"]),
            }
        )
    harness.report("step", __doc__, rows, output)
