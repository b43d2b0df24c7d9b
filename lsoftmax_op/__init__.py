"""Large-Margin Softmax (L-Softmax; Liu, Wen, Yu, Yang, ICML 2016) for TensorFlow.

A dense layer plus softmax cross-entropy in which one logit a row, the target's, is made harder to raise:
``|w||x| cos(theta)`` becomes ``|w||x| psi(theta)``. The classes that come out are compact and well separated.

Importing this package imports neither TensorFlow nor NumPy: every name is loaded when first used. Once TensorFlow is
imported, before or after, its ops are registered, so that saved models that hold them can be loaded.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lsoftmax_op import arrays, keras, margins, reference, scale, torch
    from lsoftmax_op.angles import target_angles
    from lsoftmax_op.drop_in import L_softmax
    from lsoftmax_op.kept import kept_classes
    from lsoftmax_op.library import build_info, library_path
    from lsoftmax_op.ops import (
        lsoftmax_logits,
        lsoftmax_loss,
        margin_softmax_logits,
        margin_softmax_loss,
    )
    from lsoftmax_op.sampling import sample_classes, sharded_sample
    from lsoftmax_op.scale import communication
    from lsoftmax_op.schedules import LambdaSchedule
    from lsoftmax_op.sharded import sharded_loss, sharded_top_k

__version__ = "0.2.0"  # said here alone: setuptools, CMake and the pages take it from this line

_HOME = {
    "L_softmax": "drop_in",
    "LambdaSchedule": "schedules",
    "build_info": "library",
    "communication": "scale",
    "kept_classes": "kept",
    "library_path": "library",
    "lsoftmax_logits": "ops",
    "lsoftmax_loss": "ops",
    "margin_softmax_logits": "ops",
    "margin_softmax_loss": "ops",
    "sample_classes": "sampling",
    "sharded_loss": "sharded",
    "sharded_sample": "sampling",
    "sharded_top_k": "sharded",
    "target_angles": "angles",
}
_MODULES = ("arrays", "keras", "margins", "reference", "scale", "torch")

__all__ = [
    "L_softmax",
    "LambdaSchedule",
    "arrays",
    "build_info",
    "communication",
    "kept_classes",
    "keras",
    "library_path",
    "lsoftmax_logits",
    "lsoftmax_loss",
    "margin_softmax_logits",
    "margin_softmax_loss",
    "margins",
    "reference",
    "sample_classes",
    "scale",
    "sharded_loss",
    "sharded_sample",
    "sharded_top_k",
    "target_angles",
    "torch",
]


def _load(name: str) -> object:
    if name in _HOME:
        try:
            value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
        except ModuleNotFoundError as error:
            if error.name != "tensorflow":
                raise
            raise ImportError(
                f"lsoftmax_op.{name} needs TensorFlow, which is not installed. Install it; and where lsoftmax_op was "
                "built from source without it, build it again, so that it has its ops. lsoftmax_op.arrays and "
                "lsoftmax_op.reference work without."
            ) from error
    elif name in _MODULES:
        value = importlib.import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


if not TYPE_CHECKING:  # a type checker knows the names above, and none that is misspelt
    __getattr__ = _load


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


def _register_ops() -> None:
    from lsoftmax_op import library

    library.load_if_built()


if sys.modules.get("tensorflow") is not None:
    _register_ops()
else:
    from lsoftmax_op._import_hook import after_import

    after_import("tensorflow", _register_ops)
