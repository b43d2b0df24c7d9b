"""Finds the compiled op library, checks that it fits the running TensorFlow, and loads it once."""

from __future__ import annotations

import functools
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).resolve().parent
_LIBRARY = _FOLDER / "_lsoftmax_ops.so"
_XLA_LIBRARY = _FOLDER / "_lsoftmax_xla.so"
_CUDA_LIBRARY = _FOLDER / "_lsoftmax_cuda.so"  # what the other two call, if they were built with CUDA
_BUILD_INFO = _FOLDER / "_build_info.json"
_REBUILD = "pip install --force-reinstall --no-deps --no-cache-dir lsoftmax-op (or, in a clone: pip install .)"


def build_info() -> dict[str, Any]:
    """Returns what the compiled parts were built with, and what this machine runs of them.

    Returns:
        A dict with the package's ``version``; ``tensorflow``, the version built against, None for a build without it;
        ``xla``, "yes", or why XLA (``jit_compile=True``) cannot compile the ops; ``xla_calls``, whether it calls the
        library's own kernels: on a CPU for the fused loss, on a GPU, if they were built for one, for all that they
        compute; ``compiler``; ``build_type``; ``cpu_variants``, those built;
        ``cpu_variant``, the one this machine runs (the environment variable LSOFTMAX_CPU chooses another); ``cuda``,
        None for a build without it, else a dict with the version of ``nvcc`` and the ``architectures``; ``sizes``, the
        bytes of each op library as it was installed; and ``library``, the path of the op library, or None.

    Raises:
        ImportError: the compiled parts are missing.
    """
    try:
        info = json.loads(_BUILD_INFO.read_text())
        from lsoftmax_op import _core
    except (OSError, ImportError) as error:
        raise ImportError(
            f"The compiled parts of lsoftmax_op are missing or damaged in {_FOLDER} ({error}). Rebuild: {_REBUILD}"
        ) from error
    info["cpu_variant"] = _core.cpu_variant()
    info["library"] = str(_LIBRARY) if _LIBRARY.exists() else None
    return info


def library_path() -> str:
    """Returns the path of the op library, for ``tf.load_op_library``.

    Raises:
        ImportError: the package was built without TensorFlow, or the file is missing.
    """
    if not _LIBRARY.exists():
        raise ImportError(
            f"lsoftmax_op has no TensorFlow op library ({_LIBRARY} does not exist): it was built where no TensorFlow "
            f"was found. Install TensorFlow first, then rebuild: {_REBUILD}"
        )
    return str(_LIBRARY)


def load() -> Any:
    """Loads the op library into TensorFlow, registers its gradients, and returns the module of its ops.

    Raises:
        ImportError: there is no TensorFlow, or the library is missing, damaged, built for another TensorFlow, or
            loaded already from another file.
    """
    import tensorflow  # noqa: F401  (first: its import has the hook load them)

    return _load()


@functools.cache
def _load() -> Any:
    import tensorflow as tf

    path = library_path()
    _check_version(tf.__version__)
    _check_complete(path)
    if _CUDA_LIBRARY.exists():
        _check_complete(str(_CUDA_LIBRARY))
    _check_single(path)
    try:
        ops = tf.load_op_library(path)
    except (tf.errors.OpError, RuntimeError) as error:
        raise ImportError(f"TensorFlow cannot load {path}: {error}. Rebuild: {_REBUILD}") from error
    from lsoftmax_op import gradients

    gradients.register(ops)
    load_xla()
    return ops


def load_if_built() -> None:
    """Loads the op library where there is one; what keeps it from loading becomes a warning."""
    if not _LIBRARY.exists():
        return
    try:
        load()
    except ImportError as error:
        warnings.warn(f"The ops of lsoftmax_op are not available. {error}", stacklevel=2)


@functools.cache
def load_xla() -> bool:
    """Loads what XLA compiles the ops by, and returns whether it could: if not, everything but jit_compile=True works.

    A library that is there and does not load is warned of.
    """
    import tensorflow as tf

    if not _XLA_LIBRARY.exists():
        return False
    try:
        _check_version(tf.__version__)
        _check_complete(str(_XLA_LIBRARY))
        tf.load_library(str(_XLA_LIBRARY))
    except (ImportError, tf.errors.OpError, RuntimeError) as error:
        warnings.warn(f"XLA (jit_compile=True) cannot compile the ops of lsoftmax_op. {error}", stacklevel=2)
        return False
    return True


def _check_version(running: str) -> None:
    """The library uses TensorFlow's C++ interface, which holds for one minor version."""
    built = build_info()["tensorflow"]
    if running.split(".")[:2] != built.split(".")[:2]:
        raise ImportError(
            f"lsoftmax_op was built for TensorFlow {built}, and this is TensorFlow {running}. Rebuild: {_REBUILD}"
        )


def _check_complete(path: str) -> None:
    """A truncated library can kill the process that maps it: is it as large as the build left it, or larger?"""
    size, built = os.path.getsize(path), build_info()["sizes"].get(os.path.basename(path), 0)
    if size < built:
        raise ImportError(f"{path} is truncated: it has {size} of {built} bytes. Rebuild: {_REBUILD}")


def _check_single(path: str) -> None:
    """The ops of two files would collide: 'Multiple OpKernel registrations match', when the first one runs."""
    from tensorflow.python.framework import op_def_registry

    if op_def_registry.get("LsoftmaxLogits") is None or sys.platform != "linux":
        return
    maps = Path("/proc/self/maps").read_text().splitlines()
    mapped = {line.split(maxsplit=5)[5] for line in maps if "/" in line}
    if os.path.realpath(path) not in mapped:
        others = sorted(file for file in mapped if os.path.basename(file) == os.path.basename(path))
        raise ImportError(
            f"The ops of lsoftmax_op are loaded already, from {', '.join(others) or 'another file'}; they cannot be "
            f"loaded again from {path}. Keep one copy of the package, and load it through lsoftmax_op alone."
        )
