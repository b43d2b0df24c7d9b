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
    assert head.loss(features, torch.full((6,), -1)).isnan()
    large, labels = 1000 * torch.ones(200, D).half(), torch.zeros(200, dtype=torch.int64)
    head = LSoftmaxLinear(D, C, margin=1, dtype=torch.float16)
    with torch.no_grad():
        head.weight.fill_(1)[0] = 0  # losses of about 5000, whose sum is none of float16
    assert head.loss(large, labels).isfinite()
    with pytest.raises(ValueError, match=r"^reduction: expected one of mean, sum, none, got 'max'"):
        head.loss(features, labels, "max")


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
    with pytest.raises(ValueError, match=r"^steps: expected an integer >= 0, got -1"):
        LambdaScheduler(head, LambdaSchedule()).load_state_dict({"steps": -1})
