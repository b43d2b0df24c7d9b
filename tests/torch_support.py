"""Layers of lsoftmax_op.torch, and batches for them."""

import numpy as np
import pytest
from conftest import TorchLayer
from support import random_batch

pytest.importorskip("torch", reason="PyTorch is not installed")

LAYERS = {"[D, C]": TorchLayer(), "[C, D]": TorchLayer(class_major=True)}
MORE_CLASSES = (9, 19, 40)


def crowded(shape=MORE_CLASSES, dtype="float64", margin=4, seed=0):
    """A batch in which several rows share a class, among them class 0 and the last; some have no target."""
    batch = random_batch(shape, dtype, seed).beside(margin)
    rows, _, classes = shape
    batch.labels[:] = np.resize([0, -1, classes - 1, 0, classes // 2, classes - 1, classes // 2, -1], rows)
    return batch


def arguments_of(batch, layer=LAYERS["[D, C]"]):
    """Features, weights, labels and bias, those of a floating type as leaves."""
    tensors = layer.tensors(*batch.layer)
    return [x.requires_grad_() if x is not None and x.is_floating_point() else x for x in tensors]
