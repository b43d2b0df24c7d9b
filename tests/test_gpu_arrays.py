"""On a real GPU: PyTorch and CuPy arrays. Skips without one."""

import numpy as np
import pytest
from conftest import CudaLayer, TorchLayer, require_gpu, torch_sees_a_gpu
from support import KINDS, assert_close_to_oracle, assert_loss_close_to_oracle, errors, random_batch, worst

from lsoftmax_op import arrays
from lsoftmax_op.margins import ArcFace


@pytest.fixture
def torch():
    require_gpu(torch_sees_a_gpu(), "PyTorch with a GPU is not here")
    return pytest.importorskip("torch")


@pytest.fixture
def cupy():
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError:
        count = 0
    require_gpu(count > 0, "CuPy sees no GPU")
    return cupy


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_cupy_arrays(cupy, dtype):
    batch = random_batch((130, 33, 7), dtype)
    *layer, grad = map(cupy.asarray, (*batch.layer, batch.grad))
    logits, gradients = arrays.logits(*layer, lam=0.5), arrays.logits_grad(grad, *layer, lam=0.5)
    assert all(isinstance(array, cupy.ndarray) and array.dtype == dtype for array in (logits, *gradients))
    found = errors(batch, logits.get(), tuple(g.get() for g in gradients), 4, 0.5)
    assert worst(error.max() for error in found) < {"float16": 1e-2, "float32": 2e-5, "float64": 1e-10}[dtype]


def test_the_callers_stream_and_the_same_bits(torch):
    batch = random_batch((3000, 64, 10), "float32")
    *layer, grad = map(CudaLayer._tensor, (*batch.layer, batch.grad))
    expected = arrays.logits_grad(grad, *layer)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        again = arrays.logits_grad(grad, *layer)
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))


# N, C: each way in which threads share a row, whole vectors of 16 bytes and not. On the CPU all rows are alike.
LENGTHS = [("cpu", (40, 100)), ("cpu", (33, 2001))] + [
    ("cuda", shape)
    for shape in (
        (65_536, 100),
        (5000, 333),
        (4096, 1000),
        (16_384, 2000),
        (4096, 10_000),
        (4095, 10_001),
        (1024, 100_000),
        (64, 1_000_003),
        (3, 2_500_000),
    )
]


@pytest.mark.parametrize(("device", "shape"), LENGTHS, ids=str)
def test_the_loss_of_rows_of_every_length(device, shape, dtype):
    """The steps of one sample are the same in float64, its cross-entropy is PyTorch's."""
    torch = pytest.importorskip("torch")
    require_gpu(device == "cpu" or torch_sees_a_gpu(), "PyTorch with a GPU is not here")
    (rows, classes), depth = shape, 24
    generator = torch.Generator(device).manual_seed(classes)

    def normal(*sizes):
        numbers = torch.randn(*sizes, generator=generator, device=device)
        return (numbers / depth**0.5 if len(sizes) == 2 else numbers).to(getattr(torch, dtype))

    x, w, b, grad = 2 * normal(rows, depth), 2 * normal(depth, classes), normal(classes), normal(rows)
    y = torch.randint(-1, classes, (rows,), generator=generator, device=device)
    y[::7] = -1
    result = arrays.loss_grad(grad, x, w, y, b, margin=4, lam=0.5)
    for one, other in zip(result, arrays.loss_grad(grad, x, w, y, b, margin=4, lam=0.5), strict=True):
        assert torch.equal(one, other)

    exact = [tensor.double() for tensor in (x, w, b)]
    logits = arrays.logits(*exact[:2], y, exact[2], margin=4, lam=0.5).requires_grad_()
    loss = torch.nn.functional.cross_entropy(logits, y, ignore_index=-1, reduction="none")
    (of_logits,) = torch.autograd.grad(loss, logits, grad.double())
    expected = [*arrays.logits_grad(of_logits, *exact[:2], y, exact[2], margin=4, lam=0.5), loss.detach()]
    tolerance = {"float16": 4e-3, "bfloat16": 3e-2, "float32": 2e-5, "float64": 1e-12}[dtype]
    for name, one, want in zip(result._fields, result, expected, strict=False):
        assert (one.double() - want).norm() <= tolerance * want.norm(), name
    plain = exact[0] @ exact[1] + exact[2]
    largest = plain.amax(dim=1)
    assert (plain.gather(1, result.predicted[:, None])[:, 0] >= largest - 2 * tolerance * (1 + largest.abs())).all()


@pytest.mark.parametrize("shape", [(130, 33, 7), (9, 16, 5000)], ids=str)
def test_a_step_in_a_cuda_graph_equals_the_plain_call(torch, dtype, shape):
    """Capturing forbids whatever waits for the device or copies to the host. The replay is of other numbers: no value
    of the capture, nor of lambda, may have stayed in the graph."""
    captured, fresh = (random_batch(shape, dtype, seed) for seed in (0, 2))
    arguments = [
        [*map(CudaLayer._tensor, (*batch.layer, batch.grad, batch.loss_grad, np.array(lam)))]
        for batch, lam in ((captured, 0.5), (fresh, 3.0))
    ]

    def step(features, weights, labels, bias, grad, loss_grad, lam):
        layer, options = (features, weights, labels, bias), {"margin": 4, "lam": lam}
        loss = arrays.loss_grad(loss_grad, *layer, **options)
        logits = arrays.logits(*layer, **options)
        return [*loss, logits, *arrays.logits_grad(grad, *layer, **options), arrays.loss(*layer, margin=3, lam=5.0)]

    stream = torch.cuda.Stream()  # outside the capture, PyTorch's products make what they keep
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step(*arguments[0])
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step(*arguments[0])
    for place, value in zip(*arguments, strict=True):
        place.copy_(value)
    for _ in range(2):
        graph.replay()
        torch.cuda.synchronize()
        expected = step(*arguments[1])
        assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


@pytest.mark.parametrize("shape", [(130, 33, 7), (9, 19, 5000)], ids=str)
@pytest.mark.parametrize("margin", [4, *KINDS], ids=repr)
@pytest.mark.parametrize("class_major", [False, True], ids=["[D, C]", "[C, D]"])
def test_the_operators_of_pytorch(torch, dtype, class_major, margin, shape):
    batch, layer = random_batch(shape, dtype), TorchLayer("cuda", class_major)
    assert_close_to_oracle(batch, dtype, layer, margin, 0.5)
    assert_loss_close_to_oracle(batch, dtype, layer, margin, 0.5, label_smoothing=0.1)


@pytest.mark.parametrize("shape", [(130, 33, 7), (9, 19, 5000)], ids=str)
@pytest.mark.parametrize("margin", [4, ArcFace(0.5, 16)], ids=repr)
def test_a_step_of_the_linear_layer_waits_for_nothing(torch, margin, shape):
    """It neither copies to the host nor looks at what is there, compiled or not, and has the same bits every time."""
    from lsoftmax_op.torch import LambdaScheduler, LSoftmaxLinear

    rows, depth, classes = shape
    head = LSoftmaxLinear(depth, classes, margin=margin, device="cuda")
    annealing = LambdaScheduler(head, lambda step: 2.0 + step)
    features = torch.randn(rows, depth, device="cuda", requires_grad=True)
    labels = torch.randint(-1, classes, (rows,), device="cuda")

    def step(loss):
        annealing.load_state_dict({"steps": 3})
        value = loss(features, labels)
        return [value, *torch.autograd.grad(value, (features, head.weight))]

    compiled = torch.compile(head.loss, fullgraph=True, backend="aot_eager")
    expected = step(head.loss)
    step(compiled)
    torch.cuda.set_sync_debug_mode("error")
    try:
        results = [step(head.loss), step(compiled)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for result in results:
        assert all(map(torch.equal, result, expected))


def test_autocast_on_the_device(torch):
    from lsoftmax_op.torch import LSoftmaxLinear

    head = LSoftmaxLinear(33, 70, lam=0.5, device="cuda")
    features, labels = torch.randn(130, 33, device="cuda"), torch.randint(0, 70, (130,), device="cuda")
    half = features.half()
    with torch.autocast("cuda", dtype=torch.float16):
        assert head(features).dtype == torch.float16
        assert torch.equal(head.loss(half, labels), head.loss(half.float(), labels))


def test_devices_do_not_mix(torch):
    *layer, _ = map(CudaLayer._tensor, (*random_batch((13, 33, 7), "float32").layer, np.zeros(1)))
    layer[1] = layer[1].cpu()
    with pytest.raises(TypeError, match=r"weights: expected a PyTorch tensor on cuda:0, .* on cpu"):
        arrays.logits(*layer)
