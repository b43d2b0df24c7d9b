"""Arrays that are not what their dtype's name says: their values count, or they are refused by name.

Those of NumPy and what NumPy makes arrays of; those of CuPy, over a stand-in and the CUDA kernels as the CPU runs them.
PyTorch's are in test_array_libraries.py.
"""

import contextlib
import sys
from types import SimpleNamespace
from unittest import mock

import ml_dtypes
import numpy as np
import pytest
from support import KINDS, random_batch

from lsoftmax_op import _array_libraries, arrays, reference

ARGUMENTS = ("features", "weights", "labels", "bias", "grad")
FUNCTIONS = {"arrays.logits_grad": arrays.logits_grad, "arrays.loss_grad": arrays.loss_grad}
ORACLE = {"reference.logits_grad": reference.logits_grad, "reference.loss_grad": reference.loss_grad}


def given(function, dtype="float32"):
    batch = random_batch((5, 4, 3), dtype)
    grad = batch.grad if "logits" in function else batch.loss_grad
    return dict(zip(ARGUMENTS, (*batch.layer, grad), strict=True))


def other_byte_order(array):
    swapped = array.byteswap().view(array.dtype.newbyteorder())
    assert not swapped.dtype.isnative
    return swapped


def unaligned(array):
    memory = np.frombuffer(bytearray(array.nbytes + 1), np.uint8)[1:]
    memory[:] = np.frombuffer(array.tobytes(), np.uint8)
    moved = memory.view(array.dtype).reshape(array.shape)
    assert not moved.flags.aligned
    return moved


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def field(array):
    structure = np.zeros(array.shape, [("before", "u1"), ("values", array.dtype)])
    structure["values"] = array
    return structure["values"]


class Wrong(np.ndarray):
    """A subclass whose operators compute something else."""

    def __array_ufunc__(self, *_, **__):
        return NotImplemented

    def astype(self, *_, **__):
        return "nothing"

    copy = view = sum = __matmul__ = __rmatmul__ = __mul__ = __getitem__ = astype


class WithArray:
    def __init__(self, array):
        self.__array__ = array.__array__
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


READ_RIGHT = {
    "other byte order": other_byte_order,
    "unaligned": unaligned,
    "read-only": read_only,
    "column-major": np.asfortranarray,
    "reversed": lambda array: array[::-1].copy()[::-1],
    "every other": lambda array: np.repeat(array, 2, axis=0)[::2],
    "a field of a structure": field,
    "a subclass": lambda array: array.view(Wrong),
    "a mask that hides nothing": lambda array: np.ma.array(array, mask=np.zeros(array.shape, bool)),
    "dtype with metadata": lambda array: array.astype(np.dtype(array.dtype, metadata={"unit": "m"})),
    "memoryview": memoryview,
    "__array__": WithArray,
    "object with a buffer": lambda array: np.ctypeslib.as_ctypes(array.copy()),
}


def outcome(function, arguments):
    return [np.asarray(part) for part in FUNCTIONS[function](**arguments)]


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("argument", ARGUMENTS)
@pytest.mark.parametrize("kind", READ_RIGHT)
def test_what_is_read_as_it_is_meant(kind, argument, function):
    arguments = given(function)
    expected = outcome(function, arguments)
    arguments[argument] = READ_RIGHT[kind](arguments[argument])
    for got, want in zip(outcome(function, arguments), expected, strict=True):
        assert (type(got), got.dtype, got.flags.c_contiguous) == (np.ndarray, want.dtype, True)
        np.testing.assert_array_equal(got, want)


@pytest.mark.filterwarnings("ignore:the matrix subclass")
@pytest.mark.parametrize("make", [np.matrix, lambda a: np.broadcast_to(a[:1], a.shape), lambda a: a.tolist()])
@pytest.mark.parametrize("argument", ["features", "weights"])
def test_matrices_zero_strides_and_lists(make, argument):
    arguments = given("arrays.logits_grad", "float64")
    arguments[argument] = make(arguments[argument])
    got = outcome("arrays.logits_grad", arguments)
    arguments[argument] = np.array(arguments[argument])
    for one, want in zip(got, outcome("arrays.logits_grad", arguments), strict=True):
        np.testing.assert_array_equal(one, want)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_every_dtype_of_the_other_byte_order(dtype):
    arguments = given("arrays.loss_grad", dtype)
    expected = outcome("arrays.loss_grad", arguments)
    swapped = {name: other_byte_order(array) for name, array in arguments.items()}
    swapped["lam"] = np.array(0.0, ">f8")
    for got, want in zip(outcome("arrays.loss_grad", swapped), expected, strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got.view(np.uint8), want.view(np.uint8))


@pytest.mark.parametrize("dtype", ["i1", "u1", ">i2", ">u2", ">i4", ">u4", ">i8"])
def test_labels_of_every_integer(dtype):
    arguments = given("arrays.loss_grad")
    arguments["labels"] = np.maximum(arguments["labels"], 0)
    expected = outcome("arrays.loss_grad", arguments)
    arguments["labels"] = arguments["labels"].astype(dtype)
    for got, want in zip(outcome("arrays.loss_grad", arguments), expected, strict=True):
        np.testing.assert_array_equal(got, want)
    with pytest.raises(ValueError, match=r"^labels: expected values in \[0, 3\), .*labels\[0\] = 72057594037927936"):
        arrays.loss(arguments["features"], arguments["weights"], np.full(5, 2**56, ">i8"))


class Refuses:
    def __array__(self, *_, **__):
        raise KeyError("no array")


class NoDevice:
    def __dlpack_device__(self):
        raise BufferError("no device")


# As long as a word says it is a float of 32 bits, and is none.
LIAR = np.dtype((type("float", (np.void,), {}), 4))
assert LIAR.name == "float32"

REFUSED = {
    "masked": lambda array: np.ma.array(array, mask=array == array.flat[1]),
    "masked rows": lambda array: [np.ma.array(row, mask=[True] * np.size(row)) for row in array],
    "structured": lambda array: array.view([("value", array.dtype)]),
    "masked structures": lambda array: np.ma.array(array.view([("value", array.dtype)]), mask=array > 0),
    "a void of a float's name": lambda array: np.zeros(array.shape, LIAR),
    "datetime": lambda array: array.astype("i8").view("M8[s]"),
    "timedelta": lambda array: array.astype("i8").view("m8[s]"),
    "object": lambda array: array.astype(object) if array.dtype != object else array,
    "complex": lambda array: array.astype(complex),
    "bool": lambda array: array > 0,
    "text": lambda array: array.astype(str),
    "bytes": lambda array: array.tobytes(),
    "ragged": lambda array: [[1.0], [1.0, 2.0]],
    "None": lambda array: None,
    "a dict": lambda array: dict(enumerate(array)),
    "a generator": lambda array: (row for row in array),
    "__array__ raises": lambda array: Refuses(),
    "__dlpack_device__ raises": lambda array: NoDevice(),
}
# What the oracle takes, made for numbers of any type if numbers they are, and the kernels do not.
NOT_BY_KERNELS = {
    "a float with fields": lambda array: np.zeros(array.shape, np.dtype((np.float32, [("x", "u2"), ("y", "u2")]))),
    "an extended float": lambda array: array.astype(np.longdouble),
    "float8": lambda array: array.astype(ml_dtypes.float8_e4m3fn),
}


def takes(function, argument, kind):
    """Whether a kind of array is none to refuse."""
    by_oracle = argument != "labels" and kind in ("object", "bool", *NOT_BY_KERNELS)
    return (function in ORACLE and by_oracle) or (kind == "None" and argument == "bias")


@pytest.mark.parametrize(
    ("function", "argument", "kind"),
    [
        (function, argument, kind)
        for function in [*FUNCTIONS, *ORACLE]
        for argument in ARGUMENTS
        for kind in [*REFUSED, *NOT_BY_KERNELS]
        if not takes(function, argument, kind)
    ],
)
def test_what_is_refused_by_name(function, argument, kind):
    arguments = given(function)
    arguments[argument] = (REFUSED | NOT_BY_KERNELS)[kind](arguments[argument])
    with pytest.raises((TypeError, ValueError), match=rf"^{argument}: expected .*, got"):
        (FUNCTIONS | ORACLE)[function](**arguments)


def test_the_oracle_takes_numbers_of_any_type():
    from fractions import Fraction

    exact = [[Fraction(1, 3), 2], [1, Fraction(10**30)]]
    np.testing.assert_array_equal(reference.logits(exact, np.eye(2), [-1, -1]), [[1 / 3, 2], [1, 1e30]])
    for bad, error in (([[None, 1]], TypeError), ([["1", 1]], TypeError), ([[10**400, 1]], ValueError)):
        with pytest.raises(error, match="^features: expected numbers"):
            reference.logits(bad, np.eye(2), [0])


@pytest.mark.parametrize(
    "lam", [np.ma.masked, np.array([0.5]), np.array("0.5"), np.array(1, "M8[s]"), memoryview(b"5"), None]
)
def test_scalar_arrays_of_lambda(lam):
    arguments = given("arrays.loss_grad")
    with pytest.raises((TypeError, ValueError), match="^lam: expected .*got"):
        arrays.loss_grad(**arguments, lam=lam)
    with pytest.raises((TypeError, ValueError), match="^lam: expected .*got"):
        reference.loss_grad(**arguments, lam=lam)
    expected = outcome("arrays.loss_grad", arguments | {"lam": 0.5})
    for good in (np.array(0.5, ">f4"), np.float16(0.5), ml_dtypes.bfloat16(0.5), np.array(0.5, np.float16)):
        for got, want in zip(outcome("arrays.loss_grad", arguments | {"lam": good}), expected, strict=True):
            np.testing.assert_array_equal(got, want)


def test_tensorflow_refuses_a_mask_and_what_raises():
    pytest.importorskip("tensorflow")
    import lsoftmax_op

    for function in (lsoftmax_op.lsoftmax_loss, lsoftmax_op.lsoftmax_logits):
        arguments = given("arrays.logits_grad")
        del arguments["grad"]
        expected = function(**arguments)
        for argument in arguments:
            swapped = other_byte_order(arguments[argument])
            np.testing.assert_array_equal(function(**arguments | {argument: swapped}), expected)
            for kind in (
                "masked",
                "structured",
                "datetime",
                "object",
                "ragged",
                "a generator",
                "__array__ raises",
                "text",
            ):
                bad = REFUSED[kind](arguments[argument])
                with pytest.raises((TypeError, ValueError), match=rf"^{argument}: expected"):
                    function(**arguments | {argument: bad})
        with pytest.raises(TypeError, match="^features: expected .*, got memoryview"):
            function(**arguments | {"features": memoryview(arguments["features"])})


# What another thread does ---------------------------------------------------------------------------------------------


def while_kernels_run(change, kernels):
    """Has `change` called when a kernel begins, as another thread may, while `kernels` runs what it was given."""

    def wrapper(call, where):
        change()
        return kernels(call, where)

    return wrapper


@pytest.mark.parametrize("kernel", ["geometry_and_loss", "gradients"])
@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.int8])
def test_labels_are_used_as_they_were_checked(kernel, dtype):
    arguments = given("arrays.loss_grad")
    arguments["labels"] = arguments["labels"].astype(dtype)
    expected = outcome("arrays.loss_grad", arguments)
    core = _array_libraries.NumPy().kernels
    changed = while_kernels_run(lambda: arguments["labels"].fill(127), getattr(core, kernel))
    kept = arguments["labels"].copy()
    with mock.patch.object(core, kernel, changed):
        got = outcome("arrays.loss_grad", arguments)
    assert (arguments["labels"] == 127).all()
    assert not (kept == 127).any()
    for one, want in zip(got, expected, strict=True):
        np.testing.assert_array_equal(one, want)


def test_lambda_and_shapes_are_used_as_they_were_checked():
    arguments = given("arrays.loss_grad") | {"lam": np.array(0.5)}
    expected = outcome("arrays.loss_grad", arguments)
    core = _array_libraries.NumPy().kernels

    def change():
        arguments["lam"].fill(np.nan)
        for name in ARGUMENTS:
            arguments[name].shape = (arguments[name].size, 1)

    with mock.patch.object(core, "geometry_and_loss", while_kernels_run(change, core.geometry_and_loss)):
        got = outcome("arrays.loss_grad", arguments)
    for one, want in zip(got, expected, strict=True):
        np.testing.assert_array_equal(one, want)


# CuPy -----------------------------------------------------------------------------------------------------------------


class DeviceArray:
    """A CuPy array as `_array_libraries.CuPy` sees it, in the host's memory, made on the current device."""

    current = 0
    data = property(lambda self: SimpleNamespace(ptr=self.host.__array_interface__["data"][0]))
    T = property(lambda self: self.seen(type(self), self.host.T))

    def __init__(self, host):
        self.host = np.asarray(host)
        self.device = SimpleNamespace(id=DeviceArray.current)

    def seen(self, array_class, host):
        other = array_class(host)
        other.device = self.device
        return other

    def __dlpack_device__(self):
        return 2, 0

    def __getattr__(self, name):  # shape, dtype, ndim, flags
        return getattr(self.host, name)

    def __matmul__(self, other):
        return type(self)(self.host @ other.host)

    def __mul__(self, other):
        return type(self)(self.host * getattr(other, "host", other))

    __rmul__ = __mul__

    def __add__(self, other):
        return type(self)(self.host + other.host)

    def __rsub__(self, other):
        return type(self)(other - self.host)

    def __truediv__(self, other):
        return type(self)(self.host / other.host)

    def __pow__(self, power):
        return type(self)(self.host**power)

    def __lt__(self, other):
        return type(self)(self.host < other)

    def __getitem__(self, key):
        return self.seen(type(self), self.host[key])

    def __setitem__(self, key, value):
        self.host[getattr(key, "host", key)] = value

    def __eq__(self, other):
        return type(self)(self.host == other)

    def astype(self, dtype, copy=True):
        return type(self)(self.host.astype(dtype, copy=copy))

    def copy(self):
        return type(self)(self.host.copy())

    def sum(self, axis, dtype=None):
        return type(self)(self.host.sum(axis=axis, dtype=dtype))

    def view(self, array_class):
        return self.seen(array_class, self.host)


class WrongDeviceArray(DeviceArray):
    def __matmul__(self, other):
        return DeviceArray((self.host @ other.host).astype(np.float16))


class NegatedTensor:
    """A tensor of PyTorch on a CUDA device, with the negative bit, as CuPy can read it."""

    def __init__(self, host):
        self.host = -host

    def __dlpack_device__(self):
        return 2, 0

    def resolve_neg(self):
        return DeviceArray(-self.host)


@contextlib.contextmanager
def current_device(number):
    before, DeviceArray.current = DeviceArray.current, number
    try:
        yield
    finally:
        DeviceArray.current = before


@pytest.fixture
def cupy(monkeypatch):
    kernels = pytest.importorskip("lsoftmax_op._cuda_on_cpu", reason="built without LSOFTMAX_TESTING=ON")
    module = SimpleNamespace(
        ndarray=DeviceArray,
        asarray=lambda value: DeviceArray(value.host),
        from_dlpack=lambda value: DeviceArray(value.host),
        ascontiguousarray=lambda array: DeviceArray(np.ascontiguousarray(array.host)),
        empty=lambda shape, dtype: DeviceArray(np.empty(shape, dtype)),
        full=lambda shape, value, dtype: DeviceArray(np.full(shape, value, dtype)),
        cuda=SimpleNamespace(
            get_current_stream=lambda: SimpleNamespace(ptr=DeviceArray.current), Device=current_device
        ),
    )
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setattr(_array_libraries, "_cuda_kernels", lambda: kernels)
    return module


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("kind", ["plain", "a subclass", "negated", "unaligned", "column-major"])
def test_arrays_of_cupy(cupy, kind, function):
    arguments = given(function)
    expected = outcome(function, arguments)
    make = {"unaligned": unaligned, "column-major": np.asfortranarray}.get(kind, np.asarray)
    array_class = {"a subclass": WrongDeviceArray, "negated": NegatedTensor}.get(kind, DeviceArray)
    on_device = {name: array_class(make(array)) for name, array in arguments.items()}
    for got, want in zip(FUNCTIONS[function](**on_device), expected, strict=True):
        assert type(got) is DeviceArray
        np.testing.assert_allclose(got.host, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_arrays_of_cupy_on_another_device_than_the_current_one(cupy, function):
    arguments = given(function)
    expected = outcome(function, arguments)
    arguments["labels"] = arguments["labels"].astype(np.int8)
    with current_device(1):
        on_device = {name: DeviceArray(np.asfortranarray(array)) for name, array in arguments.items()}
    library = _array_libraries.CuPy()
    library.array("features", on_device["features"])
    assert library.where == 1  # that device's stream
    for got, want in zip(FUNCTIONS[function](**on_device), expected, strict=True):
        assert got.device.id == 1
        np.testing.assert_allclose(got.host, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("device", [2, 13])
def test_memory_of_a_cuda_device_managed_or_not(cupy, device):
    class Managed(DeviceArray):
        def __dlpack_device__(self):
            return device, 0

    arguments = {name: Managed(array) for name, array in given("arrays.loss_grad").items()}
    assert type(arrays.loss_grad(**arguments).loss) is DeviceArray


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("margin", KINDS, ids=repr)
def test_every_margin_of_arrays_of_cupy(cupy, margin, function):
    arguments = given(function, "float64") | {"bias": None}
    on_device = {name: None if array is None else DeviceArray(array) for name, array in arguments.items()}
    expected = FUNCTIONS[function](**arguments, margin=margin, lam=0.5)
    for got, want in zip(FUNCTIONS[function](**on_device, margin=margin, lam=0.5), expected, strict=True):
        assert (got is None) == (want is None)
        if want is not None:
            assert type(got) is DeviceArray
            np.testing.assert_allclose(got.host, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("argument", ARGUMENTS)
@pytest.mark.parametrize("kind", ["other byte order", "structured", "object", "complex", "__dlpack_device__ raises"])
def test_arrays_of_cupy_that_are_refused(cupy, kind, argument):
    arguments = {name: DeviceArray(array) for name, array in given("arrays.loss_grad").items()}
    bad = (READ_RIGHT | REFUSED)[kind](arguments[argument].host)
    arguments[argument] = DeviceArray(bad) if isinstance(bad, np.ndarray) else bad
    with pytest.raises(TypeError, match=rf"^{argument}: expected .*, got"):
        arrays.loss_grad(**arguments)


# What a library computes ----------------------------------------------------------------------------------------------

PRODUCTS = {
    "another dtype": lambda product: product.astype(np.float16),
    "another shape": lambda product: product[:-1],
    "not contiguous": np.asfortranarray,
    "a subclass": lambda product: product.view(Wrong),
    "no array": lambda product: product.tolist(),
}


@pytest.mark.parametrize(
    "library", [_array_libraries.NumPy, _array_libraries.CuPy], ids=lambda library: library.__name__
)
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("kind", PRODUCTS)
def test_a_product_that_is_not_what_was_asked_for(kind, function, library, request, monkeypatch):
    arguments = given(function)
    product, wrong = np.matmul, PRODUCTS[kind]
    if library is _array_libraries.CuPy:
        request.getfixturevalue("cupy")
        arguments = {name: DeviceArray(array) for name, array in arguments.items()}
        product = lambda a, b: a.host @ b.host  # noqa: E731

    def computed(self, a, b):
        result = wrong(product(a, b))
        return DeviceArray(result) if library is _array_libraries.CuPy and type(result) is np.ndarray else result

    monkeypatch.setattr(library, "_product", computed)
    with pytest.raises(TypeError, match=r"^product: expected a contiguous .* of float32 \[.*\], got"):
        FUNCTIONS[function](**arguments)
