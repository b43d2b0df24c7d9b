"""ShardedClassifier on one replica: all classes as LSoftmaxClassifier trains them, and what samples leave alone."""

import json
import os

import numpy as np
import pytest

from lsoftmax_op import LambdaSchedule, lsoftmax_loss, sharded_sample
from lsoftmax_op.margins import ArcFace, CosFace

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")

from lsoftmax_op.keras import LSoftmaxClassifier, ShardedBackup, ShardedClassifier, class_shard, shard_files

N, D, C = 24, 6, 13
SCHEDULE = LambdaSchedule(gamma=0.1)
OPTIMIZERS = {
    "SGD": lambda: keras.optimizers.SGD(0.5),
    "momentum": lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
    "Adam": lambda: keras.optimizers.Adam(0.01),
    "AdamW": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1),
    "Nadam": lambda: keras.optimizers.Nadam(0.01),
    "Adagrad": lambda: keras.optimizers.Adagrad(0.1),
    "RMSprop": lambda: keras.optimizers.RMSprop(0.01, centered=True, momentum=0.5),
    "Lion": lambda: keras.optimizers.Lion(0.01),
    "a schedule": lambda: keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.5, 2, 0.5)),
    "clipped values": lambda: keras.optimizers.SGD(0.5, clipvalue=0.01),
    "a scaled loss": lambda: keras.optimizers.Adam(0.01, loss_scale_factor=1024.0),
    "accumulated gradients": lambda: keras.optimizers.Adam(0.01, gradient_accumulation_steps=2),
}


@pytest.fixture(autouse=True)
def seed():
    keras.utils.set_random_seed(1)


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, C, N)
    labels[3] = -1
    return rng.normal(size=(N, D)).astype("float32"), labels


def backbone():
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.Input((D,)), keras.layers.Dense(5, activation="tanh"), keras.layers.Dense(4)])


def sharded(optimizer=None, **options):
    model = ShardedClassifier(backbone(), C, **{"margin": 3, "lam": SCHEDULE, **options})
    model.compile(optimizer or keras.optimizers.SGD(0.1, momentum=0.9))
    return model


def whole_like(model, optimizer=None):
    """An LSoftmaxClassifier with the weights of a ShardedClassifier."""
    options = {"margin": model.head.margin, "lam": model.head._lam, "label_smoothing": model.label_smoothing}
    whole = LSoftmaxClassifier(backbone(), C, **options)
    whole.compile(optimizer or keras.optimizers.SGD(0.1, momentum=0.9))
    whole.backbone.set_weights(model.backbone.get_weights())
    whole.head.kernel.assign(rows_of(model).T)
    return whole


def rows_of(model):
    (shard,) = model.head.shards
    return shard.rows.numpy()


def tables_of(model):
    """The rows and the optimizer's slots, [C, D] each."""
    (shard,) = model.head.shards
    return [shard.rows.numpy(), *(slot.numpy() for slot in shard.optimizer.slots)]


def train(model, data, epochs=3, **options):
    return model.fit(*data, batch_size=10, epochs=epochs, shuffle=False, verbose=0, **options).history


# ---- all classes


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_every_class_is_trained_as_in_a_dense_head(make, data):
    model = sharded(make())
    whole = whole_like(model, make())
    before = rows_of(model)
    got, expected = train(model, data), train(whole, data)
    for name, values in expected.items():
        np.testing.assert_allclose(got[name], values, rtol=1e-5, err_msg=name)
    assert np.abs(rows_of(model) - before).max() > 1e-3
    np.testing.assert_allclose(rows_of(model), whole.head.kernel.numpy().T, atol=2e-6)
    for mine, theirs in zip(model.backbone.get_weights(), whole.backbone.get_weights(), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2e-6)


@pytest.mark.parametrize("options", [{"margin": ArcFace(0.3, 8)}, {"label_smoothing": 0.1}, {"class_block_size": 4}])
def test_margins_smoothing_and_blocks(options, data):
    model = sharded(lam=0.5, **options)
    whole = whole_like(model)
    got, expected = train(model, data), train(whole, data)
    for name, values in expected.items():
        np.testing.assert_allclose(got[name], values, rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(model.evaluate(*data, verbose=0), whole.evaluate(*data, verbose=0), rtol=1e-5)


@pytest.mark.parametrize("margin", [3, CosFace(0.2, 4)])
def test_predict_gives_the_most_probable_classes(margin, data):
    model = sharded(margin=margin)
    every = whole_like(model).predict(data[0], verbose=0)
    best = np.argsort(-every, axis=1, kind="stable")[:, :3]
    got = model.predict(data[0], k=3, batch_size=7, verbose=0)
    np.testing.assert_array_equal(got.classes, best)
    np.testing.assert_allclose(got.probabilities, np.take_along_axis(every, best, 1), rtol=1e-5)
    assert model.predict(data[0], verbose=0).classes.shape == (N, 5)
    np.testing.assert_allclose(model.predict(data[0], k=C, verbose=0).probabilities.sum(1), 1, rtol=1e-5)


def test_a_call_gives_features_and_embed_unit_rows(data):
    model = sharded(margin=ArcFace(0.3, 8))
    features = model(data[0]).numpy()
    np.testing.assert_array_equal(features, model.backbone(data[0]).numpy())
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    np.testing.assert_allclose(model.embed(data[0], verbose=0), unit, rtol=1e-5)


def test_a_backbone_without_weights_is_no_hindrance(data):
    model = ShardedClassifier(keras.Sequential([keras.Input((D,)), keras.layers.Identity()]), C, lam=SCHEDULE)
    model.compile(keras.optimizers.SGD(0.5))
    before = rows_of(model)
    lam = train(model, data)["lam"]
    assert np.abs(rows_of(model) - before).max() > 1e-3
    assert lam[0] > lam[1] > lam[2]
    assert int(model.optimizer.iterations) == 9
    model.compile(keras.optimizers.SGD(0.5, gradient_accumulation_steps=2))
    with pytest.raises(ValueError, match="gradient_accumulation_steps where the backbone has nothing to train"):
        train(model, data)


@pytest.mark.parametrize("sample_rate", [1.0, 0.5])
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "float64"])
def test_data_types(policy, sample_rate, data):
    model = sharded(keras.optimizers.Adam(0.01), dtype=policy, lam=5.0, sample_rate=sample_rate)
    loss = train(model, data, epochs=6)["loss"]
    assert loss[-1] < 0.98 * loss[0]
    assert rows_of(model).dtype == ("float64" if policy == "float64" else "float32")
    assert model.predict(data[0], verbose=0).probabilities.dtype == ("float64" if policy == "float64" else "float32")


def test_eagerly_it_is_the_same(data):
    graph, eager = sharded(sample_rate=0.5), ShardedClassifier(backbone(), C, margin=3, lam=SCHEDULE, sample_rate=0.5)
    eager.compile(keras.optimizers.SGD(0.1, momentum=0.9), run_eagerly=True)
    train(graph, data), train(eager, data)
    for one, other in zip(tables_of(graph), tables_of(eager), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_another_optimizer_begins_with_slots_of_its_own(data):
    model = sharded()
    train(model, data)
    model.compile(keras.optimizers.Adam(0.01))
    train(model, data)
    (shard,) = model.head.shards
    assert len(shard.optimizer.slots) == 2
    assert int(shard.optimizer.steps) == 9


# ---- sampled classes


def test_a_rate_of_one_is_the_full_loss_to_the_bit(data):
    full, sampled = sharded(), sharded(sample_rate=1.0)
    assert train(full, data) == train(sampled, data)
    for one, other in zip(tables_of(full), tables_of(sampled), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", ["momentum", "AdamW", "Nadam"])
def test_classes_that_are_not_sampled_stay_slots_and_all(name, data):
    model = sharded(OPTIMIZERS[name](), sample_rate=0.5)
    model.fit(data[0], data[1], epochs=2, batch_size=N, verbose=0)  # slots of some are not 0 any more
    x, labels = data[0][:3], data[1][:3]
    before = tables_of(model)
    steps = int(model.optimizer.iterations)
    model.fit(x, labels, batch_size=3, verbose=0)
    sampled = sharded_sample(labels, first_class=0, num_columns=C, sample_rate=0.5, seed=[0, steps]).columns.numpy()
    others = np.setdiff1d(np.arange(C), sampled)
    assert len(sampled) == 7
    assert np.isin(labels, sampled).all()
    assert len(before) > 1
    for one, other in zip(before, tables_of(model), strict=True):
        np.testing.assert_array_equal(one[others], other[others])
        assert (one[sampled] != other[sampled]).any(axis=1).all()


def test_a_sampled_step_is_that_of_the_loss_among_the_sampled_classes(data):
    x, labels = data
    model = sharded(keras.optimizers.SGD(0.5), sample_rate=0.9, lam=0.5)
    features, rows = model.backbone(x), tf.constant(rows_of(model))
    sampled = sharded_sample(labels, first_class=0, num_columns=C, sample_rate=0.9, seed=[0, 0])
    with tf.GradientTape() as tape:
        tape.watch(rows)
        chosen = tf.transpose(tf.gather(rows, sampled.columns))
        loss = tf.reduce_mean(lsoftmax_loss(features, chosen, sampled.labels, margin=3, lam=0.5))
    expected = rows - 0.5 * tf.convert_to_tensor(tape.gradient(loss, rows))
    logs = model.fit(x, labels, batch_size=N, verbose=0).history
    np.testing.assert_allclose(logs["loss"][0], loss.numpy(), rtol=1e-6)
    np.testing.assert_allclose(rows_of(model), expected.numpy(), atol=1e-6)


def test_more_labels_than_sampled_classes_are_all_taken(data):
    model = sharded(sample_rate=0.1)
    before = rows_of(model)
    model.fit(*data, batch_size=N, verbose=0)
    changed = (rows_of(model) != before).any(axis=1)
    np.testing.assert_array_equal(np.flatnonzero(changed), np.unique(data[1][data[1] >= 0]))


def test_samples_are_the_same_again_and_others_with_another_seed(data):
    def trained(**options):
        model = sharded(sample_rate=0.5, kernel_initializer=keras.initializers.Constant(0.1), **options)
        model.fit(data[0][:2], data[1][:2], verbose=0)
        return rows_of(model)

    np.testing.assert_array_equal(trained(), trained())
    assert (trained() != trained(seed=1)).any()


# ---- the first rows


@pytest.mark.parametrize("initializer", ["glorot_uniform", "he_normal", keras.initializers.RandomNormal(stddev=0.1)])
def test_a_class_begins_with_the_same_row_whoever_has_it(initializer, monkeypatch):
    monkeypatch.setattr(class_shard, "BLOCK", 4)
    initializer = class_shard.drawn_by_class(initializer)

    def rows(shards):
        drawn = (class_shard.first_rows(initializer, r, C, D, "float32", 3) for r in class_shard.ranges(C, shards))
        return np.concatenate(list(drawn))

    one = rows(1)
    assert one.shape == (C, D)
    assert len(np.unique(one)) == C * D
    for shards in (2, 3, 5, C):
        np.testing.assert_array_equal(rows(shards), one)


@pytest.mark.parametrize("name", ["glorot_uniform", "glorot_normal", "he_uniform", "lecun_normal"])
def test_first_rows_have_the_variance_of_a_dense_kernel(name, monkeypatch):
    monkeypatch.setattr(class_shard, "BLOCK", 64)
    initializer = class_shard.drawn_by_class(name)
    got = class_shard.first_rows(initializer, class_shard.Range(0, 1000), 1000, 20, "float32", 0)
    dense = np.asarray(keras.initializers.get(name)((20, 1000)))
    np.testing.assert_allclose(got.std(), dense.std(), rtol=0.03)
    np.testing.assert_allclose(np.abs(got).max(), np.abs(dense).max(), rtol=0.03)


def test_shares_of_the_classes_are_even_and_in_order():
    assert class_shard.ranges(7, 3) == [(0, 3), (3, 2), (5, 2)]
    assert class_shard.ranges(3, 3) == [(0, 1), (1, 1), (2, 1)]
    with pytest.raises(ValueError, match="num_classes: expected at least one for each of the 4 replicas, got 3"):
        class_shard.ranges(3, 4)


# ---- files


@pytest.mark.parametrize("sample_rate", [1.0, 0.5])
def test_a_saved_training_goes_on_to_the_same_bits(sample_rate, data, tmp_path):
    straight = sharded(keras.optimizers.Adam(0.01), sample_rate=sample_rate)
    train(straight, data, epochs=4)
    interrupted = sharded(keras.optimizers.Adam(0.01), sample_rate=sample_rate)
    train(interrupted, data, epochs=2, callbacks=[ShardedBackup(tmp_path)])
    resumed = sharded(keras.optimizers.Adam(0.01), sample_rate=sample_rate, seed=0)
    logs = train(resumed, data, epochs=4, callbacks=[ShardedBackup(tmp_path, every=2)])
    assert len(logs["loss"]) == 2
    for one, other in zip(tables_of(straight), tables_of(resumed), strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(straight.backbone.get_weights(), resumed.backbone.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert float(resumed.head.lam) == float(straight.head.lam)
    assert sorted(os.listdir(tmp_path)) == ["LATEST", "step-12"]


def test_what_a_killed_process_left_half_written_is_not_taken(data, tmp_path):
    model = sharded()
    train(model, data)
    model.save_shards(tmp_path)
    saved = tables_of(model)
    train(model, data)
    (tmp_path / "step-18" / "from-0").mkdir(parents=True)
    (tmp_path / "step-18" / "from-0" / "0.npy").write_bytes(b"\x93NUMPY")
    (tmp_path / "LATEST.new").write_text("step-18")
    model.load_shards(tmp_path)
    for one, other in zip(saved, tables_of(model), strict=True):
        np.testing.assert_array_equal(one, other)
    train(model, data)
    model.save_shards(tmp_path)  # over the rest
    model.save_shards(tmp_path)  # and never over the present one
    assert sorted(os.listdir(tmp_path)) == ["LATEST", "step-18-again"]
    model.load_shards(tmp_path)


def test_what_else_is_in_the_folder_of_a_saved_training_stays(data, tmp_path):
    (tmp_path / "2024").mkdir()
    (tmp_path / "2024" / "photo").write_text("mine")
    (tmp_path / "7").write_text("mine")
    (tmp_path / "step-8").write_text("a file")
    train(sharded(), data, callbacks=[ShardedBackup(tmp_path)])
    assert sorted(os.listdir(tmp_path)) == ["2024", "7", "LATEST", "step-8", "step-9"]
    assert (tmp_path / "2024" / "photo").read_text() == (tmp_path / "7").read_text() == "mine"


@pytest.mark.parametrize("missing", ["manifest.json", "shared.npz", "0.npy"])
def test_files_that_not_all_processes_see_are_no_checkpoint(missing, data, tmp_path, monkeypatch):
    model = sharded()
    model.save_shards(tmp_path)
    train(model, data)
    write = shard_files._write
    monkeypatch.setattr(shard_files, "_write", lambda path, how: None if path.name == missing else write(path, how))
    with pytest.raises(ValueError, match="folder: expected one that all processes see, got "):
        model.save_shards(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["LATEST", "step-0", "step-9"]
    assert (tmp_path / "LATEST").read_text() == "step-0"


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (lambda: sharded(keras.optimizers.Adam(0.1)), "optimizer = Adam, got SGD"),
        (lambda: sharded(keras.optimizers.SGD(0.1)), r"slots = \[\], got \['momentum'\]"),
        (lambda: sharded(dtype="float64"), "dtype = float64, got float32"),
    ],
)
def test_files_of_another_model_are_refused(other, what, tmp_path):
    sharded().save_shards(tmp_path)
    with pytest.raises(ValueError, match=what):
        other().load_shards(tmp_path)


@pytest.mark.parametrize("sample_rate", [1.0, 0.5])
def test_files_of_as_many_other_slots_are_refused(sample_rate, tmp_path):
    def momentum():
        return sharded(keras.optimizers.RMSprop(momentum=0.9), sample_rate=sample_rate)

    momentum().save_shards(tmp_path)
    momentum().load_shards(tmp_path)
    with pytest.raises(ValueError, match=r"slots = \['velocity', 'average_grad.*'\], got \['velocity', 'momentum'\]"):
        sharded(keras.optimizers.RMSprop(centered=True), sample_rate=sample_rate).load_shards(tmp_path)


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="folder: expected one with a complete checkpoint"):
        sharded().load_shards(tmp_path)


def test_bfloat16_rows_are_saved(data, tmp_path):
    model = sharded(dtype="bfloat16")
    train(model, data)
    model.save_shards(tmp_path)
    again = sharded(dtype="bfloat16")
    again.load_shards(tmp_path)
    assert (rows_of(again) == rows_of(model)).all()


def test_bfloat16_counters_are_saved(tmp_path):
    def product():
        """Nadam's product of its momenta."""
        model = sharded(keras.optimizers.Nadam(), dtype="bfloat16")
        model.prepare_training("test")
        return model, model.head.shards[0].optimizer.counters[1]

    model, saved = product()
    saved.assign(0.375)
    model.save_shards(tmp_path)
    again, loaded = product()
    again.load_shards(tmp_path)
    assert keras.backend.standardize_dtype(loaded.dtype) == "bfloat16"
    assert float(keras.ops.convert_to_tensor(loaded)) == 0.375


def test_a_backup_does_not_take_a_further_fit_back(data, tmp_path):
    straight, model = sharded(), sharded()
    train(straight, data, epochs=5)
    train(model, data, epochs=3, callbacks=[ShardedBackup(tmp_path)])
    logs = train(model, data, epochs=2, callbacks=[ShardedBackup(tmp_path)])
    assert len(logs["loss"]) == 2
    for one, other in zip(tables_of(straight), tables_of(model), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_backup_of_all_epochs_leaves_none_to_train(data, tmp_path):
    model = sharded()
    train(model, data, epochs=2, callbacks=[ShardedBackup(tmp_path)])
    again = sharded()
    assert train(again, data, epochs=2, callbacks=[ShardedBackup(tmp_path)]) == {}
    np.testing.assert_array_equal(rows_of(again), rows_of(model))
    assert len(train(again, data, epochs=2)["loss"]) == 2


def test_a_backup_leaves_nothing_behind_of_a_fit_that_is_interrupted(data, tmp_path):
    class Interrupt(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise KeyboardInterrupt

    train(sharded(), data, epochs=2, callbacks=[ShardedBackup(tmp_path)])
    resumed = sharded()
    with pytest.raises(KeyboardInterrupt):
        train(resumed, data, epochs=4, callbacks=[ShardedBackup(tmp_path), Interrupt()])
    assert int(resumed.head.shards[0].optimizer.steps) == 7
    assert len(train(resumed, data, epochs=3)["loss"]) == 3


def test_the_config_makes_the_same_model():
    model = sharded(margin=ArcFace(0.3, 8), sample_rate=0.5, seed=7, label_smoothing=0.1, class_block_size=3)
    again = ShardedClassifier.from_config(json.loads(json.dumps(model.get_config())))
    got, expected = again.get_config(), model.get_config()
    assert got.pop("backbone")["config"]["name"] == expected.pop("backbone")["config"]["name"]
    assert got == expected
    np.testing.assert_array_equal(rows_of(again), rows_of(model))


# ---- loss scaling


def test_a_step_whose_gradients_are_not_finite_is_skipped_everywhere(data):
    x, labels = data
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01), initial_scale=8.0)
    model = sharded(optimizer)
    plain = sharded(keras.optimizers.Adam(0.01))
    for one in (model, plain):
        one.fit(x, labels, batch_size=N, verbose=0)
    np.testing.assert_allclose(rows_of(model), rows_of(plain), atol=1e-6)
    before = tables_of(model), model.backbone.get_weights()
    model.fit(np.full_like(x, np.inf), labels, batch_size=N, verbose=0)
    for one, other in zip([*before[0], *before[1]], [*tables_of(model), *model.backbone.get_weights()], strict=True):
        np.testing.assert_array_equal(one, other)
    assert float(optimizer.dynamic_scale) == 4
    assert int(optimizer.iterations) == 1
    model.fit(x, labels, batch_size=N, verbose=0)
    assert (rows_of(model) != before[0][0]).all()


# ---- errors


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sample_rate": 0.0}, ValueError, r"sample_rate: expected a number in \(0, 1\], got 0.0"),
        ({"sample_rate": 1.5}, ValueError, r"sample_rate: expected a number in \(0, 1\], got 1.5"),
        ({"seed": -1}, ValueError, "seed: expected an integer >= 0, got -1"),
        ({"class_block_size": 0}, ValueError, "class_block_size: expected a positive integer, got 0"),
        ({"kernel_initializer": "orthogonal"}, TypeError, "kernel_initializer: expected a constant, normal, uniform"),
        ({"margin": 0}, ValueError, "margin: expected an integer from 1 to 64, got 0"),
    ],
)
def test_arguments_out_of_range(options, error, message):
    with pytest.raises(error, match=message):
        ShardedClassifier(backbone(), C, **options)


@pytest.mark.parametrize(
    ("options", "sample_rate", "message"),
    [
        (
            {"optimizer": keras.optimizers.SGD(global_clipnorm=1.0)},
            1.0,
            "optimizer: expected one without global_clipnorm",
        ),
        ({"optimizer": keras.optimizers.SGD(clipnorm=1.0)}, 1.0, "optimizer: expected one without clipnorm"),
        ({"optimizer": keras.optimizers.Adam(use_ema=True)}, 1.0, "optimizer: expected one without use_ema"),
        (
            {"optimizer": keras.optimizers.SGD(gradient_accumulation_steps=2)},
            0.5,
            "optimizer: expected one without gradient_accumulation_steps",
        ),
        ({"optimizer": keras.optimizers.Adafactor()}, 0.5, "updates every number alone.*got Adafactor"),
        ({"optimizer": keras.optimizers.Lamb()}, 1.0, "updates every number alone.*got Lamb"),
        ({"optimizer": keras.optimizers.Muon()}, 1.0, "updates every number alone.*got Muon"),
        ({"loss": "mse"}, 1.0, "loss: expected None"),
        ({"metrics": ["AUC"]}, 1.0, "metrics: expected none but 'accuracy'"),
        ({"jit_compile": True}, 1.0, "jit_compile: expected None or False"),
    ],
)
def test_what_compile_refuses(options, sample_rate, message):
    with pytest.raises(ValueError, match=message):
        ShardedClassifier(backbone(), C, sample_rate=sample_rate).compile(**options)


def test_what_wants_all_weights_in_one_place_is_refused(tmp_path):
    model = sharded()
    for save in (model.save, model.save_weights):
        with pytest.raises(NotImplementedError, match="save_shards"):
            save(tmp_path / "model.weights.h5" if save == model.save_weights else tmp_path / "model.keras")
    with pytest.raises(NotImplementedError, match="save_shards"):
        tf.train.Checkpoint(model).write(str(tmp_path / "checkpoint"))
    with pytest.raises(NotImplementedError, match=r"export model\.backbone"):
        model.export(tmp_path / "served")


def test_a_model_that_is_not_built_says_what_to_do(data):
    model = ShardedClassifier(keras.layers.Dense(4), C)
    model.compile("sgd")
    with pytest.raises(ValueError, match="give its backbone inputs"):
        model.fit(*data, verbose=0)
    with pytest.raises(ValueError, match="predict: expected a model that is built"):
        model.predict(data[0])
    model(data[0])
    model.fit(*data, verbose=0)


@pytest.mark.parametrize("k", [0, C + 1])
def test_k_out_of_range(k, data):
    with pytest.raises(ValueError, match=f"k: expected .*got {k}"):
        sharded().predict(data[0], k=k)


def test_labels_out_of_range(data):
    with pytest.raises(tf.errors.InvalidArgumentError, match="labels"):
        sharded().fit(data[0], np.full(N, C), verbose=0)
