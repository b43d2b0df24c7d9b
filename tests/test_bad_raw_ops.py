"""Bad input to the raw ops, which check for themselves, as a call may come from anybody's SavedModel."""

import functools

import numpy as np
import pytest

import lsoftmax_op

tf = pytest.importorskip("tensorflow")

X, W, Y, B = (
    np.ones((3, 2), np.float32),
    np.ones((2, 4), np.float32),
    np.array([0, 3, -1]),
    np.zeros(4, np.float32),
)
Z = X @ W
ROWS, GEOMETRY, SUMS = np.ones(3, np.float32), np.zeros((3, 3)), np.zeros((5, 3))
TERMS, FACTORS = np.ones(7), np.ones(4, np.float32)
NONE, NO_TERMS = np.zeros(0, np.float32), np.zeros(0)

BATCH = {"features": X, "weights": W, "labels": Y}
NO_LOSS = {"geometry_grad": GEOMETRY, "loss_grad": NONE, "grad_unit": NONE, "target_weights": NONE}
TARGET = {"labels": Y, "geometry": GEOMETRY, "lam": 0.0, "terms": NO_TERMS, "margin": 2}
BLOCK = {"products": Z, "labels": Y, "bias": B, "first_class": 0, "class_factors": NONE, "terms": NO_TERMS}
SCALED = {"bias": NONE, "terms": TERMS, "class_factors": FACTORS}  # what goes with a margin that normalises
GOOD = {
    "target_geometry": BATCH,
    "class_factors": {"weights": W},
    "logits": {"products": Z, **TARGET},
    "logits_grad": {"logits_grad": Z, **TARGET},
    "features_grad": {"products_features_grad": X, **BATCH, **NO_LOSS},
    "weights_grad": {"products_weights_grad": W, **BATCH, **NO_LOSS},
    "loss": {"products": Z, **BATCH, "bias": B, "lam": 0.0, "terms": NO_TERMS, "class_factors": NONE, "margin": 2},
    "sums": {**BLOCK, "geometry": GEOMETRY, "sums_before": SUMS},
    "finish": {"sums": SUMS, **TARGET, "bias": B, "depth": 2},
    "products_grad": {**BLOCK, "geometry": GEOMETRY, "normalizer": GEOMETRY},
    "bias_grad": {
        **{"products_grad": Z, "labels": Y, "first_class": 0},
        **{"loss_grad": ROWS, "target_grad": np.zeros(3), "grad_unit": ROWS},
    },
    "set_columns": {"matrix": Z, "block": Z[:, :2], "first_column": 0},
    "kept_classes": {"products_grad": Z, "factors": FACTORS, "limits": ROWS, "most": 4},
    "take_columns": {"matrix": Z, "columns": [3, 1]},
    "spread_columns": {"block": Z[:, :2], "columns": [3, 1], "matrix": Z},
}
OF_SEVEN = r"terms: expected shape \[7\], got"
OF_FOUR = r"class_factors: expected shape \[4\], got"


@functools.cache
def ops():
    return tf.load_op_library(lsoftmax_op.library_path())


def call(op, **changes):
    return getattr(ops(), f"lsoftmax_{op}")(**{**GOOD[op], **changes})


@pytest.mark.parametrize("op", GOOD)
def test_good_input_is_good(op):
    call(op)


@pytest.mark.parametrize("op", ["loss", "sums", "products_grad"])
def test_and_so_is_that_of_a_margin_that_normalises(op):
    call(op, **SCALED)


@pytest.mark.parametrize(
    ("op", "changes", "message"),
    [
        ("target_geometry", {"weights": W.T}, "weights: expected shape"),
        ("class_factors", {"weights": X[0]}, "weights: expected shape"),
        ("class_factors", {"Twide": "float64"}, "class_factors: expected float"),
        ("logits", {"geometry": GEOMETRY[:2]}, "geometry: expected shape"),
        ("logits", {"lam": [0.0]}, "lam: expected shape"),
        ("logits", {"labels": [0, 0, 4]}, r"labels\[2\] = 4"),
        ("logits", {"margin": 65}, "margin: expected"),
        ("logits", {"margin": 0}, "margin"),
        ("logits", {"linear_continuation": True}, "margin: expected 1 for a linear continuation, got 2"),
        ("logits", {"terms": TERMS[:6]}, OF_SEVEN),
        ("logits", {"terms": TERMS[None]}, OF_SEVEN),
        ("logits", {"terms": tf.ones([7])}, "float"),
        ("logits_grad", {"terms": TERMS[:1]}, OF_SEVEN),
        ("logits_grad", {"labels": Y[:2]}, "labels: expected shape"),
        ("features_grad", {"products_features_grad": W}, "products_features_grad: expected"),
        ("weights_grad", {"products_weights_grad": X}, "products_weights_grad: expected"),
        ("loss", {"products": W}, "products: expected shape"),
        ("loss", {"bias": B[:2]}, "bias: expected shape"),
        ("loss", {"lam": [0.0]}, "lam: expected shape"),
        ("loss", {"lam": -1.0}, "lam: expected a number"),
        ("loss", {"labels": [0, 4, 0]}, r"labels\[1\] = 4"),
        ("loss", {"margin": 65}, "margin: expected"),
        ("loss", {"terms": TERMS[1:]}, OF_SEVEN),
        ("loss", {**SCALED, "class_factors": FACTORS[1:]}, OF_FOUR),
        ("loss", {**SCALED, "class_factors": FACTORS[None]}, OF_FOUR),
        (
            "loss",
            {**SCALED, "class_factors": tf.ones([4], tf.float64)},
            "class_factors: expected float with arguments of float, got double",
        ),
        ("loss", {**SCALED, "terms": NO_TERMS}, r"terms: expected shape \[7\] where there are class_factors, got none"),
        ("loss", {**SCALED, "bias": B}, "bias: expected none where there are class_factors, got one"),
        ("sums", {"sums_before": GEOMETRY}, "sums_before: expected shape"),
        ("sums", {"labels": Y[:2]}, "labels: expected shape"),
        ("sums", {"bias": B[:3]}, "bias: expected shape"),
        ("sums", {"first_class": [0]}, "first_class: expected shape"),
        ("sums", {**SCALED, "terms": TERMS[:2]}, "terms: expected shape"),
        ("sums", {**SCALED, "class_factors": FACTORS[:3]}, "class_factors: expected shape"),
        ("sums", {**SCALED, "geometry": GEOMETRY[:2]}, "geometry: expected shape"),
        ("sums", {**SCALED, "bias": B}, "bias: expected none"),
        ("finish", {"terms": TERMS[:6]}, "terms: expected shape"),
        ("finish", {"geometry": SUMS}, "geometry: expected shape"),
        ("finish", {"labels": [0, 0, 4]}, r"labels\[2\] = 4"),
        ("products_grad", {"normalizer": SUMS}, "normalizer: expected shape"),
        ("bias_grad", {"loss_grad": B}, "loss_grad: expected shape"),
        ("bias_grad", {"grad_unit": B}, "grad_unit: expected shape"),
        ("set_columns", {"first_column": 3}, "first_column: expected a column from 0 to 2"),
        ("set_columns", {"block": Z[:2]}, "block: expected shape"),
        ("set_columns", {"first_column": [0]}, "first_column: expected shape"),
        ("kept_classes", {"limits": FACTORS}, "limits: expected shape"),
        ("kept_classes", {"factors": FACTORS[1:]}, r"factors: expected shape \[4\], got"),
        (
            "kept_classes",
            {"limits": tf.ones([3], tf.float64), "factors": tf.ones([4], tf.float64)},
            "limits: expected float with arguments of float",
        ),
        ("kept_classes", {"most": -1}, "most"),
        ("take_columns", {"columns": [0, 4]}, r"columns: expected values in \[0, 4\), got columns\[1\] = 4"),
        ("take_columns", {"columns": [-1]}, r"columns\[0\] = -1"),
        ("take_columns", {"columns": [[0]]}, "columns: expected shape"),
        ("spread_columns", {"columns": [0, 4]}, r"columns\[1\] = 4"),
        ("spread_columns", {"columns": [0]}, "columns: expected shape"),
        ("spread_columns", {"block": Z[:2, :2]}, "block: expected shape"),
        ("take_columns", {"matrix": Z.T, "columns": [3, 4], "class_major": True}, r"columns\[1\] = 4"),
        ("spread_columns", {"matrix": Z.T, "class_major": True}, "block: expected shape"),
        (
            "spread_columns",
            {"block": np.ones((3, 5), np.float32), "columns": np.zeros(0, np.int64)},
            "columns: expected",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else ", ".join(value),
)
def test_bad_input_is_named(op, changes, message):
    with pytest.raises((tf.errors.InvalidArgumentError, ValueError), match=message):
        call(op, **changes)
