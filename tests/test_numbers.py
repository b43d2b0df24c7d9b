"""Every number that the public functions take: of whatever type, it counts for what it is, or is refused by name."""

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

import lsoftmax_op
from lsoftmax_op import LambdaSchedule, arrays, reference

X, W, Y, B = np.linspace(-1, 1, 6).reshape(3, 2), np.cos(np.arange(8.0)).reshape(2, 4), np.array([0, 3, -1]), np.ones(4)


def by_tensorflow(function, **number):
    pytest.importorskip("tensorflow")
    return getattr(lsoftmax_op, function)(X, W, Y, B, **number)


def by_keras(layer, *arguments, **number):
    pytest.importorskip("tensorflow")
    from lsoftmax_op import keras

    return getattr(keras, layer)(*arguments, **number).get_config()[next(iter(number))]


def classifier(**number):
    pytest.importorskip("tensorflow")
    import keras

    head = lsoftmax_op.keras.LSoftmaxClassifier(
        keras.Sequential([keras.Input((2,))]), **{"num_classes": 4, **number}
    ).head
    return head.units, head.margin, head.get_config()["lam"]


def plot(steps):
    pytest.importorskip("matplotlib").use("Agg")
    return LambdaSchedule(gamma=0.01).plot(steps).lines[0].get_xdata()[-1]


# Who takes it; what it is called; a call; an integer that is allowed.
INTEGERS = {
    "arrays.margin": ("margin", lambda n: arrays.loss(X, W, Y, B, margin=n), 3),
    "arrays.num_threads": ("num_threads", lambda n: arrays.loss(X, W, Y, B, num_threads=n), 3),
    "reference.margin": ("margin", lambda n: reference.loss(X, W, Y, B, margin=n), 3),
    "psi.margin": ("margin", lambda n: reference.psi(2.5, n), 3),
    "plot": ("steps", plot, 100),
    "lsoftmax_loss.margin": ("margin", lambda n: by_tensorflow("lsoftmax_loss", margin=n), 3),
    "lsoftmax_logits.margin": ("margin", lambda n: by_tensorflow("lsoftmax_logits", margin=n), 3),
    "class_block_size": ("class_block_size", lambda n: by_tensorflow("lsoftmax_loss", class_block_size=n), 3),
    "L_softmax.batch_size": (
        "batch_size",
        lambda n: pytest.importorskip("tensorflow") and lsoftmax_op.L_softmax(X, Y, W, B, n)[0],
        3,
    ),
    "LSoftmaxDense.units": ("units", lambda n: by_keras("LSoftmaxDense", units=n), 3),
    "LSoftmaxDense.margin": ("margin", lambda n: by_keras("LSoftmaxDense", 4, margin=n), 3),
    "LSoftmaxClassifier.num_classes": ("num_classes", lambda n: classifier(num_classes=n), 3),
    "LSoftmaxClassifier.margin": ("margin", lambda n: classifier(margin=n), 3),
}
REALS = {
    "arrays.lam": ("lam", lambda x: arrays.loss(X, W, Y, B, lam=x)),
    "arrays.logits.lam": ("lam", lambda x: arrays.logits(X, W, Y, B, lam=x)),
    "reference.lam": ("lam", lambda x: reference.loss(X, W, Y, B, lam=x)),
    "psi.theta": ("theta", lambda x: reference.psi(x, 2)),
    "segment.theta": ("theta", lambda x: reference.segment(x, 2)),
    "base": ("base", lambda x: LambdaSchedule(base=x)(3)),
    "gamma": ("gamma", lambda x: LambdaSchedule(gamma=x)(3)),
    "power": ("power", lambda x: LambdaSchedule(gamma=1.0, power=x)(3)),
    "minimum": ("minimum", lambda x: LambdaSchedule(gamma=1.0, minimum=x)(3)),
    "step": ("step", lambda x: LambdaSchedule(gamma=1.0)(x)),
    "lsoftmax_loss.lam": ("lam", lambda x: by_tensorflow("lsoftmax_loss", lam=x)),
    "lsoftmax_logits.lam": ("lam", lambda x: by_tensorflow("lsoftmax_logits", lam=x)),
    "L_softmax.labmda": (
        "lam",
        lambda x: pytest.importorskip("tensorflow") and lsoftmax_op.L_softmax(X, Y, W, B, 3, x)[0],
    ),
    "LSoftmaxDense.lam": ("lam", lambda x: by_keras("LSoftmaxDense", 4, lam=x)),
    "LSoftmaxClassifier.lam": ("lam", lambda x: classifier(lam=x)),
}


class Index:
    def __init__(self, value):
        self.value = value

    def __index__(self):
        return self.value


class Raises:
    """A number to look at, which raises what nobody expects."""

    def __index__(self, *_):
        raise KeyError("no number")

    __float__ = __array__ = __index__


@pytest.mark.parametrize(
    ("where", "kind"),
    [
        (where, kind)
        for where in INTEGERS
        for kind in (np.uint8, np.int8, np.int64, np.uint64, np.array, Index)
        # Of threads, a Python or NumPy integer.
        if where != "arrays.num_threads" or kind not in (np.array, Index)
    ],
)
def test_integers_of_every_type(where, kind):
    _, call, number = INTEGERS[where]
    np.testing.assert_array_equal(call(kind(number)), call(number))


@pytest.mark.parametrize("where", REALS)
@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.float16, np.float32, Fraction], ids=lambda kind: kind.__name__)
def test_reals_of_every_type(where, kind):
    _, call = REALS[where]
    np.testing.assert_array_equal(call(kind(3)), call(3.0))


@pytest.mark.parametrize("where", INTEGERS)
@pytest.mark.parametrize(
    "value",
    [
        -(10**5000),
        -1,
        2.0,
        Decimal(3),
        Fraction(3),
        3j,
        "a",
        [3],
        np.array([3, 3]),
        np.float32(3),
        np.bool_(1),
        Raises(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_such_integer(where, value):
    name, call, _ = INTEGERS[where]
    with pytest.raises((TypeError, ValueError), match=rf"^{name}: expected .*, got"):
        call(value)


@pytest.mark.parametrize("where", [where for where in INTEGERS if where != "arrays.num_threads"])
@pytest.mark.parametrize("value", [2**64, 10**400, 10**5000], ids=["2**64", "10**400", "10**5000"])
def test_integers_of_any_size(where, value):
    name, call, _ = INTEGERS[where]
    with pytest.raises(ValueError, match=rf"^{name}: expected .*, got"):
        call(value)


@pytest.mark.parametrize("where", REALS)
@pytest.mark.parametrize(
    "value",
    [
        10**400,
        -(10**5000),
        Fraction(10**400),
        np.longdouble(10) ** 4000,
        np.nan,
        -1,
        "a",
        3j,
        Decimal(3),
        [3.0, 4.0],
        True,
        np.bool_(1),
        np.timedelta64(1),
        Raises(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_such_real(where, value):
    name, call = REALS[where]
    if isinstance(value, np.longdouble) and np.isinf(value):
        pytest.skip("a long double is a double here")
    with pytest.raises((TypeError, ValueError), match=rf"^{name}: expected .*, got"):
        call(value)


def test_a_schedule_keeps_floats():
    """What a number's own type makes of `-power` or `gamma * step` never shows: 35 of uint8 is no 221."""
    schedule = LambdaSchedule(np.uint16(1000), np.float32(1), np.uint8(35), np.int8(0))
    assert all(type(value) is float for value in schedule.get_config().values())
    assert schedule == LambdaSchedule(1000.0, 1.0, 35.0, 0.0)
    assert schedule(np.uint8(255)) == schedule(255) < schedule(1) < schedule(0)


@pytest.mark.parametrize("kind", ["number", "array", "eager", "function"])
@pytest.mark.parametrize(
    ("schedule", "limit"),
    [
        (LambdaSchedule(), 0.0),
        (LambdaSchedule(minimum=5.0), 5.0),
        (LambdaSchedule(gamma=0.0), 1000.0),
        (LambdaSchedule(power=0.0), 1000.0),
        (LambdaSchedule(gamma=0.0, power=0.0), 1000.0),
        (LambdaSchedule(base=0.0), 0.0),
        (LambdaSchedule(gamma=1e308, power=1e308), 0.0),
    ],
    ids=str,
)
def test_after_infinitely_many_steps(schedule, limit, kind):
    if kind == "number":
        assert schedule(np.inf) == limit
        return
    call, step = schedule, np.array([np.inf, 0.0])
    if kind != "array":
        tf = pytest.importorskip("tensorflow")
        call, step = tf.function(schedule) if kind == "function" else schedule, tf.constant(step)
    np.testing.assert_array_equal(call(step), [limit, schedule.base])


def test_tensors_where_an_integer_is_wanted():
    """An eager integer is the integer it holds; what holds none, or none yet, is refused."""
    tf = pytest.importorskip("tensorflow")
    np.testing.assert_array_equal(
        lsoftmax_op.lsoftmax_loss(X, W, Y, margin=tf.constant(3)), lsoftmax_op.lsoftmax_loss(X, W, Y, margin=3)
    )
    for bad in (tf.constant(4.0), tf.constant(True), tf.constant("4"), tf.constant([4, 4]), tf.Variable(4.0)):
        with pytest.raises(TypeError, match="^margin: expected an integer from 1 to 64, got"):
            lsoftmax_op.lsoftmax_loss(X, W, Y, margin=bad)
        with pytest.raises(TypeError, match="^class_block_size: expected a positive integer, got"):
            lsoftmax_op.lsoftmax_loss(X, W, Y, class_block_size=bad)
        with pytest.raises(TypeError, match="^batch_size: expected an integer, got"):
            lsoftmax_op.L_softmax(X, Y, W, B, bad)
    with pytest.raises(TypeError, match="margin: expected an integer from 1 to 64, got .*margin:0"):
        tf.function(lambda margin: lsoftmax_op.lsoftmax_loss(X, W, Y, margin=margin))(tf.constant(4))
    with pytest.raises(TypeError, match="^step: expected"):
        LambdaSchedule()(tf.constant("4"))
