"""The benchmarks' peers compute what they are said to compute, and every question can be asked."""

import json
import sys

import numpy as np
import pytest
from support import random_batch

from lsoftmax_op import reference

tf = pytest.importorskip("tensorflow")

from benchmarks import __main__ as command
from benchmarks import batches, gpu, margin_peers, margins, peers, per_sample_loop, turns

SHAPE = (6, 5, 7)


def by_loop(x, w, y):
    return per_sample_loop.L_softmax(x, y, w, tf.zeros([w.shape[1]], w.dtype), x.shape[0], 0.5)[0]


def by_tensorflow(x, w, y):
    return peers.vectorised(x, w, y, margin=4, lam=0.5)


@pytest.mark.parametrize("layer", [by_loop, by_tensorflow])
def test_peers(layer):
    batch = random_batch((4, 6, 5), "float64")
    batch.labels[:] = [0, 4, 2, 2]
    x, w = tf.constant(batch.features), tf.constant(batch.weights)
    with tf.GradientTape() as tape:
        tape.watch([x, w])
        logits = layer(x, w, tf.constant(batch.labels))
    gradients = tape.gradient(logits, [x, w], output_gradients=tf.constant(batch.grad))
    arguments = (batch.features, batch.weights, batch.labels)
    np.testing.assert_allclose(logits, reference.logits(*arguments, lam=0.5), rtol=1e-10)
    want = reference.logits_grad(batch.grad, *arguments, lam=0.5)
    for got, expected in zip(gradients, want, strict=False):
        np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-10)


def check_step(step, margin, lam, tolerance):
    """Compares a step's mean loss and its gradients with the oracle's."""
    batch = batches.batch(*SHAPE)
    mean = np.full(SHAPE[0], 1 / SHAPE[0])
    want = reference.loss_grad(mean, *batch, margin=margin, lam=lam)
    loss, *gradients = (np.asarray(part) for part in step())
    np.testing.assert_allclose(loss, mean @ reference.loss(*batch, margin=margin, lam=lam), rtol=tolerance)
    for got, expected in zip(gradients, want, strict=False):
        np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("name", [*peers.LOSSES, "in blocks", "ours XLA", "plain XLA", "pure TF XLA"])
def test_steps(name):
    xla, name = name.endswith(" XLA"), name.removesuffix(" XLA")
    margin, lam = (1, 0.0) if name == "plain" else (peers.MARGIN, peers.LAMBDA)
    loss = peers.fused(3) if name == "in blocks" else peers.LOSSES[name]
    features, weights, labels = batches.batch(*SHAPE)
    arguments = tf.constant(features, tf.float64), tf.Variable(weights, dtype=tf.float64), tf.constant(labels)
    check_step(peers.step(loss, *arguments, xla=xla), margin, lam, 1e-9)


def test_steps_in_pytorch():
    pytest.importorskip("torch")
    pytest.importorskip("pytorch_metric_learning")
    from benchmarks import torch_peers

    steps = torch_peers.steps(*SHAPE)
    check_step(steps[torch_peers.PLAIN], 1, 0.0, 1e-4)
    check_step(steps[torch_peers.METRIC_LEARNING], torch_peers.MARGIN, 0.0, 1e-4)


def test_steps_of_the_linear_layer_in_pytorch():
    pytest.importorskip("torch")
    from benchmarks import torch_linear_peers

    steps = torch_linear_peers.steps(*SHAPE)
    for name in ("plain", "no margin", "L-Softmax", "L-Softmax, logits", "ArcFace"):
        loss, features_grad, weight_grad = (np.asarray(part) for part in steps[name]())
        plain = name in ("plain", "no margin")
        margin = torch_linear_peers.MARGINS[name.partition(",")[0]] if not plain else 1
        lam = torch_linear_peers.LAMBDA if "L-Softmax" in name else 0.0
        check_step(lambda found=(loss, features_grad, weight_grad.T): found, margin, lam, 1e-4)


def mean_margin_loss(margin, features, weights, labels):
    """Returns the mean loss of ArcFace(0.5, 64) or CosFace(0.35, 64) and its gradients, by the papers' angles."""
    n, rows = len(labels), np.arange(len(labels))
    x, w = np.linalg.norm(features, axis=1, keepdims=True), np.linalg.norm(weights, axis=0)
    cosines = (features / x) @ (weights / w)
    theta = np.arccos(cosines[rows, labels])
    if margin == "ArcFace":
        folded = theta > np.pi - 0.5
        psi = np.where(folded, -2 - np.cos(theta + 0.5), np.cos(theta + 0.5))
        slope = np.where(folded, -1, 1) * np.sin(theta + 0.5) / np.sin(theta)
    else:
        psi, slope = np.cos(theta) - 0.35, 1
    logits = 64 * cosines
    logits[rows, labels] = 64 * psi
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    losses = -np.log(probabilities[rows, labels])
    grad = 64 / n * probabilities  # dL/dcos
    grad[rows, labels] = slope * (grad[rows, labels] - 64 / n)
    features_grad = (grad @ (weights / w).T - features / x * np.sum(grad * cosines, axis=1, keepdims=True)) / x
    weights_grad = ((features / x).T @ grad - weights / w * np.sum(grad * cosines, axis=0)) / w
    return losses.mean(), features_grad, weights_grad


@pytest.mark.parametrize("xla", [False, True], ids=["graph", "XLA"])
@pytest.mark.parametrize("name", margin_peers.LOSSES)
def test_margin_steps(name, xla):
    margin, _, peer = name.partition(": ")
    features, weights, labels = batches.batch(*SHAPE)
    if peer != "pasted":  # which is not continued there
        features[0] = 0.02 * features[0] - 3 * weights[:, labels[0]]  # theta > pi - 0.5
    features, weights = features.astype(np.float64), weights.astype(np.float64)
    step = peers.step(
        margin_peers.LOSSES[name], tf.constant(features), tf.Variable(weights), tf.constant(labels), xla=xla
    )
    for got, expected in zip(step(), mean_margin_loss(margin, features, weights, labels), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())


def test_margin_steps_in_pytorch():
    pytest.importorskip("torch")
    pytest.importorskip("pytorch_metric_learning")
    from benchmarks import torch_margin_peers

    for name, step in torch_margin_peers.steps(*SHAPE).items():
        margin, separator, _ = name.partition(": ")
        if separator:
            for got, expected in zip(step(), mean_margin_loss(margin, *batches.batch(*SHAPE)), strict=True):
                np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_peers_that_compute_something_else_are_not_compared():
    margins.check_losses({"plain": 1.0, "ArcFace: ours": 2.0, "ArcFace: pure TF": 2.0})
    with pytest.raises(RuntimeError, match="pure TF"):
        margins.check_losses({"plain": 1.0, "ArcFace: ours": 2.0, "ArcFace: pure TF": 2.1})


def test_taking_turns():
    process = turns.Process(sys.executable, "benchmarks.peers", SHAPE)
    seconds = turns.take([process], rounds=2, repeats=1)
    process.close()
    assert list(seconds) == list(process.losses) == ["ours", "plain"]
    assert all(value > 0 for values in seconds.values() for value in values)


def test_a_process_that_fails_says_why():
    with pytest.raises(RuntimeError, match="No module named 'benchmarks.nothing'"):
        turns.Process(sys.executable, "benchmarks.nothing", SHAPE)


@pytest.mark.slow
@pytest.mark.parametrize(
    "asked", [["step", "sweep"], pytest.param([], marks=pytest.mark.long)], ids=["two", "every one"]
)
def test_questions(asked, tmp_path, capsys):
    command.main([*asked, "--quick", "--output", str(tmp_path / "results"), "--pictures", str(tmp_path)])
    printed = capsys.readouterr().out
    for question in asked or command.QUESTIONS:
        document = json.loads((tmp_path / "results" / f"{question}.json").read_text())
        assert document["rows"]
        assert document["machine"]["tensorflow"] == tf.__version__
        assert question in printed
    for picture in ("step.png", "sweep.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize("name", gpu.TABLES)
def test_the_tables_of_a_gpu(name):
    """Tiny, and on the CPU where there is no GPU: does each run at all?"""
    if name in ("row_pass", "kernels", "pytorch"):
        pytest.importorskip("torch")
    title, rows = gpu.table(name, 1, quick=True)
    assert title != name
    for row in rows:
        assert "result" not in row, row
        assert row.get("same bits", "yes") == "yes"


def test_without_a_gpu_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "device", lambda: None)
    command.main(["gpu", "--output", str(tmp_path)])
    assert json.loads((tmp_path / "gpu.json").read_text())["rows"] == [{"result": "nvidia-smi finds no GPU here"}]


def test_a_table_that_fails_says_why():
    if not tf.config.list_physical_devices("GPU"):
        assert "keras: no GPU is seen" in gpu.table("keras", 1, quick=False)[1][0]["result"]
    assert "No module named 'benchmarks.gpu_nothing'" in gpu.table("nothing", 1, quick=True)[1][0]["result"]


def test_what_time_does_not_allow_is_not_measured():
    assert list(gpu.in_time(60, [1, 2])) == [1, 2]
    assert list(gpu.in_time(-1, [1, 2])) == []


def test_an_unknown_question(capsys):
    with pytest.raises(SystemExit):
        command.main(["nonsense"])
    assert "nonsense" in capsys.readouterr().err
