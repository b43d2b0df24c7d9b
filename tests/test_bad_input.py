"""Bad input: each offence gets an exception that names the argument, what came and what was expected."""

import functools

import numpy as np
import pytest

import lsoftmax_op
from lsoftmax_op import arrays, margins, reference

tf = pytest.importorskip("tensorflow")

X, W, Y, B = (
    np.ones((3, 2), np.float32),
    np.ones((2, 4), np.float32),
    np.array([0, 3, -1]),
    np.zeros(4, np.float32),
)


def arguments(**changes):
    """Good arguments, but for the changes."""
    return {"features": X, "weights": W, "labels": Y, "bias": B, **changes}


def by_arrays(**changes):
    return arrays.logits(**arguments(**changes))


def by_arrays_grad(**changes):
    return arrays.logits_grad(np.ones((3, 4), np.float32), **arguments(**changes))


def by_tensorflow(**changes):
    return lsoftmax_op.lsoftmax_logits(**arguments(**changes))


def by_graph(**changes):
    """Static shapes and types fail when the graph is built; nothing is run."""
    given = arguments(**changes)
    return tf.function(lambda: lsoftmax_op.lsoftmax_logits(**given)).get_concrete_function()


def by_arrays_loss(**changes):
    return arrays.loss(**arguments(**changes))


def by_arrays_loss_grad(**changes):
    return arrays.loss_grad(np.ones(3, np.float32), **arguments(**changes))


def by_loss(**changes):
    return lsoftmax_op.lsoftmax_loss(**arguments(**changes))


def by_loss_graph(**changes):
    given = arguments(**changes)
    return tf.function(lambda: lsoftmax_op.lsoftmax_loss(**given)).get_concrete_function()


def by_blocks(**changes):
    return lsoftmax_op.lsoftmax_loss(**arguments(**changes), class_block_size=3)


def by_drop_in(features=X, weights=W, labels=Y, bias=B, batch_size=3, lam=0.0, margin=4):
    return lsoftmax_op.L_softmax(features, labels, weights, bias, batch_size, lam, margin)


EVERYWHERE = [
    *(by_arrays, by_arrays_grad, by_arrays_loss, by_arrays_loss_grad),
    *(by_tensorflow, by_graph, by_loss, by_loss_graph, by_blocks, by_drop_in),
]
everywhere = pytest.mark.parametrize("call", EVERYWHERE)


@everywhere
def test_good_input_is_good(call):
    call()


@everywhere
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": X[0]}, r"features: expected shape \[N, D\], got .*2"),
        ({"features": X[None]}, r"features: expected shape \[N, D\], got .*1, 3, 2"),
        ({"weights": W[0]}, r"weights: expected shape \[D, C\], got .*4"),
        ({"weights": W.T}, r"weights: expected shape \[D, C\] with the D = 2 .*, got .*4, 2"),
        ({"weights": W[:, :0], "bias": None}, r"weights: .* at least one class, got .*2, 0"),
        ({"labels": Y[:2]}, r"labels: expected shape \[N\] with the N = 3 .*, got .*2"),
        ({"labels": Y[:, None]}, r"labels: expected shape \[N\], got .*3, 1"),
        ({"bias": B[:3]}, r"bias: expected shape \[C\] with the C = 4 .*, got .*3"),
        ({"bias": B[0]}, r"bias: expected shape \[C\], got"),
    ],
    ids=str,
)
def test_shapes(call, changes, message):
    with pytest.raises(ValueError, match=message):
        call(**changes)


@everywhere
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": X.astype(int)}, "features: expected .*float32.*, got int64"),
        ({"features": X > 0}, "features: expected .*float32.*, got bool"),
        ({"weights": W.astype(np.float64)}, "weights: expected .*float32, got float64"),
        ({"bias": B.astype(np.float16)}, "bias: expected .*float32, got float16"),
        ({"labels": Y.astype(np.float32)}, "labels: expected .*, got .*float32"),
    ],
    ids=str,
)
def test_dtypes(call, changes, message):
    with pytest.raises(TypeError, match=message):
        call(**changes)


@everywhere
@pytest.mark.parametrize("margin", [0, -1, 65])
def test_margins_out_of_range(call, margin):
    with pytest.raises(ValueError, match=f"margin: expected an integer from 1 to 64, got {margin}"):
        call(margin=margin)


@everywhere
@pytest.mark.parametrize("margin", [2.5, True, "4", None])
def test_margins_of_the_wrong_type(call, margin):
    with pytest.raises(TypeError, match=f"margin: expected an integer from 1 to 64, got {margin!r}"):
        call(margin=margin)


@everywhere
@pytest.mark.parametrize("lam", [-1, -1e-9, np.nan, -np.inf])
def test_lambdas_out_of_range(call, lam):
    with pytest.raises(ValueError, match=f"lam: expected a number >= 0, got .*{lam}"):
        call(lam=lam)


@everywhere
@pytest.mark.parametrize("lam", [True, "5", [1.0, 2.0], None, lsoftmax_op.LambdaSchedule()], ids=str)
def test_lambdas_of_the_wrong_type(call, lam):
    with pytest.raises((TypeError, ValueError), match="lam: expected"):
        call(lam=lam)


ARRAYS = [by_arrays, by_arrays_grad, by_arrays_loss, by_arrays_loss_grad]


@pytest.mark.parametrize("call", ARRAYS)
def test_a_margin_that_is_none_of_this_library(call):
    class ArcFace:
        pass

    for bad in (ArcFace(), ArcFace, "ArcFace", {"m1": 2}, margins.ArcFace):
        with pytest.raises(
            TypeError, match="margin: expected an integer from 1 to 64, got .*; a margin of lsoftmax_op"
        ):
            call(margin=bad)


@pytest.mark.parametrize("call", ARRAYS)
@pytest.mark.parametrize("name", ["m2", "m3", "scale"])
def test_among_arrays_the_numbers_of_a_margin_are_numbers(call, name):
    for value in (tf.constant(0.5), tf.Variable(0.5)):
        margin = margins.Margin(**{name: value})
        with pytest.raises(TypeError, match=f"margin: expected one whose {name} is a number, among arrays, got"):
            call(margin=margin, bias=None)


@pytest.mark.parametrize("call", ARRAYS)
@pytest.mark.parametrize(
    "margin",
    [margins.SphereFace(2), margins.CosFace(0.35, 64), margins.ArcFace(0.5, 64), margins.Margin(scale=2)],
    ids=repr,
)
def test_a_bias_beside_a_margin_that_normalises_or_scales(call, margin):
    with pytest.raises(ValueError, match=r"bias: expected None with a margin that normalises or scales, .*, got numpy"):
        call(margin=margin)
    call(margin=margin, bias=None)


@pytest.mark.parametrize("call", [by_arrays_loss, by_arrays_loss_grad])
@pytest.mark.parametrize(
    ("smoothing", "error"),
    [*((bad, ValueError) for bad in (-0.1, 1, np.nan, np.inf)), *((bad, TypeError) for bad in (True, "0.1", None))],
)
def test_label_smoothing(call, smoothing, error):
    with pytest.raises(error, match=r"label_smoothing: expected a number in \[0, 1\), got"):
        call(label_smoothing=smoothing)


RUN_TIME = {
    "logits": lsoftmax_op.lsoftmax_logits,
    "loss": lsoftmax_op.lsoftmax_loss,
    "blocks": functools.partial(lsoftmax_op.lsoftmax_loss, class_block_size=3),
}


@pytest.mark.parametrize("layer", RUN_TIME)
@pytest.mark.parametrize("lam", [-1.0, np.nan])
def test_lambdas_known_at_run_time(lam, layer):
    function = tf.function(lambda lam: RUN_TIME[layer](X, W, Y, lam=lam))
    for call in (function, function.python_function):
        with pytest.raises(tf.errors.InvalidArgumentError, match="lam: expected a number >= 0, got"):
            call(tf.constant(lam))


@pytest.mark.parametrize("label", [4, -2, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_labels_out_of_range(label, dtype):
    labels = np.array([0, label, 99], dtype)
    message = rf"labels: expected values in \[0, 4\), or -1 .*, got labels\[1\] = {label}"
    for call in (by_arrays, by_arrays_grad, by_arrays_loss, by_arrays_loss_grad):
        with pytest.raises(ValueError, match=message):
            call(labels=labels)
    for layer in RUN_TIME.values():
        function = tf.function(lambda labels, layer=layer: layer(X, W, labels))
        for call in (function, function.python_function):
            with pytest.raises(tf.errors.InvalidArgumentError, match=message):
                call(tf.constant(labels))
    with pytest.raises(ValueError, match=r"labels: .*labels\[1\]"):
        reference.logits(X, W, labels)


@pytest.mark.parametrize("layer", RUN_TIME)
def test_shapes_known_at_run_time(layer):
    unknown = tf.TensorSpec(None, tf.float32)

    @tf.function(input_signature=[unknown, unknown, tf.TensorSpec(None, tf.int64)])
    def logits(x, w, y):
        return RUN_TIME[layer](x, w, y)

    assert logits(X, W, Y).shape[0] == 3
    for bad, message in (
        # The product of the loss runs before its op can look at the shapes.
        ((X, W.T, Y), r"weights: expected shape \[2,\?\], got \[4,2\]|Matrix size-incompatible: .*\[4,2\]"),
        ((X, W, Y[:2]), r"labels: expected shape \[3\], got \[2\]"),
        ((X, W[:, :0], Y), r"weights: expected at least one class, got .*\[2,0\]"),
        ((X[0], W, Y), "rank 2|shape"),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            logits(*bad)


@pytest.mark.parametrize(
    ("batch_size", "error"),
    [(2, ValueError), (4, ValueError), (3.0, TypeError), ("3", TypeError), (True, TypeError)],
)
def test_batch_size(batch_size, error):
    with pytest.raises(error, match="batch_size: expected .*got"):
        by_drop_in(batch_size=batch_size)


def test_batch_size_known_at_run_time():
    @tf.function(input_signature=[tf.TensorSpec([None, 2]), tf.TensorSpec([], tf.int32)])
    def logits(x, size):
        return lsoftmax_op.L_softmax(x, Y, W, B, size)[0]

    assert logits(X, 3).shape == (3, 4)
    with pytest.raises(tf.errors.InvalidArgumentError, match="batch_size: expected"):
        logits(X, 4)


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2"])
def test_threads(threads):
    with pytest.raises(ValueError, match="num_threads: expected a positive integer or None, got"):
        by_arrays(num_threads=threads)


def test_grad_of_the_wrong_shape_or_dtype():
    with pytest.raises(ValueError, match=r"grad: expected shape \[N, C\] = \[3, 4\], got \[3, 3\]"):
        arrays.logits_grad(np.ones((3, 3), np.float32), X, W, Y)
    with pytest.raises(TypeError, match="grad: expected dtype float32, got float64"):
        arrays.logits_grad(np.ones((3, 4)), X, W, Y)
    with pytest.raises(ValueError, match=r"grad: expected shape \[N\] = \[3\], got \[4\]"):
        arrays.loss_grad(np.ones(4, np.float32), X, W, Y)
    with pytest.raises(ValueError, match=r"grad: expected shape \[N\], got \[3, 4\]"):
        arrays.loss_grad(np.ones((3, 4), np.float32), X, W, Y)


@pytest.mark.parametrize(
    ("size", "error"), [(0, ValueError), (-3, ValueError), (2.5, TypeError), (True, TypeError), ("3", TypeError)]
)
def test_block_sizes(size, error):
    with pytest.raises(error, match=f"class_block_size: expected a positive integer, got {size!r}"):
        lsoftmax_op.lsoftmax_loss(X, W, Y, class_block_size=size)
