"""Arrays of PyTorch go in and come out; libraries and devices that do not fit together are refused."""

import contextlib
from unittest import mock

import numpy as np
import pytest
from support import KINDS, LAMBDAS, random_batch

from lsoftmax_op import _array_libraries, arrays

torch = pytest.importorskip("torch", reason="PyTorch is not installed")


def tensors(batch):
    def tensor(array):
        if array.dtype.name == "bfloat16":
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)

    return [None if array is None else tensor(array) for array in (*batch.layer, batch.grad)]


def batch_for(margin, dtype):
    """A batch with a zero row and a zero column, with and without a target."""
    batch = random_batch((13, 33, 7), dtype).beside(margin)
    batch.labels[2:5] = [1, 2, -1]
    batch.features[[2, 4]], batch.weights[:, 2] = 0, 0
    return batch


def assert_as_of_numpy(got, expected, dtype):
    """The results of PyTorch, whose products are its own, are those of NumPy."""
    tolerance = {"float64": 1e-12, "float32": 1e-5, "float16": 1e-2, "bfloat16": 1e-1}[dtype]
    for one, want in zip(got, expected, strict=True):
        if want is None:
            assert one is None
            continue
        assert isinstance(one, torch.Tensor)
        assert str(one.dtype).removeprefix("torch.") == want.dtype.name
        want = np.asarray(want, np.float64)
        assert np.isfinite(want).all()
        np.testing.assert_allclose(one.double().numpy(), want, atol=tolerance * np.abs(want).max())


@pytest.mark.parametrize("lam", LAMBDAS)
@pytest.mark.parametrize("margin", [4, *KINDS], ids=repr)
def test_tensors_on_the_cpu(dtype, margin, lam):
    batch, options = batch_for(margin, dtype), {"margin": margin, "lam": lam}
    *layer, grad = tensors(batch)
    got = arrays.logits(*layer, **options), *arrays.logits_grad(grad, *layer, **options)
    expected = arrays.logits(*batch.layer, **options), *arrays.logits_grad(batch.grad, *batch.layer, **options)
    assert_as_of_numpy(got, expected, dtype)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("margin", [4, *KINDS], ids=repr)
def test_the_loss_of_tensors_on_the_cpu(dtype, margin, label_smoothing):
    batch, options = batch_for(margin, dtype), {"margin": margin, "lam": 0.5, "label_smoothing": label_smoothing}
    *layer, grad = tensors(batch)
    got = arrays.loss_grad(grad[:, 0], *layer, **options)
    assert_as_of_numpy(got, arrays.loss_grad(batch.loss_grad, *batch.layer, **options), dtype)
    assert torch.equal(got.loss, arrays.loss(*layer, **options))


def test_arguments_are_left_as_they_are_and_views_work():
    batch = random_batch((13, 33, 7), "float32")
    *layer, grad = tensors(batch)
    expected = arrays.logits_grad(grad, *layer)
    strided = [tensor.t().contiguous().t() if tensor.ndim == 2 else tensor for tensor in layer]
    before = [tensor.clone() for tensor in (*strided, grad)]
    strided[0].requires_grad_(True)
    for got, want in zip(arrays.logits_grad(grad, *strided), expected, strict=True):
        assert torch.equal(got, want)
        assert not got.requires_grad
    assert all(torch.equal(a, b) for a, b in zip((*strided, grad), before, strict=True))


def test_lambda_as_a_tensor():
    *layer, _ = tensors(random_batch((13, 33, 7), "float32"))
    assert torch.equal(arrays.logits(*layer, lam=torch.tensor(0.5)), arrays.logits(*layer, lam=0.5))
    with pytest.raises(ValueError, match=r"lam: expected a number >= 0, got -1"):
        arrays.logits(*layer, lam=torch.tensor(-1.0))
    with pytest.raises(ValueError, match=r"lam: .* got shape \[2\]"):
        arrays.logits(*layer, lam=torch.zeros(2))


@pytest.mark.parametrize("argument", ["weights", "labels", "bias", "grad"])
def test_libraries_do_not_mix(argument):
    batch = random_batch((13, 33, 7), "float32")
    names = ("features", "weights", "labels", "bias", "grad")
    arguments = dict(zip(names, tensors(batch), strict=True))
    arguments[argument] = arguments[argument].numpy()
    with pytest.raises(TypeError, match=rf"{argument}: expected a PyTorch tensor on cpu, .* got numpy.ndarray"):
        arrays.logits_grad(**arguments)


def test_a_device_that_nobody_serves():
    *layer, _ = tensors(random_batch((13, 33, 7), "float32"))
    with pytest.raises(TypeError, match=r"features: expected a tensor on a CPU or CUDA device, got one on meta"):
        arrays.logits(*[tensor.to("meta") for tensor in layer])


ARGUMENTS = ("features", "weights", "labels", "bias", "grad")
FUNCTIONS = {"logits_grad": arrays.logits_grad, "loss_grad": arrays.loss_grad}


def given(function, dtype="float32"):
    arguments = dict(zip(ARGUMENTS, tensors(random_batch((13, 33, 7), dtype)), strict=True))
    if function == "loss_grad":
        arguments["grad"] = arguments["grad"][:, 0]
    return arguments


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_changes_nothing(half, function, dtype):
    """The products of PyTorch come in the dtype of its arguments, whatever autocast makes of others."""
    arguments = given(function, dtype)
    layer = {name: arguments[name] for name in ARGUMENTS[:-1]}

    def compute():
        return *FUNCTIONS[function](**arguments), arrays.logits(**layer), arrays.loss(**layer)

    expected = compute()
    with torch.autocast("cpu", dtype=half):
        results = compute()
        assert (layer["features"].float() @ layer["weights"].float()).dtype == half  # it is on again
    for got, want in zip(results, expected, strict=True):
        assert got.dtype == want.dtype
        assert torch.equal(got, want)


class Wrong(torch.Tensor):
    """A subclass on which every function gives something else."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        return "nothing"


def unaligned(tensor):
    memory = torch.zeros(tensor.nbytes + 1, dtype=torch.uint8)[1:]
    memory.copy_(torch.frombuffer(bytearray(tensor.contiguous().numpy().tobytes()), dtype=torch.uint8))
    moved = torch.frombuffer(memory.numpy(), dtype=tensor.dtype).view(tensor.shape)
    assert moved.data_ptr() % moved.element_size()
    return moved


READ_RIGHT = {
    "the negative bit": lambda tensor: torch._neg_view(-tensor),
    "the imaginary part of a conjugate": lambda tensor: (
        torch.complex(tensor, -tensor).conj().imag if tensor.is_floating_point() else tensor
    ),
    "unaligned": unaligned,
    "column-major": lambda tensor: tensor.mT.contiguous().mT if tensor.ndim == 2 else tensor,
    "every other": lambda tensor: tensor.repeat_interleave(2, dim=0)[::2],
    "a subclass": lambda tensor: torch.Tensor._make_subclass(Wrong, tensor),
    "a parameter": lambda tensor: torch.nn.Parameter(tensor, requires_grad=tensor.is_floating_point()),
    "made in inference mode": torch.inference_mode()(lambda tensor: tensor.clone()),
}


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("argument", ARGUMENTS)
@pytest.mark.parametrize("kind", READ_RIGHT)
def test_tensors_that_are_read_as_they_are_meant(kind, argument, function):
    arguments = given(function)
    expected = FUNCTIONS[function](**arguments)
    arguments[argument] = READ_RIGHT[kind](arguments[argument])
    for got, want in zip(FUNCTIONS[function](**arguments), expected, strict=True):
        assert (type(got), got.dtype, got.requires_grad) == (torch.Tensor, want.dtype, False)
        assert torch.equal(got, want)


def fake(tensor):
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode().from_tensor(tensor)


def freed(tensor):
    tensor = tensor.clone()
    tensor.untyped_storage().resize_(0)
    return tensor


REFUSED = {
    "sparse": torch.Tensor.to_sparse,
    "meta": lambda tensor: tensor.to("meta"),
    "fake": fake,
    "freed": freed,
    "zero": lambda tensor: torch._efficientzerotensor(tensor.shape, dtype=tensor.dtype),
    "nested": lambda tensor: torch.nested.nested_tensor([tensor, tensor[:2]]),
    "jagged": lambda tensor: torch.nested.nested_tensor([tensor, tensor[:2]], layout=torch.jagged),
    "quantised": lambda tensor: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.quint8),
    "complex": lambda tensor: tensor + 0j,
    "float8": lambda tensor: tensor.to(torch.float8_e4m3fn),
    "masked": lambda tensor: torch.masked.masked_tensor(tensor, tensor > 0),
}


@pytest.mark.filterwarnings("ignore")  # PyTorch's prototypes
@pytest.mark.parametrize("argument", ARGUMENTS)
@pytest.mark.parametrize("kind", REFUSED)
def test_tensors_that_are_refused_by_name(kind, argument):
    arguments = given("logits_grad")
    arguments[argument] = REFUSED[kind](arguments[argument])
    with pytest.raises(TypeError, match=rf"^{argument}: expected .*, got"):
        arrays.logits_grad(**arguments)


TRANSFORMS = {
    "grad": lambda function, x: torch.func.grad(lambda x: function(x).sum())(x),
    "vmap": lambda function, x: torch.vmap(function)(torch.stack([x, x])),
    "jvp": lambda function, x: torch.func.jvp(function, (x,), (x,)),
    "functionalize": lambda function, x: torch.func.functionalize(function)(x),
}


@pytest.mark.parametrize("argument", ["features", "weights"])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_the_transforms_of_torch_func_are_told_what_to_do(transform, argument):
    arguments = given("loss_grad")
    del arguments["grad"]
    with pytest.raises(
        TypeError, match=r"(features|weights): expected .* outside of them, .*autograd.Function .* loop"
    ):
        TRANSFORMS[transform](lambda x: arrays.loss(**arguments | {argument: x}), arguments[argument])


def test_fake_tensor_modes_and_recordings():
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    arguments = given("loss_grad")
    with FakeTensorMode(), pytest.raises(TypeError, match="^features: expected .* with data in memory"):
        arrays.loss_grad(**arguments)
    grad, features = arguments.pop("grad"), arguments.pop("features")
    for record in (lambda loss: torch.jit.trace(loss, (features,)), lambda loss: make_fx(loss)(features)):
        with pytest.raises(TypeError, match=r"features: expected a call outside of torch\.jit\.trace and make_fx"):
            record(lambda x: arrays.loss(x, **arguments))
    compiled = torch.compile(lambda x: arrays.loss_grad(2 * grad, x / 2, **arguments).weights * 3, backend="eager")
    assert torch.equal(compiled(features), arrays.loss_grad(2 * grad, features / 2, **arguments).weights * 3)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_mode_that_makes_something_else_of_what_torch_is_asked_for(function, dtype):
    """Whichever operation it is, kernels write to no memory that is not what they were told."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Widens(TorchDispatchMode):
        """Gives the results of one operation in a wider dtype, behind which nothing is written; notes all of them."""

        def __init__(self, operation=None):
            super().__init__()
            self.operation, self.seen = operation, set()

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.seen.add(function)
            result = function(*args, **(kwargs or {}))
            if function is not self.operation:
                return result
            return result.to(torch.float64 if result.dtype in (torch.float16, torch.float32) else torch.complex128)

    arguments = given(function, dtype)
    with Widens() as mode:
        expected = FUNCTIONS[function](**arguments)
    for operation in mode.seen:
        # The error is ours, or that of a product of different dtypes.
        with contextlib.suppress(TypeError, RuntimeError), Widens(operation):
            results = FUNCTIONS[function](**arguments)
            assert [result.dtype for result in results] == [result.dtype for result in expected], operation
            assert all(map(torch.equal, results, expected)), operation
    with Widens(torch.ops.aten.mm.default), pytest.raises(TypeError, match=r"^product: expected .*, got .*float64"):
        FUNCTIONS[function](**arguments)


def test_tensors_among_numpys_arrays():
    """What asarray takes counts; what it cannot read is refused by name."""
    arguments = given("loss_grad")
    expected = arrays.loss_grad(**{name: tensor.numpy() for name, tensor in arguments.items()})
    mixed = arguments | {"features": arguments["features"].numpy()}
    for got, want in zip(arrays.loss_grad(**mixed), expected, strict=True):
        np.testing.assert_array_equal(got, want)
    for argument in ARGUMENTS[1:]:
        for kind in ("sparse", "meta", "the negative bit"):
            bad = (REFUSED | READ_RIGHT)[kind](arguments[argument])
            with pytest.raises(TypeError, match=rf"^{argument}: expected an array, got torch\.Tensor"):
                arrays.loss_grad(**mixed | {argument: bad})


@pytest.mark.parametrize("labels", [torch.int32, torch.int64, torch.uint16], ids=str)
def test_labels_are_used_as_they_were_checked(labels):
    arguments = given("loss_grad")
    arguments["labels"] = arguments["labels"].clamp(min=0).to(labels)
    expected = arrays.loss_grad(**arguments)
    from lsoftmax_op import _core

    loss = _core.loss

    def change_and_run(call, where):
        arguments["labels"].fill_(127)
        return loss(call, where)

    with mock.patch.object(_core, "loss", change_and_run):
        got = arrays.loss_grad(**arguments)
    assert all(map(torch.equal, got, expected))


class OnCuda:
    """What an array on a CUDA device looks like from outside."""

    def __dlpack_device__(self):
        return 2, 0


def test_arrays_on_a_device_and_arrays_on_the_cpu_do_not_mix():
    with pytest.raises(TypeError, match=r"weights: expected an array on the CPU, .* CUDA device"):
        arrays.logits(np.ones((3, 2)), OnCuda(), [0, 1, 0])


def test_arrays_on_a_device_need_cupy_and_kernels():
    assert _array_libraries._is_on_cuda("features", OnCuda())
    with pytest.raises((ImportError, AttributeError, RuntimeError)):
        arrays.logits(OnCuda(), OnCuda(), OnCuda())
    with pytest.raises(ValueError, match=r"num_threads: expected None"):
        _array_libraries.library_of(OnCuda(), 3)
