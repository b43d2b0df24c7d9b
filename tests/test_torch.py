"""lsoftmax_op.torch: values and gradients of every order, and what is wrong with arguments."""

import math
import re

import numpy as np
import pytest
from conftest import TorchLayer
from support import (
    KINDS,
    LAMBDAS,
    angle_batch,
    assert_close_to_oracle,
    assert_loss_close_to_oracle,
    random_batch,
    run_python,
)
from torch_support import LAYERS, MORE_CLASSES, arguments_of, crowded

from lsoftmax_op import _array_libraries, arrays
from lsoftmax_op.margins import ArcFace, CosFace, Margin, SphereFace

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from lsoftmax_op import torch as functions
from lsoftmax_op.torch import operators

SHAPES = ((13, 33, 7), (5, 19, 40), (1, 1, 1), (1, 5, 9), (0, 4, 3))


@pytest.fixture(params=LAYERS)
def layer(request):
    return LAYERS[request.param]


# Values and gradients -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("margin", [1, 4, *KINDS], ids=repr)
def test_logits(layer, dtype, margin, shape):
    assert_close_to_oracle(random_batch(shape, dtype), dtype, layer, margin, 0.5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("margin", [1, 4, *KINDS], ids=repr)
def test_loss(layer, dtype, margin, shape):
    assert_loss_close_to_oracle(random_batch(shape, dtype), dtype, layer, margin, 0.5, label_smoothing=0.1)


@pytest.mark.parametrize("lam", LAMBDAS)
@pytest.mark.parametrize("margin", [4, ArcFace(0.5, 16)], ids=repr)
def test_every_lambda(layer, margin, lam):
    assert_close_to_oracle(crowded(), "float64", layer, margin, lam)
    assert_loss_close_to_oracle(crowded(), "float64", layer, margin, lam)


@pytest.mark.parametrize("margin", [4, *KINDS[::3]], ids=repr)
def test_angles_that_matter(layer, margin):
    assert_close_to_oracle(angle_batch(margin, "float64"), "float64", layer, margin, 0.0)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("margin", [4, *KINDS], ids=repr)
def test_the_results_of_arrays_to_the_last_bit(layer, dtype, margin, label_smoothing):
    batch = crowded(dtype=dtype, margin=margin)
    x, w, y, b = arguments_of(batch, layer)
    leaves = [tensor for tensor in (x, w, b) if tensor is not None]
    grad = torch.linspace(-1, 2, len(x)).to(x.dtype)
    options = {"margin": margin, "lam": 0.5, "label_smoothing": label_smoothing, "class_major": layer.class_major}
    loss = functions.margin_softmax_loss(x, w, y, b, **options)
    expected = arrays.loss_grad(grad, x, w, y, b, **options)
    assert torch.equal(loss, expected.loss)
    for got, want in zip(torch.autograd.grad(loss, leaves, grad), expected, strict=False):
        assert got.dtype == want.dtype
        assert torch.equal(got, want)


@pytest.mark.parametrize("margin", [4, CosFace(0.35, 16), Margin(3, 0.5, 0.1, 2, normalize_features=True)], ids=repr)
def test_rows_that_share_a_class_among_many(dtype, margin):
    """In both layouts, the weights of a class are completed once, by all its rows and by no other."""
    batch = crowded(dtype=dtype, margin=margin)
    tolerance = {"float64": 1e-13, "float32": 1e-5, "float16": 4e-3, "bfloat16": 3e-2}[dtype]
    for run in (TorchLayer.__call__, TorchLayer.loss):
        value, gradients = run(LAYERS["[C, D]"], batch, margin, 0.5)
        expected, expected_gradients = run(LAYERS["[D, C]"], batch, margin, 0.5)
        for got, want in zip((value, *gradients), (expected, *expected_gradients), strict=True):
            np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * np.abs(want).max())


@pytest.mark.parametrize("margin", [4, ArcFace(0.5, 16)], ids=repr)
@pytest.mark.parametrize("class_major", [False, True])
@pytest.mark.parametrize("name", ["logits", "loss"])
def test_the_transpose_of_weights_is_read_as_they_lie(monkeypatch, name, class_major, margin):
    """`linear.weight.T` is no copy: the kernels are given the memory of the weights, in the layout that they have."""
    weights_seen = set()

    class Noting(_array_libraries.Torch):
        def address(self, array):
            if array.shape == w.shape:
                weights_seen.add(array.data_ptr())
            return super().address(array)

    monkeypatch.setattr(operators, "Torch", Noting)
    function = getattr(functions, f"margin_softmax_{name}")
    x, w, y, _ = arguments_of(crowded(), LAYERS["[C, D]" if class_major else "[D, C]"])

    def step(w, class_major):
        value = function(x, w, y, margin=margin, lam=0.5, class_major=class_major)
        return [value, *torch.autograd.grad(value.square().sum(), (x, w))]

    expected = step(w, class_major)
    got = step(w.T, not class_major)
    got[2] = got[2].T
    assert all(map(torch.equal, got, expected))
    assert w.data_ptr() in weights_seen
    assert len(weights_seen) == 3  # theirs, and those of two gradients


def test_the_same_bits_and_the_callers_threads(layer):
    x, w, y, b = arguments_of(crowded((300, 19, 7), "float32"), layer)
    options = {"lam": 0.5, "class_major": layer.class_major}

    def step():
        loss = functions.lsoftmax_loss(x, w, y, b, **options)
        return [loss, *torch.autograd.grad(loss.sum(), (x, w, b), retain_graph=True)]

    loss = functions.lsoftmax_loss(x, w, y, b, **options).sum()
    expected = step()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        once, again = (torch.autograd.grad(loss, (x, w, b), retain_graph=True) for _ in range(2))
        assert all(map(torch.equal, once, again))
        for got, want in zip(step(), expected, strict=True):
            torch.testing.assert_close(got, want)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("wanted", ["features", "weights", "bias"])
def test_of_what_is_frozen_no_gradient_is_computed(layer, dtype, wanted):
    batch = crowded(dtype=dtype)
    x, w, y, b = arguments_of(batch, layer)
    leaves = {"features": x, "weights": w, "bias": b}
    options = {"lam": 0.5, "class_major": layer.class_major}
    expected = torch.autograd.grad(functions.lsoftmax_loss(x, w, y, b, **options).sum(), (x, w, b))
    for name, leaf in leaves.items():
        leaf.requires_grad_(name == wanted)
    with torch.profiler.profile() as profile:
        (got,) = torch.autograd.grad(functions.lsoftmax_loss(x, w, y, b, **options).sum(), leaves[wanted])
    assert torch.equal(got, expected[list(leaves).index(wanted)])
    products = sum(event.count for event in profile.key_averages() if event.key == "aten::mm")
    assert products == (1 if wanted == "bias" else 2)


DERIVED = [4, SphereFace(3), ArcFace(0.5, 4), ArcFace(1.2, 4, "linear"), Margin(2, 0.5, 0.1), Margin(scale=0.25)]


@pytest.mark.parametrize("margin", DERIVED, ids=repr)
@pytest.mark.parametrize("name", ["logits", "loss"])
def test_derivatives_of_first_and_second_order(layer, name, margin):
    x, w, y, b = arguments_of(crowded((4, 3, 5), margin=margin), layer)
    function = getattr(functions, f"margin_softmax_{name}")
    options = {"margin": margin, "lam": 0.5, "class_major": layer.class_major}
    options |= {"label_smoothing": 0.1} if name == "loss" else {}
    leaves = [tensor for tensor in (x, w, b) if tensor is not None]

    def value(x, w, b=None):
        return function(x, w, y, b, **options)

    assert torch.autograd.gradcheck(value, leaves)
    assert torch.autograd.gradgradcheck(value, leaves, fast_mode=True)


def test_a_third_derivative_and_arguments_made_of_each_other():
    x, w, y, _ = arguments_of(crowded((4, 3, 5)))

    def curvature(x):
        """The second derivative along the features, of weights that depend on them."""
        loss = functions.lsoftmax_loss(x, w + x.sum(), y, lam=0.5).sum()
        (first,) = torch.autograd.grad(loss, x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x, create_graph=True)[0]

    assert torch.autograd.gradcheck(curvature, (x,))


@pytest.mark.parametrize("margin", [4, SphereFace(2), ArcFace(0.5, 4)], ids=repr)
def test_second_derivatives_of_zeros_are_finite(layer, margin):
    batch = crowded((5, 3, 6), margin=margin)
    batch.features[0], batch.weights[:, 5] = 0, 0
    x, w, y, _ = arguments_of(batch, layer)
    for function in (functions.margin_softmax_logits, functions.margin_softmax_loss):
        value = function(x, w, y, margin=margin, class_major=layer.class_major).square().sum()
        first = torch.autograd.grad(value, (x, w), create_graph=True)
        for second in torch.autograd.grad(sum(part.square().sum() for part in first), (x, w)):
            assert second.isfinite().all()


class OnTheDevice(_array_libraries.Torch):
    """Tensors on the CPU for those on a CUDA device, and the CUDA kernels as cc/cuda/testing runs them."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.kernels = pytest.importorskip("lsoftmax_op._cuda_on_cpu", reason="built without LSOFTMAX_TESTING=ON")
        self.where = 0
        self.checks_values = False


@pytest.fixture
def on_the_device(monkeypatch):
    monkeypatch.setattr(operators, "Torch", OnTheDevice)


@pytest.mark.parametrize("shape", [(13, 33, 7), MORE_CLASSES], ids=str)
@pytest.mark.parametrize("margin", [4, *KINDS[::2]], ids=repr)
def test_the_cuda_kernels(on_the_device, layer, dtype, margin, shape):
    batch = crowded(shape, dtype)
    assert_close_to_oracle(batch, dtype, layer, margin, 0.5)
    assert_loss_close_to_oracle(batch, dtype, layer, margin, 0.5, label_smoothing=0.1)


@pytest.mark.parametrize("bad", [MORE_CLASSES[2], 2**31, -2])
def test_where_nobody_looks_a_bad_label_makes_its_row_nan(on_the_device, layer, bad):
    batch = crowded()
    batch.labels[:] = np.arange(len(batch.labels))
    good = batch.labels != 4
    expected = layer(batch, 4, 0.5), layer.loss(batch, 4, 0.5)
    batch.labels[4] = bad
    for (value, (features_grad, *_)), (want, (want_grad, *_)) in zip(
        (layer(batch, 4, 0.5), layer.loss(batch, 4, 0.5)), expected, strict=True
    ):
        assert np.isnan(value[4]).all()
        assert np.isnan(features_grad[4]).all()
        np.testing.assert_array_equal(value[good], want[good])
        np.testing.assert_array_equal(features_grad[good], want_grad[good])


# Errors ---------------------------------------------------------------------------------------------------------------

BAD = {
    "features": [
        (np.ones((5, 3)), TypeError, "expected a PyTorch tensor, got numpy.ndarray"),
        (torch.ones(5), ValueError, r"expected shape \[N, D\], got \[5\]"),
        (torch.tensor(1.0), ValueError, r"expected shape \[N, D\], got \[\]"),
        (torch.ones(5, 3, dtype=torch.int64), TypeError, "expected dtype float16 or .*, got int64"),
    ],
    "weights": [
        (torch.ones(4, 6), ValueError, r"expected shape \[D, C\] with the D = 3 of features"),
        (torch.ones(6, 4).T, ValueError, r"expected shape \[D, C\] with the D = 3 of features \[5, 3\], got \[4, 6\]"),
        (torch.ones(3, 6, dtype=torch.float64), TypeError, "expected dtype float32, got float64"),
        (torch.ones(3, 6, device="meta"), TypeError, "expected a PyTorch tensor on cpu"),
    ],
    "labels": [
        ([0, 1, 2, 3, 4], TypeError, "expected a PyTorch tensor, got list"),
        (torch.full((5,), 6), ValueError, r"expected values in \[0, 6\), .* got labels\[0\] = 6"),
        (torch.full((5,), -100), ValueError, r"expected values in \[0, 6\), or -1 .*, got labels\[0\] = -100"),
        (torch.zeros(4, dtype=torch.int64), ValueError, r"expected shape \[N\] with the N = 5"),
        (torch.zeros(5), TypeError, "expected integers"),
    ],
    "bias": [
        (torch.zeros(5), ValueError, r"expected shape \[C\] with the C = 6"),
        (0.0, TypeError, "expected a PyTorch"),
    ],
    "margin": [
        (0, ValueError, "expected an integer from 1 to 64"),
        (2.0, TypeError, "expected an integer from 1 to 64"),
        (True, TypeError, "expected an integer from 1 to 64"),
    ],
    "lam": [
        (-1.0, ValueError, "expected a number >= 0, got -1.0"),
        (math.nan, ValueError, "expected a number >= 0, got nan"),
        (torch.tensor(-1.0), ValueError, "expected a number >= 0, got -1.0"),
        (torch.zeros(2), ValueError, r"expected a number >= 0 or a scalar array, got shape \[2\]"),
        ("much", TypeError, "expected a number >= 0 or a scalar tensor, got str"),
        (True, TypeError, "expected a number >= 0, got True"),
    ],
}


@pytest.mark.parametrize("function", [functions.lsoftmax_logits, functions.lsoftmax_loss])
@pytest.mark.parametrize(
    ("argument", "value", "error", "message"),
    [pytest.param(name, *case, id=f"{name}-{n}") for name, cases in BAD.items() for n, case in enumerate(cases)],
)
def test_what_is_wrong_is_named(function, argument, value, error, message):
    good = {"features": torch.ones(5, 3), "weights": torch.ones(3, 6), "labels": torch.zeros(5, dtype=torch.int64)}
    function(**good, bias=torch.ones(6))
    with pytest.raises(error, match=rf"^{argument}: {message}"):
        function(**good | {argument: value})
    if argument == "features":
        with pytest.raises(error, match=rf"^{argument}: {message}"):
            function(**good | {"features": value, "weights": torch.ones(6, 3).T})


def test_what_a_margin_does_not_go_with():
    x, w, y = torch.ones(5, 3), torch.ones(3, 6), torch.zeros(5, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"^bias: expected None with a margin that normalises"):
        functions.margin_softmax_loss(x, w, y, torch.zeros(6), margin=ArcFace(0.5, 16))
    with pytest.raises(TypeError, match=r"^margin: expected an integer"):
        functions.lsoftmax_loss(x, w, y, margin=ArcFace(0.5, 16))
    with pytest.raises(ValueError, match=r"^label_smoothing: expected a number in \[0, 1\), got 1"):
        functions.lsoftmax_loss(x, w, y, label_smoothing=1)


def test_importing_it():
    """It brings no TensorFlow; and without PyTorch it says what is missing, while the rest works."""
    run_python("import sys, lsoftmax_op; lsoftmax_op.torch.lsoftmax_loss; assert 'tensorflow' not in sys.modules")
    hide = "import sys; sys.modules['torch'] = None\nimport lsoftmax_op, lsoftmax_op.arrays\n"
    finished = run_python(f"{hide}lsoftmax_op.torch", check=False)
    assert re.search(r"ImportError: lsoftmax_op\.torch needs PyTorch .* or later", finished.stderr)
