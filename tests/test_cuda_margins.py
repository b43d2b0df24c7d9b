"""The CUDA kernels with terms (shift, offset, scale, norms divided by, smoothed labels): they are the CPU's.

They run through cc/cuda/testing, as in test_cuda.py.
"""

import math

import numpy as np
import pytest
from support import DTYPES, call_of

from lsoftmax_op import _core

kernels = pytest.importorskip("lsoftmax_op._cuda_on_cpu", reason="built without LSOFTMAX_TESTING=ON")

BOTH = {"normalize_features": True, "normalize_weights": True}
MARGINS = {
    "arcface": {"shift": 0.5, "scale": 8, **BOTH},
    "linear": {"shift": 2.0, "scale": 8, "linear_continuation": True, **BOTH},
    "cosface": {"offset": 0.35, "scale": 8, **BOTH},
    "sphereface": {"m": 4, "normalize_weights": True},
    "combined": {"m": 2, "shift": 0.3, "offset": 0.2, "scale": 4, **BOTH},
    "features": {"m": 2, "shift": 0.2, "scale": 8, "normalize_features": True},
    "scaled": {"m": 3, "scale": 0.5},
    "plain": {"m": 3, "shift": 0.3},
}
RESULTS = ("loss", "products_grad", "geometry_grad", "target_grad", "grad_unit", "predicted")
SUMS_OF_NONE = [[-np.inf], [0], [-np.inf], [0], [0]]

# What results may differ by: rounding of logits of size 8 and of the type that they are stored in.
EPSILON = {"float64": 1e-13, "float32": 2e-6, "bfloat16": 2.0**-7, "float16": 2.0**-10}

# A row per group of 4 lanes and of 32, a row per block, a row in shared memory, parts.
MAPPINGS = [(19, 70), (5, 1003), (3, 4500), (17, 17401), (3, 20001)]


class State:
    """What the kernels read and write of a batch in which a row and a column are zero, and a row has no target."""

    def __init__(self, rows, depth, classes, dtype, *, margin="arcface", smoothing=0.0, bias=False, lam=0.5):
        rng = np.random.default_rng([rows, depth, classes])
        of_margin = {"m": 1, "shift": 0.0, "offset": 0.0, "scale": 1.0, **MARGINS[margin]}
        shift, offset, scale = (of_margin.pop(name) for name in ("shift", "offset", "scale"))
        self.sizes = {"margin": of_margin.pop("m"), "rows": rows, "depth": depth, "classes": classes, **of_margin}
        self.dtype, wide = dtype, np.float64 if dtype == "float64" else np.float32
        features, weights = rng.normal(size=(rows, depth)) / depth, rng.normal(size=(depth, classes))
        labels = rng.integers(0, classes, rows)
        if rows > 3:
            features[1], labels[2], labels[3] = 0, -1, classes - 1
            weights[:, classes // 2] = 0
        has_factors = scale != 1 or len(of_margin) > 0
        terms = [shift, math.cos(shift), math.sin(shift), offset, scale, smoothing, smoothing / classes]
        self.arrays = {
            "features": features.astype(DTYPES[dtype]),
            "weights": weights.astype(DTYPES[dtype]),
            "labels": labels,
            "bias": rng.normal(size=classes).astype(DTYPES[dtype]) if bias else None,
            "lam": np.array(lam),
            "terms": np.array(terms),
            "class_factors": np.ones(classes, wide) if has_factors else None,
            "geometry": np.full((3, rows), -7.0),
            "geometry_grad": np.full((3, rows), -7.0),
            "loss": np.full(rows, -7, DTYPES[dtype]),
            "loss_grad": rng.normal(size=rows).astype(DTYPES[dtype]),
            "target_grad": np.full(rows, -7.0),
            "grad_unit": np.full(rows, -7, np.float32) if dtype == "float16" else None,
            "predicted": np.full(rows, -7),
            "products_grad": np.full((rows, classes), -7, DTYPES[dtype]),
            "sums": np.tile(SUMS_OF_NONE, rows),
            "normalizer": np.full((3, rows), -7.0),
        }
        products = self["features"].astype(wide) @ self["weights"].astype(wide)
        self.arrays["products"] = products.astype(DTYPES[dtype])
        self.run(_core, "geometry")
        if self.sizes.get("normalize_weights"):
            self.run(_core, "class_factors")

    def __getitem__(self, name):
        return self.arrays[name]

    def __setitem__(self, name, array):
        self.arrays[name] = array

    def copy(self):
        other = State.__new__(State)
        other.sizes, other.dtype = self.sizes.copy(), self.dtype
        other.arrays = {name: array if array is None else array.copy() for name, array in self.arrays.items()}
        return other

    def run(self, module, *names, **sizes):
        """Runs kernels; a workspace comes full of NaNs."""
        there = {name: array for name, array in self.arrays.items() if array is not None}
        call = call_of(module, self.dtype, **there)
        call.wide_labels = True
        for name, value in {**self.sizes, **sizes}.items():
            setattr(call, name, value)
        for name in names:
            size = getattr(module, f"{name}_workspace")(call.rows, call.depth, call.classes)
            workspace = np.full(size // 8 + 1, np.nan)
            call.workspace = workspace.ctypes.data
            getattr(module, name)(call, 1 if module is _core else 0)
        return self

    def bits(self, names=RESULTS):
        return [self[name].tobytes() for name in names if self[name] is not None]


def assert_close(got, expected, names=RESULTS):
    """Each number is as near as its type allows, beside the largest of its row."""
    for name in names:
        a, b = got[name], expected[name]
        if a is None:  # of other types than float16 there is no unit
            continue
        if name in ("predicted", "grad_unit"):
            np.testing.assert_array_equal(a, b, err_msg=name)
            continue
        epsilon = EPSILON[got.dtype] if a.dtype == DTYPES[got.dtype] else min(EPSILON[got.dtype], EPSILON["float32"])
        a, b = (array.astype(np.float64) for array in (a, b))
        np.testing.assert_array_equal(np.isfinite(a), np.isfinite(b), err_msg=name)
        np.testing.assert_array_equal(a[~np.isfinite(a)], b[~np.isfinite(b)], err_msg=name)
        a, b = (np.where(np.isfinite(array), array, 0) for array in (a, b))
        size = np.abs(b) + {"products_grad": np.abs(b).max(axis=-1, keepdims=True), "loss": 1}.get(name, 0)
        if name == "geometry_grad":
            size = size + np.abs(b).max(axis=0)
        worst = np.max(np.abs(a - b) / np.maximum(size, 1e-30), initial=0)
        assert worst <= 4 * epsilon, (name, worst / epsilon)


def assert_loss_is_that_of_the_cpu(state):
    expected = state.copy().run(_core, "loss")
    got = state.copy().run(kernels, "loss")
    assert_close(got, expected)
    in_place = state.copy()
    in_place["products_grad"] = in_place["products"]
    assert in_place.run(kernels, "loss").bits() == got.bits()
    own = np.flatnonzero(state["labels"] >= 0)
    np.testing.assert_array_equal(got["products_grad"][own, state["labels"][own]].astype(float), 0)


@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_of_every_margin(dtype, margin, smoothing):
    for rows, classes in ((1, 1), (7, 2), (9, 37), (6, 1003)):
        assert_loss_is_that_of_the_cpu(State(rows, 5, classes, dtype, margin=margin, smoothing=smoothing))


@pytest.mark.parametrize(("rows", "classes"), MAPPINGS)
@pytest.mark.parametrize(
    ("margin", "smoothing", "bias"),
    [("combined", 0.0, False), ("arcface", 0.1, False), ("plain", 0.1, False), ("plain", 0.1, True)],
)
def test_loss_in_every_mapping(dtype, rows, classes, margin, smoothing, bias):
    assert_loss_is_that_of_the_cpu(State(rows, 3, classes, dtype, margin=margin, smoothing=smoothing, bias=bias))


def test_loss_of_a_row_longer_than_shared_memory(monkeypatch):
    monkeypatch.setenv("CUDA_ON_CPU_SHARED", str(36 << 10))
    assert_loss_is_that_of_the_cpu(State(34, 2, 34001, "bfloat16", smoothing=0.1))


# A device with so many multiprocessors and KB of shared memory has one cluster, of so many blocks, in flight, which
# goes through all rows.
@pytest.mark.parametrize(("classes", "blocks", "shared"), [(17_001, 1, 64), (17_001, 4, 19), (43_006, 16, 12)])
@pytest.mark.parametrize(("margin", "bias"), [("arcface", False), ("plain", True)])
@pytest.mark.parametrize("order", ["", "reverse", "1"])
def test_loss_in_clusters(monkeypatch, tmp_path, classes, blocks, shared, margin, bias, order):
    device = {"SHARED": shared << 10, "MULTIPROCESSORS": blocks, "CLUSTER": 16, "LOG": tmp_path / "log"}
    for name, value in device.items():
        monkeypatch.setenv(f"CUDA_ON_CPU_{name}", str(value))
    monkeypatch.setenv("CUDA_ON_CPU_ORDER", order)
    state = State(5, 3, classes, "float32", margin=margin, smoothing=0.1, bias=bias)
    assert_loss_is_that_of_the_cpu(state)
    lines = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert {int(line[0]) for line in lines} == {blocks}


@pytest.mark.parametrize("kind", ["float64", "float16"])
def test_halves_and_doubles_in_clusters(monkeypatch, kind):
    for name, value in {"SHARED": 19 << 10, "MULTIPROCESSORS": 4, "CLUSTER": 16}.items():
        monkeypatch.setenv(f"CUDA_ON_CPU_{name}", str(value))
    assert_loss_is_that_of_the_cpu(State(5, 3, 34_002 if kind == "float16" else 8_501, kind, smoothing=0.1))


def test_a_target_wherever_it_is():
    """At a row's ends and within, in the first and the last thread's vectors; its gradient is cleared."""
    for classes in (70, 4500, 17401, 20001):
        state = State(20 if classes == 17401 else 8, 3, classes, "float32", smoothing=0.3)
        state["labels"][:8] = [0, 1, 3, 4, classes // 2, classes - 6, classes - 2, classes - 1]
        state["products"][:, [0, classes - 1]] = 1
        state.run(_core, "geometry")
        assert_loss_is_that_of_the_cpu(state)


@pytest.mark.parametrize("classes", [1003, 20001])
def test_factors_anywhere_in_memory(dtype, classes):
    state = State(4, 3, classes, dtype, smoothing=0.1)
    expected = state.copy().run(_core, "loss")
    for shift in (1, 2, 3):
        memory = np.empty(classes + shift, state["class_factors"].dtype)
        memory[shift:] = state["class_factors"]
        moved = state.copy()
        moved["class_factors"] = memory[shift:]
        assert_close(moved.run(kernels, "loss"), expected)


@pytest.mark.parametrize("blocks", [[40], [1, 38, 1], [16, 24], [9000, 8193, 30], [0, 5]], ids=str)
@pytest.mark.parametrize(("margin", "bias"), [("combined", False), ("plain", True), ("plain", False)])
def test_blocks_of_classes(dtype, blocks, margin, bias):
    classes, rows, first, parts = sum(blocks), 11, 0, []
    whole = State(rows, 3, classes, dtype, margin=margin, smoothing=0.1, bias=bias)
    expected, on_the_cpu = whole.copy().run(_core, "loss"), whole.copy()
    for width in blocks:
        part, own = whole.copy(), slice(first, first + width)
        part.sizes |= {"classes": width, "first_class": first}
        for name in ("products", "bias", "class_factors"):
            part[name] = None if whole[name] is None else whole[name][..., own].copy()
        part["products_grad"] = part["products"]
        part["sums"], on_the_cpu["sums"] = whole["sums"], on_the_cpu["sums"]
        part.run(kernels, "sums")
        beside = part.copy()
        beside["sums"] = on_the_cpu["sums"]
        beside.run(_core, "sums")
        parts.append(part)
        first += width
    for n, tolerance in ((0, 0), (1, 8), (2, 0), (3, 0), (4, 8)):
        epsilon = max(EPSILON["float64"], min(EPSILON[dtype], EPSILON["float32"]))
        a, b = whole["sums"][n], on_the_cpu["sums"][n]
        size = np.abs(whole["products"].astype(float)).sum(axis=1) * 8 if n == 4 else 0
        np.testing.assert_array_less(
            np.abs(a - b)[np.isfinite(b)], (tolerance * epsilon * (np.abs(b) + size) + 1e-30)[np.isfinite(b)]
        )
    whole.run(kernels, "finish")
    for part in parts:
        part["normalizer"] = whole["normalizer"]
        part.run(kernels, "products_grad")
    whole["products_grad"] = np.concatenate([part["products_grad"] for part in parts], axis=-1)
    assert_close(whole, expected)


@pytest.mark.parametrize("margin", MARGINS)
def test_logits_and_their_gradient(dtype, margin):
    state = State(40, 7, 9, dtype, margin=margin)
    for module, result in ((_core, expected := state.copy()), (kernels, got := state.copy())):
        result["logits"] = state["products"].copy()
        result["products_grad"] = state["products"].copy()
        result.run(module, "logits", "logits_grad")
    assert_close(got, expected, ("logits", "products_grad", "geometry_grad"))
    assert got["logits"].tobytes() != state["products"].tobytes()


# Around what warps hold of a column, and around a block's columns.
@pytest.mark.parametrize("depth", [1, 4, 32, 127, 129, 513, 1030])
@pytest.mark.parametrize("classes", [1, 31, 33, 70])
def test_class_factors(dtype, depth, classes):
    state = State(5, depth, classes, dtype)
    state["class_factors"][:] = -7
    got = state.copy().run(kernels, "class_factors")["class_factors"]
    norms = np.sqrt((state["weights"].astype(np.float64) ** 2).sum(axis=0))
    expected = np.where(norms == 0, 0, 1 / np.where(norms == 0, 1, norms))
    assert (norms == 0).any()
    np.testing.assert_allclose(got, expected, rtol=1e-14 if dtype == "float64" else 2.0**-24)


def gradients_state(shape, dtype, sides, *, copies=True):
    """Gradients that came through products, and what completes them."""
    state = State(*shape, dtype, margin="arcface")
    rng = np.random.default_rng(1)
    state.sizes |= {"normalize_features": "x" in sides, "normalize_weights": "w" in sides}
    state["geometry_grad"] = rng.normal(size=(3, shape[0])) * (state["labels"] >= 0)
    state["features_grad"] = rng.normal(size=state["features"].shape).astype(DTYPES[dtype])
    state["weights_grad"] = rng.normal(size=state["weights"].shape).astype(DTYPES[dtype])
    state["target_weights"] = np.zeros(state["features"].shape, DTYPES[dtype]) if copies else None
    state["bias_grad"] = None
    return state.run(_core, "geometry")


@pytest.mark.parametrize("shape", [(1, 1, 1), (70, 33, 9), (300, 136, 40), (9, 1030, 70), (4500, 8, 3)], ids=str)
@pytest.mark.parametrize("sides", ["", "x", "w", "xw"])
@pytest.mark.parametrize("copies", [True, False])
def test_what_came_in_along_features_and_weights_is_taken_off(dtype, shape, sides, copies):
    state = gradients_state(shape, dtype, sides, copies=copies)
    expected = state.copy().run(_core, "features_grad", "weights_grad")
    got = state.copy().run(kernels, "weights_grad", "features_grad")
    for name in ("features_grad", "weights_grad"):
        a, b = (result[name].astype(np.float64) for result in (got, expected))
        np.testing.assert_allclose(a, b, rtol=0, atol=2 * EPSILON[dtype] * np.abs(b).max())
    assert state.copy().run(kernels, "gradients").bits(("features_grad", "weights_grad")) == got.bits(
        ("features_grad", "weights_grad")
    )


def test_gradients_that_complete_no_row_have_no_part_along_them():
    state = gradients_state((40, 21, 12), "float64", "xw")
    state["labels"][:] = -1
    state["geometry_grad"][:] = 0
    state.run(kernels, "gradients")
    for gradient, vectors in (("features_grad", "features"), ("weights_grad", "weights")):
        axis = 1 if vectors == "features" else 0
        np.testing.assert_allclose((state[gradient] * state[vectors]).sum(axis=axis), 0, atol=1e-12)


def test_weights_lose_their_radial_part_in_a_batch_of_no_rows():
    state = gradients_state((0, 21, 12), "float64", "xw")
    state.run(kernels, "weights_grad")
    np.testing.assert_allclose((state["weights_grad"] * state["weights"]).sum(axis=0), 0, atol=1e-12)


@pytest.mark.parametrize("order", ["reverse", "1", "2"])
def test_any_order_of_threads_gives_the_same_bits(monkeypatch, dtype, order):
    states = [
        State(*shape, dtype, smoothing=0.1) for shape in ((19, 3, 70), (3, 3, 4500), (17, 2, 17401), (3, 2, 20001))
    ]
    completed = gradients_state((70, 140, 70), dtype, "xw")

    def all_bits():
        found = [state.copy().run(kernels, "loss").bits() for state in states]
        parts = states[0].copy().run(kernels, "sums", "finish", "products_grad")
        found.append(parts.bits((*RESULTS, "sums", "normalizer")))
        found.append(
            completed.copy()
            .run(kernels, "class_factors", "gradients")
            .bits(("weights_grad", "features_grad", "class_factors"))
        )
        return found

    first = all_bits()
    monkeypatch.setenv("CUDA_ON_CPU_ORDER", order)
    assert all_bits() == first


@pytest.mark.parametrize(("rows", "classes"), MAPPINGS)
@pytest.mark.parametrize("what", ["label", "lam"])
def test_what_cannot_be_computed_is_nan(rows, classes, what):
    state = State(rows, 3, classes, "float32", smoothing=0.1)
    clean = state.copy().run(kernels, "loss")
    if what == "label":
        state["labels"][1] = classes
    else:
        state["lam"] = np.array(-1.0)
    state["geometry"][:, state["labels"] >= classes] = np.nan  # as the kernel of the geometry has it
    bad, is_bad = state.copy().run(kernels, "loss"), np.arange(rows) == 1
    if what == "lam":
        is_bad[:] = True
    for name in ("loss", "target_grad", "products_grad"):
        assert np.isnan(bad[name][is_bad]).all()
        assert bad[name][~is_bad].tobytes() == clean[name][~is_bad].tobytes()
    assert ((bad["predicted"] >= 0) & (bad["predicted"] < classes)).all()


@pytest.mark.parametrize("classes", [9, 1500, 17000])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_extreme_products(dtype, classes, smoothing):
    state = State(9, 3, classes, dtype, smoothing=smoothing)
    products, labels = state["products"], state["labels"]
    labels[:] = 0
    labels[8] = -1
    state["weights"][:, classes // 2] = 1
    state.run(_core, "class_factors", "geometry")
    products[0, -1] = np.nan
    products[1, 1] = np.inf
    products[3, 1] = -np.inf  # of a smoothed label an infinite loss
    products[4, 1:] = -np.inf
    products[5, 0] = np.nan  # the target's own: its logit is t
    products[6, 0] = -np.inf
    products[7, -1] = np.inf
    products[8] = np.nan
    with np.errstate(invalid="ignore"):
        expected, got = (state.copy().run(module, "loss") for module in (_core, kernels))
    poisoned = np.isnan(expected["loss"].astype(float))
    got["products_grad"][poisoned, 0] = expected["products_grad"][poisoned, 0]  # 0 or NaN
    got["predicted"][8] = expected["predicted"][8]  # of NaNs, any
    assert_close(got, expected)
