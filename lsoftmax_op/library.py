"""Finds the op library that fits the TensorFlow at hand, checks it, and loads it once.

TensorFlow's C++ interface changes with each minor version, and so there is a folder for each that was built for,
`tf-2.21` and the like: a build from source makes one, a wheel has several.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import json
import os
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

_PACKAGE = Path(__file__).resolve().parent
_OPS_LIBRARY = "_lsoftmax_ops.so"  # in the folder of a TensorFlow, as is the next
_XLA_LIBRARY = "_lsoftmax_xla.so"
_KERNEL_LIBRARIES = ("_lsoftmax_core.so", "_lsoftmax_cuda.so")  # what they call, built with CUDA or not: the package's
_BUILD_INFO = "_build_info.json"  # in every folder
_REINSTALL = "pip install --force-reinstall --no-deps --no-cache-dir and the wheel, or . in a clone"
_FROM_SOURCE = "LSOFTMAX_TF=ON pip install --force-reinstall --no-deps --no-cache-dir . in a clone"


class _Built(NamedTuple):
    """What was built for one TensorFlow."""

    folder: Path
    info: dict[str, Any]

    @property
    def tensorflow(self) -> str:
        """The version that it was built against."""
        return str(self.info["tensorflow"])


def build_info() -> dict[str, Any]:
    """Returns what the compiled parts were built with, and what this machine runs of them.

    A package may hold op libraries for several versions of TensorFlow. What depends on it is told of the one that fits
    the TensorFlow that is imported, or else installed; of the newest, where none fits.

    Returns:
        A dict with the package's ``version``; ``tensorflow``, the version built against, None for a build without it;
        ``tensorflows``, all versions that there is an op library for;
        ``xla``, "yes", or why XLA (``jit_compile=True``) cannot compile the ops; ``xla_calls``, whether it calls the
        library's own kernels: on a CPU for the fused loss, on a GPU, if they were built for one, for all that they
        compute; ``compiler``; ``build_type``; ``cpu_variants``, those built;
        ``cpu_variant``, the one this machine runs (the environment variable LSOFTMAX_CPU chooses another); ``cuda``,
        None for a build without it, else a dict with the version of ``nvcc`` and the ``architectures``; ``sizes``, the
        bytes of each op library as it was installed; and ``library``, the path of the op library, or None. Where there
        is no op library, ``no_tensorflow`` says why.

    Raises:
        ImportError: the compiled parts are missing.
    """
    info = _read(_PACKAGE)
    try:
        core = kernels("_core")
    except ImportError as error:
        raise _damaged(error) from error
    every = _builds()
    if every or info.get("no_tensorflow") is None:
        info.pop("no_tensorflow", None)
    one = _fitting(every, _version_at_hand()) or (every[-1] if every else None)
    about = one.info if one else {"tensorflow": None, "xla": "no: built without it", "xla_calls": False, "sizes": {}}
    return {
        "version": info.pop("version"),
        "tensorflow": about["tensorflow"],
        "tensorflows": [built.tensorflow for built in every],
        "xla": about["xla"],
        "xla_calls": about["xla_calls"],
        **info,
        "sizes": info["sizes"] | about["sizes"],
        "cpu_variant": core.cpu_variant(),
        "library": str(one.folder / _OPS_LIBRARY) if one else None,
    }


def library_path() -> str:
    """Returns the path of the op library, for ``tf.load_op_library``.

    It is the one for the TensorFlow that is imported, or else installed; TensorFlow is not imported for it.

    Raises:
        ImportError: the package was built without TensorFlow, the file is missing, or it was built for other versions.
    """
    return str(_find().folder / _OPS_LIBRARY)


def kernels(module: str) -> ModuleType:
    """Returns a module of kernels, `_core` or `_cuda`, whose libraries have been found whole.

    Raises:
        ImportError: it was not built, or one of them is damaged.
    """
    _check_kernels()
    return importlib.import_module(f"lsoftmax_op.{module}")


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

    built = _find()
    path = built.folder / _OPS_LIBRARY
    _check_complete(path, built.info)
    _check_kernels()
    _check_single(str(path))
    try:
        ops = tf.load_op_library(str(path))
    except (tf.errors.OpError, RuntimeError) as error:
        raise ImportError(f"TensorFlow cannot load {path}: {error}. Rebuild: {_FROM_SOURCE}") from error
    from lsoftmax_op import gradients

    gradients.register(ops)
    load_xla()
    return ops


def load_if_built() -> None:
    """Loads the op library where there is one; what keeps it from loading becomes a warning."""
    if next(_PACKAGE.glob(f"tf-*/{_OPS_LIBRARY}"), None) is None:
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

    if next(_PACKAGE.glob(f"tf-*/{_XLA_LIBRARY}"), None) is None:
        return False
    try:
        built = _find()
        path = built.folder / _XLA_LIBRARY
        if not path.exists():
            return False
        _check_complete(path, built.info)
        tf.load_library(str(path))
    except (ImportError, tf.errors.OpError, RuntimeError) as error:
        warnings.warn(f"XLA (jit_compile=True) cannot compile the ops of lsoftmax_op. {error}", stacklevel=2)
        return False
    return True


def _find() -> _Built:
    """Returns the build for the TensorFlow at hand; an ImportError says what there is instead."""
    every = _builds()
    if not every:
        raise ImportError(
            f"lsoftmax_op has no TensorFlow op library ({_PACKAGE}/tf-*/{_OPS_LIBRARY} does not exist). {_why_none()} "
            f"Rebuild where the TensorFlow is that you want: {_FROM_SOURCE}"
        )
    version = _version_at_hand()
    built = _fitting(every, version)
    if built is not None:
        return built
    versions = ", ".join(built.tensorflow for built in every)
    if version is None:
        raise ImportError(
            f"lsoftmax_op was built for TensorFlow {versions}, and no TensorFlow is installed here that tells its "
            "version. Install one of them; or import tensorflow first."
        )
    raise ImportError(
        f"lsoftmax_op was built for TensorFlow {versions}, and this is TensorFlow {version}. Install one of them, or a "
        f"newer lsoftmax_op; or, where its release supports this one, build it from source: {_FROM_SOURCE}"
    )


def _why_none() -> str:
    """Returns why the build left out the op library."""
    with contextlib.suppress(ImportError):
        reason = _read(_PACKAGE).get("no_tensorflow")
        if reason is not None:
            return str(reason)
    return "It was built where no TensorFlow was found."


def _builds() -> list[_Built]:
    """Returns what there is, the newest TensorFlow last."""
    every = [_Built(library.parent, _read(library.parent)) for library in _PACKAGE.glob(f"tf-*/{_OPS_LIBRARY}")]
    return sorted(every, key=lambda built: _minor(built.tensorflow))


def _fitting(every: list[_Built], version: str | None) -> _Built | None:
    """Returns the build of a version's minor one; the only build, where nobody knows the version."""
    if version is None:
        return every[0] if len(every) == 1 else None
    return next((built for built in every if _minor(built.tensorflow) == _minor(version)), None)


def _minor(version: str) -> tuple[int, ...]:
    """Returns (2, 21) of "2.21.0"."""
    return tuple(int(part) for part in version.split(".")[:2])


def _version_at_hand() -> str | None:
    """Returns the version of the TensorFlow that is imported, or else installed; None where none is, or tells."""
    return getattr(sys.modules.get("tensorflow"), "__version__", None) or _installed_version()


def _installed_version() -> str | None:
    """Asks the files that were installed, as an import takes seconds: whichever package brought `tensorflow`.

    Where several say that they did, as one that was not removed wholly, and differ in their minor version, none tells.
    """
    try:
        spec = importlib.util.find_spec("tensorflow")
    except ValueError:  # a module that somebody made, without a spec
        return None
    if spec is None or spec.origin is None:
        return None
    from importlib import metadata

    found = {
        _minor(distribution.version): distribution.version
        for distribution in metadata.distributions(path=[str(Path(spec.origin).parent.parent)])
        if "tensorflow" in (distribution.read_text("top_level.txt") or "").split()
    }
    return found.popitem()[1] if len(found) == 1 else None


def _read(folder: Path) -> dict[str, Any]:
    """Returns what the build wrote down in a folder."""
    try:
        info: dict[str, Any] = json.loads((folder / _BUILD_INFO).read_text())
    except (OSError, ValueError) as error:
        raise _damaged(error) from error
    return info


def _damaged(error: Exception) -> ImportError:
    remedy = f"Rebuild: {_REINSTALL}"
    if (_PACKAGE.parent / "CMakeLists.txt").exists():
        remedy = "These are the sources of a clone: start Python in another folder, or compile them there by make build"
    return ImportError(f"The compiled parts of lsoftmax_op are missing or damaged in {_PACKAGE} ({error}). {remedy}")


@functools.cache
def _check_kernels() -> None:
    """Checks what both the modules of kernels and the op libraries load."""
    for library in (_PACKAGE / name for name in _KERNEL_LIBRARIES):
        if library.exists():
            _check_complete(library, _read(_PACKAGE))


def _check_complete(path: Path, info: dict[str, Any]) -> None:
    """A truncated library can kill the process that maps it: is it as large as the build left it, or larger?"""
    size, built = path.stat().st_size, info["sizes"].get(path.name, 0)
    if size < built:
        raise ImportError(f"{path} is truncated: it has {size} of {built} bytes. Rebuild: {_REINSTALL}")


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
