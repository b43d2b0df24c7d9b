"""What `lsoftmax_op.arrays` asks of the library that its arrays come from: NumPy, PyTorch or CuPy.

A library makes arrays, multiplies them, and says where one lies in memory; kernels of ours do the rest, in place:
`_core` on the CPU, `_cuda` on the library's current stream. Nothing is copied between host and device.
"""

from __future__ import annotations

import abc
import contextlib
import os
import sys
from types import ModuleType
from typing import Any

import numpy as np

FLOATS = ("float16", "bfloat16", "float32", "float64")


def library_of(features: Any, num_threads: int | None) -> Library:
    """Returns the library that `features` belongs to; what is no array of another one is NumPy's.

    Raises:
        ImportError: the library's kernels were not built, or CuPy is missing.
        TypeError, ValueError: `num_threads` is no positive integer or None.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(features, torch.Tensor):
        return Torch(torch, features.device, num_threads)
    if _is_on_cuda(features):
        return CuPy(num_threads)
    return NumPy(num_threads)


class Library(abc.ABC):
    """The library of a layer's arrays, and the kernels for the memory in which they lie."""

    name: str
    kernels: ModuleType  # with Call and the kernels, from cc/python/bindings.h
    where: int  # where the kernels run: the number of threads, or the stream
    checks_values = True  # whether labels can be looked at without waiting for a device

    @abc.abstractmethod
    def array(self, argument: str, value: Any) -> Any:
        """Converts `value` to a dense array of this library.

        Raises:
            TypeError: it belongs to another library or device.
        """

    def dtype(self, array: Any) -> str:
        """Returns NumPy's name of the dtype."""
        return str(array.dtype.name)

    def cast(self, array: Any, dtype: str) -> Any:
        """Returns the array in another dtype."""
        return array.astype(dtype, copy=False)

    @abc.abstractmethod
    def empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        """Returns a new dense array."""

    @abc.abstractmethod
    def scalar(self, value: float) -> Any:
        """Returns a new float64 array of shape []."""

    @abc.abstractmethod
    def address(self, array: Any) -> int:
        """Returns where a dense array begins."""

    @abc.abstractmethod
    def product(self, a: Any, b: Any) -> Any:
        """Returns a @ b, a new dense array of their dtype."""

    @abc.abstractmethod
    def column_sums(self, a: Any) -> Any:
        """Returns the sums over the rows, in the array's dtype."""

    def copy(self, array: Any) -> Any:
        """Returns a new dense array."""
        return array.copy()

    def device(self) -> contextlib.AbstractContextManager:
        """A context in which the arrays' device is the current one."""
        return contextlib.nullcontext()


class NumPy(Library):
    """NumPy arrays, and what it converts to them."""

    name = "NumPy array"

    def __init__(self, num_threads: int | None = None) -> None:
        from lsoftmax_op import _core

        self.kernels = _core
        self.where = threads(num_threads)

    def array(self, argument: str, value: Any) -> np.ndarray:
        if _is_on_cuda(value):
            raise TypeError(f"{argument}: expected an array on the CPU, as features is, got one on a CUDA device")
        return np.ascontiguousarray(value) if np.ndim(value) else np.asarray(value)

    def empty(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        return np.empty(shape, dtype)

    def scalar(self, value: float) -> np.ndarray:
        return np.array(value, np.float64)

    def address(self, array: np.ndarray) -> int:
        return array.__array_interface__["data"][0]

    def product(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        wide = _accumulator(a)  # halves multiply in float32, as its BLAS has no other way
        return np.matmul(a.astype(wide, copy=False), b.astype(wide, copy=False)).astype(a.dtype, copy=False)

    def column_sums(self, a: np.ndarray) -> np.ndarray:
        return a.sum(axis=0, dtype=_accumulator(a)).astype(a.dtype)


class CuPy(Library):
    """CuPy arrays, and what else lies on a CUDA device and speaks __cuda_array_interface__ or DLPack."""

    name = "CUDA array"
    checks_values = False

    def __init__(self, num_threads: int | None = None) -> None:
        _refuse_threads(num_threads)
        try:
            import cupy
        except ImportError as error:
            raise ImportError(
                "Arrays on a CUDA device that are not PyTorch's need CuPy: pip install cupy-cuda13x (or cupy-cuda12x)"
            ) from error
        self.kernels = _cuda_kernels()
        self.cupy = cupy
        self.where = cupy.cuda.get_current_stream().ptr
        self._device: int | None = None

    def array(self, argument: str, value: Any) -> Any:
        if not _is_on_cuda(value):
            raise TypeError(f"{argument}: expected an array on a CUDA device, as features is, got {_describe(value)}")
        shared = self.cupy.asarray if hasattr(value, "__cuda_array_interface__") else self.cupy.from_dlpack
        array = value if isinstance(value, self.cupy.ndarray) else shared(value)
        if self._device is None:
            self._device = array.device.id
        elif self._device != array.device.id:
            raise TypeError(
                f"{argument}: expected an array on CUDA device {self._device}, as features is, got {array.device.id}"
            )
        return self.cupy.ascontiguousarray(array) if array.ndim else array

    def empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        return self.cupy.empty(shape, dtype)

    def scalar(self, value: float) -> Any:
        return self.cupy.full((), value, "float64")  # a kernel fills it: nothing is copied from the host

    def address(self, array: Any) -> int:
        return array.data.ptr

    def product(self, a: Any, b: Any) -> Any:
        return self.cupy.ascontiguousarray(a @ b)

    def column_sums(self, a: Any) -> Any:
        return a.sum(axis=0, dtype=_accumulator(a)).astype(a.dtype)

    def device(self) -> contextlib.AbstractContextManager:
        return self.cupy.cuda.Device(self._device)


class Torch(Library):
    """PyTorch tensors, on the CPU or on a CUDA device. No gradient is recorded."""

    name = "PyTorch tensor"

    def __init__(self, torch: ModuleType, device: Any, num_threads: int | None = None) -> None:
        self.torch = torch
        self.on = device
        if device.type == "cuda":
            _refuse_threads(num_threads)
            self.kernels = _cuda_kernels()
            self.where = torch.cuda.current_stream(device).cuda_stream
            self.checks_values = False
        elif device.type == "cpu":
            from lsoftmax_op import _core

            self.kernels = _core
            self.where = threads(num_threads)
        else:
            raise TypeError(f"features: expected a tensor on a CPU or CUDA device, got one on {device}")

    def array(self, argument: str, value: Any) -> Any:
        if not isinstance(value, self.torch.Tensor) or value.device != self.on:
            raise TypeError(
                f"{argument}: expected a PyTorch tensor on {self.on}, as features is, got {_describe(value)}"
            )
        return value.detach().contiguous()

    def dtype(self, array: Any) -> str:
        return str(array.dtype).removeprefix("torch.")

    def cast(self, array: Any, dtype: str) -> Any:
        return array.to(getattr(self.torch, dtype))

    def empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        return self.torch.empty(shape, dtype=getattr(self.torch, dtype), device=self.on)

    def scalar(self, value: float) -> Any:
        return self.torch.full((), value, dtype=self.torch.float64, device=self.on)

    def address(self, array: Any) -> int:
        return array.data_ptr()

    def product(self, a: Any, b: Any) -> Any:
        return (a @ b).contiguous()

    def column_sums(self, a: Any) -> Any:
        return a.sum(dim=0)

    def copy(self, array: Any) -> Any:
        return array.clone()

    def device(self) -> contextlib.AbstractContextManager:
        return self.torch.cuda.device(self.on) if self.on.type == "cuda" else contextlib.nullcontext()


def threads(num_threads: int | None) -> int:
    """Returns how many threads a kernel may use on the CPU."""
    if num_threads is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if isinstance(num_threads, bool) or not isinstance(num_threads, (int, np.integer)) or num_threads < 1:
        raise ValueError(f"num_threads: expected a positive integer or None, got {num_threads!r}")
    return min(int(num_threads), 1024)


def _refuse_threads(num_threads: int | None) -> None:
    if num_threads is not None:
        raise ValueError(f"num_threads: expected None for arrays on a CUDA device, got {num_threads!r}")


def _cuda_kernels() -> ModuleType:
    try:
        from lsoftmax_op import _cuda
    except ImportError as error:
        raise ImportError(
            "lsoftmax_op was built without CUDA, so its arrays must lie on the CPU. Rebuild where nvcc is found: "
            "LSOFTMAX_CUDA=ON pip install --force-reinstall --no-deps --no-cache-dir lsoftmax-op"
        ) from error
    return _cuda


def _is_on_cuda(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return False
    if hasattr(value, "__dlpack_device__"):
        return int(value.__dlpack_device__()[0]) == 2  # kDLCUDA
    return hasattr(value, "__cuda_array_interface__")


def _accumulator(array: Any) -> type:
    return np.float64 if array.dtype == np.float64 else np.float32


def _describe(value: Any) -> str:
    device = getattr(value, "device", None)
    return f"{type(value).__module__}.{type(value).__name__}" + (f" on {device}" if device is not None else "")
