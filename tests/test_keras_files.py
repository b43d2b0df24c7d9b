"""What Keras' other tools do with layer and classifier: weights, files, checkpoints, exports, LoRA, quantisation."""

import copy
import pickle

import numpy as np
import pytest

import lsoftmax_op
from lsoftmax_op import LambdaSchedule

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")
h5py = pytest.importorskip("h5py")

from lsoftmax_op.keras import LSoftmaxClassifier, LSoftmaxDense

pytestmark = pytest.mark.usefixtures("seeded_keras")
N, D, F, C = 24, 6, 3, 5
FALLING = LambdaSchedule(gamma=0.1)


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(N, D)).astype("float32"), rng.integers(0, C, N)


def backbone():
    return keras.Sequential([keras.Input((D,)), keras.layers.Dense(4, activation="tanh"), keras.layers.Dense(F)])


def classifier(lam=FALLING, classes=C, optimizer="sgd", **options):
    model = LSoftmaxClassifier(backbone(), classes, lam=lam, **options)
    model.compile(optimizer, run_eagerly=True)
    return model


class Softmax(keras.Model):
    """The same network with a Dense head."""

    def __init__(self, use_bias=False):
        super().__init__()
        self.backbone = backbone()
        self.head = keras.layers.Dense(C, use_bias=use_bias, name="head")
        self(np.zeros((1, D), "float32"))

    def build(self, input_shape):
        self.head.build((None, F))
        super().build(input_shape)

    def call(self, inputs):
        return self.head(self.backbone(inputs))


def by_lists(source, target, folder):
    target.set_weights(source.get_weights())


def by_layers(source, target, folder):
    for one, other in zip(source.layers, target.layers, strict=True):
        other.set_weights(one.get_weights())


def by_weights_file(source, target, folder):
    source.save_weights(folder / "of.weights.h5")
    target.load_weights(folder / "of.weights.h5")


def by_keras_file(source, target, folder):
    source.save(folder / "of.keras")
    target.load_weights(folder / "of.keras")


def by_checkpoint(source, target, folder):
    path = tf.train.Checkpoint(model=source).write(str(folder / "checkpoint"))
    tf.train.Checkpoint(model=target).read(path).assert_existing_objects_matched()


CARRIERS = [by_lists, by_layers, by_weights_file, by_keras_file, by_checkpoint]


def assert_same_weights(one, other):
    for mine, its in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, its)


# ---- weights of a softmax network and of one with a margin


@pytest.mark.parametrize("carry", CARRIERS)
@pytest.mark.parametrize(("lam", "use_bias"), [(FALLING, False), (3.0, True)])
def test_weights_fit_a_softmax_network_and_one_with_a_margin_alike(data, tmp_path, carry, lam, use_bias):
    plain, margin = Softmax(use_bias), LSoftmaxClassifier(backbone(), C, lam=lam, use_bias=use_bias)
    carry(plain, margin, tmp_path)
    assert_same_weights(plain, margin)
    margin.compile("sgd", run_eagerly=True)
    logs = margin.train_on_batch(*data, return_dict=True)
    assert logs["lam"] == (3.0 if lam == 3.0 else FALLING(0))
    carry(margin, plain, tmp_path)
    assert_same_weights(plain, margin)


def test_a_checkpoint_of_a_softmax_network_is_consumed_whole(tmp_path):
    path = tf.train.Checkpoint(model=Softmax()).write(str(tmp_path / "checkpoint"))
    tf.train.Checkpoint(model=LSoftmaxClassifier(backbone(), C)).read(path).assert_consumed()


@pytest.mark.parametrize("direction", ["to the margin", "to the softmax"])
def test_a_head_that_does_not_fit_is_skipped_where_that_is_asked_for(tmp_path, direction):
    source, target = Softmax(), LSoftmaxClassifier(backbone(), C + 2)
    if direction == "to the softmax":
        source, target = target, source
    source.save_weights(tmp_path / "of.weights.h5")
    before = target.head.get_weights()
    with pytest.warns(UserWarning, match="head"):
        target.load_weights(tmp_path / "of.weights.h5", skip_mismatch=True)
    assert_same_weights(source.backbone, target.backbone)
    np.testing.assert_array_equal(target.head.get_weights(), before)


@pytest.mark.parametrize(("lam", "use_bias"), [(FALLING, True), (3.0, False)])
def test_files_of_the_first_releases(data, tmp_path, lam, use_bias):
    """There lambda stood behind kernel and bias; in checkpoints it was a variable of the layer."""
    model = classifier(use_bias=use_bias)
    model.save_weights(tmp_path / "old.weights.h5")
    with h5py.File(tmp_path / "old.weights.h5", "a") as file:
        del file["head/_lambda_state"]
        file[f"head/vars/{1 + use_bias}"] = np.float32(7)
    new = classifier(lam, use_bias=use_bias)
    new.load_weights(tmp_path / "old.weights.h5")
    assert_same_weights(new, model)
    assert float(new.head.lam) == (3.0 if lam == 3.0 else 7.0)
    old = tf.Module()
    old.head = tf.Module()
    old.head.lam, old.head._kernel = tf.Variable(8.0), tf.Variable(np.ones((F, C), "float32"))
    path = tf.train.Checkpoint(model=old).write(str(tmp_path / "old"))
    tf.train.Checkpoint(model=new).read(path).expect_partial()
    assert float(new.head.lam) == (3.0 if lam == 3.0 else 8.0)
    np.testing.assert_array_equal(new.head.kernel, np.ones((F, C)))


def test_what_does_not_fit_is_refused(tmp_path):
    """A bias [C] too many is no lambda []."""
    Softmax(use_bias=True).save_weights(tmp_path / "of.weights.h5")
    with pytest.raises(ValueError, match="head"):
        classifier().load_weights(tmp_path / "of.weights.h5")


# ---- lambda in files


@pytest.mark.parametrize("carry", CARRIERS[2:])
def test_a_schedule_comes_with_the_file_and_then_follows_the_optimizer(data, tmp_path, carry):
    source, target = classifier(optimizer="adam"), classifier(optimizer="adam")
    for _ in range(3):
        source.train_on_batch(*data)
    target.optimizer.build(target.trainable_variables)
    carry(source, target, tmp_path)
    assert float(target.head.lam) == float(source.head.lam) == pytest.approx(FALLING(2), rel=1e-6)
    target.reset_metrics(), source.reset_metrics()
    assert target.train_on_batch(*data) == source.train_on_batch(*data)
    assert float(target.head.lam) == pytest.approx(FALLING(3), rel=1e-6)


@pytest.mark.parametrize("carry", CARRIERS[2:])
@pytest.mark.parametrize("of", [FALLING, 100.0])
def test_a_number_stays_what_the_constructor_was_told(data, tmp_path, carry, of):
    source, target = classifier(of), classifier(1.0)
    source.train_on_batch(*data)
    target.optimizer.build(target.trainable_variables)
    carry(source, target, tmp_path)
    assert float(target.head.lam) == 1.0
    assert target.train_on_batch(*data, return_dict=True)["lam"] == 1.0


def test_a_number_that_was_assigned_is_the_constructors_in_a_saved_model(tmp_path):
    model = classifier(0.1)
    assert model.get_config()["lam"] == 0.1  # not its float32
    model.head.lam.assign(0.5)
    model.save(tmp_path / "model.keras")
    assert float(keras.saving.load_model(tmp_path / "model.keras").head.lam) == 0.5


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_and_pickles(data, copied):
    model = classifier(optimizer="adam")
    model.fit(*data, verbose=0)
    other = copied(model)
    assert_same_weights(model, other)
    assert float(other.head.lam) == float(model.head.lam)
    other.reset_metrics(), model.reset_metrics()
    assert other.train_on_batch(*data) == model.train_on_batch(*data)


def test_a_saved_model_of_tensorflow_may_train(data, tmp_path):
    """Functions that use lambda find it in the SavedModel."""

    class Module(tf.Module):
        def __init__(self):
            self.layer = LSoftmaxDense(C, lam=2.0)
            self.layer.build((None, D))

        @tf.function(input_signature=[tf.TensorSpec((None, D)), tf.TensorSpec((None,), tf.int64)])
        def logits(self, features, labels):
            return self.layer(features, labels, training=True)

    module = Module()
    tf.saved_model.save(module, str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    np.testing.assert_array_equal(loaded.logits(*data), module.logits(*data))


# ---- LoRA and quantisation


def reloaded(model, folder, of="save"):
    getattr(model, of)(folder / "model.keras")
    return keras.saving.load_model(folder / "model.keras")


def test_lora_on_the_head(data, tmp_path):
    x, y = data
    model = classifier(2.0, optimizer=keras.optimizers.SGD(0.5))
    kernel = model.head.kernel.numpy()
    model.head.enable_lora(2)
    model.head.lora_kernel_b.assign(np.random.default_rng(0).normal(size=(2, C)))
    model.compile(keras.optimizers.SGD(0.5), run_eagerly=True)
    a, b = (factor.numpy() for factor in (model.head.lora_kernel_a, model.head.lora_kernel_b))
    features, merged = model.backbone(x).numpy(), kernel + a @ b
    want = lsoftmax_op.reference.loss(features, merged, y, lam=2.0)
    grad = lsoftmax_op.reference.loss_grad(np.full(N, 1 / N), features, merged, y, lam=2.0).weights
    assert model.train_on_batch(x, y)[0] == pytest.approx(want.mean(), rel=1e-5)
    np.testing.assert_array_equal(model.head._kernel, kernel)
    np.testing.assert_allclose(model.head.lora_kernel_a, a - 0.5 * grad @ b.T, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(model.head.lora_kernel_b, b - 0.5 * a.T @ grad, rtol=1e-4, atol=1e-6)
    want = model(x)
    loaded = reloaded(model, tmp_path)
    np.testing.assert_allclose(loaded(x), want, rtol=1e-5)
    assert loaded.head.lora_rank == 2
    assert len(loaded.trainable_weights) == len(model.trainable_weights)
    loaded.train_on_batch(x, y)
    np.testing.assert_allclose(reloaded(model, tmp_path, "export")(x), want, rtol=1e-5)


def test_lora_on_the_layer(data, tmp_path):
    x, y = data
    features, labels = keras.Input((D,)), keras.Input((), dtype="int32")
    head = LSoftmaxDense(C, lam=2.0, lora_rank=2)
    model = keras.Model([features, labels], head(features, labels))
    assert head.lora_enabled
    model.compile(keras.optimizers.SGD(0.5), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = head.kernel.numpy()
    model.fit([x, y], y, epochs=2, verbose=0)
    assert np.abs(head.kernel - before).max() > 1e-3
    np.testing.assert_allclose(reloaded(model, tmp_path)([x, y]), model([x, y]), rtol=1e-5)


def test_quantised_to_int8_like_dense(data, tmp_path):
    x, y = data
    model, plain = classifier(2.0, use_bias=True), Softmax(use_bias=True)
    model.fit(x, y, verbose=0)
    by_lists(model, plain, tmp_path)
    model.quantize("int8")
    plain.quantize("int8")
    assert model.head.quantization_mode == "int8"
    assert_same_weights(model, plain)
    want = keras.ops.softmax(plain(x))
    np.testing.assert_allclose(model(x), want, rtol=1e-5)
    loss, accuracy = model.evaluate(x, y, verbose=0)
    assert loss == pytest.approx(-np.log(want.numpy()[np.arange(N), y]).mean(), rel=1e-5)
    assert accuracy == pytest.approx(np.mean(want.numpy().argmax(axis=1) == y))
    for of in ("save", "export"):
        np.testing.assert_allclose(reloaded(model, tmp_path, of)(x), want, rtol=1e-5)
    model.export(tmp_path / "served")
    served = tf.saved_model.load(str(tmp_path / "served"))
    np.testing.assert_allclose(served.serve(x), want, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_lora_on_a_head_of_int8(data, tmp_path, dtype):
    x, y = data
    model = classifier(2.0, dtype=dtype)
    model.head.quantize("int8")
    model.head.enable_lora(2)
    model.head.lora_kernel_b.assign(np.random.default_rng(0).normal(size=(2, C)))
    model.compile(keras.optimizers.SGD(0.5), run_eagerly=True)
    head = model.head
    merged = head._kernel.numpy() / head.kernel_scale.numpy() + head.lora_kernel_a.numpy() @ head.lora_kernel_b.numpy()
    want = lsoftmax_op.reference.loss(model.backbone(x).numpy(), merged, y, lam=2.0)
    before = head.lora_kernel_b.numpy()
    assert model.train_on_batch(x, y)[0] == pytest.approx(want.mean(), rel=1e-5)
    assert np.abs(head.lora_kernel_b - before).max() > 1e-4
    np.testing.assert_allclose(reloaded(model, tmp_path)(x), model(x), atol=5e-3)


def test_int4_infers_like_dense_and_refuses_to_train(data, tmp_path):
    x, y = data
    try:
        keras.dtype_policies.get("int4_from_float32")
    except ValueError:
        pytest.skip(f"Keras {keras.__version__} has no int4")
    model, plain = classifier(2.0), Softmax()
    by_lists(model, plain, tmp_path)
    model.quantize("int4")
    plain.quantize("int4")
    want = keras.ops.softmax(plain(x))
    for one in (model, reloaded(model, tmp_path), reloaded(model, tmp_path, "export")):
        np.testing.assert_allclose(one(x), want, rtol=1e-5)
    with pytest.raises(ValueError, match="head: expected the quantisation mode 'int8' or none .* got 'int4'"):
        model.train_on_batch(x, y)


class Own(LSoftmaxDense):
    """A subclass, which Keras' quantisation cannot know."""


@pytest.mark.parametrize(
    ("layer", "mode", "error", "match"),
    [
        (LSoftmaxDense, "float8", ValueError, "mode: expected .* got 'float8'"),
        (LSoftmaxDense, "int3", ValueError, "int3"),
        (Own, "int8", NotImplementedError, "Own does not have a `quantize`"),
    ],
)
def test_what_is_not_quantised_says_so(layer, mode, error, match):
    layer = layer(C)
    layer.build((None, D))
    with pytest.raises(error, match=match):
        layer.quantize(mode)


# ---- exports


class Embedder(keras.Model):
    """A subclassed backbone over an input, or a list or dict of some, of any data type."""

    def __init__(self, of="int64", **options):
        super().__init__(**options)
        self.of = of
        if of == "string":
            self.lookup = keras.layers.StringLookup(vocabulary=["red", "green", "blue"])
        elif of == "int64":  # numbers that float32 has not
            self.lookup = keras.layers.IntegerLookup(vocabulary=[2**24, 2**24 + 1, 2**24 + 2])
        else:
            self.lookup = keras.layers.Rescaling(1 / 255)
        self.embedding, self.pool = keras.layers.Embedding(5, 4), keras.layers.GlobalAveragePooling1D()
        self.join, self.dense = keras.layers.Concatenate(), keras.layers.Dense(F)

    def build(self, input_shape):
        self.embedding.build()
        self.dense.build((None, 4))
        super().build(input_shape)

    def call(self, inputs):
        parts = [self.lookup(part) for part in keras.tree.flatten(inputs)]
        joined = self.join(parts) if len(parts) > 1 else parts[0]
        return self.dense(self.pool(self.embedding(joined)))

    def get_config(self):
        return {**super().get_config(), "of": self.of}


def functional(of):
    x = keras.Input((2,), dtype=of, name="ids")
    return keras.Model(x, Embedder(of).call(x))


def sequential(of):
    return keras.Sequential([keras.Input((2,), dtype=of, name="ids"), Embedder(of)])


VALUES = {
    "string": np.array([[b"red", b"blue"], [b"green", b"red"]] * 4),
    "int64": np.array([[2**24, 2**24 + 1], [2**24 + 2, 7]] * 4),
    "int32": np.array([[1, 250], [0, 90]] * 4, "int32"),
    "uint8": np.array([[1, 250], [0, 90]] * 4, "uint8"),
    "float32": np.array([[1, 250], [0, 90]] * 4, "float32"),
}


def signature_of(path):
    served = tf.saved_model.load(str(path))
    specs = served.signatures["serving_default"].structured_input_signature[1]
    return served, {name: spec.dtype.name for name, spec in specs.items()}


def check_exports(model, x, names, folder):
    """Every export takes what the model takes, by the names and data types, and answers alike."""
    want = np.asarray(model(x))
    model.export(folder / "served")
    served, signature = signature_of(folder / "served")
    assert signature == names
    np.testing.assert_allclose(served.serve(x), want, rtol=1e-5)
    tf.saved_model.save(model, str(folder / "saved"))
    saved, signature = signature_of(folder / "saved")
    assert sorted(signature.values()) == sorted(names.values())
    (answer,) = saved.signatures["serving_default"](
        **dict(zip(sorted(signature), keras.tree.flatten(x), strict=True))
    ).values()
    np.testing.assert_allclose(answer, want, rtol=1e-5)
    model.export(folder / "plain.keras")
    plain = keras.saving.load_model(folder / "plain.keras", custom_objects={"Embedder": Embedder})
    assert {one.name: one.dtype for one in plain.inputs} == names
    np.testing.assert_allclose(plain(x), want, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (functional, "uint8"),
        (functional, "float32"),
        (functional, "int64"),
        (sequential, "string"),
        (sequential, "int32"),
    ]
    + [(Embedder, dtype) for dtype in ("string", "int64", "uint8")],
)
def test_exports_take_the_inputs_that_fit_took(tmp_path, kind, dtype):
    x, y = tf.constant(VALUES[dtype]), np.arange(8) % 3
    model = LSoftmaxClassifier(kind(dtype), 3, lam=1.0)
    model.compile("sgd", run_eagerly=True)
    model.fit(tf.data.Dataset.from_tensor_slices((x, y)).batch(4), verbose=0)
    check_exports(model, x, {"args_0" if kind is Embedder else "ids": dtype}, tmp_path)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", custom_objects={"Embedder": Embedder})
    assert [one.dtype for one in again.inputs] == [dtype]
    np.testing.assert_array_equal(again(x), model(x))


def two(structure):
    u, v = keras.Input((2,), dtype="int64", name="user"), keras.Input((2,), dtype="int64", name="item")
    inputs = {"u": u, "v": v} if structure is dict else [u, v]
    return keras.Model(inputs, Embedder().call(inputs))


@pytest.mark.parametrize("structure", [dict, list])
@pytest.mark.parametrize("subclassed", [False, True])
def test_exports_of_several_inputs(tmp_path, structure, subclassed):
    x = [tf.constant(VALUES["int64"]), tf.constant(VALUES["int64"][::-1].copy())]
    x = dict(zip("uv", x, strict=True)) if structure is dict else x
    model = LSoftmaxClassifier(Embedder() if subclassed else two(structure), 3, lam=1.0)
    model(x)
    names = ["user", "item"]
    if subclassed:
        names = ["u", "v"] if structure is dict else ["args_0", "args_0_1"]
    if structure is dict and keras.__version__.startswith(("3.5.", "3.6.")):
        pytest.skip("this Keras exports the inputs of functional models as a list")
    check_exports(model, x, dict.fromkeys(names, "int64"), tmp_path)


def test_exports_are_for_any_batch_size(data, tmp_path):
    net = keras.Sequential([keras.Input(batch_shape=(N, D)), keras.layers.Dense(F)])
    model = LSoftmaxClassifier(net, C, lam=1.0)
    model.export(tmp_path / "plain.keras")
    assert keras.saving.load_model(tmp_path / "plain.keras")(data[0][:7]).shape == (7, C)


# ---- inputs and outputs, as of a functional model


def functional_backbone():
    x = keras.Input((D,), name="pixels")
    return keras.Model(x, keras.layers.Dense(F)(keras.layers.Dense(4, activation="tanh")(x)))


@pytest.mark.parametrize("make", [functional_backbone, backbone, lambda: keras.layers.Dense(F)])
def test_embeddings_as_tutorials_take_them(data, make):
    x, y = data
    model = LSoftmaxClassifier(make(), C, lam=1.0)
    model.compile("sgd", run_eagerly=True)
    model.fit(x, y, verbose=0)
    features = model.backbone(x)
    logits = model.head(features)
    for inputs in (model.input, model.inputs, model.inputs[0]):
        np.testing.assert_allclose(keras.Model(inputs, model.layers[-2].output)(x), features, rtol=1e-6)
    np.testing.assert_allclose(keras.Model(model.input, model.layers[-1].output)(x), logits, rtol=1e-6)
    for outputs in (model.output, model.outputs[0]):
        np.testing.assert_allclose(keras.Model(model.input, outputs)(x), model(x), rtol=1e-6)


def test_layers_within_the_backbone(data):
    model = LSoftmaxClassifier(functional_backbone(), C)
    inner = keras.Model(model.input, model.backbone.layers[1].output)
    np.testing.assert_array_equal(inner(data[0]), model.backbone.layers[1](data[0]))


def test_inputs_before_there_are_any():
    model = LSoftmaxClassifier(keras.layers.Dense(F), C, name="mine")
    assert not hasattr(model, "inputs")
    with pytest.raises(AttributeError, match="mine has no inputs yet: call it first"):
        _ = model.input
    with pytest.raises(ValueError, match="backbone: expected outputs"):
        model(np.zeros((N, 2, D)))
    model(np.zeros((N, D)))
    assert model.input.shape == (None, D)


# ---- the loss object


@pytest.mark.parametrize("one_hot", [False, True])
def test_the_loss_of_the_model_is_that_of_evaluate(data, one_hot):
    x, y = data
    y = y.astype("int32")
    y[::5] = -1
    model = classifier()
    labels = np.array(tf.one_hot(y, C)) if one_hot else y
    want = model.evaluate(x, labels, verbose=0)[0]
    assert float(model.loss(labels, model(x))) == pytest.approx(want, rel=1e-5)
    again = keras.losses.deserialize(keras.losses.serialize(model.loss))
    assert again.get_config() == model.loss.get_config()
    model.compile("sgd", loss=again)
    assert model.loss is again
    assert model.evaluate(x, labels, verbose=0)[0] == pytest.approx(want, rel=1e-6)


def test_a_loaded_model_has_its_loss(tmp_path):
    model = classifier()
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.compiled
    assert type(loaded.loss) is type(model.loss)


def build(X, y, margin=2):
    model = LSoftmaxClassifier(backbone(), C, margin=margin, lam=1.0)
    model.compile(keras.optimizers.Adam(0.05), run_eagerly=True)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("model", [build, None])
def test_scikit_learn(model):
    selection = pytest.importorskip("sklearn.model_selection")
    base = pytest.importorskip("sklearn.base")
    if not hasattr(keras, "wrappers"):
        pytest.skip(f"Keras {keras.__version__} has no wrappers")
    rng = np.random.default_rng(0)
    y = np.arange(40) % C
    x = (5 * np.eye(C, D)[y] + rng.normal(size=(40, D))).astype("float32")
    estimator = keras.wrappers.SKLearnClassifier(model or build(x, y), model_kwargs={"margin": 3} if model else None)
    estimator.fit(x, y, epochs=40, batch_size=len(y), verbose=0)
    assert estimator.score(x, y) > 0.7
    assert selection.cross_val_score(base.clone(estimator), x, y, cv=2, error_score="raise").shape == (2,)
    if model:
        grid = {"model_kwargs": [{"margin": 1}, {"margin": 3}]}
        search = selection.GridSearchCV(estimator, grid, cv=2, error_score="raise").fit(x, y)
        assert search.best_params_ in [{"model_kwargs": one} for one in grid["model_kwargs"]]
