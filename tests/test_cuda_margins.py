"""The CUDA kernels with terms (shift, offset, scale, norms divided by, smoothed labels): they are the CPU's.

They run through cc/cuda/testing, as in test_cuda.py.
"""

import math

import cuda_support
import numpy as np
import pytest
from cuda_support import EPSILON, RESULTS, assert_close, bits, copied, kernels, loss_state, run
from support import DTYPES

from lsoftmax_op import _core

BOTH = {"normalize_features": True, "normalize_weights": True}
MARGINS = {
    "arcface": {"shift": 0.5, "scale": 8, **BOTH},
    "linear": {"shift": 2.0, "scale": 8, "linear_continuation": True, **BOTH},
    "cosface": {"offset": 0.35, "scale": 8, **BOTH},
    "sphereface": {"margin": 4, "normalize_weights": True},
    "combined": {"margin": 2, "shift": 0.3, "offset": 0.2, "scale": 4, **BOTH},
    "features": {"margin": 2, "shift": 0.2, "scale": 8, "normalize_features": True},
    "scaled": {"margin": 3, "scale": 0.5},
    "plain": {"margin": 3, "shift": 0.3},
}
SUMS_OF_NONE = [[-np.inf], [0], [-np.inf], [0], [0]]

# A row per group of 4 lanes and of 32, a row per block, a row in shared memory, parts.
MAPPINGS = [(19, 70), (5, 1003), (3, 4500), (17, 17401), (3, 20001)]


def state_of(rows, depth, classes, dtype, *, margin="arcface", smoothing=0.0, bias=False):
    """What the kernels read and write of a batch in which a row and a column are zero, and a row has no target."""
    rng = np.random.default_rng([rows, depth, classes])
    sizes = {"margin": 1, "shift": 0.0, "offset": 0.0, "scale": 1.0, **MARGINS[margin]}
    shift, offset, scale = (sizes.pop(name) for name in ("shift", "offset", "scale"))
    has_factors = scale != 1 or len(sizes) > 1
    wide = np.float64 if dtype == "float64" else np.float32
    features, weights = rng.normal(size=(rows, depth)) / depth, rng.normal(size=(depth, classes))
    if rows > 3:
        features[3] = 0
        weights[:, classes // 2] = 0
    features, weights = features.astype(DTYPES[dtype]), weights.astype(DTYPES[dtype])
    state = {
        **loss_state(rows, classes, dtype, bias=bias),
        "features": features,
        "weights": weights,
        "products": (features.astype(wide) @ weights.astype(wide)).astype(DTYPES[dtype]),
        "terms": np.array([shift, math.cos(shift), math.sin(shift), offset, scale, smoothing, smoothing / classes]),
        "class_factors": np.ones(classes, wide) if has_factors else None,
        "sums": np.tile(SUMS_OF_NONE, rows),
        "normalizer": np.full((3, rows), -7.0),
        "sizes": sizes,
    }
    return run(_core, ["geometry", *["class_factors"] * ("normalize_weights" in sizes)], state)


def assert_loss_is_that_of_the_cpu(state):
    got = cuda_support.assert_loss_is_that_of_the_cpu(state, beside_row=True)
    own = np.flatnonzero(state["labels"] >= 0)
    np.testing.assert_array_equal(got["products_grad"][own, state["labels"][own]].astype(float), 0)


@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_of_every_margin(dtype, margin, smoothing):
    for rows, classes in ((1, 1), (7, 2), (9, 37), (6, 1003)):
        assert_loss_is_that_of_the_cpu(state_of(rows, 5, classes, dtype, margin=margin, smoothing=smoothing))


@pytest.mark.parametrize(("rows", "classes"), MAPPINGS)
@pytest.mark.parametrize(
    ("margin", "smoothing", "bias"),
    [("combined", 0.0, False), ("arcface", 0.1, False), ("plain", 0.1, False), ("plain", 0.1, True)],
)
def test_loss_in_every_mapping(dtype, rows, classes, margin, smoothing, bias):
    assert_loss_is_that_of_the_cpu(state_of(rows, 3, classes, dtype, margin=margin, smoothing=smoothing, bias=bias))


def test_loss_of_a_row_longer_than_shared_memory(device):
    launches = device(36, 16, cluster=0)
    assert_loss_is_that_of_the_cpu(state_of(34, 2, 34001, "bfloat16", smoothing=0.1))
    assert launches() == [(34, 1)] * 2  # a block a row, whose threads would have to be 1063 to hold it


# A device with so many multiprocessors and KB of shared memory has one cluster, of so many blocks, in flight, which
# goes through all rows.
@pytest.mark.parametrize(("classes", "blocks", "shared"), [(17_001, 1, 64), (17_001, 4, 20), (43_006, 16, 12)])
@pytest.mark.parametrize(("margin", "bias"), [("arcface", False), ("plain", True)])
@pytest.mark.parametrize("order", ["", "reverse", "1"])
def test_loss_in_clusters(device, monkeypatch, classes, blocks, shared, margin, bias, order):
    launches = device(shared, blocks)
    monkeypatch.setenv("CUDA_ON_CPU_ORDER", order)
    state = state_of(5, 3, classes, "float32", margin=margin, smoothing=0.1, bias=bias)
    assert_loss_is_that_of_the_cpu(state)
    assert set(launches()) == {(blocks, blocks)}


@pytest.mark.parametrize("kind", ["float64", "float16"])
def test_halves_and_doubles_in_clusters(device, kind):
    launches = device(20, 4)
    assert_loss_is_that_of_the_cpu(state_of(5, 3, 34_002 if kind == "float16" else 8_501, kind, smoothing=0.1))
    assert set(launches()) == {(4, 4)}


def test_a_target_wherever_it_is():
    """At a row's ends and within, in the first and the last thread's vectors; its gradient is cleared."""
    for classes in (70, 4500, 17401, 20001):
        state = state_of(20 if classes == 17401 else 8, 3, classes, "float32", smoothing=0.3)
        state["labels"][:8] = [0, 1, 3, 4, classes // 2, classes - 6, classes - 2, classes - 1]
        state["products"][:, [0, classes - 1]] = 1
        run(_core, ["geometry"], state)
        assert_loss_is_that_of_the_cpu(state)


@pytest.mark.parametrize("classes", [1003, 20001])
def test_factors_anywhere_in_memory(dtype, classes):
    state = state_of(4, 3, classes, dtype, smoothing=0.1)
    expected = run(_core, ["loss"], copied(state))
    for shift in (1, 2, 3):
        memory = np.empty(classes + shift, state["class_factors"].dtype)
        memory[shift:] = state["class_factors"]
        moved = copied(state)
        moved["class_factors"] = memory[shift:]
        assert_close(run(kernels, ["loss"], moved), expected, beside_row=True)


@pytest.mark.parametrize("blocks", [[40], [1, 38, 1], [16, 24], [9000, 8193, 30], [0, 5]], ids=str)
@pytest.mark.parametrize(("margin", "bias"), [("combined", False), ("plain", True), ("plain", False)])
def test_blocks_of_classes(dtype, blocks, margin, bias):
    classes, rows, first, parts = sum(blocks), 11, 0, []
    whole = state_of(rows, 3, classes, dtype, margin=margin, smoothing=0.1, bias=bias)
    expected, on_the_cpu = run(_core, ["loss"], copied(whole)), copied(whole)
    for width in blocks:
        part, own = copied(whole), slice(first, first + width)
        part["sizes"]["first_class"] = first
        for name in ("products", "bias", "class_factors"):
            part[name] = None if whole[name] is None else whole[name][..., own].copy()
        part["products_grad"] = part["products"]
        part["sums"], on_the_cpu["sums"] = whole["sums"], on_the_cpu["sums"]
        run(kernels, ["sums"], part)
        beside = copied(part)
        beside["sums"] = on_the_cpu["sums"]
        run(_core, ["sums"], beside)
        parts.append(part)
        first += width
    for n, tolerance in ((0, 0), (1, 8), (2, 0), (3, 0), (4, 8)):
        epsilon = max(EPSILON["float64"], min(EPSILON[dtype], EPSILON["float32"]))
        a, b = whole["sums"][n], on_the_cpu["sums"][n]
        size = np.abs(whole["products"].astype(float)).sum(axis=1) * 8 if n == 4 else 0
        finite = np.isfinite(b)
        np.testing.assert_array_equal(a[~finite], b[~finite])
        np.testing.assert_array_less(np.abs(a - b)[finite], (tolerance * epsilon * (np.abs(b) + size) + 1e-30)[finite])
    run(kernels, ["finish"], whole)
    for part in parts:
        part["normalizer"] = whole["normalizer"]
        run(kernels, ["products_grad"], part)
    whole["products_grad"] = np.concatenate([part["products_grad"] for part in parts], axis=-1)
    assert_close(whole, expected, beside_row=True)


@pytest.mark.parametrize("margin", MARGINS)
def test_logits_and_their_gradient(dtype, margin):
    state = state_of(40, 7, 9, dtype, margin=margin)
    for module, result in ((_core, expected := copied(state)), (kernels, got := copied(state))):
        result["logits"] = state["products"].copy()
        result["products_grad"] = state["products"].copy()
        run(module, ["logits", "logits_grad"], result)
    assert_close(got, expected, ("logits", "products_grad", "geometry_grad"), beside_row=True)
    assert got["logits"].tobytes() != state["products"].tobytes()


# Around what warps hold of a column, and around a block's columns.
@pytest.mark.parametrize("depth", [1, 4, 32, 127, 129, 513, 1030])
@pytest.mark.parametrize("classes", [1, 31, 33, 70])
def test_class_factors(dtype, depth, classes):
    state = state_of(5, depth, classes, dtype)
    state["class_factors"][:] = -7
    got = run(kernels, ["class_factors"], copied(state))["class_factors"]
    norms = np.sqrt((state["weights"].astype(np.float64) ** 2).sum(axis=0))
    expected = np.where(norms == 0, 0, 1 / np.where(norms == 0, 1, norms))
    assert (norms == 0).any()
    np.testing.assert_allclose(got, expected, rtol=1e-14 if dtype == "float64" else 2.0**-24)


def gradients_state(shape, dtype, sides, *, copies=True):
    """Gradients that came through products, and what completes them."""
    state = state_of(*shape, dtype, margin="arcface")
    rng = np.random.default_rng(1)
    state["sizes"] |= {"normalize_features": "x" in sides, "normalize_weights": "w" in sides}
    state["geometry_grad"] = rng.normal(size=(3, shape[0])) * (state["labels"] >= 0)
    state["features_grad"] = rng.normal(size=state["features"].shape).astype(DTYPES[dtype])
    state["weights_grad"] = rng.normal(size=state["weights"].shape).astype(DTYPES[dtype])
    state["target_weights"] = np.zeros(state["features"].shape, DTYPES[dtype]) if copies else None
    state["bias_grad"] = None
    return run(_core, ["geometry"], state)


@pytest.mark.parametrize("shape", [(1, 1, 1), (70, 33, 9), (300, 136, 40), (9, 1030, 70), (4500, 8, 3)], ids=str)
@pytest.mark.parametrize(
    ("sides", "copies"), [("", False), ("x", False), ("w", False), ("w", True), ("xw", True), ("xw", False)]
)
def test_what_came_in_along_features_and_weights_is_taken_off(dtype, shape, sides, copies):
    state = gradients_state(shape, dtype, sides, copies=copies)
    expected = run(_core, ["features_grad", "weights_grad"], copied(state))
    got = run(kernels, ["weights_grad", "features_grad"], copied(state))
    for name in ("features_grad", "weights_grad"):
        a, b = (result[name].astype(np.float64) for result in (got, expected))
        np.testing.assert_allclose(a, b, rtol=0, atol=2 * EPSILON[dtype] * np.abs(b).max())
    together, both = run(kernels, ["gradients"], copied(state)), ("features_grad", "weights_grad")
    assert bits(together, both) == bits(got, both)


def test_gradients_that_complete_no_row_have_no_part_along_them():
    state = gradients_state((40, 21, 12), "float64", "xw")
    state["labels"][:] = -1
    state["geometry_grad"][:] = 0
    run(kernels, ["gradients"], state)
    for gradient, vectors in (("features_grad", "features"), ("weights_grad", "weights")):
        axis = 1 if vectors == "features" else 0
        np.testing.assert_allclose((state[gradient] * state[vectors]).sum(axis=axis), 0, atol=1e-12)


def test_weights_lose_their_radial_part_in_a_batch_of_no_rows():
    state = gradients_state((0, 21, 12), "float64", "xw")
    run(kernels, ["weights_grad"], state)
    np.testing.assert_allclose((state["weights_grad"] * state["weights"]).sum(axis=0), 0, atol=1e-12)


def test_any_order_of_threads_gives_the_same_bits(monkeypatch, dtype):
    states = [
        state_of(*shape, dtype, smoothing=0.1) for shape in ((19, 3, 70), (3, 3, 4500), (17, 2, 17401), (3, 2, 20001))
    ]
    completed = gradients_state((70, 140, 70), dtype, "xw")

    def all_bits():
        found = [bits(run(kernels, ["loss"], copied(state))) for state in states]
        parts = run(kernels, ["sums", "finish", "products_grad"], copied(states[0]))
        found.append(bits(parts, (*RESULTS, "sums", "normalizer")))
        found.append(
            bits(
                run(kernels, ["class_factors", "gradients"], copied(completed)),
                ("weights_grad", "features_grad", "class_factors"),
            )
        )
        return found

    first = all_bits()
    for order in ("reverse", "1", "2"):
        monkeypatch.setenv("CUDA_ON_CPU_ORDER", order)
        assert all_bits() == first, order


@pytest.mark.parametrize(("rows", "classes"), MAPPINGS)
@pytest.mark.parametrize("what", [-2, "C", np.iinfo(np.int64).max, np.iinfo(np.int64).min, "lam"], ids=str)
def test_what_cannot_be_computed_is_nan(rows, classes, what):
    state = state_of(rows, 3, classes, "float32", smoothing=0.1)
    clean = run(kernels, ["loss"], copied(state))
    if what == "lam":
        state["lam"] = np.array(-1.0)
    else:
        state["labels"][1] = classes if what == "C" else what
        state["geometry"][:, 1] = np.nan  # as the kernel of the geometry has it
    bad, is_bad = run(kernels, ["loss"], copied(state)), np.arange(rows) == 1
    if what == "lam":
        is_bad[:] = True
    for name in ("loss", "target_grad", "products_grad"):
        assert np.isnan(bad[name][is_bad]).all()
        assert bad[name][~is_bad].tobytes() == clean[name][~is_bad].tobytes()
    assert ((bad["predicted"] >= 0) & (bad["predicted"] < classes)).all()


@pytest.mark.parametrize("classes", [9, 1500, 17000])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_extreme_products(dtype, classes, smoothing):
    state = state_of(9, 3, classes, dtype, smoothing=smoothing)
    products, labels = state["products"], state["labels"]
    labels[:] = 0
    labels[8] = -1
    state["weights"][:, classes // 2] = 1
    run(_core, ["class_factors", "geometry"], state)
    products[0, -1] = np.nan
    products[1, 1] = np.inf
    products[3, 1] = -np.inf  # of a smoothed label an infinite loss
    products[4, 1:] = -np.inf
    products[5, 0] = np.nan  # the target's own: its logit is t
    products[6, 0] = -np.inf
    products[7, -1] = np.inf
    products[8] = np.nan
    with np.errstate(invalid="ignore"):
        expected, got = (run(module, ["loss"], copied(state)) for module in (_core, kernels))
    poisoned = np.isnan(expected["loss"].astype(float))
    got["products_grad"][poisoned, 0] = expected["products_grad"][poisoned, 0]  # 0 or NaN
    got["predicted"][8] = expected["predicted"][8]  # of NaNs, any
    assert_close(got, expected, beside_row=True)
