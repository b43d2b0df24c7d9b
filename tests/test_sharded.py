"""Shards of classes compute what one replica does; what does not fit together is an error on all, not a hang."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from support import ROOT, worst

tf = pytest.importorskip("tensorflow")

import sharded_program

import lsoftmax_op
from benchmarks.local_cluster import tf_configs
from lsoftmax_op import sharded

WORKERS = (2, pytest.param(4, marks=pytest.mark.long))
# Of the loss and of the gradients, beside one replica: in float64 sums are merged in another order; elsewhere partial
# products are rounded to the data type before they are added up.
TOLERANCE = {"float64": (1e-12, 1e-12), "float32": (1e-6, 2e-6), "bfloat16": (0.01, 0.02), "float16": (2e-3, 4e-3)}


def run(part, replicas, program="sharded_program.py", **environment):
    finished = subprocess.run(
        [sys.executable, ROOT / "tests" / program, part, str(replicas)],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return json.loads(finished.stdout.splitlines()[-1])


def run_on_workers(part, count, program="sharded_program.py"):
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda config: run(part, 0, program, TF_CONFIG=config), tf_configs(count)))


@pytest.fixture(scope="module")
def mirrored():
    return run("everything", 2)


def assert_as_one_replica(errors, name):
    loss, gradients = TOLERANCE[sharded_program.CASES.get(name, {}).get("dtype", "float64")]
    assert errors["loss"] <= loss, errors
    assert errors["predicted"] == 0
    for of in ("features_grad", "weights_grad", "bias_grad"):
        assert errors[of] <= gradients, errors


@pytest.mark.slow
@pytest.mark.parametrize("name", [*sharded_program.CASES, "eager"])
def test_loss_and_gradients_are_those_of_one_replica(name, mirrored):
    assert_as_one_replica(mirrored[name], name)


def assert_weights_are_those_of_one_replica(training):
    assert training["moved"] > 0.1
    assert training["backbone"] <= 1e-5
    assert training["head"] <= 1e-5


def assert_top_k_is_that_of_one_replica(found):
    for case, errors in found.items():
        assert errors == {"logits": pytest.approx(0, abs=1e-12), "classes": 0}, case


@pytest.mark.slow
@pytest.mark.parametrize("count", WORKERS)
def test_workers_compute_what_one_does(count):
    """Of four workers, one has no sample."""
    for found in run_on_workers("summary" if count == 2 else "steps", count):
        assert_summary(found)


def assert_summary(found):
    for name in found.keys() & sharded_program.CASES.keys():
        assert_as_one_replica(found[name], name)
    assert_weights_are_those_of_one_replica(found["training"])
    assert_top_k_is_that_of_one_replica(found.get("top k", {}))
    for name, one in found.get("below rounding", {}).items():
        check = (
            assert_leaves_out_what_one_replica_does if name in sharded_program.FILTERED else assert_leaves_out_nothing
        )
        check(one)


@pytest.mark.slow
def test_fifty_steps_of_every_weight(mirrored):
    assert_weights_are_those_of_one_replica(mirrored["training"])


@pytest.mark.slow
def test_top_k(mirrored):
    assert_top_k_is_that_of_one_replica(mirrored["top k"])


def assert_leaves_out_what_one_replica_does(found):
    assert found["left_out_of_all"] == 0
    assert sum(replica["kept"] for replica in found["replicas"]) <= found["kept_by_one"] <= 2 * sharded_program.MATES
    for replica in found["replicas"]:
        assert replica["left_out"] == replica["by_one"]
        assert len(replica["left_out"]) > 20
        assert 0 < replica["kept"] <= sharded_program.MATES
        assert worst(replica["errors"]) <= TOLERANCE["float32"][1]


def assert_leaves_out_nothing(found):
    for replica in found["replicas"]:
        assert replica["left_out"] == []
        assert worst(replica["errors"]) <= TOLERANCE["float32"][1]


@pytest.mark.slow
@pytest.mark.parametrize("name", sharded_program.FILTERED)
def test_classes_below_rounding_are_left_out_by_each_of_its_own(name, mirrored):
    found = mirrored["below rounding"][name]
    assert_leaves_out_what_one_replica_does(found)
    assert sum(replica["kept"] for replica in found["replicas"]) == found["kept_by_one"]


@pytest.mark.slow
@pytest.mark.parametrize("name", sharded_program.UNFILTERED)
def test_nothing_is_left_out_where_that_is_not_wanted_or_all_classes_matter(name, mirrored):
    assert_leaves_out_nothing(mirrored["below rounding"][name])


ERRORS = {
    "num_classes": "num_classes: expected the same on every replica, got [11 12",
    "depth": "D, the features of a sample: expected the same on every replica, got [5 6",
    "dtype": "features.dtype: expected the same on every replica, got [float32 bfloat16",
    "margin": "margin.m1: expected the same on every replica, got [3 4",
    "scale": "margin.scale: expected the same on every replica, got [16 17",
    "lambda": "lam: expected the same on every replica, got [0 1",
    "smoothing": "label_smoothing: expected the same on every replica, got [0 0.1",
    "bias": "bias: expected the same on every replica, got [1 0",
    "first_class": "first_class: expected the shards to tile the 11 classes, got first_class",
    "too few": "first_class: expected the shards to tile the 12 classes, got first_class",
    "label": "labels: expected values in [0, 11), or -1 for a row without a target, got values from [-1",
    "negative label": "labels: expected values in [0, 11), or -1 for a row without a target, got values from [-1 -2",
    "second order": "sharded_loss: expected to be differentiated once",
    "compiled": "sharded_loss: expected a function without jit_compile=True, got one",
    "no class": "weights: expected shape [D, C] with at least one class, got (5, 0)",
    "cross-replica": "sharded_loss: expected a replica context, got the cross-replica context of MirroredStrategy",
}


@pytest.fixture(scope="module")
def mistakes():
    return run("errors", 2, "sharded_mistakes.py")


@pytest.mark.slow
@pytest.mark.parametrize("what", ERRORS)
def test_what_does_not_fit_is_named(what, mistakes):
    assert ERRORS[what] in mistakes[what]


@pytest.mark.slow
def test_workers_that_disagree_do_not_wait():
    for found in run_on_workers("disagreement", 2, "sharded_mistakes.py"):
        assert ERRORS["depth"] in found["depth"]


@pytest.mark.slow
@pytest.mark.parametrize("step", ["float32, 1.0", "bfloat16, 1.0", "float32, 0.5"])
def test_the_bytes_of_a_step(step, mirrored):
    """Of one with samples (the rate is below 1), their own collectives, too."""
    assert mirrored["traffic"][step]["came"] == mirrored["traffic"][step]["told"]


# ---- one replica, in this process


def test_the_classes_that_matter_of_one_replica():
    batch = sharded_program.random_batch((6, 5, 7), "float32")
    batch.features[:] *= 30
    want = lsoftmax_op.kept_classes(*batch.layer)
    assert 0 < want < 7
    for class_major in (False, True):
        own = batch.weights.T if class_major else batch.weights
        batch_of_rows = (batch.features, own, batch.labels, batch.bias)
        found = lsoftmax_op.kept_classes(*batch_of_rows, class_major=class_major, **sharded_program.WHOLE)
        assert found == want
    with pytest.raises(ValueError, match="num_classes: expected an integer with first_class, as for sharded_loss"):
        lsoftmax_op.kept_classes(*batch.layer, first_class=0)


@pytest.mark.parametrize("margin", [1, 4, sharded_program.KINDS[2]])
@pytest.mark.parametrize("block_size", [None, 3])
def test_without_a_strategy_it_is_the_loss(margin, block_size):
    batch = sharded_program.random_batch((6, 5, 7), "float32")
    settings = {"margin": margin, "lam": 0.5, "label_smoothing": 0.1, "class_block_size": block_size}
    x, w = tf.constant(batch.features), tf.constant(batch.weights)
    results = []
    for function, more in ((lsoftmax_op.margin_softmax_loss, {}), (lsoftmax_op.sharded_loss, sharded_program.WHOLE)):
        with tf.GradientTape() as tape:
            tape.watch([x, w])
            loss = function(x, w, batch.labels, **settings, **more)
        results.append([loss, *tape.gradient(loss, [x, w])])
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_one_replica_compiles():
    batch = sharded_program.random_batch((6, 5, 7), "float32")

    @tf.function(jit_compile=True)
    def loss():
        return lsoftmax_op.sharded_loss(batch.features, batch.weights, batch.labels, **sharded_program.WHOLE)

    want = lsoftmax_op.lsoftmax_loss(batch.features, batch.weights, batch.labels)
    np.testing.assert_allclose(loss(), want, rtol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"first_class": -1}, ValueError, "first_class: expected an integer >= 0, got -1"),
        ({"first_class": 1}, tf.errors.InvalidArgumentError, "7 classes, got first_class [1] with [7] columns"),
        ({"num_classes": 0}, ValueError, "num_classes: expected a positive integer, got 0"),
        ({"num_classes": 7.0}, TypeError, "num_classes: expected a positive integer, got 7.0"),
        ({"num_classes": 8}, tf.errors.InvalidArgumentError, r"expected the shards to tile the 8 classes"),
        ({"labels": [7] * 6}, tf.errors.InvalidArgumentError, r"labels: expected values in \[0, 7\), or -1"),
        ({"label_smoothing": 1.0}, ValueError, r"label_smoothing: expected a number in \[0, 1\)"),
        ({"class_block_size": 0}, ValueError, "class_block_size: expected a positive integer"),
        ({"filter": True}, ValueError, 'filter: expected "auto" or False, got True'),
    ],
)
def test_bad_input(wrong, error, message):
    batch = sharded_program.random_batch((6, 5, 7), "float32")
    call = {"labels": batch.labels, **sharded_program.WHOLE, **wrong}
    with pytest.raises(error, match=message.replace("[7]", r"\[7\]").replace("[1]", r"\[1\]")):
        lsoftmax_op.sharded_loss(batch.features, batch.weights, **call)


def test_top_k_of_one_replica():
    batch = sharded_program.random_batch((6, 5, 7), "float32")
    found = sharded.sharded_top_k(batch.features, batch.weights, batch.bias, **sharded_program.WHOLE, k=3)
    want = tf.math.top_k(batch.features @ batch.weights + batch.bias, 3)
    np.testing.assert_allclose(found.logits, want.values, rtol=1e-6)
    np.testing.assert_array_equal(found.classes, want.indices)
    with pytest.raises(ValueError, match="k: expected at most the 7 of num_classes, got 8"):
        sharded.sharded_top_k(batch.features, batch.weights, **sharded_program.WHOLE, k=8)


@pytest.mark.slow
@pytest.mark.parametrize("rate", ["a third", "all"])
def test_sampled_shards(rate, mirrored):
    found = mirrored["sampling"][rate]
    assert worst(found["errors"]) <= 1e-12
    assert {*found["labels"]} <= {*found["taken"]}
    assert sorted(found["taken"]) == found["taken"]
    assert len(found["indices"]) == len(found["taken"])
    if rate == "all":
        assert found["taken"] == list(range(sharded_program.CLASSES))
