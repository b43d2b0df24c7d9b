"""What PyTorch's own machinery does with lsoftmax_op.torch: operators, compilers, export, autocast, the page's code."""

import math

import numpy as np
import pytest
from pages import torch_blocks
from torch_support import LAYERS, arguments_of, crowded

from lsoftmax_op.margins import ArcFace, Margin

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from lsoftmax_op import torch as functions


@pytest.mark.parametrize("margin", [4, ArcFace(0.5, 16)], ids=repr)
@pytest.mark.parametrize("name", ["logits", "loss"])
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_the_operators_are_what_they_say(layer, dtype, name, margin):
    x, w, y, b = arguments_of(crowded((5, 3, 6), dtype, margin), layer)
    smoothing = (0.1,) if name == "loss" else ()
    numbers = (
        (margin, 0.0, 0.0, 1.0, False, False, "unfolded") if margin == 4 else (1, 0.5, 0.0, 16.0, True, True, "linear")
    )
    lam = torch.tensor(0.5, dtype=torch.float64)
    arguments = (x, w, y, b, lam, layer.class_major, *numbers, *smoothing)
    torch.library.opcheck(getattr(torch.ops.lsoftmax_op, name).default, arguments)


def compiles():
    """Whether PyTorch finds what inductor compiles with."""
    try:
        return torch.equal(torch.compile(lambda x: x.sin() + 1, backend="inductor")(torch.zeros(3)), torch.ones(3))
    except Exception:
        return False


@pytest.fixture(params=["aot_eager", "inductor"])
def backend(request, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # code of operators as they were is not for these
    if request.param == "inductor" and not compiles():
        pytest.skip("PyTorch finds no C++ compiler")
    torch._dynamo.reset()
    return request.param


@pytest.mark.filterwarnings("ignore")  # PyTorch's own
@pytest.mark.parametrize("margin", [4, ArcFace(0.5, 16)], ids=repr)
@pytest.mark.parametrize("name", ["logits", "loss"])
def test_one_graph(backend, name, margin):
    x = torch.randn(6, 5, requires_grad=True)
    y = torch.tensor([1, 3, -1, 1, 8, 0])
    head = functions.LSoftmaxLinear(5, 9, margin=margin, lam=0.5)

    def step(x, y):
        if name == "loss":
            return head.loss(2 * x, y)
        return torch.nn.functional.cross_entropy(head(2 * x, y), y, ignore_index=-1)

    def results(step):
        loss = step(x, y)
        return [loss.detach(), *torch.autograd.grad(loss, (x, head.weight))]

    for got, want in zip(results(torch.compile(step, fullgraph=True, backend=backend)), results(step), strict=True):
        torch.testing.assert_close(got, want)


def test_lambda_changes_without_compiling_anew():
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    head = functions.LSoftmaxLinear(5, 9, margin=4)
    x, y = torch.randn(6, 5), torch.tensor([1, 3, -1, 1, 8, 0])
    compiled = torch.compile(head.loss, fullgraph=True, backend=counter)
    losses = []
    for lam in (0.0, 1.0, 5.0, math.inf):
        head.set_lambda(lam)
        losses.append(compiled(x, y).item())
        assert losses[-1] == head.loss(x, y).item()
    assert counter.frame_count == 1
    assert losses == sorted(losses, reverse=True)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["logits", "loss"])
def test_a_margin_that_nobody_has_used_before(name):
    x, w, y, b = arguments_of(crowded((5, 3, 6), "float32"))
    function = getattr(functions, f"margin_softmax_{name}")
    got = torch.compile(function, fullgraph=True, backend="aot_eager")(x, w, y, b, margin=Margin(2, 0.5, 0.1))
    assert torch.equal(got, function(x, w, y, b, margin=Margin(2, 0.5, 0.1)))


@pytest.mark.filterwarnings("ignore")
def test_a_number_for_lambda_that_changes_while_compiled():
    x, w, y, b = arguments_of(crowded((5, 3, 6), "float32"))
    loss = torch.compile(functions.lsoftmax_loss, fullgraph=True, backend="aot_eager")
    for lam in (0.5, 0.7, 5.0, 2.0):
        assert torch.equal(loss(x, w, y, b, lam=lam), functions.lsoftmax_loss(x, w, y, b, lam=lam))
    with pytest.raises(ValueError, match=r"^lam: expected a number >= 0, got -1"):
        loss(x, w, y, b, lam=-1.0)


@pytest.mark.filterwarnings("ignore")
def test_export_checkpoint_and_vmap():
    head = functions.LSoftmaxLinear(5, 9, lam=0.5)
    x, y = torch.randn(6, 5, requires_grad=True), torch.tensor([1, 3, -1, 1, 8, 0])
    plain = torch.export.export(head, (x,))
    assert not any("lsoftmax_op" in str(node.target) for node in plain.graph.nodes)
    assert torch.equal(plain.module()(x), head(x))
    assert torch.equal(torch.export.export(head, (x, y)).module()(x, y), head(x, y))

    (expected,) = torch.autograd.grad(head.loss(x, y), x)
    checkpointed = torch.utils.checkpoint.checkpoint(lambda x: head.loss(x, y), x, use_reentrant=False)
    assert torch.equal(torch.autograd.grad(checkpointed, x)[0], expected)
    batches = torch.vmap(lambda x: functions.lsoftmax_loss(x, head.weight.T, y, lam=0.5))(torch.stack([x, 2 * x]))
    assert torch.equal(batches[1], functions.lsoftmax_loss(2 * x, head.weight.T, y, lam=0.5))


@pytest.mark.filterwarnings("ignore")
def test_numbers_that_change_are_one_graph():
    x, y, w = torch.randn(6, 5), torch.tensor([1, 3, -1, 1, 8, 0]), torch.randn(5, 9)
    torch._dynamo.reset()
    loss = torch.compile(functions.margin_softmax_loss, fullgraph=True, backend="aot_eager")
    for smoothing in (0.1, 0.2, 0.3):
        got = loss(x, w, y, margin=4, label_smoothing=smoothing)
        assert torch.equal(got, functions.margin_softmax_loss(x, w, y, margin=4, label_smoothing=smoothing))
    head = functions.LSoftmaxLinear(5, 9, label_smoothing=0.1)
    compiled = torch.compile(head.loss, fullgraph=True, dynamic=True, backend="aot_eager")
    assert torch.equal(compiled(x, y), head.loss(x, y))


@pytest.mark.parametrize("name", ["loss", "logits"])
def test_second_derivatives_within_autocast_are_those_without(name):
    def of_weights(enabled):
        x, w, y, _ = arguments_of(crowded((5, 3, 6)))
        function = getattr(functions, f"lsoftmax_{name}")
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            (first,) = torch.autograd.grad(
                function(x.float(), w.float(), y).float().square().sum(), x, create_graph=True
            )
            first.square().sum().backward()
        return w.grad

    torch.testing.assert_close(of_weights(True), of_weights(False), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_tensors_of_other_kinds_are_refused_by_name():
    x, w, y = torch.randn(6, 5), torch.randn(5, 9), torch.tensor([1, 3, -1, 1, 8, 0])
    with pytest.raises(TypeError, match=r"^weights: expected .* that is dense, got torch\.sparse_csr"):
        functions.lsoftmax_loss(x, w.to_sparse_csr(), y)
    with pytest.raises(TypeError, match=r"^features: expected a dense PyTorch tensor, got a nested one"):
        functions.lsoftmax_loss(torch.nested.nested_tensor([x[0], x[1]]), w, y[:2])
    with pytest.raises(TypeError, match=r"^features: expected a tensor of no functional derivative"):
        torch.func.grad(lambda x: functions.lsoftmax_loss(x, w, y).sum())(x)


def test_forward_mode_is_refused():
    x, w, y, _ = arguments_of(crowded((5, 3, 6)))
    for function in (functions.lsoftmax_logits, functions.lsoftmax_loss):
        with pytest.raises(TypeError, match=r"^features: expected a tensor of no functional derivative"):
            torch.func.jvp(lambda x, f=function: f(x, w, y), (x.detach(),), (torch.ones_like(x),))


@pytest.mark.parametrize("name", ["loss", "logits"])
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_with_loss_scaling_trains_as_float32_does(name, half):
    labels = torch.arange(64) % 5
    inputs = torch.eye(5, 8)[labels] + 0.1 * torch.randn(64, 8, generator=torch.Generator().manual_seed(0))

    def train(enabled):
        torch.manual_seed(0)
        backbone, head = torch.nn.Linear(8, 16), functions.LSoftmaxLinear(16, 5, margin=4, lam=5.0)
        parameters = [*backbone.parameters(), *head.parameters()]
        optimizer = torch.optim.SGD(parameters, lr=0.5)
        scaler = torch.amp.GradScaler("cpu", enabled=enabled)
        losses = []
        for _ in range(40):
            with torch.autocast("cpu", dtype=half, enabled=enabled):
                features = backbone(inputs)
                assert features.dtype == head(features).dtype == (half if enabled else torch.float32)
                if name == "loss":
                    loss = head.loss(features, labels)
                else:
                    loss = torch.nn.functional.cross_entropy(head(features, labels), labels)
            assert loss.dtype == torch.float32
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            assert {parameter.grad.dtype for parameter in parameters} == {torch.float32}
            scaler.step(optimizer)
            scaler.update()
            losses.append(loss.item())
        return losses

    in_half, in_float32 = train(True), train(False)
    assert in_float32[-1] < in_float32[0] / 3
    np.testing.assert_allclose(in_half, in_float32, rtol=0.05, atol=0.01)


@pytest.mark.parametrize("block", torch_blocks("docs/arrays.md"), ids=lambda block: block.code.splitlines()[-1])
def test_the_page_prints_what_it_shows(block, capsys):
    exec(block.code, {})
    assert capsys.readouterr().out == block.shown
