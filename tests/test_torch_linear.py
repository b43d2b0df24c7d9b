"""LSoftmaxLinear: torch.nn.Linear with a margin; and LambdaScheduler, its lambda in step with the optimizer."""

import copy
import io
import math

import pytest

from lsoftmax_op import LambdaSchedule
from lsoftmax_op.margins import ArcFace, CosFace, LSoftmax, SphereFace

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from lsoftmax_op.torch import (
    LambdaScheduler,
    LSoftmaxLinear,
    lsoftmax_logits,
)

D, C = 5, 9


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return torch.randn(6, D), torch.tensor([1, 3, -1, 1, 8, 0])


@pytest.mark.parametrize("bias", [False, True])
def test_the_state_of_a_linear_layer(batch, bias):
    features, _ = batch
    torch.manual_seed(0)
    linear = torch.nn.Linear(D, C, bias)
    torch.manual_seed(0)
    head = LSoftmaxLinear(D, C, bias, lam=2.0)
    assert torch.equal(head.weight, linear.weight)  # the same initial values
    torch.nn.init.normal_(linear.weight)
    head.load_state_dict(linear.state_dict())
    assert torch.equal(head(features), linear(features))
    assert head.lam.item() == 2
    torch.nn.init.normal_(head.weight)
    linear.load_state_dict(head.state_dict())
    assert torch.equal(head(features), linear(features))


@pytest.mark.parametrize("bias", [False, True])
def test_with_labels(batch, bias):
    features, labels = batch
    head = LSoftmaxLinear(D, C, bias, margin=3, lam=0.5, label_smoothing=0.1)
    logits = head(features, labels)
    assert torch.equal(logits, lsoftmax_logits(features, head.weight.T, labels, head.bias, margin=3, lam=0.5))
    losses = head.loss(features, labels, "none")
    expected = torch.nn.functional.cross_entropy(logits, labels, ignore_index=-1, reduction="none", label_smoothing=0.1)
    torch.testing.assert_close(losses, expected)
    head.loss(features, labels).backward()
    assert head.weight.grad.is_contiguous()
    assert head.weight.grad.abs().sum(1).gt(0).all()


def test_reductions_are_those_of_pytorchs_loss(batch):
    features, labels = batch
    head = LSoftmaxLinear(D, C, margin=1)
    for reduction in ("mean", "sum", "none"):
        expected = torch.nn.functional.cross_entropy(head(features), labels, ignore_index=-1, reduction=reduction)
        torch.testing.assert_close(head.loss(features, labels, reduction), expected)
    large, labels = 1000 * torch.ones(200, D).half(), torch.zeros(200, dtype=torch.int64)
    head = LSoftmaxLinear(D, C, margin=1, dtype=torch.float16)
    with torch.no_grad():
        head.weight.fill_(1)[0] = 0  # losses of about 5000, whose sum is none of float16
    assert head.loss(large, labels).isfinite()
    with pytest.raises(ValueError, match=r"^reduction: expected one of mean, sum, none, got 'max'"):
        head.loss(features, labels, "max")
    with pytest.raises(ValueError, match=r"^reduction: expected one of mean, sum, none, got None"):
        head.loss(features, labels, None)


@pytest.mark.parametrize("shape", [(), (6,), (2, 3), (2, 0, 3)], ids=str)
@pytest.mark.parametrize("margin", [2, SphereFace(2), ArcFace(0.5, 16)], ids=repr)
def test_any_leading_axes(shape, margin):
    head = LSoftmaxLinear(D, C, margin == 2, margin=margin)
    features, labels = torch.randn(*shape, D), torch.randint(-1, C, shape)
    flat_features, flat_labels = features.reshape(-1, D), labels.reshape(-1)
    assert torch.equal(head(features), head(flat_features).reshape(*shape, C))
    assert torch.equal(head(features, labels), head(flat_features, flat_labels).reshape(*shape, C))
    assert torch.equal(
        head.loss(features, labels, "none"), head.loss(flat_features, flat_labels, "none").reshape(shape)
    )
    with pytest.raises(ValueError, match=r"^labels: expected shape .*, that of input .* without its last axis"):
        head.loss(features, torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize("margin", [SphereFace(2), CosFace(0.35, 16), ArcFace(0.5, 16)], ids=repr)
def test_plain_logits_of_a_margin_that_normalises(batch, margin):
    features, labels = batch
    head = LSoftmaxLinear(D, C, margin=margin)
    with torch.no_grad():
        features[0], head.weight[7] = 0, 0
    cosines = torch.nn.functional.normalize(features) @ torch.nn.functional.normalize(head.weight).T
    expected = margin.scale * cosines
    if not margin.normalize_features:
        expected = expected * features.norm(dim=1, keepdim=True)
    torch.testing.assert_close(head(features), expected)
    torch.testing.assert_close(head(features, torch.full_like(labels, -1)), expected)


def prune(head):
    from torch.nn.utils.prune import l1_unstructured

    l1_unstructured(head, "weight", amount=0.5)
    return lambda: head.weight_orig * head.weight_mask


def parametrize(head):
    torch.nn.utils.parametrizations.weight_norm(head)
    return lambda: head.weight


@pytest.mark.parametrize("wrap", [prune, parametrize])
def test_the_loss_is_that_of_the_weights_as_hooks_make_them(batch, wrap):
    features, labels = batch
    head = LSoftmaxLinear(D, C, margin=1)
    weight_of = wrap(head)
    optimizer = torch.optim.SGD(head.parameters(), lr=1.0)
    for _ in range(3):
        optimizer.zero_grad()
        loss = head.loss(features, labels)
        plain = torch.nn.functional.cross_entropy(features @ weight_of().T, labels, ignore_index=-1)
        torch.testing.assert_close(loss, plain)
        loss.backward()
        optimizer.step()


def test_a_wrapper_that_knows_the_forward_pass_alone_has_the_loss_of_it(batch):
    head = LSoftmaxLinear(D, C)
    for reduction in ("mean", "sum", "none"):
        assert torch.equal(head(*batch, reduction), head.loss(*batch, reduction))


def test_the_gradient_is_that_of_the_lambda_of_its_loss(batch):
    features, labels = batch
    gradients = []
    for later in (0.5, 7.0):
        torch.manual_seed(0)
        head = LSoftmaxLinear(D, C, lam=0.5)
        loss = head.loss(features, labels)
        head.set_lambda(later)
        loss.backward()
        gradients.append(head.weight.grad)
    assert torch.equal(*gradients)


def test_a_head_that_was_made_without_memory(batch):
    whole = LSoftmaxLinear(D, C, lam=0.5)
    head = LSoftmaxLinear(D, C, lam=0.5, device="meta")
    head.load_state_dict(whole.state_dict(), assign=True)
    assert torch.equal(head.loss(*batch), whole.loss(*batch))
    with pytest.raises(TypeError, match=r"^lam: expected a PyTorch tensor on cpu, as features is, got .*"):
        lsoftmax_logits(batch[0], head.weight.T, batch[1], lam=torch.zeros((), device="meta"))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16], ids=str)
def test_the_last_class_of_unsigned_labels_counts(dtype):
    last = torch.iinfo(dtype).max
    head = LSoftmaxLinear(1, last + 1, margin=2)
    features, labels = torch.randn(3, 1, requires_grad=True), torch.tensor([last, 0, last])
    torch.testing.assert_close(head.loss(features, labels.to(dtype)), head.loss(features, labels))
    (first,) = torch.autograd.grad(head.loss(features, labels.to(dtype)), features, create_graph=True)
    assert torch.autograd.grad(first.square().sum(), features)[0].isfinite().all()


def test_rows_without_a_target_have_no_gradient(batch):
    features, labels = batch
    features.requires_grad_()
    head = LSoftmaxLinear(D, C, True)
    assert head.loss(features, torch.full_like(labels, -1)).isnan()
    head.loss(features, torch.full_like(labels, -1)).backward()
    head.loss(features, labels, "none").backward(torch.where(labels == -1, math.inf, 0.0))
    for parameter in (features, *head.parameters()):
        assert not parameter.grad.any()


@pytest.mark.parametrize("margin", [4, ArcFace(0.5, 16)], ids=repr)
def test_it_trains(margin):
    torch.manual_seed(0)
    labels = torch.arange(64) % C
    features = torch.randn(C, D)[labels] + 0.1 * torch.randn(64, D)
    head = LSoftmaxLinear(D, C, margin=margin)
    optimizer = torch.optim.SGD(head.parameters(), lr=1.0)
    annealing = LambdaScheduler(head, LambdaSchedule(base=10.0, gamma=0.1, power=2.0))
    for _ in range(100):
        optimizer.zero_grad()
        head.loss(features, labels).backward()
        optimizer.step()
        annealing.step()
    assert head.lam.item() < 0.1
    assert (head(features).argmax(1) == labels).float().mean() > 0.95


def test_lambda_is_moved_but_not_cast():
    head = LSoftmaxLinear(D, C, lam=1e6)
    for module in (head.half(), head.to(torch.bfloat16), head.double(), copy.deepcopy(head)):
        assert module.lam.dtype == torch.float64
        assert module.lam.item() == 1e6
        assert [name for name, _ in module.named_buffers()] == ["lam"]
    assert head.to("meta").lam.is_meta
    assert head.to_empty(device="cpu").lam.item() == 1e6
    head.set_lambda(math.inf)
    file = io.BytesIO()
    torch.save(head, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert (loaded.lam.item(), loaded.margin) == (math.inf, LSoftmax(4))


def test_it_prints_what_it_is():
    text = repr(LSoftmaxLinear(D, C, margin=ArcFace(0.5, 16)))
    assert text == (
        "LSoftmaxLinear(in_features=5, out_features=9, bias=False, margin=ArcFace(m2=0.5, scale=16.0), "
        "label_smoothing=0.0)"
    )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"margin": 65}, ValueError, "^margin: expected an integer from 1 to 64, got 65"),
        ({"margin": "arcface"}, TypeError, "^margin: expected an integer from 1 to 64, got 'arcface'; a margin of"),
        ({"margin": ArcFace(0.5, 16), "bias": True}, ValueError, "^bias: expected False with a margin that normalises"),
        ({"lam": -1}, ValueError, "^lam: expected a number >= 0, got -1"),
        ({"lam": LambdaSchedule()}, TypeError, r"^lam: expected a number >= 0, got LambdaSchedule\("),
        ({"label_smoothing": 1}, ValueError, r"^label_smoothing: expected a number in \[0, 1\), got 1"),
    ],
)
def test_what_is_wrong_is_named(options, error, message):
    with pytest.raises(error, match=message):
        LSoftmaxLinear(D, C, **options)


@pytest.mark.parametrize(
    ("input", "labels", "error", "message"),
    [
        (torch.zeros(2, D), [0, 1], TypeError, "^labels: expected a PyTorch tensor, got"),
        ([[0.0] * D], torch.tensor([0]), TypeError, "^input: expected a PyTorch tensor, got"),
        (torch.zeros(2, D), None, TypeError, "^labels: expected a PyTorch tensor, got None"),
        (torch.tensor(3.0), torch.tensor(0), ValueError, r"^input: expected shape \[\.\.\., 5\], got \[\]"),
        (torch.zeros(2, D), torch.tensor([0]), ValueError, r"^labels: expected shape \[2\], that of input"),
    ],
)
def test_what_is_wrong_with_a_batch_is_named(input, labels, error, message):
    with pytest.raises(error, match=message):
        LSoftmaxLinear(D, C).loss(input, labels)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_features_of_no_dimension():
    assert LSoftmaxLinear(0, C).loss(torch.zeros(3, 0), torch.tensor([0, 1, 2])).item() == pytest.approx(math.log(C))


def test_a_scheduler_goes_on_where_its_checkpoint_was():
    schedule = LambdaSchedule(base=100.0, gamma=0.5, power=2.0, minimum=3.0)
    heads = [LSoftmaxLinear(D, C), LSoftmaxLinear(D, C, margin=ArcFace(0.5, 16))]
    annealing = LambdaScheduler(heads, schedule)
    seen = []
    for _ in range(4):
        seen.append([head.lam.item() for head in heads])
        annealing.step()
    assert seen == [[schedule(step)] * 2 for step in range(4)]
    other = LSoftmaxLinear(D, C)
    resumed = LambdaScheduler(other, schedule)
    resumed.load_state_dict(annealing.state_dict())
    assert (resumed.steps, other.lam.item()) == (4, schedule(4))


def test_a_scheduler_names_what_is_wrong():
    head = LSoftmaxLinear(D, C)
    with pytest.raises(TypeError, match=r"^layers: expected layers of LSoftmaxLinear, got torch\.nn.*Linear"):
        LambdaScheduler([head, torch.nn.Linear(D, C)], LambdaSchedule())
    with pytest.raises(TypeError, match=r"^schedule: expected a function of the step, got 5\.0"):
        LambdaScheduler(head, 5.0)
    with pytest.raises(ValueError, match=r"^lam: expected a number >= 0, got -1"):
        LambdaScheduler(head, lambda step: -1)
    for layers in (torch.nn.Linear(D, C), None):
        with pytest.raises(TypeError, match=r"^layers: expected layers of LSoftmaxLinear, got"):
            LambdaScheduler(layers, LambdaSchedule())
    with pytest.raises(ValueError, match=r"^layers: expected a LSoftmaxLinear or several, got none"):
        LambdaScheduler([], LambdaSchedule())
    with pytest.raises(ValueError, match=r"^state_dict: expected what state_dict\(\) returned, with steps, got \[\]"):
        LambdaScheduler(head, LambdaSchedule()).load_state_dict({})
    LambdaScheduler(torch.compile(head), lambda step: 3.0)
    assert head.lam.item() == 3
    with pytest.raises(ValueError, match=r"^steps: expected an integer >= 0, got -1"):
        LambdaScheduler(head, LambdaSchedule()).load_state_dict({"steps": -1})
