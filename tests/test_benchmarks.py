"""The benchmarks' peers compute what they are said to compute, and every question can be asked."""

import json

import numpy as np
import pytest
from support import random_batch

from lsoftmax_op import reference

tf = pytest.importorskip("tensorflow")

from benchmarks import __main__ as command
from benchmarks import peers, per_sample_loop


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


def test_every_question(tmp_path, capsys):
    command.main(["--quick", "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    for question in command.QUESTIONS:
        document = json.loads((tmp_path / f"{question}.json").read_text())
        assert document["rows"]
        assert document["machine"]["tensorflow"] == tf.__version__
        assert question in printed


def test_an_unknown_question(capsys):
    with pytest.raises(SystemExit):
        command.main(["nonsense"])
    assert "nonsense" in capsys.readouterr().err
