"""Large-Margin Softmax and the other margins of `lsoftmax_op.margins` in Keras 3 models, on the TensorFlow backend.

- `LSoftmaxClassifier`: a backbone and a margin; ``fit(x, y)``, and the export is a plain softmax network
- `LSoftmaxDense`: the layer alone, for models that take their labels as an input
- `ShardedClassifier`: such a model whose classes are shared out among replicas, or sampled; `ShardedBackup` saves it
- `LSoftmaxMonitor`: shows lambda and the mean angle to the own class, epoch by epoch

Saved models that hold them can be loaded once this module is imported.
"""

from __future__ import annotations

import os

try:
    import keras
except (ImportError, ValueError) as error:  # a backend that is not installed, or that Keras does not know
    raise ImportError(
        "lsoftmax_op.keras needs Keras 3 on its TensorFlow backend, and Keras cannot be imported (KERAS_BACKEND is "
        f"{os.environ.get('KERAS_BACKEND')!r}): {error}"
    ) from error

if int(keras.__version__.split(".")[0]) < 3:
    raise ImportError(f"lsoftmax_op.keras needs Keras 3, this is Keras {keras.__version__}")
if keras.config.backend() != "tensorflow":
    raise ImportError(
        f"lsoftmax_op.keras needs the backend 'tensorflow' of Keras, the backend here is {keras.config.backend()!r}: "
        "set KERAS_BACKEND=tensorflow before Keras is imported. lsoftmax_op.arrays works on NumPy, PyTorch and CuPy."
    )

from lsoftmax_op.keras.classifier import LSoftmaxClassifier
from lsoftmax_op.keras.dense import LSoftmaxDense
from lsoftmax_op.keras.monitor import LSoftmaxMonitor
from lsoftmax_op.keras.sharded_backup import ShardedBackup
from lsoftmax_op.keras.sharded_classifier import ShardedClassifier

__all__ = ["LSoftmaxClassifier", "LSoftmaxDense", "LSoftmaxMonitor", "ShardedBackup", "ShardedClassifier"]
