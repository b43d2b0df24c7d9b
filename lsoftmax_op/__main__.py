"""``python -m lsoftmax_op``: what was built, what this machine has, does it compute? Paste it into a bug report."""

from __future__ import annotations

import faulthandler
import importlib.util
import math
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def main() -> int:
    """Prints the report; returns 0 where every check passed."""
    import lsoftmax_op
    from lsoftmax_op import _environment

    if sys.__stderr__ is not None:
        faulthandler.enable(file=sys.__stderr__)  # where a check kills the process, it says in which it was
    print(f"lsoftmax_op {lsoftmax_op.__version__}")
    _print(_environment.describe())
    print("built")
    try:
        info = lsoftmax_op.build_info()
    except ImportError as error:
        print(f"FAILED   {error}")
        return 1
    _print(info)
    print("checks")
    checks = {"arrays": _check_arrays}
    installed = importlib.util.find_spec("tensorflow") is not None
    if info["tensorflow"] is None:
        if installed:
            print(f"  tensorflow    is installed, but there are no ops for it. {info.get('no_tensorflow', '')}")
    elif not installed:
        print("  tensorflow    is not installed: the ops are not checked")
    else:
        checks |= {
            "tensorflow": _report_tensorflow,
            "eager": _check_eager,
            "tf.function": _check_graph,
        }
        if info["xla"] == "yes":
            checks["jit_compile"] = _check_xla
    failed = 0
    for name, check in checks.items():
        sys.stdout.flush()
        try:
            print(f"  {name:<14}{check()}")
        except Exception as error:
            failed += 1
            print(f"  {name:<14}FAILED: {type(error).__name__}: {error}")
    print("All checks passed." if not failed else f"{failed} of {len(checks)} checks FAILED.")
    return 1 if failed else 0


def _print(facts: dict[str, Any]) -> None:
    for key, value in facts.items():
        print(f"  {key:<14}{', '.join(value) if isinstance(value, list) else value}")


def _batch() -> tuple[Any, ...]:
    """A batch that meets every segment of m = 4, a zero row and one without a target; and the oracle's results."""
    import numpy as np

    from lsoftmax_op import reference

    angles = np.linspace(0, math.pi, 9)
    features = np.stack([np.cos(angles), np.sin(angles), 0.1 * angles], axis=1)
    features[3] = 0
    weights = np.eye(3, 4) + 0.25
    labels = np.array([0, 0, 0, 0, 3, 1, 2, 0, -1])
    grad = np.cos(np.arange(36.0)).reshape(9, 4)
    options: dict[str, Any] = {"margin": 4, "lam": 0.5}
    expected = [
        reference.logits(features, weights, labels, **options),
        *reference.logits_grad(grad, features, weights, labels, **options)[:2],
        reference.loss(features, weights, labels, **options),
        *reference.loss_grad(grad[:, 0], features, weights, labels, **options)[:2],
    ]
    return features, weights, labels, grad, expected


def _compare(got: list[Any], expected: list[Any]) -> str:
    import numpy as np

    pairs = [(np.asarray(g), e) for g, e in zip(got, expected, strict=True)]
    for array, oracle in pairs:
        if array.shape != oracle.shape:
            raise AssertionError(f"of shape {list(array.shape)}, where the oracle's is {list(oracle.shape)}")
    worst = float(np.max([np.max(np.abs(array - oracle)) for array, oracle in pairs]))  # NaN, if one is
    if not worst < 1e-12:
        raise AssertionError(f"off the float64 oracle by {worst:.1e}")
    return f"ok, within {worst:.1e} of the float64 oracle"


def _check_arrays() -> str:
    from lsoftmax_op import arrays

    features, weights, labels, grad, expected = _batch()
    logits = arrays.logits(features, weights, labels, margin=4, lam=0.5)
    gradients = arrays.logits_grad(grad, features, weights, labels, margin=4, lam=0.5)
    loss = arrays.loss_grad(grad[:, 0].copy(), features, weights, labels, margin=4, lam=0.5)
    return _compare([logits, *gradients[:2], loss.loss, *loss[:2]], expected)


def _report_tensorflow() -> str:
    import tensorflow as tf

    devices = [device.name.removeprefix("/physical_device:") for device in tf.config.list_physical_devices()]
    return f"{tf.__version__}, devices {' '.join(devices)}"


def _check_eager() -> str:
    import tensorflow as tf

    return _check_tensorflow(lambda function: function, tf)


def _check_graph() -> str:
    import tensorflow as tf

    return _check_tensorflow(tf.function, tf)


def _check_xla() -> str:
    import tensorflow as tf

    return _check_tensorflow(lambda function: tf.function(function, jit_compile=True), tf)


def _check_tensorflow(wrap: Callable[..., Any], tf: ModuleType) -> str:
    import lsoftmax_op

    features, weights, labels, grad, expected = _batch()

    def step(features: Any, weights: Any) -> list[Any]:
        results = []
        for layer, g in ((lsoftmax_op.lsoftmax_logits, grad), (lsoftmax_op.lsoftmax_loss, grad[:, 0])):
            with tf.GradientTape() as tape:
                tape.watch([features, weights])
                value = layer(features, weights, labels, margin=4, lam=0.5)
            results += [value, *tape.gradient(value, [features, weights], output_gradients=tf.constant(g))]
        return results

    return _compare(wrap(step)(tf.constant(features), tf.constant(weights)), expected)


if __name__ == "__main__":
    sys.exit(main())
