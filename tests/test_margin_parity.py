"""Margins beside what others published under the same names: where they are equal, and where they are not.

    SphereFace (2017)            psi as in the paper, k by rounding the angle down, |w| = 1
    insightface, ArcFace         cos(theta + m2), today by an arc cosine under no_grad and with no continuation; before
                                 that cos(theta) cos(m2) - sin(theta) sin(m2), continued by cos(theta) - m2 sin(m2)
    insightface, CosFace         cos(theta) - m3
    insightface, combined        today CosFace wherever m3 > 0, whatever m1 and m2 are; the paper's is another
    pytorch-metric-learning      ArcFace continued like insightface's before; CosFace; SphereFace with a scale

NumPy knows these definitions here, and shares nothing with the oracle but the batch.
"""

import math

import numpy as np
import pytest
from support import random_batch

from lsoftmax_op import reference
from lsoftmax_op.margins import ArcFace, Combined, CosFace, LSoftmax, SphereFace

S, M2, M3 = 64.0, 0.5, 0.35


def circle(degrees):
    """Samples at the angles to a class of their own: x, w [2, N], labels."""
    angles = np.radians(np.atleast_1d(np.asarray(degrees, np.float64)))
    w = np.array([np.cos(angles * 7), np.sin(angles * 7)]) * (1 + angles)
    x = np.array([np.cos(angles * 8), np.sin(angles * 8)]) * (2 + angles)
    return x.T.copy(), w, np.arange(len(angles))


BEFORE, BEYOND = circle(np.linspace(5, 150, 30)), circle(np.linspace(152, 175, 10))  # 180 - 28.6 is the edge
EVERYWHERE = circle(np.linspace(5, 175, 35))


def cosines(x, w):
    return (x / np.linalg.norm(x, axis=1, keepdims=True)) @ (w / np.linalg.norm(w, axis=0))


def with_targets(logits, of_target):
    """The logits with those on the diagonal, the targets', made anew."""
    targets = np.diag_indices(len(logits))
    logits = logits.copy()
    logits[targets] = of_target(logits[targets])
    return logits


def arcface_by_arc_cosine(c):
    return np.cos(np.arccos(c) + M2)


def arcface_by_addition(c, easy_margin=False):
    added = c * math.cos(M2) - np.sqrt(1 - c**2) * math.sin(M2)
    if easy_margin:
        return np.where(c > 0, added, c)
    return np.where(c > math.cos(math.pi - M2), added, c - math.sin(math.pi - M2) * M2)


def sphereface(c, m):
    angle = np.arccos(c)
    k = np.floor(angle / (math.pi / m))
    return (-1) ** k * np.cos(m * angle) - 2 * k


@pytest.mark.parametrize(
    ("margin", "of_target", "batch"),
    [
        (CosFace(M3, S), lambda c: c - M3, EVERYWHERE),
        (ArcFace(M2, S, "linear"), arcface_by_addition, EVERYWHERE),
        (ArcFace(M2, S), arcface_by_addition, BEFORE),
        (ArcFace(M2, S), arcface_by_arc_cosine, BEFORE),
        (Combined(1, 0, M3, S), lambda c: c - M3, EVERYWHERE),
        (Combined(2, 0.2, 0.1, S), lambda c: np.cos(2 * np.arccos(c) + 0.2) - 0.1, circle(np.linspace(1, 84, 20))),
        (Combined(4, 0, 0, S), lambda c: sphereface(c, 4), EVERYWHERE),
    ],
    ids=["cosface", "arcface-linear", "arcface-addition", "arcface-arccos", "combined-m3", "combined", "combined-m1"],
)
def test_logits_as_published(margin, of_target, batch):
    x, w, labels = batch
    want = S * with_targets(cosines(x, w), of_target)
    np.testing.assert_allclose(reference.logits(x, w, labels, margin=margin), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("m", [1, 2, 3, 4])
def test_sphereface_keeps_the_norm_of_the_sample(m):
    x, w, labels = EVERYWHERE
    want = np.linalg.norm(x, axis=1, keepdims=True) * with_targets(cosines(x, w), lambda c: sphereface(c, m))
    np.testing.assert_allclose(reference.logits(x, w, labels, margin=SphereFace(m)), want, rtol=1e-12, atol=1e-12)


def test_beyond_the_edge_an_arc_cosine_alone_rises_again():
    """insightface's code of today has no continuation: from 180 - 28.6 degrees on, a larger angle is rewarded."""
    angles = np.radians(np.linspace(152, 179, 28))
    assert (np.diff(arcface_by_arc_cosine(np.cos(angles))) > 0).all()
    for continuation in ("unfolded", "linear"):
        assert (np.diff(ArcFace(M2, S, continuation).psi(angles)) < 0).all()


def test_the_easy_margin_is_another():
    """It leaves a target beyond 90 degrees without a margin: it jumps up by sin(m2) there, and is not offered."""
    before, beyond = arcface_by_addition(np.cos(np.radians([89.999, 90.001])), easy_margin=True)
    assert beyond - before == pytest.approx(math.sin(M2), abs=1e-4)
    assert ArcFace(M2, S).psi(math.radians(90.001)) < before


def test_insightface_combines_less_than_the_paper():
    """With m3 > 0 today's code is CosFace, whatever m1 and m2 are."""
    x, w, labels = BEFORE
    of_code = S * with_targets(cosines(x, w), lambda c: c - M3)
    of_paper = reference.logits(x, w, labels, margin=Combined(1, 0.3, M3, S))
    assert (np.diag(of_paper) < np.diag(of_code) - 1).all()


def test_the_gradient_that_no_grad_leaves_is_another():
    """insightface's code of today takes d cos(theta + m2) as d cos(theta), without sin(theta + m2) / sin(theta)."""
    x, w, labels = BEFORE
    grad = np.eye(len(x))
    detached = reference.logits_grad(grad, x, w, labels, margin=CosFace(0, S))
    exact = reference.logits_grad(grad, x, w, labels, margin=ArcFace(M2, S))
    angles = np.arccos(np.diag(cosines(x, w)))
    left_away = np.sin(angles + M2) / np.sin(angles)
    assert left_away.max() > 6 * left_away.min()
    np.testing.assert_allclose(exact.features, detached.features * left_away[:, None], rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(exact.weights, detached.weights * left_away, rtol=1e-9, atol=1e-10)


def test_no_grad_leaves_that_gradient_in_pytorch():
    torch = pytest.importorskip("torch")
    cosine = torch.tensor([0.3, 0.9], dtype=torch.float64, requires_grad=True)
    logits = cosine * 1.0
    with torch.no_grad():
        logits.arccos_()
        logits += M2
        logits.cos_()
    (S * logits).sum().backward()
    np.testing.assert_allclose(logits.detach(), arcface_by_arc_cosine(np.array([0.3, 0.9])))
    np.testing.assert_array_equal(cosine.grad, [S, S])


# pytorch-metric-learning ----------------------------------------------------------------------------------------------

PEERS = [
    ("ArcFaceLoss", {"margin": math.degrees(M2), "scale": S}, ArcFace(M2, S, "linear")),
    ("CosFaceLoss", {"margin": M3, "scale": S}, CosFace(M3, S)),
    ("SphereFaceLoss", {"margin": 4, "scale": 1}, SphereFace(4)),
    ("SphereFaceLoss", {"margin": 3, "scale": 2.5}, SphereFace(3).scaled(2.5)),
    ("LargeMarginSoftmaxLoss", {"margin": 4, "scale": 1}, LSoftmax(4)),
]


def peer_step(name, options, x, w, labels):
    """The mean loss of pytorch-metric-learning, and its gradients in x and w."""
    torch = pytest.importorskip("torch")
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    layer = getattr(losses, name)(num_classes=w.shape[1], embedding_size=w.shape[0], **options)
    layer.W = torch.nn.Parameter(torch.tensor(w))
    features = torch.tensor(x, requires_grad=True)
    loss = layer(features, torch.tensor(labels))
    loss.backward()
    return loss.item(), features.grad.numpy(), layer.W.grad.numpy()


@pytest.mark.parametrize(("name", "options", "margin"), PEERS)
@pytest.mark.parametrize("case", ["angles", "random"])
def test_pytorch_metric_learning(name, options, margin, case):
    x, w, labels = EVERYWHERE if case == "angles" else random_batch((16, 5, 7), "float64", 3).layer[:3]
    labels = np.abs(labels).astype(np.int64)
    loss, in_x, in_w = peer_step(name, options, x, w, labels)
    gradients = reference.loss_grad(np.full(len(x), 1 / len(x)), x, w, labels, margin=margin)
    assert loss == pytest.approx(reference.loss(x, w, labels, margin=margin).mean(), rel=1e-12)
    size = margin.scale * np.abs(w).max() * margin.m1
    np.testing.assert_allclose(in_x, gradients.features, rtol=1e-9, atol=1e-12 * size)
    np.testing.assert_allclose(in_w, gradients.weights, rtol=1e-9, atol=1e-12 * size)


def test_pytorch_metric_learning_at_a_pole():
    """The derivative of its arc cosine is infinite there, and the gradients NaN; here what m2 makes of them is 0."""
    x, w, labels = np.array([[2.0, 0.0]]), np.array([[3.0, 0.0], [0.0, 1.0]]), np.array([0])
    loss, in_x, in_w = peer_step(*PEERS[0][:2], x, w, labels)
    margin = PEERS[0][2]
    assert loss == pytest.approx(reference.loss(x, w, labels, margin=margin)[0])
    assert np.isnan(in_x).any()
    assert np.isnan(in_w).any()
    gradients = reference.loss_grad([1.0], x, w, labels, margin=margin)
    assert np.isfinite(gradients.features).all()
    assert np.isfinite(gradients.weights).all()
