"""What `lsoftmax_op.arrays` asks of the library that its arrays come from: NumPy, PyTorch or CuPy.

A library makes arrays, multiplies them, and says where one lies in memory; kernels of ours do the rest, in place:
`_core` on the CPU, `_cuda` on the library's current stream. Nothing is copied between host and device.

Kernels read and write memory as they are told it is. So an array that comes in becomes a plain one (`Library.array`),
and what the library makes is looked at first (`Library._made`): it may be told to compute in another dtype.
"""

from __future__ import annotations

import abc
import contextlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

from lsoftmax_op import _checks, library

FLOATS = ("float16", "bfloat16", "float32", "float64")


def library_of(features: Any, num_threads: int | None) -> Library:
    """Returns the library that `features` belongs to; what is no array of another one is NumPy's.

    Raises:
        ImportError: the library's kernels were not built, or CuPy is missing.
        TypeError: nobody serves the device, or a function is recorded that calls the kernels.
        ValueError: `num_threads` is no positive integer or None.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(features, torch.Tensor):
        return Torch(torch, features, num_threads)
    if _is_on_cuda("features", features):
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
        """Converts `value` to a plain, dense array of this library, of which a kernel can read the very values.

        Raises:
            TypeError: it belongs to another library or device, or its values do not lie in memory so.
        """

    def dtype(self, array: Any) -> str:
        """Returns NumPy's name of the dtype. What has no native byte order, or is a structure, has another name."""
        return str(array.dtype)

    @abc.abstractmethod
    def address(self, array: Any) -> int:
        """Returns where a dense array begins."""

    @abc.abstractmethod
    def is_dense(self, array: Any) -> bool:
        """Whether an array that the library made is a plain one, contiguous, on the layer's device."""

    def empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        """Returns a new dense array.

        Raises:
            TypeError, here and below: the library made something else.
        """
        own = self._own_dtype(dtype)
        return self._made("memory", self._empty(shape, own), own, shape)

    def full(self, shape: tuple[int, ...], value: float, dtype: str) -> Any:
        """Returns a new dense array of one value. On a device a kernel fills it: nothing is copied from the host."""
        own = self._own_dtype(dtype)
        return self._made("numbers", self._full(shape, value, own), own, shape)

    def scalar(self, value: float) -> Any:
        """Returns a new float64 array of shape []."""
        return self.full((), value, "float64")

    def numbers(self, values: Sequence[float]) -> Any:
        """Returns a new float64 array [.] of the values, as `full` does."""
        array = self.full((len(values),), 0.0, "float64")
        for place, value in enumerate(values):
            if value != 0:
                array[place] = value
        return array

    def cast(self, array: Any, dtype: str) -> Any:
        """Returns a dense array in another dtype."""
        own = self._own_dtype(dtype)
        return self._made("cast", self._cast(array, own), own, array.shape)

    def copy(self, array: Any) -> Any:
        """Returns a new dense array like one."""
        return self._made("copy", self._copy(array), array.dtype, array.shape)

    def zeroed(self, array: Any, places: Any) -> Any:
        """Returns a new dense array like one, with 0 in some places, an array of bools."""
        array = self.copy(array)
        array[places] = 0
        return array

    def product(self, a: Any, b: Any) -> Any:
        """Returns a @ b, a new dense array of their dtype."""
        return self._made("product", self._product(a, b), a.dtype, (a.shape[0], b.shape[1]))

    def row_sums(self, a: Any) -> Any:
        """Returns the sums over the columns, in the array's dtype."""
        return self._made("row sums", a.sum(axis=1), a.dtype, (a.shape[0],))

    def column_sums(self, a: Any) -> Any:
        """Returns the sums over the rows, in the array's dtype."""
        return self._made("column sums", self._column_sums(a), a.dtype, (a.shape[1],))

    def _own_dtype(self, dtype: str) -> Any:
        """Returns what equals the dtype of an array of this library."""
        return dtype

    @abc.abstractmethod
    def _empty(self, shape: tuple[int, ...], dtype: Any) -> Any: ...

    @abc.abstractmethod
    def _full(self, shape: tuple[int, ...], value: float, dtype: Any) -> Any: ...

    def _cast(self, array: Any, dtype: Any) -> Any:
        return array.astype(dtype, copy=False)

    def _copy(self, array: Any) -> Any:
        return array.copy()

    @abc.abstractmethod
    def _product(self, a: Any, b: Any) -> Any: ...

    @abc.abstractmethod
    def _column_sums(self, a: Any) -> Any: ...

    def _made(self, what: str, result: Any, dtype: Any, shape: tuple[int, ...]) -> Any:
        """Returns the result, once it is known to be what was asked for."""
        if not self.is_dense(result) or result.dtype != dtype or result.shape != shape:
            raise TypeError(
                f"{what}: expected a contiguous {self.name} of {dtype} {list(shape)}, got "
                f"{_checks.described(result)}, {getattr(result, 'dtype', None)} {list(getattr(result, 'shape', ()))}"
            )
        return result

    def device(self) -> contextlib.AbstractContextManager[Any]:
        """A context in which the arrays' device is the current one, and the library computes what it is told."""
        return contextlib.nullcontext()


class NumPy(Library):
    """NumPy arrays, and what it converts to them."""

    name = "NumPy array"

    def __init__(self, num_threads: int | None = None) -> None:
        self.kernels = library.kernels("_core")
        self.where = threads(num_threads)

    def array(self, argument: str, value: Any) -> np.ndarray:
        if _is_on_cuda(argument, value):
            raise TypeError(f"{argument}: expected an array on the CPU, as features is, got one on a CUDA device")
        return _checks.array(value, argument)

    def _empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        return np.empty(shape, dtype)

    def _full(self, shape: tuple[int, ...], value: float, dtype: Any) -> np.ndarray:
        return np.full(shape, value, dtype) if shape else np.array(value, dtype)  # which is faster

    def address(self, array: np.ndarray) -> int:
        return array.__array_interface__["data"][0]

    def is_dense(self, array: Any) -> bool:
        return type(array) is np.ndarray and array.flags.c_contiguous

    def _product(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        wide = _accumulator(a)  # halves multiply in float32, as its BLAS has no other way
        return np.matmul(a.astype(wide, copy=False), b.astype(wide, copy=False)).astype(a.dtype, copy=False)

    def _column_sums(self, a: np.ndarray) -> np.ndarray:
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
        self._device: int | None = None  # the features', once they have come

    def array(self, argument: str, value: Any) -> Any:
        expected = f"{argument}: expected an array on a CUDA device"
        if not _is_on_cuda(argument, value):
            raise TypeError(f"{expected}, as features is, got {_checks.described(value)}")
        if hasattr(value, "resolve_neg"):
            value = value.resolve_neg()  # PyTorch shares a negated tensor's memory as it is
        try:
            shared = self.cupy.asarray if hasattr(value, "__cuda_array_interface__") else self.cupy.from_dlpack
            array = value if isinstance(value, self.cupy.ndarray) else shared(value)
        except MemoryError:
            raise
        except Exception as error:  # whatever the value's own class raises
            raise TypeError(f"{expected}, got {_checks.described(value)}: {error}") from error
        if self._device is None:
            self._device = array.device.id
            with self.device():
                self.where = self.cupy.cuda.get_current_stream().ptr
        elif self._device != array.device.id:
            raise TypeError(
                f"{argument}: expected an array on CUDA device {self._device}, as features is, got {array.device.id}"
            )
        if type(array) is not self.cupy.ndarray:
            array = array.view(self.cupy.ndarray)
        with self.device():
            array = self.cupy.ascontiguousarray(array) if array.ndim else array
            return array.copy() if array.data.ptr % array.dtype.itemsize else array

    def _empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        return self.cupy.empty(shape, dtype)

    def _full(self, shape: tuple[int, ...], value: float, dtype: Any) -> Any:
        return self.cupy.full(shape, value, dtype)

    def address(self, array: Any) -> int:
        return array.data.ptr

    def is_dense(self, array: Any) -> bool:
        return type(array) is self.cupy.ndarray and array.flags.c_contiguous and array.device.id == self._device

    def _product(self, a: Any, b: Any) -> Any:
        return self.cupy.ascontiguousarray(a @ b)

    def _column_sums(self, a: Any) -> Any:
        return a.sum(axis=0, dtype=_accumulator(a)).astype(a.dtype)

    def device(self) -> contextlib.AbstractContextManager[Any]:
        return self.cupy.cuda.Device(self._device)


_WITHOUT_DATA = (
    " with data in memory, got one without, as within torch.func.grad, torch.vmap and FakeTensorMode: call "
    "lsoftmax_op.arrays outside of them, for gradients lsoftmax_op.torch (or a torch.autograd.Function of yours), for "
    "batches in a loop"
)


class Torch(Library):
    """PyTorch tensors, on the CPU or on a CUDA device. No gradient is recorded."""

    name = "PyTorch tensor"

    def __init__(self, torch: ModuleType, features: Any, num_threads: int | None = None) -> None:
        self.torch = torch
        proxies = sys.modules.get("torch.fx.experimental.proxy_tensor")  # of make_fx, which imports it
        if torch.jit.is_tracing() or (proxies is not None and proxies.get_proxy_mode() is not None):
            raise TypeError(
                "features: expected a call outside of torch.jit.trace and make_fx, which cannot record it, got one "
                "within"
            )
        with torch._C.DisableTorchFunction():
            self.on = device = features.device
        if device.type == "cuda":
            _refuse_threads(num_threads)
            self.kernels = _cuda_kernels()
            self.where = torch.cuda.current_stream(device).cuda_stream
            self.checks_values = False
        elif device.type == "cpu":
            self.kernels = library.kernels("_core")
            self.where = threads(num_threads)
        else:
            raise TypeError(f"features: expected a tensor on a CPU or CUDA device, got one on {device}")

    def array(self, argument: str, value: Any) -> Any:
        torch = self.torch
        with torch._C.DisableTorchFunction():  # a subclass is taken for the tensor that it is
            if not isinstance(value, torch.Tensor) or value.device != self.on:
                raise self._refused(argument, f", as features is, got {_checks.described(value)}")
            if value.layout != torch.strided or value.is_nested:
                raise self._refused(
                    argument, f" that is dense, got {'a nested one' if value.is_nested else value.layout}"
                )
            if type(value).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
                raise self._refused(argument, f" with data of its own, got {_checks.described(value)}")
            try:
                array = value.detach()
                address = array.data_ptr()
                has_data = address != 0 or array.numel() == 0
            except Exception:  # each kind of tensor without data raises its own
                has_data = False
            if not has_data:
                raise self._refused(argument, _WITHOUT_DATA)
            if type(array) is not torch.Tensor:
                array = array.as_subclass(torch.Tensor)
            if array.is_neg():
                array = array.resolve_neg()
            array = array.contiguous()
            return array.clone() if address % array.element_size() else array

    def _refused(self, argument: str, reason: str) -> TypeError:
        return TypeError(f"{argument}: expected a PyTorch tensor on {self.on}{reason}")

    def dtype(self, array: Any) -> str:
        return str(array.dtype).removeprefix("torch.")

    def _own_dtype(self, dtype: str) -> Any:
        return getattr(self.torch, dtype)

    def _cast(self, array: Any, dtype: Any) -> Any:
        return array.to(dtype)

    def _empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        return self.torch.empty(shape, dtype=dtype, device=self.on)

    def _full(self, shape: tuple[int, ...], value: float, dtype: Any) -> Any:
        return self.torch.full(shape, value, dtype=dtype, device=self.on)

    def numbers(self, values: Sequence[float]) -> Any:
        array = self.full((len(values),), 0.0, "float64")
        self.torch._foreach_add_(list(array.unbind()), list(values))  # in one launch, and not from the host's memory
        return array

    def address(self, array: Any) -> int:
        return array.data_ptr()

    def is_dense(self, array: Any) -> bool:
        return type(array) is self.torch.Tensor and array.is_contiguous() and array.device == self.on

    def _product(self, a: Any, b: Any) -> Any:
        return (a @ b).contiguous()

    def zeroed(self, array: Any, places: Any) -> Any:
        return self._made("zeros", array.masked_fill(places, 0), array.dtype, array.shape)

    def _column_sums(self, a: Any) -> Any:
        return a.sum(dim=0)

    def _copy(self, array: Any) -> Any:
        return array.clone()

    def device(self) -> contextlib.AbstractContextManager[Any]:
        contexts = contextlib.ExitStack()
        if self.torch.is_autocast_enabled(self.on.type):
            contexts.enter_context(self.torch.autocast(self.on.type, enabled=False))
        if self.on.type == "cuda":
            contexts.enter_context(self.torch.cuda.device(self.on))
        return contexts


def threads(num_threads: int | None) -> int:
    """Returns how many threads a kernel may use on the CPU."""
    if num_threads is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if isinstance(num_threads, bool) or not isinstance(num_threads, (int, np.integer)) or num_threads < 1:
        raise ValueError(f"num_threads: expected a positive integer or None, got {_checks.shown(num_threads)}")
    return min(int(num_threads), 1024)


def _refuse_threads(num_threads: int | None) -> None:
    if num_threads is not None:
        raise ValueError(f"num_threads: expected None for arrays on a CUDA device, got {_checks.shown(num_threads)}")


def _cuda_kernels() -> ModuleType:
    try:
        return library.kernels("_cuda")
    except ModuleNotFoundError as error:
        raise ImportError(
            "lsoftmax_op was built without CUDA, so its arrays must lie on the CPU. Rebuild where nvcc is found: "
            "LSOFTMAX_CUDA=ON pip install --force-reinstall --no-deps --no-cache-dir . in a clone"
        ) from error


def _is_on_cuda(argument: str, value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return False
    try:
        if hasattr(value, "__dlpack_device__"):
            return int(value.__dlpack_device__()[0]) in (2, 13)  # kDLCUDA, kDLCUDAManaged
        return hasattr(value, "__cuda_array_interface__")
    except Exception as error:  # whatever the value's own class raises
        raise TypeError(f"{argument}: expected an array, got {_checks.described(value)}: {error}") from error


def _accumulator(array: Any) -> type:
    return np.float64 if array.dtype == np.float64 else np.float32
