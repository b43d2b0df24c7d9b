"""The loss on devices with clusters: rows in the shared memory of 1 to 16 blocks, filled by bulk copies.

And that cc/cuda/testing finds what a GPU would not forgive: what is read too soon, asked for too soon, left too soon.
"""

import numpy as np
import pytest
from cuda_support import (
    RESULTS,
    assert_a_bad_label_makes_its_row_nan,
    assert_arrays_may_lie_anywhere,
    assert_close,
    assert_loss_is_that_of_the_cpu,
    bits,
    compile_kernel,
    copied,
    kernels,
    loss_state,
    run,
    run_program,
)

from lsoftmax_op import _core

ORDERS = ["", "reverse", "1", "2"]
# A row of so many floats takes so many blocks of so many KB of shared memory. With as many multiprocessors, one cluster
# is in flight and goes through all rows.
CLUSTERS = [
    (17_001, 1, 128),  # all of the row stays
    (17_001, 1, 64),  # 12/13 of it
    (17_001, 2, 36),
    (17_001, 4, 20),  # just
    (17_001, 8, 12),
    (34_003, 16, 12),
    (43_006, 16, 12),  # 9/10 of it
]


@pytest.mark.parametrize(("classes", "blocks", "shared"), CLUSTERS)
@pytest.mark.parametrize("bias", [True, False])
def test_loss_of_every_cluster(device, classes, blocks, shared, bias):
    launches = device(shared, blocks)
    assert_loss_is_that_of_the_cpu(loss_state(4, classes, "float32", bias=bias))
    assert set(launches()) == {(blocks, blocks)}


@pytest.mark.parametrize(
    ("beyond", "bias"), [(-9, True), (-1, False), (0, True), (0, False), (1, True), (7, False), (8, True), (8, False)]
)
def test_loss_of_rows_around_what_a_cluster_holds(device, dtype, beyond, bias):
    """Rows begin and end anywhere; the last part may have a vector less, or none of its own."""
    per_vector = (
        16 // np.dtype(np.float64 if dtype == "float64" else np.float32 if dtype == "float32" else "f2").itemsize
    )
    classes = 4 * 2144 * per_vector + beyond  # 4 blocks of 36 KB
    launches = device(36, 4)
    assert_loss_is_that_of_the_cpu(loss_state(3, classes, dtype, bias=bias))
    assert set(launches()) == {(4, 4)}


@pytest.mark.parametrize(("rows", "launched"), [(1, (4, 4)), (2, (4, 2)), (3, (4, 2)), (9, (4, 2))])
def test_clusters_take_the_rows_in_turn(device, rows, launched):
    """Those that the device holds at once; one may have a row less than another, and a single row has all blocks."""
    launches = device(36, 4)
    assert_loss_is_that_of_the_cpu(loss_state(rows, 17_001, "float32"))
    assert set(launches()) == {launched}


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
@pytest.mark.parametrize(("classes", "blocks", "shared"), [CLUSTERS[n] for n in (0, 2, 4, 6)])
def test_any_order_gives_the_same_bits(device, monkeypatch, classes, blocks, shared, kind):
    state = loss_state(3, classes * (1 if kind == "float32" else 2), kind)
    device(shared, blocks)
    first = bits(run(kernels, ["loss"], copied(state)))
    for order in ORDERS[1:]:
        monkeypatch.setenv("CUDA_ON_CPU_ORDER", order)
        assert bits(run(kernels, ["loss"], copied(state))) == first, order


def test_the_number_of_clusters_does_not_change_the_bits(device):
    state = loss_state(7, 17_001, "float32")
    found = []
    for multiprocessors in (2, 4, 14):
        launches = device(36, multiprocessors)
        found.append(bits(run(kernels, ["loss"], copied(state))))
        assert launches()[0] == (multiprocessors, 2)
    assert found == found[:1] * 3


@pytest.mark.parametrize("order", ORDERS)
def test_rows_and_biases_anywhere_in_memory(device, monkeypatch, dtype, order):
    if order:
        monkeypatch.setenv("CUDA_ON_CPU_ORDER", order)
    classes = 17_003 if dtype in ("float32", "float64") else 33_005
    device(36, 4)
    assert_arrays_may_lie_anywhere(loss_state(3, classes, dtype), ((1, 1, 0), (0, 1, 1), (3, 0, 2)))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("label", [-2, "C", np.iinfo(np.int64).max, np.iinfo(np.int64).min], ids=str)
def test_a_label_out_of_range_makes_its_rows_loss_nan(device, bias, label):
    classes = 17_001
    device(12, 8)
    assert_a_bad_label_makes_its_row_nan(classes, bias, label)


def test_a_bad_lambda_makes_every_loss_nan(device):
    device(12, 8)
    state = run(kernels, ["loss"], loss_state(3, 17_001, "float32", lam=-1.0))
    for name in ("loss", "products_grad", "target_grad", "geometry_grad"):
        assert np.isnan(state[name]).all()
    assert ((state["predicted"] >= 0) & (state["predicted"] < 17_001)).all()


@pytest.mark.parametrize(("classes", "blocks", "shared"), [CLUSTERS[n] for n in (1, 4, 6)])
def test_no_target_no_number_no_end(device, dtype, classes, blocks, shared):
    """NaN and the infinities stay in their row, wherever in the cluster they are; a row without a target is 0."""
    classes *= 1 if dtype in ("float32", "float64") else 2
    device(shared, blocks)
    state = loss_state(9, classes, dtype, bias=False, scale=0)
    products, labels = state["products"], state["labels"]
    labels[:] = classes // 2
    labels[8] = -1
    products[0] = np.linspace(-1e4, 1e4, classes)
    products[1, :] = -np.inf  # no other class
    products[2, 1:] = -np.inf
    products[3, 0] = np.inf
    products[4, -1] = np.nan
    products[5, classes // 2] = np.nan  # the target's own: its logit is t
    products[6, : classes // 3] = -np.inf  # all of the first blocks
    products[7, :] = np.inf
    products[8, 0] = np.nan
    with np.errstate(invalid="ignore"):
        expected, got = (run(module, ["loss"], copied(state)) for module in (_core, kernels))
    poisoned = np.isnan(expected["loss"].astype(float))
    assert poisoned.tolist() == [i in (3, 4, 7) for i in range(9)]
    got["products_grad"][poisoned, classes // 2] = expected["products_grad"][poisoned, classes // 2]  # 0 or NaN
    assert_close(got, expected)


@pytest.mark.parametrize(("classes", "blocks", "shared"), [CLUSTERS[n] for n in (1, 4, 6)])
def test_of_equal_logits_the_first_is_predicted(device, classes, blocks, shared):
    """Wherever the target is among them, in whichever block."""
    device(shared, blocks)
    places = [0, 1, 5, 31, 32, classes // 3, classes // 2, classes - 2, classes - 1]
    rng = np.random.default_rng(0)
    state = loss_state(12, classes, "float32", bias=False)
    state["products"][11] = 3
    expected = []
    for row in range(11):
        tied = rng.choice(places, 3, replace=False) if row % 8 else np.array([classes - 2, classes - 1, classes - 1])
        state["products"][row, tied] = 50
        state["labels"][row] = tied[row % 3] if row % 4 or row == 8 else -1
        expected.append(tied.min())
    np.testing.assert_array_equal(run(kernels, ["loss"], state)["predicted"], [*expected, 0])


def test_clusters_of_a_device_that_has_few(device):
    """One whose clusters are too small has parts; one of single blocks has none but those."""
    state = loss_state(4, 34_003, "float32")
    launches = device(12, 8, cluster=4)
    assert_loss_is_that_of_the_cpu(state)
    assert len(launches()) > 2
    launches = device(227, 4, cluster=1)
    assert_loss_is_that_of_the_cpu(state)
    assert set(launches()) == {(4, 1)}


def test_more_than_two_to_the_31_products(device, monkeypatch):
    """As many clusters as rows, of which the last one runs."""
    rows, classes, shared = 2**17 + 3, 2**14 + 8, 36
    small = loss_state(1, classes, "float16", bias=False)
    small["labels"][:] = 5
    large = {
        name: np.zeros((*small[name].shape[:-1], rows), small[name].dtype) for name in (*RESULTS, "geometry", "labels")
    }
    large |= {name: np.zeros((rows, classes), np.float16) for name in ("products", "products_grad")}
    large["products"][-1], large["geometry"][:, -1:], large["labels"][-1] = small["products"], small["geometry"], 5
    large["grad_unit"] = small["grad_unit"] = None  # it depends on the number of rows
    launches = device(shared, rows)
    monkeypatch.setenv("CUDA_ON_CPU_LAST", "1")
    run(kernels, ["loss"], {**large, "lam": small["lam"]})
    assert launches() == [(rows, 1)]
    names = [name for name in RESULTS if name != "grad_unit"]
    for name in names:
        large[name] = large[name][-1:] if name != "geometry_grad" else large[name][:, -1:]
    assert_close(large, run(_core, ["loss"], small), names)


def in_each_order(monkeypatch, program, given, right):
    """Whether the program's results are right(out), of one that may fail."""
    found = []
    for order in ORDERS:
        if order:
            monkeypatch.setenv("CUDA_ON_CPU_ORDER", order)
        error, out = run_program(program, *given)
        assert error in (0, 719)
        found.append(error == 0 and bool(right(out)))
    return found


COPY = """
  struct Own { lsoftmax::cuda::Arrival arrival; };
  using namespace lsoftmax::cuda;
  const int announced = given[0], offset = given[1], waits = given[2], meets = given[3];
  static char from[2][256] __attribute__((aligned(16)));
  Own& own = of_block<Own>();
  char* const to = dynamic_shared<char>();
  const int t = static_cast<int>(threadIdx.x);
  if (t == 0) {
    for (int n = 0; n < 256; ++n) { from[0][n] = 1; from[1][n] = 2; }
    init_arrival(&own.arrival);
    publish_arrivals();
    announce(&own.arrival, announced);
    bulk_copy(to, from[0] + offset, 256, &own.arrival);
  }
  __syncthreads();
  if (waits) await(&own.arrival, 0);
  const int first = to[t];
  if (meets) __syncthreads();
  if (t == 0) {
    announce(&own.arrival, 256);
    bulk_copy(to, from[1], 256, &own.arrival);
  }
  await(&own.arrival, 1);
  out[blockIdx.x * 64 + t] = 10 * first + to[t];
"""


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """A program that copies twice: how many bytes it announces, of what place, and whether it waits and meets."""
    return compile_kernel(tmp_path_factory.mktemp("copies"), COPY, '#include "cuda/cluster.cuh"', shared=256)


@pytest.mark.parametrize(
    ("given", "works"),
    [
        ((256, 0, 1, 1), True),
        ((256, 0, 0, 1), False),  # read too soon
        ((256, 0, 1, 0), False),  # asked for before all have read
        ((128, 0, 1, 1), False),  # fewer bytes than come
        ((512, 0, 1, 1), False),  # more
        ((256, 4, 1, 1), False),  # not on a border of 16 bytes
    ],
    ids=str,
)
def test_bulk_copies(copies, monkeypatch, given, works):
    """They arrive, and what is wrong with them is seen."""
    assert all(in_each_order(monkeypatch, copies, given, lambda out: (out == 12).all())) == works


MERGE = """
  struct Own { int number; };
  using namespace lsoftmax::cuda;
  Own& own = of_block<Own>();
  const Cluster cluster = Cluster::own();
  const int meets = given[0], waits = given[1], tail = given[2];
  if (threadIdx.x == 0) own.number = 1 + cluster.rank;
  if (meets) cluster.sync();
  if (threadIdx.x >= 32) {
    const int other = static_cast<int>(threadIdx.x) % cluster.blocks;
    out[blockIdx.x * 64 + threadIdx.x] = *cluster.of_rank(&own.number, other) == 1 + other;
  }
  if (waits == 2 && threadIdx.x == 0) __syncthreads();
  else if (waits) cluster.sync();
  if (tail && cluster.rank == 0) cluster.sync();
"""


@pytest.fixture(scope="module")
def merging(tmp_path_factory):
    """A program of a cluster: whether blocks meet before they read, wait after that, and one once more."""
    return compile_kernel(tmp_path_factory.mktemp("merging"), MERGE, '#include "cuda/cluster.cuh"', cluster=2)


@pytest.mark.parametrize(
    ("given", "works"),
    [
        ((1, 1, 0), True),
        ((0, 1, 0), False),  # reads before the others have written
        ((1, 0, 0), False),  # leaves before the others have read
        ((1, 1, 1), True),  # all others have ended, and none is waited for
        ((1, 2, 0), False),  # a thread waits at another barrier
    ],
    ids=str,
)
def test_blocks_of_a_cluster(merging, monkeypatch, given, works):
    monkeypatch.setenv("CUDA_ON_CPU_CLUSTER", "2")
    found = in_each_order(monkeypatch, merging, given, lambda out: (out.reshape(2, 64)[:, 32:] == 1).all())
    assert all(found) == works


def test_a_device_refuses_clusters_that_it_has_not(merging, monkeypatch):
    for most, error in (("0", 912), ("1", 912), ("2", 0)):
        monkeypatch.setenv("CUDA_ON_CPU_CLUSTER", most)
        assert run_program(merging, 1, 1, 0)[0] == error


ALLOWED = """
  for (int n = 0; n + 1 < count; ++n) {
    const int kb = given[n];
    if (kb < 0) cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, -kb << 10);
    else lsoftmax::cuda::allow(kernel, kb << 10, 1);
  }
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A program that wants 60 KB of shared memory, having allowed itself so many, or, below 0, asked for so many."""
    include = '#include "cuda/device.cuh"'
    return compile_kernel(tmp_path_factory.mktemp("large"), "", include, shared=60 << 10, before=ALLOWED)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ((), 1),
        ((50,), 0),  # all that there is
        ((60, 50, 8), 0),  # as another host thread may ask between
        ((-60, 50), 0),
        ((-60, -50), 1),  # the emulator's limit can be lowered, as a device's
    ],
    ids=str,
)
def test_no_launch_lowers_what_another_was_allowed(large, given, error):
    assert run_program(large, *given)[0] == error


@pytest.mark.parametrize("most", [1, 2, 4, 8])
def test_a_device_that_refuses_large_clusters_has_the_others(device, most):
    launches = device(36, 8, cluster=most)
    assert_loss_is_that_of_the_cpu(loss_state(4, 17_001, "float32"))
    assert set(launches()) == {(8, 2)} if most > 1 else len(launches()) > 2


def test_a_device_that_says_it_has_room_for_no_block_is_asked_for_one(device, monkeypatch):
    launches = device(128, 4)
    monkeypatch.setenv("CUDA_ON_CPU_FULL", "1")
    assert_loss_is_that_of_the_cpu(loss_state(4, 17_001, "float32"))
    assert set(launches()) == {(1, 1)}
