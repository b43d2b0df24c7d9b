"""Classes below rounding are left out of the loss's gradients: which, what that changes, and that nothing else does."""

import ml_dtypes
import numpy as np
import pytest
from support import DTYPES, Batch, random_batch

import lsoftmax_op
from lsoftmax_op import filtering, reference
from lsoftmax_op.margins import ArcFace, CosFace, Margin, margin_of

tf = pytest.importorskip("tensorflow")

DEPTH, CLUSTERS, MATES = 32, 26, 8  # classes of a cluster compete, those of two do not: far ones are at right angles
CLASSES = CLUSTERS * MATES
OPS = ("LsoftmaxKeptClasses", "LsoftmaxTakeColumns", "LsoftmaxSpreadColumns")

# With a margin, whether there is a bias, and how large |x||w| is, or the scale, so that other clusters do not matter.
LAYERS = (
    pytest.param(4, False, id="L-Softmax"),
    pytest.param(2, True, id="bias"),
    pytest.param(ArcFace(0.2, 60), False, id="ArcFace"),
    pytest.param(CosFace(0.1, 60), False, id="CosFace"),
    pytest.param(Margin(m3=0.1, scale=0.5), False, id="scale"),
    pytest.param(Margin(2, 0.1, 0.1, 60, normalize_features=True), False, id="unit features"),
)


@pytest.fixture(autouse=True)
def layers_of_any_size(monkeypatch):
    monkeypatch.setattr(filtering, "LEAST_CLASSES", 1)
    monkeypatch.setattr(filtering, "LEAST_WEIGHTS", 1)


def epsilon(dtype):
    return float(ml_dtypes.finfo(DTYPES[dtype]).eps)


def directions():
    """DEPTH of them, at right angles. The first CLUSTERS are the clusters'."""
    return np.linalg.qr(np.random.default_rng(0).normal(size=(DEPTH, DEPTH)))[0]


def clustered(margin=4, dtype="float32", bias=False, clusters=2, rows=12):
    """A batch whose samples are of the first `clusters` of CLUSTERS; the last has no label."""
    margin, rng = margin_of(margin), np.random.default_rng(0)
    classes = np.repeat(directions()[:CLUSTERS], MATES, axis=0) + 0.04 * rng.normal(size=(CLASSES, DEPTH))
    classes *= rng.uniform(0.8, 1.2, (CLASSES, 1)) if margin.normalize_weights else 1
    labels = rng.integers(0, clusters * MATES, rows)
    labels[-1] = -1
    features = classes[labels] + 0.02 * rng.normal(size=(rows, DEPTH))
    features *= 5 if margin.normalize_features else 60 / margin.scale
    weights, grad = classes.T, rng.normal(size=(rows, CLASSES))
    arrays = (features, weights, 0.1 * rng.normal(size=CLASSES) if bias else None, grad)
    x, w, b, g = (None if array is None else array.astype(DTYPES[dtype]) for array in arrays)
    return Batch(x, w, labels, b, g)


def kept_by_hand(batch, margin, dtype):
    """The classes that matter, in float64, by the oracle's gradient in a bias, a row at a time."""
    exact = batch.exact()
    logits = reference.logits(exact.features, exact.weights, batch.labels, exact.bias, margin=margin)
    kept = set()
    for row, y in enumerate(batch.labels):
        if y < 0:
            continue
        p = np.exp(logits[row] - logits[row].max())
        p /= p.sum()
        others = np.delete(np.arange(CLASSES), y)
        kept |= set(others[p[others] > epsilon(dtype) / CLASSES * p[others].sum()])
    return kept


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lead", [0, 12], ids=["even", "nearly right"])
def test_the_limit_is_one_of_the_row(lead, dtype):
    """A class that is behind the target's strongest rival by the log of C / eps, or a little less."""
    fall = np.log(3 / epsilon(dtype))
    for beyond, count in ((0.3, 1), (-0.3, 2)):
        logits = np.array([[lead, 0, -fall - beyond]], DTYPES[dtype])
        found = lsoftmax_op.kept_classes(np.ones((1, 1), DTYPES[dtype]), logits, np.array([0]), margin=1)
        assert found == count


def gradients(batch, margin, filter="auto", wrap=lambda f: f, class_major=False):
    """The losses, and the gradients in features, weights [D, C] and bias, if any."""
    weights = np.ascontiguousarray(batch.weights.T) if class_major else batch.weights
    tensors = [tf.constant(a) for a in (batch.features, weights, batch.bias) if a is not None]
    options = {"margin": margin, "filter": filter, "class_major": class_major}

    @wrap
    def step(*tensors):
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            x, w, *b = tensors
            loss = lsoftmax_op.margin_softmax_loss(x, w, batch.labels, *b, **options)
        return loss, *tape.gradient(loss, tensors, output_gradients=tf.constant(batch.loss_grad))

    loss, of_features, of_weights, *of_bias = (np.asarray(tensor) for tensor in step(*tensors))
    return [loss, of_features, of_weights.T if class_major else of_weights, *of_bias]


def left_out(weights_grad):
    return np.flatnonzero(~np.asarray(weights_grad).any(axis=0))


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        assert a.tobytes() == b.tobytes()


LAYOUTS = pytest.mark.parametrize("class_major", [False, True], ids=["columns", "rows"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("margin", "bias"), LAYERS)
@LAYOUTS
def test_what_matters_is_kept(class_major, margin, bias, dtype):
    batch = clustered(margin, dtype, bias)
    kept = kept_by_hand(batch, margin, dtype)
    assert 0 < len(kept) <= 2 * MATES
    x, w, y, b = batch.layer
    found = lsoftmax_op.kept_classes(x, w.T if class_major else w, y, b, margin=margin, class_major=class_major)
    assert found == len(kept)
    labels = set(batch.labels[batch.labels >= 0])
    weights_grad = gradients(batch, margin, class_major=class_major)[2]
    assert set(left_out(weights_grad)) == set(range(CLASSES)) - kept - labels


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("margin", "bias"), LAYERS)
@LAYOUTS
def test_results_agree_within_the_bound(class_major, margin, bias, dtype):
    """With those of all classes, apart from the rounding of the products, and with the oracle as well as those."""
    batch, margin = clustered(margin, dtype, bias), margin_of(margin)
    exact, eps = batch.exact(), epsilon(dtype)
    loss, *ours = gradients(batch, margin, class_major=class_major)
    dense_loss, *dense = gradients(batch, margin, filter=False, class_major=class_major)
    assert_same([loss, *ours[2:]], [dense_loss, *dense[2:]])

    x, w = np.linalg.norm(exact.features, axis=1), np.linalg.norm(exact.weights, axis=0)
    q = -np.expm1(-reference.loss(*exact.layer, margin=margin))  # 1 - p
    size = margin.scale * np.abs(exact.loss_grad) * q / (x if margin.normalize_features else 1)
    of_features = (size * (1 if margin.normalize_weights else w.max()))[:, None]
    of_weights = size @ x / (w.min() if margin.normalize_weights else 1)
    rounding = 16 * eps
    for got, other, bound in zip(ours[:2], dense[:2], (of_features, of_weights), strict=True):
        difference = np.abs(got.astype(np.float64) - other.astype(np.float64))
        assert (difference <= (eps + rounding) * bound).all()
    columns = left_out(ours[1])
    assert (np.linalg.norm(dense[1][:, columns].astype(np.float64), axis=0) <= 2 * eps / CLASSES * of_weights).all()

    want = reference.loss_grad(exact.loss_grad, *exact.layer, margin=margin)
    for got, other, expected in zip(ours[:2], dense[:2], want, strict=False):
        error, of_dense = (np.linalg.norm(a.astype(np.float64) - expected) for a in (got, other))
        assert error <= 1.1 * of_dense + eps * np.linalg.norm(expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_row_that_is_nearly_right_keeps_its_digits(dtype):
    """Its gradient is far below the rounding of the other rows', and has its own rounding."""
    batch = clustered(1, dtype)
    batch.weights[:, batch.labels[0]] += 0.5 * directions()[-1]
    batch.features[0] += 50 * directions()[-1]
    exact = batch.exact()
    q = -np.expm1(-reference.loss(*exact.layer, margin=1))
    assert 0 < q[0] < 1e-9 < 1e-3 < q[1:].max()
    found = gradients(batch, 1)
    assert left_out(found[2]).size > CLASSES / 2
    want = reference.loss_grad(exact.loss_grad, *exact.layer, margin=1).features
    np.testing.assert_allclose(found[1][0], want[0], atol=300 * epsilon(dtype) * np.abs(want[0]).max())


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "function"])
@pytest.mark.parametrize("shape", [(9, 7, 300), (40, 33, 5000), (5, 40, 41), (0, 4, 30)])
@LAYOUTS
def test_where_all_matter_every_bit_is_that_of_all(class_major, shape, compiled):
    batch = random_batch(shape, "float32")
    batch.features[:1] = 0
    options = {"wrap": tf.function if compiled else lambda f: f, "class_major": class_major}
    assert_same(gradients(batch, 2, **options), gradients(batch, 2, filter=False, **options))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@LAYOUTS
def test_what_is_not_finite_is_where_it_was(class_major, value):
    batch = clustered()
    batch.features[3, 0] = value
    layout = {"class_major": class_major}
    assert_same(gradients(batch, 4, **layout), gradients(batch, 4, filter=False, **layout))


def test_without_any_target_nothing_matters():
    batch = clustered()
    batch.labels[:] = -1
    assert lsoftmax_op.kept_classes(*batch.layer) == 0
    for gradient in gradients(batch, 4):
        assert not gradient.any()


@pytest.mark.parametrize("n", [0, 1])
def test_each_gradient_alone(n):
    batch = clustered()
    arguments = [tf.constant(a) for a in batch.layer[:2]]
    with tf.GradientTape() as tape:
        tape.watch(arguments[n])
        loss = lsoftmax_op.lsoftmax_loss(*arguments, batch.labels)
    gradient = tape.gradient(loss, arguments[n], output_gradients=tf.constant(batch.loss_grad))
    np.testing.assert_array_equal(gradient, gradients(batch, 4)[n + 1])


def step_of(batch, filter="auto", watched=None, class_major=False):
    """A step, and its gradients' shapes as they are known when it is traced. Weights and their gradient are [D, C]."""

    def step(x, w):
        with tf.GradientTape() as tape:
            own = tf.ensure_shape(tf.transpose(w), w.shape[::-1]) if class_major else w
            tape.watch([x, own])
            loss = lsoftmax_op.lsoftmax_loss(x, own, batch.labels, filter=filter, class_major=class_major)
            loss = tf.reduce_mean(loss)
        found = tape.gradient(loss, [x, own])
        if watched is not None:
            watched.extend(gradient.shape.as_list() for gradient in found)
        return [found[0], tf.transpose(found[1]) if class_major else found[1]]

    return step


def in_a_v1_graph(step, x, w):
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        return session.run(step(tf.constant(x), tf.constant(w)))


def in_a_loop(step, x, w):
    @tf.function
    def loop(x, w):
        first = [tf.zeros_like(x), tf.zeros_like(w)]
        return tf.while_loop(lambda n, *_: n < 2, lambda n, *_: (n + 1, *step(x, w)), (0, *first))[1:]

    return loop(x, w)


def in_a_saved_model(step, x, w):
    import tempfile

    module = tf.Module()
    module.step = tf.function(step, input_signature=[tf.TensorSpec(a.shape, a.dtype) for a in (x, w)])
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder)
        return tf.saved_model.load(folder).step(x, w)


def in_a_strategy(step, x, w):
    return tf.distribute.OneDeviceStrategy("/cpu:0").run(tf.function(step), (tf.constant(x), tf.constant(w)))


WAYS = {
    "eager": lambda step, x, w: step(tf.constant(x), tf.constant(w)),
    "function": lambda step, x, w: tf.function(step)(x, w),
    "v1 graph": in_a_v1_graph,
    "loop": in_a_loop,
    "saved": in_a_saved_model,
    "strategy": in_a_strategy,
}


@pytest.mark.parametrize("way", WAYS)
@LAYOUTS
def test_every_way_leaves_out_the_same(class_major, way):
    batch, shapes = clustered(), []
    expected = WAYS["eager"](step_of(batch), batch.features, batch.weights)
    assert left_out(expected[1]).size > CLASSES / 2
    step = step_of(batch, watched=shapes, class_major=class_major)
    found = WAYS[way](step, batch.features, batch.weights)
    np.testing.assert_array_equal(left_out(found[1]), left_out(expected[1]))
    for gradient, want in zip(found, expected, strict=True):
        np.testing.assert_allclose(gradient, want, rtol=1e-5, atol=1e-6 * np.abs(want).max())
    of_weights = list(batch.weights.shape)
    assert shapes[:2] == [list(batch.features.shape), of_weights[::-1] if class_major else of_weights]


XLA = pytest.mark.skipif(
    lsoftmax_op.build_info()["xla"] != "yes", reason="the library was built without what XLA compiles it by"
)


@XLA
@pytest.mark.parametrize("traced_for", ["XLA", "both"])
@LAYOUTS
def test_xla_leaves_out_nothing(class_major, traced_for):
    """Also of a function that is traced without it, and called inside one that it compiles."""
    batch = clustered()
    found = []
    for filter in ("auto", False):
        step = step_of(batch, filter, class_major=class_major)
        if traced_for == "both":
            step = tf.function(step)
            assert (left_out(step(batch.features, batch.weights)[1]).size > CLASSES / 2) == (filter == "auto")
        compiled = tf.function(lambda x, w, step=step: step(x, w), jit_compile=True)
        found.append([a.numpy() for a in compiled(batch.features, batch.weights)])
    assert_same(*found)
    assert left_out(found[0][1]).size < CLASSES / 2


def test_second_derivatives_are_those_of_the_whole_loss():
    batch = clustered(dtype="float64")
    found = []
    for filter in ("auto", False):
        x, w = (tf.constant(a) for a in batch.layer[:2])
        with tf.GradientTape() as outer:
            outer.watch([x, w])
            of_x, of_w = step_of(batch, filter)(x, w)
            value = tf.reduce_sum(tf.square(of_x)) + tf.reduce_sum(tf.square(of_w))
        found.append(outer.gradient(value, [x, w]))
    for ours, dense in zip(*found, strict=True):
        np.testing.assert_allclose(ours, dense, rtol=1e-9, atol=1e-12 * np.abs(dense).max())


def ops_of(classes, depth=64, class_major=False, **options):
    """The types of the ops of a training step's graph, nothing being computed."""
    options["class_major"] = class_major

    @tf.function
    def step(x, w, y):
        with tf.GradientTape() as tape:
            tape.watch([x, w])
            loss = lsoftmax_op.lsoftmax_loss(x, w, y, **options)
        return tape.gradient(loss, [x, w])

    of_weights = [classes, depth] if class_major else [depth, classes]
    shapes = (([8, depth], "float32"), (of_weights, "float32"), ([8], "int64"))
    graph = step.get_concrete_function(*(tf.TensorSpec(s, d) for s, d in shapes)).graph
    return {op.type for op in graph.get_operations()}


@LAYOUTS
def test_who_is_looked_at(class_major, monkeypatch):
    monkeypatch.undo()
    layout = {"class_major": class_major}
    assert set(OPS) <= ops_of(2**16, **layout) & ops_of(4096, depth=1024, **layout)
    for no_look in (
        ops_of(2**16 - 1, **layout),
        ops_of(4095, depth=2048, **layout),
        ops_of(4096, depth=4097, **layout),
        ops_of(None, **layout),
        ops_of(2**16, filter=False, **layout),
        ops_of(2**16, label_smoothing=0.1, **layout),
        ops_of(2**16, class_block_size=4096, **layout),
    ):
        assert not set(OPS) & no_look


@pytest.mark.parametrize("value", ["on", "", True, np.True_])
def test_an_unknown_filter(value):
    with pytest.raises(ValueError, match='filter: expected "auto" or False, got '):
        lsoftmax_op.lsoftmax_loss(*random_batch((3, 4, 5), "float32").layer, filter=value)


@pytest.mark.parametrize("value", [None, 0, 1.5, b"auto"])
def test_a_filter_of_another_type(value):
    with pytest.raises(TypeError, match='filter: expected "auto" or False, got '):
        lsoftmax_op.margin_softmax_loss(*random_batch((3, 4, 5), "float32").layer, margin=2, filter=value)
