"""The model's optimizer, once more, for weights that one replica has alone: its rules, without `tf.distribute`.

The gradient of a class's row is complete where the row is. Keras' optimizers would add it up over the replicas; here it
is applied at home, by the same code, to the row and to slots that lie beside it:

    full       rows and slots [C_r, D], what they are updated by [C_r, D]
    sampled    rows and slots of the K sampled classes are gathered into [K, D], updated there, and scattered back; the
               others stay as they are, slots and all (An et al., Partial FC, ICCV 2021 workshops)

The rule must be one of each number alone, as those of SGD or Adam are, and what it keeps of a class a row of slots
[C_r, D]; both are tried out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from lsoftmax_op.keras.class_shard import without_scopes


class _AtHome(keras.optimizers.Optimizer):
    """What an optimizer does without replicas: a base that comes before Keras' own, which asks for a strategy."""

    kept_shape: tuple[int, ...] | None = None  # of the slots, where the variable has another
    keep: Callable[[tuple[tf.Variable, tf.Variable]], None]  # takes a slot as updates see it, and as it is kept

    def _backend_update_step(self, grads: Any, trainable_variables: Any, learning_rate: Any) -> None:
        for gradient, variable in zip(grads, trainable_variables, strict=True):
            self.update_step(gradient, variable, learning_rate)

    def _apply_weight_decay(self, variables: Any) -> None:
        for variable in variables if self.weight_decay is not None else ():
            if self._use_weight_decay(variable):
                rate = tf.cast(self.learning_rate, variable.dtype)
                variable.assign_sub(variable * tf.cast(self.weight_decay, variable.dtype) * rate)

    def _backend_increment_gradient_accumulators(self, grads: Any, acc_grads: Any) -> None:
        for gradient, total in zip(grads, acc_grads, strict=True):
            total.assign_add(gradient)

    def add_variable(self, shape: Any, initializer: Any = "zeros", dtype: Any = None, **options: Any) -> Any:
        """Makes a counter; or, if it has the shape of the rows, a slot: Keras 3.5 asks for some so (Adagrad, Ftrl)."""
        for rows in getattr(self, "_trainable_variables", ()):
            if tf.TensorShape(shape).as_list() == rows.shape.as_list():
                return self.add_variable_from_reference(rows, options.get("name"), initializer)
        return super().add_variable(shape, initializer, dtype, **options)

    def add_variable_from_reference(
        self, reference_variable: tf.Variable, name: str | None = None, initializer: Any = "zeros"
    ) -> tf.Variable:
        """Makes a slot of the variable's shape, and hands it to `keep`."""
        fill = keras.initializers.get(initializer)
        dtype = reference_variable.dtype.name

        def slot(shape: Any, static: Any) -> tf.Variable:
            return tf.Variable(fill(tuple(shape), dtype=dtype), trainable=False, name=name, shape=static)

        seen = slot(reference_variable.read_value().shape, reference_variable.shape)
        kept = seen if self.kept_shape is None else slot(self.kept_shape, self.kept_shape)
        self.keep((seen, kept))
        return seen


class Taken(NamedTuple):
    """What a step computes with."""

    rows: tf.Tensor  # [K, D]
    columns: tf.Tensor | None  # [K], int64, which of the replica's classes they are; None for all, in their order


class HomeOptimizer:
    """Updates the rows [C_r, D] of a replica's classes.

    Args:
        optimizer: the model's; its learning rate is read at every step.
        rows: the variable [C_r, D].
        sampled: whether gradients will be those of sampled rows.
    """

    def __init__(self, optimizer: keras.optimizers.Optimizer, rows: tf.Variable, sampled: bool) -> None:
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        self._rule = _rule_of(inner, lambda: inner.learning_rate)
        self._seen = rows
        if sampled:
            self._rule.kept_shape = tuple(rows.shape)
            shape = tf.TensorShape([None, rows.shape[1]])
            self._seen = tf.Variable(tf.zeros([1, rows.shape[1]], rows.dtype), shape=shape, name="sampled_rows")
        self._pairs = [(self._seen, rows)]
        self._rule.keep = self._pairs.append
        self._rule.build([self._seen])

    @property
    def slots(self) -> list[tf.Variable]:
        """The optimizer's slots of all rows, each [C_r, D]."""
        return [kept for _, kept in self._pairs[1:]]

    @property
    def counters(self) -> list[Any]:
        """Its other variables, scalars: the steps, first of all."""
        return list(self._rule.variables)

    @property
    def steps(self) -> tf.Tensor:
        """How many gradients were applied, int64."""
        return tf.convert_to_tensor(self.counters[0])

    def apply(self, gradient: tf.Tensor, taken: Taken) -> None:
        """Takes a step.

        Args:
            gradient: [K, D], of the rows that were taken.
            taken: these rows.
        """
        if taken.columns is None:
            self._rule.apply([gradient], [self._seen])
            return
        self._seen.assign(taken.rows)
        for seen, kept in self._pairs[1:]:
            seen.assign(tf.gather(kept, taken.columns))
        self._rule.apply([gradient], [self._seen])
        for seen, kept in self._pairs:
            kept.scatter_update(tf.IndexedSlices(seen, taken.columns))


def check(optimizer: keras.optimizers.Optimizer, sampled: bool) -> None:
    """Refuses what cannot be right where each replica sees the gradients of its own classes alone.

    Args:
        optimizer: the model's.
        sampled: whether classes are sampled.

    Raises:
        ValueError: an optimizer that does something with all weights at once, or keeps something of all classes.
    """
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    refused = {
        "global_clipnorm": "looks at the gradients of all weights together",
        "clipnorm": "looks at the gradient of all classes, of which each replica has its own",
        "use_ema": "keeps averages of weights that are not here",
    }
    if sampled:
        refused["gradient_accumulation_steps"] = "adds up gradients of classes that differ from step to step"
    for name, why in refused.items():
        value = getattr(inner, name, None)
        if value:
            raise ValueError(f"optimizer: expected one without {name}, which {why}, got {name}={value}")
    if not _is_elementwise(inner):
        raise ValueError(
            "optimizer: expected one that updates every number alone, as SGD, Adam and AdamW do, got "
            f"{type(inner).__name__}, which updates a row in another way when it is alone"
        )
    for variable in without_scopes(lambda: _tried_out(inner, tf.Variable(tf.zeros([2, 3])))).variables:
        if len(variable.shape) > 0:
            raise ValueError(
                "optimizer: expected one whose slots have the shape of the weights, to be shared out with the classes, "
                f"got {type(inner).__name__}, whose {variable.name} beside weights (2, 3) is {tuple(variable.shape)}"
            )


def _rule_of(optimizer: keras.optimizers.Optimizer, learning_rate: Callable[[], Any]) -> Any:
    """Returns an optimizer of the same settings, but for the learning rate, that works at home."""
    kind: Any = type(type(optimizer).__name__, (type(optimizer), _AtHome), {})
    rule = kind.from_config({**optimizer.get_config(), "learning_rate": learning_rate})
    pattern = "_exclude_from_weight_decay_pattern"  # which no config tells
    if getattr(optimizer, pattern, None) is not None:
        setattr(rule, pattern, getattr(optimizer, pattern))
    return rule


def _tried_out(optimizer: keras.optimizers.Optimizer, variable: tf.Variable) -> Any:
    """Returns an optimizer's rule, ready to update a variable."""
    rule = _rule_of(optimizer, lambda: tf.constant(0.125))
    rule.keep = lambda slot: None
    rule.build([variable])
    return rule


def _is_elementwise(optimizer: keras.optimizers.Optimizer) -> bool:
    """Whether two rows that are updated together become what each becomes alone.

    One that looks at more of a variable than its numbers, such as its name, is not either.
    """
    gradients = np.array([[[1, -2, 3], [0.5, 4, -1]], [[-3, 1, 2], [2, 0.25, -5]]], np.float32)

    def after(rows: slice) -> np.ndarray:
        variable = tf.Variable(np.array([[1, 2, -3], [-0.5, 1, 4]], np.float32)[rows])
        rule = _tried_out(optimizer, variable)
        for gradient in gradients:
            rule.apply([tf.constant(gradient[rows])], [variable])
        return variable.numpy()

    def together_and_alone() -> bool:
        alone = np.concatenate([after(slice(row, row + 1)) for row in range(2)])
        return bool(np.allclose(after(slice(0, 2)), alone, rtol=1e-4, atol=1e-6))

    try:
        return without_scopes(together_and_alone)
    except AttributeError:
        return False
