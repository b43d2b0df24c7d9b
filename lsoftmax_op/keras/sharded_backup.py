"""A callback that saves a training with shared classes after each epoch, and goes on from there."""

from __future__ import annotations

from os import PathLike
from typing import Any

import keras

from lsoftmax_op import _checks
from lsoftmax_op.keras import shard_files


class ShardedBackup(keras.callbacks.Callback):
    """Saves a `ShardedClassifier` by ``save_shards`` as it trains, and has ``fit`` go on where a training has ended.

    As ``keras.callbacks.BackupAndRestore`` does for other models: a process may be killed at any moment, and the
    program started again, with as many replicas or with another number. ``fit`` then begins with the first epoch that
    was not saved; with the same replicas and the same data in that epoch, it comes to the same bits, if this is the
    last of the callbacks: what those after it change in the model is not saved. Short epochs (``steps_per_epoch``) lose
    less. The files stay when the training ends.

    A checkpoint is taken only if it has more steps than the model. A further ``fit`` of the same model goes on from
    where the model is, and trains all the epochs that it is asked for. If a program calls ``fit`` more than once and
    is to be started again, each call wants a folder of its own.

    Args:
        folder: where to, one that all processes see.
        every: how many epochs there are from one checkpoint to the next, >= 1.

    Raises:
        TypeError, ValueError: `every` is no such number; and in ``fit``, a folder that not all processes see.
    """

    def __init__(self, folder: str | PathLike[str], every: int = 1) -> None:
        super().__init__()
        self.folder = folder
        self.every = _checks.positive_integer(every, "every")

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Takes what was saved, if it is further than the model."""
        self.model.prepare_training("ShardedBackup")
        saved = shard_files.steps_saved(self.model, self.folder)
        if saved is not None and saved > shard_files.steps_taken(self.model):
            notes = shard_files.load(self.model, self.folder)
            self.model._initial_epoch = notes.get("epochs", 0)  # save_shards knows of no epoch

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Has a further ``fit`` begin where it is told to, even if this one is interrupted."""
        self.model._initial_epoch = None

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Saves."""
        if (epoch + 1) % self.every == 0:
            shard_files.save(self.model, self.folder, epochs=epoch + 1)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Does as `on_epoch_begin`, where no epoch was left to train."""
        self.model._initial_epoch = None
