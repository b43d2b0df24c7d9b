"""What Keras users feed it: batches without samples, labels of any type, weights, functions. Beside it, plain Keras."""

import os
import warnings
from unittest import mock

import numpy as np
import pytest

import lsoftmax_op
from lsoftmax_op import LambdaSchedule

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")

from lsoftmax_op.keras import LSoftmaxClassifier, LSoftmaxDense, LSoftmaxMonitor
from lsoftmax_op.keras.labels import class_indices

N, D, C = 24, 6, 5
ROUNDING = {"rtol": 2e-6, "atol": 1e-7}
needs_xla = pytest.mark.skipif(lsoftmax_op.build_info()["xla"] != "yes", reason="built without XLA kernels")


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(N, D)).astype("float32"), rng.integers(0, C, N)


def network(regularizer="l2"):
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.Input((D,)), keras.layers.Dense(4, "tanh", kernel_regularizer=regularizer)])


def plain(**options):
    """A Dense layer and Keras' own cross-entropy."""
    model = keras.Sequential([network(), keras.layers.Dense(C, use_bias=False)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss, metrics=["accuracy"], **options)
    return model


def ours(margin=1, lam=1.0, regularizer="l2", **options):
    """The same network, which with a margin of 1 is the same model."""
    model = LSoftmaxClassifier(network(regularizer), C, margin=margin, lam=lam)
    model.compile(keras.optimizers.SGD(0.1), **options)
    return model


def fit(model, *data, **options):
    """What two epochs log, what evaluate says then, and the weights."""
    history = model.fit(*data, epochs=2, verbose=0, shuffle=False, **options).history
    logs = model.evaluate(data[0], verbose=0, return_dict=True) if isinstance(data[0], tf.data.Dataset) else {}
    names = ("loss", "accuracy")
    return [*(history[name] for name in names), *(logs.get(name, 0) for name in names), *weights_of(model)]


def weights_of(model):
    return [weight.numpy() for weight in model.trainable_weights]


def assert_same(got, want):
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one, other, **ROUNDING)


def batches(x, y, sizes):
    """A data set of batches of these sizes."""
    ends = np.cumsum(sizes)

    def made():
        for start, end in zip(ends - sizes, ends, strict=True):
            yield x[start:end], y[start:end]

    return tf.data.Dataset.from_generator(
        made, output_signature=(tf.TensorSpec((None, D)), tf.TensorSpec((None,), tf.int64))
    ).apply(tf.data.experimental.assert_cardinality(len(sizes)))


# ---- batches without samples


@pytest.mark.parametrize("sizes", [(16, 0, 8), (0, 16)])
def test_batches_without_samples_beside_keras(data, sizes):
    want = fit(plain(), batches(*data, sizes))
    if not np.isfinite(want[0]).all():
        pytest.skip("this Keras gives NaN itself")
    assert_same(fit(ours(), batches(*data, sizes)), want)


@pytest.mark.parametrize("jit_compile", [False, pytest.param(True, marks=needs_xla)])
def test_batches_without_samples_change_nothing(data, jit_compile):
    def model(**options):
        return ours(margin=3, regularizer=None, **options)

    got = fit(model(jit_compile=jit_compile), batches(*data, (16, 0, 8)), callbacks=[LSoftmaxMonitor()])
    assert_same(got, fit(model(), batches(*data, (16, 8))))


def test_nothing_but_batches_without_samples(data):
    model = ours(margin=3)
    before = weights_of(model.head)
    history = model.fit(batches(*data, (0, 0)), verbose=0, callbacks=[LSoftmaxMonitor()]).history
    assert history == {"loss": [0], "accuracy": [0], "lam": [1], "angle": [0]}
    assert model.evaluate(batches(*data, (0,)), verbose=0, return_dict=True) == {"loss": 0, "accuracy": 0}
    assert model.test_on_batch(data[0][:0], data[1][:0]) == [0, 0]
    assert_same(weights_of(model.head), before)


def test_the_layer_alone_and_a_batch_without_samples(data):
    x, y = data
    layer = LSoftmaxDense(C, lam=1.0)
    layer.build((None, D))
    with tf.GradientTape() as tape:
        logits = layer(x[:0], y[:0], training=True)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")(y[:0], logits)
    assert logits.shape == (0, C)
    assert (tape.gradient(loss, layer.kernel).numpy() == 0).all()


# ---- weights


WEIGHTS = {
    "[N]": lambda w: w,
    "[N, 1]": lambda w: w[:, None],
    "a scalar": lambda w: np.float32(0.5),
    "integers": lambda w: np.arange(len(w)) % 3,
    "a list of one": lambda w: (w,),
}


@pytest.mark.parametrize("form", WEIGHTS)
def test_samples_weigh_as_keras_has_them_weigh(data, form):
    x, y = data

    def weighted(form):
        weights = WEIGHTS[form](np.linspace(0, 2, 8, dtype="float32"))
        return tf.data.Dataset.from_tensor_slices((x, y)).batch(8).map(lambda x, y: (x, y, weights))

    with mock.patch.dict(WEIGHTS, {"[N, 1]": WEIGHTS["[N]"]}):  # which Keras takes in some versions only
        want = fit(plain(), weighted(form))
    assert_same(fit(ours(), weighted(form)), want)


def test_the_labels_may_be_a_list_of_one(data):
    x, y = data
    assert_same(fit(ours(), x, [y]), fit(plain(), x, [y]))
    assert ours().train_on_batch(x[:1], [3]) == ours().train_on_batch(x[:1], [np.array([3])])


@pytest.mark.parametrize(
    ("class_weight", "form"),
    [
        ({c: 1.0 + c for c in range(C)}, lambda y: y),
        ({1: 0.5}, lambda y: y[:, None].astype("float32")),
        ({-1: 3.0, 0: 2.0}, lambda y: np.eye(C + 1)[y][:, :C]),
    ],
)
def test_class_weights_of_a_data_set_are_those_of_arrays(data, class_weight, form):
    """Also where classes are left out, and with labels without a target: Keras' own data sets fail with both."""
    x, y = data

    def trained(model, *data, **options):
        model.fit(*data, verbose=0, shuffle=False, class_weight=class_weight, **options)
        return weights_of(model)

    want = trained(plain(), x, y, batch_size=8)
    assert_same(trained(ours(), x, y, batch_size=8), want)
    assert_same(trained(ours(), tf.data.Dataset.from_tensor_slices((x, form(y))).batch(8)), want)
    some = np.where(np.arange(N) % 3, y, -1)
    got = trained(ours(margin=3), tf.data.Dataset.from_tensor_slices((x, form(some))).batch(8))
    assert_same(got, trained(ours(margin=3), x, some, batch_size=8))


def test_class_weights_and_sample_weights_are_one_too_many(data):
    x, y = data
    weighted = tf.data.Dataset.from_tensor_slices((x, y, np.ones(N))).batch(8)
    with pytest.raises(ValueError, match="class_weight: expected None where the data set has sample weights"):
        ours().fit(weighted, class_weight={0: 2.0}, verbose=0)


# ---- types of labels


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "bool", "int8", "uint64"])
def test_labels_of_every_type(data, dtype):
    _, y = data
    y = y % 2 if dtype in ("bool", "uint64") else np.where(np.arange(N) % 5, y, -1)
    compiled = [tf.function(class_indices, jit_compile=xla) for xla in (False, True)]
    for labels in (tf.cast(y, dtype), tf.cast(y, dtype)[:, None], tf.zeros([0], dtype)):
        for indices in (class_indices, *compiled):
            np.testing.assert_array_equal(indices(labels, C), y[: len(labels)])


@pytest.mark.parametrize("form", [lambda y: y.astype("float32"), lambda y: y.astype("float64")[:, None]])
def test_labels_of_csv_readers(data, form):
    x, y = data
    assert_same(fit(ours(), x, form(y)), fit(plain(), x, y.astype("float32")))


def at_row(row, value, y):
    return np.where(np.arange(N) == row, value, y)


NOT_LABELS = {
    "2.5": (lambda y: at_row(3, 2.5, y), r"expected integers .* got.*2\.5.*in row\W+3"),
    "nan": (lambda y: at_row(7, np.nan, y), r"expected integers .* got.*nan.*in row\W+7"),
    "inf": (lambda y: at_row(0, np.inf, y), r"expected integers .* got.*inf.*in row\W+0"),
    "1e30": (lambda y: at_row(23, 1e30, y)[:, None], r"expected integers .* got.*1e\+30.*in row\W+23"),
    "2**64 - 1": (
        lambda y: at_row(2, np.uint64(2**64 - 1), y.astype("uint64")),  # -1 of int64
        r"expected integers .* got\W+18446744073709551615.*in row\W+2",
    ),
    "smoothed": (
        lambda y: 0.9 * np.eye(C)[y] + 0.02,
        r"smoothing, mixup and CutMix .* class indices.*0\.02.*in row\W+0",
    ),
    "mixed": (lambda y: np.eye(C)[y] * at_row(4, 0.5, 1)[:, None], r"one target a row.*0\.5.*in row\W+4"),
    "two": (lambda y: np.maximum(np.eye(C)[y], np.eye(C)[at_row(5, (y + 1) % C, y)]), r"one target a row.*in row\W+5"),
}


@pytest.mark.parametrize("case", NOT_LABELS)
def test_what_is_no_label_is_shown(data, case):
    form, match = NOT_LABELS[case]
    for indices in (class_indices, tf.function(class_indices)):
        with pytest.raises(tf.errors.InvalidArgumentError, match="(?s)labels: .*" + match):
            indices(tf.constant(form(data[1])), C)


def test_what_is_no_label_stops_fit(data):
    x, y = data
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"y: expected integers .* got\W+2\.5\W+in row\W+3"):
        ours().fit(x, at_row(3, 2.5, y), shuffle=False, verbose=0)


@needs_xla
@pytest.mark.parametrize("case", NOT_LABELS)
def test_what_is_no_label_makes_its_row_nan_where_xla_cannot_raise(data, case):
    x, y = data
    labels = NOT_LABELS[case][0](y)
    right = labels == (y[:, None] if labels.shape == (N, 1) else np.eye(C)[y] if labels.ndim == 2 else y)
    head = LSoftmaxDense(C, margin=3, lam=0.5)
    head.build((None, D))
    loss = tf.function(lambda labels: head.compute_loss(x, labels, training=True).loss, jit_compile=True)
    with mock.patch.dict(os.environ, LSOFTMAX_XLA_CALLS="OFF"):
        np.testing.assert_array_equal(np.isnan(loss(labels)), ~right.reshape(N, -1).all(axis=1))


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        ({"label": np.zeros(N, int)}, r"got a dict with the keys \['label'\]: pass the labels themselves"),
        (tf.sparse.from_dense(np.eye(N, C)), "got SparseTensor: "),
        (tf.constant(["a"] * N), r"got string \(None,\)"),
    ],
)
def test_labels_that_are_no_tensor_of_numbers(data, labels, match):
    with pytest.raises(TypeError, match=r"y: expected integers \[N\] or one-hot \[N, 5\], " + match):
        ours().fit(data[0], labels, verbose=0)


def test_labels_behind_a_mask():
    with pytest.raises(TypeError, match=r"labels: expected an array without masked entries, got .*MaskedArray"):
        class_indices(np.ma.array([0, 1, 2], mask=[0, 1, 0]), C)
    np.testing.assert_array_equal(class_indices(np.ma.array([0, 1, 2]), C), [0, 1, 2])


# ---- lambda as a function


TABLE = (9.0, 5.0, 3.0, 1.0)
FUNCTIONS = {
    "arithmetic": (lambda step: 10.0 / (1 + step), (10.0, 5.0, 10 / 3)),
    "a power": (lambda step: 8.0 * 0.5**step, (8.0, 4.0, 2.0)),
    "integers": (lambda step: 10 // (1 + step), (10.0, 5.0, 3.0)),
    "a table": (lambda step: tf.gather(TABLE, tf.minimum(step, 3)), TABLE),
    "exponentials": (lambda step: 4 * tf.exp(-0.5 * step), (4.0, 4 * np.exp(-0.5), 4 * np.exp(-1.0))),
    "an op with a number first": (lambda step: tf.maximum(8.0, 9.0 - step), (9.0, 8.0, 8.0)),
    "if": (lambda step: 3.0 if step < 1 else 2.0, (3.0, 2.0, 2.0)),
    "a constant": (lambda step: 3, (3.0, 3.0)),
    "a cycle": (lambda step: 8.0 / (1 + step % 2), (8.0, 4.0, 8.0, 4.0)),
    "warm restarts": (keras.optimizers.schedules.CosineDecayRestarts(4.0, 2, t_mul=1.0), (4.0, 2.0, 4.0, 2.0)),
    "Keras' own": (keras.optimizers.schedules.InverseTimeDecay(10.0, 1, 1.0), (10.0, 5.0, 10 / 3)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_lambda_as_a_function_of_the_step(name):
    function, want = FUNCTIONS[name]
    layer = LSoftmaxDense(C, lam=function)
    optimizer = keras.optimizers.SGD()
    layer.follow(optimizer)

    def step():
        layer(tf.ones([2, D]), tf.zeros([2], tf.int32), training=True)
        optimizer.iterations.assign_add(1)
        return tf.identity(layer.lam)

    layer.build((None, D))
    for one in (step, tf.function(step), tf.function(step, jit_compile=lsoftmax_op.build_info()["xla"] == "yes")):
        optimizer.iterations.assign(0)
        assert [float(one()) for _ in want] == pytest.approx(want, rel=1e-6)


def test_lambda_as_a_function_in_fit(data):
    model = ours(margin=2, lam=lambda step: 10.0 / (1 + step))
    assert model.fit(*data, batch_size=8, epochs=2, verbose=0).history["lam"] == pytest.approx([10 / 3, 10 / 6])


def test_steps_beyond_float32_stay_exact(data):
    last = 2**24  # the first odd number after it is no float32
    model = ours(lam=lambda step: tf.where(step > last, 1.0, 2.0))
    model.optimizer.iterations.assign(last)
    assert [model.train_on_batch(*data, return_dict=True)["lam"] for _ in range(2)] == [2.0, 1.0]
    model = ours(lam=lambda step: tf.where(0.5 * step > last / 2, 1.0, 2.0))
    model.optimizer.iterations.assign(last)
    assert [model.train_on_batch(*data, return_dict=True)["lam"] for _ in range(2)] == [2.0, 1.0]


@pytest.mark.parametrize(
    "function",
    [
        lambda: 1.0,
        lambda step: None,
        lambda step: [1.0, 2.0],
        lambda step: "a",
        lambda step: step + "a",
        LambdaSchedule,
    ],
)
def test_functions_that_are_no_schedule(function):
    with pytest.raises(TypeError, match="lam: expected a function of the step .* which fails: "):
        LSoftmaxDense(C, lam=function)


def test_functions_that_fail_in_a_graph(data):
    model = ours(lam=lambda step: max(5.0, 9.0 - step))
    with pytest.raises(TypeError, match=r"lam: expected .*tf.maximum and tf.exp for max.* which fails: "):
        model.fit(*data, verbose=0)


# ---- margins that nobody trains


class PassesNoTraining(keras.Model):
    """A model whose call does not know whether it trains."""

    def __init__(self, head):
        super().__init__()
        self.features, self.head = keras.layers.Dense(4), head

    def call(self, inputs):
        return self.head(self.features(inputs))


def compiled_fit(model, x, y):
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, y, batch_size=8, epochs=2, verbose=0)


def recorded(call, *args, **options):
    for _ in range(2):
        with tf.GradientTape():
            call(*args, **options)


def sequential(**options):
    return keras.Sequential([keras.Input((D,)), keras.layers.Dense(3), LSoftmaxDense(C, **options)])


TRAINED_WITHOUT_A_MARGIN = {
    "fit of a model without training": lambda x, y: compiled_fit(PassesNoTraining(LSoftmaxDense(C)), x, y),
    "own loop": lambda x, y: recorded(sequential(), x),
    "own loop, compiled": lambda x, y: recorded(tf.function(sequential().call), x),
    "labels, but not in training": lambda x, y: recorded(LSoftmaxDense(C), x, y),
    "own loop around the classifier": lambda x, y: recorded(ours(margin=2), x, training=True),
    "the classifier as a layer": lambda x, y: compiled_fit(keras.Sequential([ours(margin=2)]), x, y),
}
WITHOUT_A_WORD = {
    "no margin": lambda x, y: recorded(sequential(margin=1), x),
    "no gradients": lambda x, y: [
        sequential()(x),
        sequential().predict(x, verbose=0),
        ours(margin=2)(x, training=True),
    ],
    "training=False": lambda x, y: recorded(sequential(), x, training=False),
    "a head that is not trained": lambda x, y: recorded(PassesNoTraining(LSoftmaxDense(C, trainable=False)), x),
    "labels in training": lambda x, y: recorded(LSoftmaxDense(C, lam=1.0), x, y, training=True),
    "the classifier": lambda x, y: ours(margin=2).fit(x, y, validation_data=(x, y), verbose=0),
}


@pytest.mark.parametrize("case", [*TRAINED_WITHOUT_A_MARGIN, *WITHOUT_A_WORD])
def test_training_without_the_margin_is_told_once(data, case):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        {**TRAINED_WITHOUT_A_MARGIN, **WITHOUT_A_WORD}[case](*data)
    told = [one for one in caught if "without its margin" in str(one.message)]
    assert len(told) == (case in TRAINED_WITHOUT_A_MARGIN)


@pytest.mark.parametrize("lam", [1e39, 1e300, np.inf])
def test_a_lambda_that_float32_does_not_hold_leaves_no_margin(data, lam):
    x, y = data
    model = ours(margin=3, lam=lam)
    assert model.get_config()["lam"] == lam
    assert float(model.head.lam) == np.inf
    assert_same(fit(model, x, y), fit(ours(margin=1), x, y))


# ---- models that do not train, layers that are not built


def test_a_model_without_trainable_weights(data):
    losses = []
    for model in (ours(), plain()):
        model.trainable = False
        model.compile(keras.optimizers.SGD(0.1), model.loss)
        with pytest.warns(UserWarning, match="trainable weights"):
            losses.append(model.fit(*data, epochs=2, verbose=0).history["loss"])
    np.testing.assert_allclose(*losses, **ROUNDING)


def test_a_layer_that_is_not_built(data):
    x, y = data
    layer, built = (LSoftmaxDense(C, lam=1.0, kernel_initializer="ones") for _ in range(2))
    with pytest.raises(AttributeError, match=f"^{layer.name} has no lam yet: call it first, or build it"):
        layer.lam  # noqa: B018
    built.build((None, D))
    np.testing.assert_array_equal(layer.compute_loss(x, y).loss, built.compute_loss(x, y).loss)
