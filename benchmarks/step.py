"""What does a training step with the margin cost, beside one without and one in TensorFlow's own ops?"""

from __future__ import annotations

import math
from pathlib import Path

from benchmarks import harness
from benchmarks.batches import SHAPES, SMALL, TINY, Shape, name

MINUTES = 3
OVER_PLAIN = {SMALL: 1.3, **dict(zip(SHAPES, (0.92, 0.87, 0.88, 0.78), strict=True))}
OVER_PRODUCTS = 1.10


def main(output: Path | None, quick: bool = False) -> None:
    """Measures forward and backward of the mean loss, float32, inside a tf.function, also one compiled by XLA."""
    rows = []
    for shape in [TINY] if quick else OVER_PLAIN:
        harness.progress(name(shape))
        seconds = _measure(shape, 3 if quick else max(7, min(101, 3 * 10**10 // math.prod(shape))))
        ours, plain = seconds["ours"], seconds["plain"]
        rows.append(
            {
                "N,D,C": name(shape),
                "plain ms": harness.milliseconds(plain),
                "ours ms": harness.milliseconds(ours),
                "ours/plain": harness.ratio(ours, plain),
                "quartiles": harness.spread(ours, plain),
                "target": OVER_PLAIN.get(shape, ""),
                "ours/products": harness.ratio(ours, seconds["products"]),
                "its target": OVER_PRODUCTS if shape in SHAPES else "",
                **{
                    f"{peer}/plain": harness.ratio(seconds[peer], plain)
                    for peer in ("products", "logits", "pure TF", "ours XLA", "plain XLA", "pure TF XLA")
                },
                "ours XLA/plain XLA": harness.ratio(seconds["ours XLA"], seconds["plain XLA"]),
            }
        )
    harness.report("step", __doc__, rows, output)


def _measure(shape: Shape, repeats: int) -> dict[str, list[float]]:
    import tensorflow as tf

    from benchmarks import peers

    batch = peers.arguments(*shape)
    steps = {peer: peers.step(loss, *batch) for peer, loss in peers.LOSSES.items()}
    for peer in ("ours", "plain", "pure TF"):
        steps[f"{peer} XLA"] = peers.step(peers.LOSSES[peer], *batch, xla=True)
    steps["products"] = peers.products(*batch[:2], tf.ones([shape[0], shape[2]]))
    return harness.interleave(steps, repeats, warm_up=2)
