"""What a ShardedClassifier does not train, and what it refuses: weights that lie elsewhere, scales that none sets."""

import numpy as np
import pytest

keras = pytest.importorskip("keras")

from lsoftmax_op.keras import ShardedClassifier

N, D, C = 8, 6, 3
BATCH = np.random.default_rng(0).normal(size=(N, D)).astype("float32"), np.arange(N) % C
pytestmark = pytest.mark.usefixtures("seeded_keras")


def classifier(optimizer=None, backbone_trains=True, **options):
    backbone = keras.Sequential([keras.Input((D,)), keras.layers.Dense(4)])
    backbone.trainable = backbone_trains
    model = ShardedClassifier(backbone, C, lam=0.5, **options)
    model.compile(optimizer or keras.optimizers.SGD(0.1))
    return model


class OfOldKeras(keras.optimizers.SGD):
    """Gradient descent divided by what has come, whose slot is made as Keras 3.5 makes those of Adagrad and Ftrl."""

    def build(self, variables):
        super().build(variables)
        ones = keras.initializers.Ones()
        self.sums = [self.add_variable(shape=v.shape, dtype=v.dtype, name="sum", initializer=ones) for v in variables]

    def update_step(self, gradient, variable, learning_rate):
        total = self.sums[self._get_variable_index(variable)]
        self.assign_add(total, keras.ops.abs(gradient))
        self.assign_sub(variable, learning_rate * gradient / total)


class OfFeatures(keras.optimizers.SGD):
    """Gradient descent that keeps a number for each feature, and looks at none of them."""

    def build(self, variables):
        super().build(variables)
        self.of_features = [self.add_variable(shape=v.shape[-1:], dtype=v.dtype, name="of_features") for v in variables]


def rows_of(model):
    return model.head.shards[0].rows.numpy()


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_a_head_that_is_not_trainable_stays(policy):
    model = classifier(dtype=policy)
    model.head.trainable = False
    rows, (kernel, _) = rows_of(model), model.backbone.get_weights()
    model.fit(*BATCH, verbose=0)
    np.testing.assert_array_equal(rows_of(model), rows)
    assert (model.backbone.get_weights()[0] != kernel).any()


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()), "expected one that scales no loss where"),
        (keras.optimizers.SGD(gradient_accumulation_steps=2), "without gradient_accumulation_steps where .* got 2"),
        (
            keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(gradient_accumulation_steps=2)),
            "without gradient_accumulation_steps where .* got 2",
        ),
    ],
)
def test_what_wants_gradients_of_a_backbone_that_has_none(optimizer, message):
    with pytest.raises(ValueError, match=message):
        classifier(optimizer, backbone_trains=False).fit(*BATCH, verbose=0)


@pytest.mark.parametrize("sample_rate", [1.0, 0.5])
def test_every_slot_is_one_of_the_classes(sample_rate):
    model = classifier(OfOldKeras(0.1), sample_rate=sample_rate)
    labels = np.zeros(N, int)
    model.fit(BATCH[0], labels, verbose=0)
    (shard,) = model.head.shards
    (slot,) = shard.optimizer.slots
    assert slot.shape == shard.rows.shape
    assert len(shard.optimizer.counters) == 1
    taken = (slot.numpy() != 1).any(axis=1)
    assert taken.sum() == (C if sample_rate == 1 else 2)
    assert taken[0]


def test_a_slot_that_cannot_be_shared_out_is_named():
    with pytest.raises(ValueError, match=r"got OfFeatures, whose of_features beside weights \(2, 3\) is \(3,\)"):
        classifier(OfFeatures(0.1))


def test_weights_are_not_told_without_the_rows():
    model = classifier()
    with pytest.raises(NotImplementedError, match="save_shards"):
        model.get_weights()
    with pytest.raises(NotImplementedError, match="save_shards"):
        model.set_weights([])


def test_of_few_classes_all_are_predicted():
    assert classifier().predict(BATCH[0], verbose=0).classes.shape == (N, C)
