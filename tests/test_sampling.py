"""Sampled classes: the labels' and others, each with the same chance, none twice, the same ones for the same seed."""

import math
from fractions import Fraction

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

import lsoftmax_op
from lsoftmax_op.scale import sample_size


def sample(labels, classes, rate, seed=(3, 5)):
    sampled = lsoftmax_op.sample_classes(tf.constant(labels, tf.int64), classes, rate, seed=seed)
    return sampled.classes.numpy(), sampled.labels.numpy()


@pytest.mark.parametrize("classes", [1, 2, 7, 100, 1001])
@pytest.mark.parametrize("rate", [0.01, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("rows", [0, 1, 5, 40])
def test_what_is_sampled(classes, rate, rows):
    labels = np.random.default_rng([classes, rows]).integers(-1, classes, rows)
    for seed in range(5):
        found, places = sample(labels, classes, rate, (0, seed))
        assert len(found) == max(math.ceil(Fraction(str(rate)) * classes), len({*labels} - {-1}))
        assert (np.diff(found) > 0).all()
        assert found[0] >= 0
        assert found[-1] < classes
        np.testing.assert_array_equal(np.where(labels < 0, -1, found[places]), labels)
        assert (places[labels < 0] == -1).all()


@pytest.mark.parametrize("digits", [1, 2, 3])
@pytest.mark.parametrize("classes", [1, 3, 7, 100, 1000, 93_431, 10**8, 2**62])
def test_how_many_is_what_a_decimal_rate_says(classes, digits):
    """Also where the float64 next to the decimal is above it, or their product is."""
    for part in range(1, 10**digits + 1):
        rate = part / 10**digits
        if classes < 10**15:  # beyond, more integers than one are within the rounding
            assert sample_size(classes, rate) == -(-part * classes // 10**digits)
        assert 1 <= sample_size(classes, rate) <= classes


def test_how_many_is_what_a_fraction_says():
    """And of a rate that was computed in two roundings."""
    for part, of in ((one, all_of) for all_of in range(1, 120) for one in range(1, all_of + 1)):
        assert sample_size(of, part / of) == part
        assert sample_size(of, min(1, part * (1 / of))) == part
        assert sample_size(1000 * of + 1, part / of) == -(-part * (1000 * of + 1) // of)


@pytest.mark.parametrize(
    ("rate", "classes", "size"),
    [
        (0.07, 100, 7),
        (0.1 + 0.2, 10, 3),
        (0.07 + 1e-12, 100, 8),
        (1e-12, 10**6, 1),
        (5e-324, 1, 1),
        (1 - 2**-53, 5, 5),
        (np.float32(0.5), 9, 5),
    ],
)
def test_how_many_is_right_but_for_rounding(rate, classes, size):
    assert sample_size(classes, rate) == size
    assert sample([], classes, rate)[0].size == size


def test_all_of_them_are_the_full_loss_to_the_bit():
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(6, 5)).astype("f"), rng.normal(size=(5, 9)).astype("f")
    labels = rng.integers(-1, 9, 6)
    found, places = sample(labels, 9, 1.0)
    loss = lsoftmax_op.lsoftmax_loss(x, tf.gather(w, found, axis=1), places)
    np.testing.assert_array_equal(loss, lsoftmax_op.lsoftmax_loss(x, w, labels))


@pytest.mark.parametrize("labels", [[], [0, 1, 2, 3], [9, 4, 4]])
@pytest.mark.parametrize("rate", [0.2, 0.45, 0.8])
def test_each_other_class_has_the_same_chance(labels, rate):
    classes, draws = 21, 2000

    @tf.function
    def count():
        total = tf.zeros(classes, tf.int64)
        for n in tf.range(draws):
            sampled = lsoftmax_op.sample_classes(tf.constant(labels, tf.int64), classes, rate, seed=tf.stack([11, n]))
            total += tf.scatter_nd(sampled.classes[:, None], tf.ones_like(sampled.classes), [classes])
        return total

    total = count().numpy()
    own = sorted({*labels})
    assert (total[own] == draws).all()
    others = np.delete(total, own)
    chance = (math.ceil(rate * classes) - len(own)) / len(others)
    assert others.sum() == round(chance * len(others)) * draws
    # Each count is binomial, so that this has the mean of chi-square with len(others) degrees of freedom.
    deviation = np.square(others - draws * chance).sum() / (draws * chance * (1 - chance))
    assert 0 < deviation < len(others) + 4 * math.sqrt(2 * len(others))


def test_the_same_seed_samples_the_same_and_another_does_not():
    labels = [3, 500, -1]
    first, again, other = (sample(labels, 1000, 0.05, seed)[0] for seed in ((1, 2), (1, 2), (1, 3)))
    np.testing.assert_array_equal(first, again)
    assert len({*first} & {*other}) < 20

    @tf.function
    def in_a_graph(seed):
        return lsoftmax_op.sample_classes(labels, 1000, 0.05, seed=seed).classes

    np.testing.assert_array_equal(in_a_graph(tf.constant([1, 2])), first)


@pytest.mark.parametrize(("rows", "known"), [(4, 10), (11, None), (None, None)])
def test_how_many_is_known_when_no_label_can_make_it_more(rows, known):
    @tf.function(input_signature=[tf.TensorSpec([rows], tf.int32)])
    def classes(labels):
        sampled = lsoftmax_op.sample_classes(labels, 100, 0.1, seed=[0, 0])
        assert sampled.classes.shape == [known]
        assert sampled.labels.shape == [rows]
        return sampled.classes

    assert classes(tf.range(rows or 20)).shape == [max(10, rows or 20)]


def test_only_sampled_rows_have_a_gradient():
    head = tf.Variable(np.random.default_rng(0).normal(size=(50, 4)))
    features, labels = tf.ones([3, 4], tf.float64), [7, 7, 30]
    sampled = lsoftmax_op.sample_classes(labels, 50, 0.2, seed=[1, 1])
    with tf.GradientTape() as tape:
        loss = lsoftmax_op.lsoftmax_loss(features, tf.transpose(tf.gather(head, sampled.classes)), sampled.labels)
    gradient = tape.gradient(loss, head)
    assert isinstance(gradient, tf.IndexedSlices)
    np.testing.assert_array_equal(gradient.indices, sampled.classes)
    assert gradient.values.shape == [10, 4]


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"sample_rate": 0}, ValueError, r"sample_rate: expected a number in \(0, 1\], got 0"),
        ({"sample_rate": 1.5}, ValueError, r"sample_rate: expected a number in \(0, 1\], got 1.5"),
        ({"sample_rate": "all"}, TypeError, r"sample_rate: expected a number in \(0, 1\], got 'all'"),
        ({"num_classes": 0}, ValueError, "num_classes: expected a positive integer, got 0"),
        ({"seed": 3}, ValueError, r"seed: expected shape \[2\], got \(\)"),
        ({"seed": [1, 2, 3]}, ValueError, r"seed: expected shape \[2\], got \(3,\)"),
        ({"labels": [0.5]}, TypeError, "labels: expected int32 or int64, got float32"),
        ({"labels": [-2]}, tf.errors.InvalidArgumentError, r"labels: expected values in \[0, 10\), or -1"),
        ({"labels": [3, 10]}, tf.errors.InvalidArgumentError, r"labels: expected values in \[0, 10\), or -1"),
    ],
)
def test_bad_input(wrong, error, message):
    call = {"labels": [1], "num_classes": 10, "sample_rate": 0.5, "seed": [0, 0], **wrong}
    with pytest.raises(error, match=message):
        lsoftmax_op.sample_classes(**call)


@pytest.mark.parametrize("first_class", [1, 3])
def test_shards_that_do_not_tile_are_named(first_class):
    with pytest.raises(tf.errors.InvalidArgumentError, match="shards that tile the classes from 0 on"):
        lsoftmax_op.sharded_sample([first_class], first_class=first_class, num_columns=5, sample_rate=0.5, seed=[0, 1])


@pytest.mark.parametrize("rate", [0.5, 1.0])
def test_under_xla_all_classes_or_an_error(rate):
    function = tf.function(lambda labels: lsoftmax_op.sample_classes(labels, 12, rate, seed=[0, 1]), jit_compile=True)
    if rate < 1:
        with pytest.raises(NotImplementedError, match="sample_rate: expected 1 in a function with jit_compile=True"):
            function(tf.constant([1, 5]))
    elif lsoftmax_op.build_info()["xla"] == "yes":
        np.testing.assert_array_equal(function(tf.constant([1, 5])).classes, np.arange(12))
