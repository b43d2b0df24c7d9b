"""The CUDA kernels around the label columns: their order, and what they cost, counted over cc/cuda/testing."""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from conftest import CudaOnCpu
from support import DTYPES, ROOT, call_of, random_batch

from lsoftmax_op import arrays

kernels = pytest.importorskip("lsoftmax_op._cuda_on_cpu", reason="built without LSOFTMAX_TESTING=ON")


def batch_of(rows, depth, classes, dtype="float32"):
    """Classes of every size: one holds a third of the rows; some rows have no target, one has a bad label."""
    rng = np.random.default_rng([rows, classes])
    features, weights = (
        rng.random(shape, np.float32).astype(DTYPES[dtype]) for shape in ((rows, depth), (depth, classes))
    )
    labels = rng.integers(0, classes, rows)
    labels[::3] = classes // 2
    labels[1::7] = -1
    labels[rows // 2] = classes
    return SimpleNamespace(features=features, weights=weights, labels=labels)


def run(names, batch, **arrays_of_call):
    """Runs kernels over a batch and `arrays_of_call`; each has a workspace of its own, full of ones."""
    rows, depth = batch.features.shape
    classes = batch.weights.shape[1]
    call = call_of(kernels, batch.features.dtype.name, **vars(batch), **arrays_of_call)
    call.rows, call.depth, call.classes, call.wide_labels = rows, depth, classes, True
    for name in names:
        workspace = np.full(getattr(kernels, f"{name}_workspace")(rows, depth, classes), 255, np.uint8)
        call.workspace = workspace.ctypes.data
        getattr(kernels, name)(call, 0)


# Around a chunk, what a block ranks, a stage, a tile and a merge of it; batches that are and are not worth the order.
@pytest.mark.parametrize("rows", [1, 31, 33, 1023, 1025, 4096, 4097, 5120, 8192, 8193])
@pytest.mark.parametrize("classes", [1, 40, 10**6])
def test_the_order_is_that_of_the_labels(rows, classes):
    batch = batch_of(rows, 1, classes)
    geometry, label_order = np.empty((3, rows)), np.full((2, rows), -7)
    run(["geometry"], batch, geometry=geometry, label_order=label_order)
    labels = np.where((batch.labels < 0) | (batch.labels >= classes), -1, batch.labels)
    expected = np.argsort(labels, kind="stable")
    np.testing.assert_array_equal(label_order, [labels[expected], expected])
    alone = np.empty((3, rows))
    run(["geometry"], batch, geometry=alone)
    assert alone.tobytes() == geometry.tobytes()


def gradients_of(rows, depth, classes, dtype, names, *, bias=True, copies=True, shared=True):
    """The gradients by kernels of these names."""
    batch = batch_of(rows, depth, classes, dtype)
    rng = np.random.default_rng(0)
    geometry, label_order = np.empty((3, rows)), np.full((2, rows), -7)
    given = {
        "geometry_grad": rng.normal(size=(3, rows)),
        "target_grad": rng.normal(size=rows),
        "loss_grad": rng.normal(size=rows).astype(DTYPES[dtype]),
        "products_grad": rng.normal(size=(rows, classes)).astype(DTYPES[dtype]),
    }
    given |= {"target_weights": np.empty((rows, depth), DTYPES[dtype])} if copies else {}
    given |= {"label_order": label_order} if shared else {}
    run(["geometry"], batch, geometry=geometry, **given)
    results = {
        "features_grad": rng.normal(size=(rows, depth)).astype(DTYPES[dtype]),
        "weights_grad": rng.normal(size=(depth, classes)).astype(DTYPES[dtype]),
    }
    results |= {"bias_grad": np.empty(classes, DTYPES[dtype])} if bias else {}
    run(names, batch, **given, **results)
    return results


@pytest.mark.parametrize("shape", [(1, 1, 1), (70, 33, 9), (300, 136, 40), (1100, 4, 5), (4500, 8, 3)], ids=str)
@pytest.mark.parametrize("copies", [True, False])
def test_gradients_are_those_of_three_kernels(dtype, shape, copies):
    together = gradients_of(*shape, dtype, ["gradients"], copies=copies)
    apart = gradients_of(*shape, dtype, ["weights_grad", "features_grad", "bias_grad"], copies=copies, shared=False)
    for name in ("features_grad", "weights_grad"):
        assert together[name].tobytes() == apart[name].tobytes()
    a, b = (np.asarray(results["bias_grad"], np.float64) for results in (together, apart))
    np.testing.assert_allclose(a, b, rtol=0, atol=4 * {"float64": 1e-13, "float32": 1e-5}.get(dtype, 0.1) * shape[0])
    without = gradients_of(*shape, dtype, ["gradients"], bias=False, copies=copies)
    assert without["weights_grad"].tobytes() == together["weights_grad"].tobytes()


@pytest.mark.parametrize("shape", [(70, 33, 9), (1100, 16, 500), (4500, 8, 3)], ids=str)
def test_gradients_in_any_order_of_threads_are_the_same_bits(monkeypatch, dtype, shape):
    first = gradients_of(*shape, dtype, ["gradients"])
    for order in ("reverse", "1", "2"):
        monkeypatch.setenv("CUDA_ON_CPU_ORDER", order)
        for name, after in gradients_of(*shape, dtype, ["gradients"]).items():
            assert after.tobytes() == first[name].tobytes(), order


# The order beside the geometry and before it; rows in parts; the bias gradient beside the others and apart.
@pytest.mark.parametrize(
    ("rows", "classes", "launches"),
    [
        (1, 7, 3),
        (256, 10, 3),
        (256, 1000, 3),
        (1024, 3, 3),
        (1025, 3, 5),
        (4096, 100, 5),
        (1025, 4096, 4),
        (3, 20000, 6),
        (17, 17409, 6),
    ],
)
def test_launches_of_a_step_beside_its_products(tmp_path, monkeypatch, rows, classes, launches):
    batch = random_batch((rows, 3, classes), "float32")
    monkeypatch.setenv("CUDA_ON_CPU_LOG", str(tmp_path / "log"))
    with mock.patch.object(arrays, "library_of", return_value=CudaOnCpu()):
        arrays.loss_grad(batch.loss_grad, *batch.layer)
    assert len((tmp_path / "log").read_text().splitlines()) <= launches <= 6


@pytest.fixture(scope="module")
def sectors(tmp_path_factory):
    """The program of cc/cuda/testing/sectors.cc."""
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    folder, cuda = tmp_path_factory.mktemp("sectors"), ROOT / "cc" / "cuda"
    command = ["c++", "-std=c++17", "-w", f"-I{cuda / 'testing'}", f"-I{ROOT / 'cc'}", "-c"]
    watched = ["-O1", "-fsanitize=thread", "-x", "c++"]
    builds = [[*command, "-O2", str(cuda / "testing" / "sectors.cc")]]
    names = ("geometry", "weights_grad", "label_order", "columns")
    builds += [[*command, *watched, str(cuda / f"{name}.cu")] for name in names]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda build: subprocess.run(build, cwd=folder, check=True), builds))
    subprocess.run(["c++", *map(str, folder.glob("*.o")), "-o", "sectors"], cwd=folder, check=True)
    return folder / "sectors"


# Megabytes of geometry and weights_grad together. Where each row asks for its own column, they are 183 and 168, of the
# second shape 125 and 110.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "float32", "bfloat16"), [((4096, 512, 10000), 82, 47), ((4096, 512, 1000), 44, 28)], ids=str
)
def test_sectors_of_the_label_columns(sectors, shape, float32, bfloat16):
    command = [sectors, *map(str, shape)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    megabytes = {line.split()[0]: sum(map(int, line.split()[1:])) / 1e6 for line in lines}
    assert megabytes["float32"] <= float32
    assert megabytes["bfloat16"] <= bfloat16
