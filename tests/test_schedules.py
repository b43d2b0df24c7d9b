"""The schedule of lambda: golden values, every kind of step, and what it refuses."""

import doctest

import numpy as np
import pytest

from lsoftmax_op import LambdaSchedule, schedules

GOLDEN = [
    ((1000, 2.5e-5, 35, 0), 0, 1000.0),
    ((1000, 2.5e-5, 35, 0), 1000, 421.37),
    ((1000, 2.5e-5, 35, 0), 5000, 16.205),
    ((1000, 2.5e-5, 35, 0), 10000, 0.40565),
    ((1000, 2e-5, 45, 0), 12001, 0.0624754),
    ((1000, 2e-5, 45, 5), 12001, 5.0),
]


@pytest.mark.parametrize(("arguments", "step", "value"), GOLDEN)
def test_golden_values(arguments, step, value):
    assert LambdaSchedule(*arguments)(step) == pytest.approx(value, rel=5e-5)


def test_the_docstring_is_true():
    assert doctest.testmod(schedules).failed == 0


@pytest.mark.parametrize("step", [7, 7.0, np.int64(7), np.float32(7), np.array(7)])
def test_numbers(step):
    value = LambdaSchedule()(step)
    assert isinstance(value, (float, np.float64, np.ndarray))
    assert value == LambdaSchedule()(7)


def test_arrays_fall_to_the_minimum():
    values = LambdaSchedule(100.0, 0.1, 2.0, 3.0)(np.arange(1000))
    assert values.dtype == np.float64
    assert (np.diff(values) <= 0).all()
    assert values[0] == 100.0
    assert values[-1] == LambdaSchedule(100.0, 0.1, 2.0, 3.0)(np.inf) == 3.0


@pytest.mark.parametrize("dtype", ["int32", "int64", "float32"])
@pytest.mark.parametrize("compiled", [False, True])
def test_tensors_and_variables(dtype, compiled):
    tf = pytest.importorskip("tensorflow")
    schedule = LambdaSchedule(minimum=1.0)
    function = tf.function(schedule) if compiled else schedule
    for step in (tf.constant(5000, dtype), tf.Variable(5000, dtype=dtype)):
        value = function(step)
        assert value.dtype == tf.float64
        np.testing.assert_allclose(value, schedule(5000), rtol=1e-14)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("base", -1, ValueError),
        ("base", np.inf, ValueError),
        ("gamma", -1e-9, ValueError),
        ("power", np.nan, ValueError),
        ("minimum", 1001, ValueError),
        ("minimum", -1, ValueError),
        ("base", "1000", TypeError),
        ("gamma", True, TypeError),
    ],
)
def test_bad_parameters(name, value, error):
    with pytest.raises(error, match=name):
        LambdaSchedule(**{name: value})


@pytest.mark.parametrize(
    ("step", "error"), [(-1, ValueError), (np.nan, ValueError), ("3", TypeError), (None, TypeError), ([5], TypeError)]
)
def test_bad_steps(step, error):
    with pytest.raises(error, match="step"):
        LambdaSchedule()(step)


def test_the_config_makes_it_anew():
    schedule = LambdaSchedule(100.0, 0.1, 2.0, 3.0)
    assert LambdaSchedule.from_config(schedule.get_config()) == schedule


@pytest.mark.parametrize("schedule", [LambdaSchedule(gamma=0.01, minimum=5.0), LambdaSchedule(base=0.0)])
def test_plot(schedule, tmp_path):
    pytest.importorskip("matplotlib").use("Agg")
    axes = schedule.plot(400)
    (line,) = axes.lines
    x, y = line.get_data()
    assert (x[0], x[-1]) == (0, 400)
    np.testing.assert_array_equal(y, schedule(x))
    share = axes.figure.axes[1].lines[0].get_ydata()
    np.testing.assert_allclose(share, 100 / (1 + schedule(x)))
    axes.figure.savefig(tmp_path / "lambda.png")
    assert schedule.plot(400, axes) is axes


@pytest.mark.parametrize(("steps", "error"), [(0, ValueError), (1.5, TypeError)])
def test_bad_lengths_of_a_plot(steps, error):
    with pytest.raises(error, match="steps: expected a positive integer"):
        LambdaSchedule().plot(steps)
