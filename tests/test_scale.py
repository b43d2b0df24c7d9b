"""What a sharded head sends and keeps, on paper, by hand. That it is what is sent, tests/test_sharded.py shows."""

import numpy as np
import pytest

from lsoftmax_op.scale import communication, memory, sample_size

N, D, C = 1024, 512, 1_000_000


@pytest.mark.parametrize(("classes", "rate", "expected"), [(1000, 0.1, 100), (100, 0.07, 7), (3, 1.0, 3)])
def test_a_sample_of_a_rate_in_float32(classes, rate, expected):
    assert sample_size(classes, np.float32(rate)) == expected


def test_collectives_by_hand():
    sent = {one.name: one.sent for one in communication(N, D, C, replicas=4)}
    ring = 3 / 4
    assert sent == {
        "agreement": 2 * ring * 4 * 18 * 8,
        "features": ring * N * D * 4,
        "labels": ring * N * 8,
        "geometry": 2 * ring * 3 * N * 8,
        "sums": ring * 4 * 4 * N * 8,
        "upstream gradient": ring * N * 4,
        "gradient of the features": 2 * ring * N * D * 4,
    }


@pytest.mark.parametrize("replicas", [2, 8, 64])
@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_two_wholes_have_as_many_numbers_as_features(replicas, dtype):
    step = communication(N, D, C, replicas, dtype, bias=True, label_smoothing=True)
    of_rows = 1 + 4 + 5 * replicas + 1
    assert sum(one.numbers for one in step) == 2 * N * D + of_rows * N + 18 * replicas
    assert step == communication(N, D, 7 * C, replicas, dtype, bias=True, label_smoothing=True)


@pytest.mark.parametrize("rate", [0.01, 0.5])
def test_samples_are_agreed_on_first(rate):
    whole, sampled = communication(N, D, C, 4), communication(N, D, C, 4, sample_rate=rate)
    before, after = sampled[:4], sampled[4:]
    assert after == whole
    ring = 3 / 4
    assert {one.name: one.sent for one in before} == {
        "shards to sample from": 2 * ring * 4 * 3 * 8,
        "labels to sample": ring * N * 8,
        "sizes of the samples": 2 * ring * 4 * 8,
        "places of the labels": 2 * ring * N * 8,
    }


def test_halves_travel_as_halves_and_their_gradient_as_float32():
    half, single = (
        {one.name: one.sent for one in communication(N, D, C, 2, dtype)} for dtype in ("bfloat16", "float32")
    )
    assert half["features"] == single["features"] / 2
    assert half["gradient of the features"] == single["gradient of the features"]


def test_one_replica_sends_nothing():
    assert communication(N, D, C, 1) == ()


def test_memory_by_hand():
    whole = memory(N, D, C, 3, slots=1)
    own = 333_334  # the last of the three has fewer
    assert whole == (4 * D * own, 4 * D * own, 4 * D * own, 4 * N * own, 3 * 4 * N * D)
    assert whole.total == sum(whole)
    assert memory(N, D, C, 3, "bfloat16", slots=1).total * 2 == whole.total
    assert memory(N, D, C, 3, class_block_size=100).products == 4 * N * 100
    assert memory(N, D, 100, 1, sample_rate=0.07).products == 4 * N * 7
    sampled = memory(N, D, C, 1, sample_rate=0.01)
    assert sampled.gradient == 2 * 4 * D * 10_000
    assert sampled.products == 4 * N * 10_000
    assert sampled.slots == 2 * sampled.weights == 2 * 4 * D * C


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"replicas": 0}, ValueError, "replicas: expected a positive integer, got 0"),
        ({"depth": 1.5}, TypeError, "depth: expected a positive integer, got 1.5"),
        ({"sample_rate": 0.0}, ValueError, r"sample_rate: expected a number in \(0, 1\], got 0.0"),
        ({"dtype": "int8"}, ValueError, "dtype: expected float16 or bfloat16 or float32 or float64, got 'int8'"),
    ],
)
@pytest.mark.parametrize("function", [communication, memory])
def test_bad_input(function, wrong, error, message):
    call = {"num_samples": N, "depth": D, "num_classes": C, "replicas": 2, **wrong}
    with pytest.raises(error, match=message):
        function(**call)
