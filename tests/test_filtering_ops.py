"""The raw ops that find the classes above a limit, take columns and spread them: on every variant, and under XLA."""

import functools

import numpy as np
import pytest
from support import DTYPES, run_python

import lsoftmax_op

tf = pytest.importorskip("tensorflow")


@functools.cache
def raw():
    return tf.load_op_library(lsoftmax_op.library_path())


def kept_of(products_grad, factors, limits, most):
    wide = np.float64 if products_grad.dtype == np.float64 else np.float32
    factors, limits = (tf.constant(a, wide) for a in ([] if factors is None else factors, limits))
    return raw().lsoftmax_kept_classes(products_grad, factors, limits, most=most).numpy()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("factors", [True, False], ids=["factors", "no factors"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 40), (9, 1023), (17, 1025), (8, 10_000), (0, 5)])
def test_the_kernel(shape, factors, dtype):
    rng = np.random.default_rng(shape)
    entries = (rng.normal(size=shape) * (rng.random(shape) < 0.02)).astype(DTYPES[dtype])
    limits = rng.uniform(0, 1.5, shape[0]).astype(np.float32)
    factors = rng.uniform(0.5, 2, shape[1]).astype(np.float32) if factors else None
    most = limits[:, None] * (1 if factors is None else factors)
    matters = (np.abs(entries.astype(np.float64)) > most).any(axis=0)
    expected = np.flatnonzero(matters) if matters.any() else np.array([0])
    count = len(expected)
    np.testing.assert_array_equal(kept_of(entries, factors, limits, shape[1]), expected)
    np.testing.assert_array_equal(kept_of(entries, factors, limits, count), expected)
    assert kept_of(entries, factors, limits, count - 1).size == 0


def test_the_first_look_spares_the_second():
    """A sample that matters everywhere is an answer, whatever lies between."""
    entries = np.zeros((4, 65_536), np.float32)
    groups = np.arange(64) * 1024
    for offset in range(16):
        entries[0, groups + offset] = 1
    limits = np.zeros(4, np.float32)
    assert kept_of(entries, None, limits, 4096).size == 0  # a part of 1/64 matters, and the sample says: all
    assert kept_of(entries, None, limits, 65_536).size == 1024


@pytest.mark.parametrize("dtype", DTYPES)
def test_columns_there_and_back(dtype):
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(5, 70)).astype(DTYPES[dtype])
    columns = rng.permutation(70)[:9]
    block = raw().lsoftmax_take_columns(matrix, columns)
    np.testing.assert_array_equal(block, matrix[:, columns])
    expected = np.zeros_like(matrix)
    expected[:, columns] = matrix[:, columns]
    np.testing.assert_array_equal(raw().lsoftmax_spread_columns(block, columns, matrix), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(70, 5), (3, 400), (9, 1), (9, 0)])
def test_rows_there_and_back(shape, dtype):
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=shape).astype(DTYPES[dtype])
    rows = rng.permutation(shape[0])[: shape[0] // 3]
    block = raw().lsoftmax_take_columns(matrix, rows, class_major=True)
    np.testing.assert_array_equal(block, matrix[rows])
    expected = np.zeros_like(matrix)
    expected[rows] = matrix[rows]
    np.testing.assert_array_equal(raw().lsoftmax_spread_columns(block, rows, matrix, class_major=True), expected)
    none = np.zeros(0, np.int64)
    np.testing.assert_array_equal(raw().lsoftmax_take_columns(matrix, none, class_major=True), matrix)
    np.testing.assert_array_equal(raw().lsoftmax_spread_columns(matrix, none, matrix, class_major=True), matrix)


@pytest.mark.skipif(
    lsoftmax_op.build_info()["xla"] != "yes", reason="the library was built without what XLA compiles it by"
)
@pytest.mark.parametrize("class_major", [False, True], ids=["columns", "rows"])
def test_columns_under_xla(class_major, dtype):
    matrix, columns = (np.arange(12).reshape(2, 6) + 1).astype(DTYPES[dtype]), np.array([4, 1])
    matrix[1, 4] = np.inf  # the concern of its own column

    def laid_out(array):
        return np.ascontiguousarray(array.T) if class_major and array.ndim == 2 else array

    def compiled(op):
        call = tf.function(getattr(raw(), op), jit_compile=True)
        return lambda *arrays: laid_out(call(*map(laid_out, arrays), class_major=class_major).numpy())

    take, spread = compiled("lsoftmax_take_columns"), compiled("lsoftmax_spread_columns")
    nothing = np.zeros_like(matrix)
    expected = np.where(np.isin(np.arange(6), columns), matrix, nothing)
    np.testing.assert_array_equal(take(matrix, columns), matrix[:, columns])
    np.testing.assert_array_equal(spread(matrix[:, columns], columns, matrix), expected)
    first = np.where(np.arange(6) < 2, matrix, nothing)
    np.testing.assert_array_equal(spread(matrix[:, :2], np.zeros(0, np.int64), matrix), first)
    bad = np.array([4, 6])
    assert np.isnan(take(matrix, bad)).all(axis=0).tolist() == [False, True]
    assert np.isnan(spread(matrix[:, :2], bad, matrix)).any()


@pytest.mark.slow
def test_every_variant_and_number_of_threads_finds_the_same():
    code = """
import hashlib, sys, numpy as np, tensorflow as tf, lsoftmax_op
sys.path.insert(0, "tests")
tf.config.threading.set_intra_op_parallelism_threads(THREADS)
raw = tf.load_op_library(lsoftmax_op.library_path())
rng, digest = np.random.default_rng(0), hashlib.sha256()
for shape, dtype in (((300, 9000), tf.float32), ((64, 40_000), tf.bfloat16), ((70, 20_000), tf.float64)):
    entries = tf.cast(rng.normal(size=shape) * (rng.random(shape) < 1e-3), dtype)
    wide = tf.float64 if dtype == tf.float64 else tf.float32
    factors, limits = (tf.cast(rng.random(size), wide) for size in (shape[1], shape[0]))
    kept = raw.lsoftmax_kept_classes(entries, factors, limits, most=shape[1] // 2)
    assert kept.shape[0] > 0
    block = raw.lsoftmax_take_columns(entries, kept)
    rows = tf.transpose(entries)
    of_rows = raw.lsoftmax_take_columns(rows, kept, class_major=True)
    spread = raw.lsoftmax_spread_columns(block, kept, entries)
    for result in (kept, block, spread, of_rows, raw.lsoftmax_spread_columns(of_rows, kept, rows, class_major=True)):
        digest.update(tf.io.serialize_tensor(result).numpy())
print(digest.hexdigest())
"""
    variants = lsoftmax_op.build_info()["cpu_variants"]
    runs = zip(variants, (1, 2, 3), strict=False)
    digests = {run_python(code.replace("THREADS", str(n)), LSOFTMAX_CPU=variant).stdout for variant, n in runs}
    assert len(digests) == 1
