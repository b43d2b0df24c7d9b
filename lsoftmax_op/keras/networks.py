"""Networks of Keras' own layers and ops over a classifier's inputs: the plain softmax network, and the embedder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras

from lsoftmax_op._terms import without_psi
from lsoftmax_op.keras import plain, symbolic
from lsoftmax_op.margins import margin_of

if TYPE_CHECKING:
    from lsoftmax_op.keras.classifier import LSoftmaxClassifier
    from lsoftmax_op.keras.margin_model import MarginModel


def embedder(classifier: MarginModel, wide: str) -> keras.Model:
    """Returns the backbone, followed by the division by the rows' norms if the margin has it.

    Args:
        classifier: a classifier that is built.
        wide: the dtype to normalise in.
    """
    inputs = symbolic.anew(classifier.input)
    with classifier.distribute_strategy.scope():
        return keras.Model(inputs, _features(classifier, inputs, wide), name=f"{classifier.name}_embedder")


def plain_softmax(classifier: LSoftmaxClassifier, wide: str) -> keras.Model:
    """Returns the embedder, a Dense layer with a copy of the head's weights, and a softmax.

    What the plain logits are multiplied by is in the copy: its columns are scale w / |w| with a margin that normalises
    weights.

    Args:
        classifier: a classifier that is built.
        wide: the dtype to normalise in, and of the probabilities.
    """
    inputs = symbolic.anew(classifier.input)
    head, margin = classifier.head.get_config(), without_psi(margin_of(classifier.head.margin))
    names = ("name", "units", "use_bias", "dtype", "quantization_config")
    with classifier.distribute_strategy.scope():
        dense = keras.layers.Dense.from_config({name: head[name] for name in names if name in head})
        softmax = keras.layers.Activation("softmax", dtype=wide, name="probabilities")
        model = keras.Model(inputs, softmax(dense(_features(classifier, inputs, wide))), name=classifier.name)
        weights: dict[str, Any] = {}
        classifier.head.save_own_variables(weights)  # LoRA's product is in the kernel
        dense.load_own_variables(plain.scaled_variables(weights, margin) if margin.has_factors else weights)
    return model


def _features(classifier: MarginModel, inputs: Any, wide: str) -> Any:
    features = classifier.backbone(inputs)
    unit = margin_of(classifier.head.margin).normalize_features
    return plain.unit_rows(features, wide) if unit else features
