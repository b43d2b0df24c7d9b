"""A training with shared classes on disk, of which every process writes what it has.

    folder/LATEST               the name of the newest complete checkpoint
    folder/step-1234/           the checkpoint of step 1234, or step-1234-again
      manifest.json             what was saved: C, D, types, the classes of each shard
      shared.npz                backbone, optimizer and lambda, by the process that has the first classes
      from-0/0.npy, 1.npy, ...  [C_r, D] of the shard whose first class is 0: the rows of W, and the optimizer's slots

A checkpoint is complete when LATEST names it, and LATEST is replaced in one go. A shard of other classes reads its rows
from the files of those that had them.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import tensorflow as tf

from lsoftmax_op.keras.class_shard import Range, ranges
from lsoftmax_op.keras.multi_worker import spans_workers, sum_over_replicas

if TYPE_CHECKING:
    from lsoftmax_op.keras.sharded_classifier import ShardedClassifier
    from lsoftmax_op.keras.sharded_head import ClassShard

LATEST = "LATEST"


def save(model: ShardedClassifier, folder: str | PathLike[str], **notes: int) -> None:
    """Writes a checkpoint of a model that is ready to train, and removes older ones.

    Args:
        model: of every process, in the same step.
        folder: one that all of them see.
        notes: further numbers, which `load` returns.

    Raises:
        ValueError: some process does not see what the others have written. The checkpoint before stays.
    """
    folder, shards = Path(folder), model.head.shards
    name = f"step-{steps_taken(model)}"
    name = f"{name}-again" if _latest(folder) == name else name  # never onto the present one
    for shard in shards:
        part = folder / name / f"from-{shard.classes.first}"
        part.mkdir(parents=True, exist_ok=True)
        for number, variable in enumerate(_tables(shard)):
            _write(part / f"{number}.npy", functools.partial(np.save, arr=variable.numpy()))
    shared = [variable.numpy() for variable in _shared(model)]
    is_first = shards[0].classes.first == 0
    if is_first:
        _write(folder / name / "shared.npz", lambda file: np.savez(file, *shared))
        manifest = json.dumps({**_description(model), "replicas": _replicas(model), "notes": notes}, indent=1)
        _write(folder / name / "manifest.json", lambda file: file.write(manifest.encode()))
    _sum(model, 0)  # all have written
    parts = [f"from-{part.first}/0.npy" for part in ranges(model.num_classes, _replicas(model))]
    misses = not all((folder / name / file).exists() for file in ("manifest.json", "shared.npz", *parts))
    if _sum(model, misses):
        raise _not_shared(folder)
    if is_first:
        _write(folder / "LATEST.new", lambda file: file.write(name.encode()))
        os.replace(folder / "LATEST.new", folder / LATEST)
        for old in folder.iterdir():
            if old.name != name and re.fullmatch(r"step-\d+(-again)?", old.name):
                shutil.rmtree(old, ignore_errors=True)
    _sum(model, 0)  # none goes on before the checkpoint counts


def load(model: ShardedClassifier, folder: str | PathLike[str]) -> dict[str, int]:
    """Takes the newest complete checkpoint, and returns its notes.

    Args:
        model: one that is ready to train.
        folder: that of `save`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is of another model: what differs is named.
    """
    name = _latest(Path(folder))
    if name is None:
        raise FileNotFoundError(f"folder: expected one with a complete checkpoint of save_shards, got {folder}")
    checkpoint = Path(folder) / name
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    for what, mine in _description(model).items():
        if manifest[what] != mine:
            raise ValueError(
                f"folder: expected a checkpoint with {what} = {mine}, got {manifest[what]} in {checkpoint}"
            )
    saved = ranges(model.num_classes, manifest["replicas"])
    for shard in model.head.shards:
        for number, variable in enumerate(_tables(shard)):
            variable.assign(_rows(checkpoint, number, shard.classes, saved, variable))
    with np.load(checkpoint / "shared.npz") as arrays, model.distribute_strategy.scope():
        values = list(arrays.values())
        for variable, value in zip(_shared(model), values, strict=True):
            if variable is not model.head.lam or model.head.has_schedule:  # a number is the constructor's
                variable.assign(value.view(_numpy_type(variable)))
        for shard in model.head.shards:
            counters = shard.optimizer.counters
            for counter, value in zip(counters, values[len(values) - len(counters) :], strict=True):
                counter.assign(value.view(_numpy_type(counter)))
    notes: dict[str, int] = manifest["notes"]
    return notes


def steps_saved(model: ShardedClassifier, folder: str | PathLike[str]) -> int | None:
    """Returns the steps of the newest complete checkpoint, None if there is none.

    Args:
        model: of every process.
        folder: that of `save`.

    Raises:
        ValueError: some processes see a checkpoint, and others see none.
    """
    name = _latest(Path(folder))
    if _sum(model, name is not None) not in (0, _replicas(model)):
        raise _not_shared(folder)
    return None if name is None else int(name.split("-")[1])


def steps_taken(model: ShardedClassifier) -> int:
    """Returns the steps of a model that is ready to train."""
    return int(model.head.shards[0].optimizer.steps)


def _latest(folder: Path) -> str | None:
    try:
        return (folder / LATEST).read_text()
    except FileNotFoundError:
        return None


def _tables(shard: ClassShard) -> list[tf.Variable]:
    """Returns what there is of each class, [C_r, D]: the rows, and the slots."""
    return [shard.rows, *shard.optimizer.slots]


def _shared(model: ShardedClassifier) -> list[Any]:
    """Returns the variables that are the same in every process; at the end, the counters of the shards."""
    counters = model.head.shards[0].optimizer.counters
    return [*model.backbone.variables, *model.optimizer.variables, model.head.lam, *counters]


def _replicas(model: ShardedClassifier) -> int:
    return int(model.distribute_strategy.num_replicas_in_sync)


def _description(model: ShardedClassifier) -> dict[str, Any]:
    """Returns what must be the same in the model that was saved and the one that takes its place."""
    shard, optimizer = model.head.shards[0], model.optimizer
    return {
        "num_classes": model.num_classes,
        "depth": int(shard.rows.shape[1]),
        "dtype": shard.rows.dtype.name,
        "optimizer": type(getattr(optimizer, "inner_optimizer", optimizer)).__name__,
        "slots": [re.sub(r":\d+$", "", slot.name) for slot in shard.optimizer.slots],
        "shapes of the backbone, the optimizer and lambda": [list(variable.shape) for variable in _shared(model)],
    }


def _rows(checkpoint: Path, number: int, classes: Range, saved: list[Range], variable: tf.Variable) -> np.ndarray:
    """Returns an array of some classes [size, D], from the files of the shards that have had them."""
    rows = np.empty(variable.shape, _numpy_type(variable))
    end = classes.first + classes.size
    for part in saved:
        first, last = max(part.first, classes.first), min(part.first + part.size, end)
        if first < last:
            array = np.load(checkpoint / f"from-{part.first}" / f"{number}.npy", mmap_mode="r").view(rows.dtype)
            rows[first - classes.first : last - classes.first] = array[first - part.first : last - part.first]
    return rows


def _numpy_type(variable: Any) -> Any:
    """The type of a variable's values; in files, NumPy calls bfloat16 two bytes of any kind."""
    return tf.as_dtype(variable.dtype).as_numpy_dtype


def _write(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Writes a file, and returns when it is on disk."""
    with path.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def _not_shared(folder: str | PathLike[str]) -> ValueError:
    return ValueError(f"folder: expected one that all processes see, got {folder}, in which some do not see files")


def _sum(model: ShardedClassifier, value: int) -> int:
    """Sums over all replicas what their processes have, and returns when every process has come here."""
    strategy = model.distribute_strategy
    if not spans_workers(strategy):
        return int(value) * _replicas(model)
    return int(strategy.experimental_local_results(_adder(strategy)(tf.constant(int(value))))[0])


@functools.cache
def _adder(strategy: tf.distribute.Strategy) -> Callable[[tf.Tensor], Any]:
    """Returns a function that sums a number of each process over the replicas of all."""

    @tf.function(autograph=False)
    def add(value: tf.Tensor) -> Any:
        return strategy.run(sum_over_replicas, args=(value,))

    adder: Callable[[tf.Tensor], Any] = add
    return adder
