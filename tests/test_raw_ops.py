"""The raw ops, fed with what a hostile graph may hold: an error is right, what kills the process is not.

The cases are made of what the ops say of themselves: the documentation of every input opens with its shape, that of
float32 where it depends on the data type. Child processes run them, this file being their program, and tell what became
of each.
"""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pytest
from support import PACKAGE, XLA_CALLS_ARE_CUDA, run_python

import lsoftmax_op

tf = pytest.importorskip("tensorflow")
pytestmark = pytest.mark.slow

SIZES = {"N": 3, "D": 2, "C": 4, "B": 2}
DTYPES = ("float16", "float64", "uint8", "complex64", "bool", "S1", "int16", "int32", "int64")
INTEGERS = (-(2**63), -(2**31), -2, -1, 1, 4, 99, 2**31 - 1, 2**62, 2**63 - 1)
FLOATS = (np.nan, np.inf, -np.inf, -1.0, 1e300, 5e-324)
ATTRIBUTES = (-1, 0, 1, 3, 65, 2**31, 2**63 - 1)

# What runs in each mode. XLA's formulas check shapes as its calls of our kernels do: only what they compute is theirs.
KINDS = {
    "eager": {"good", "none", "ranks", "sizes", "dtypes", "values", "attributes"},
    "unaligned": {"good", "values"},
    "graph": {"good", "none", "ranks", "sizes", "dtypes", "attributes"},
    "imported": {"good", "none", "ranks", "sizes", "dtypes", "attributes"},
    "function": {"good", "none", "ranks", "sizes", "values"},
    "gradients": {"good"},
    "xla": {"good", "none", "ranks", "sizes", "values"},
    "xla_formulas": {"good", "none", "values"},
}
CHILDREN = (("eager", "unaligned", "graph", "imported", "function", "gradients"), ("xla", "xla_formulas"))
if XLA_CALLS_ARE_CUDA:  # whom no other mode calls
    CHILDREN = (("eager",), ("xla",))
MODES = {mode for modes in CHILDREN for mode in modes}


@dataclass(frozen=True)
class Input:
    """An input of an op: its data type where T is float32 and Tlabels is int64, its shape in letters and numbers."""

    name: str
    dtype: str
    shape: tuple[str, ...]
    may_be_none: bool  # which is [0]

    def sizes(self, **changes: int) -> tuple[int, ...]:
        return tuple(int(size) if size.isdigit() else {**SIZES, **changes}[size] for size in self.shape)

    def values(self, shape: tuple[int, ...]) -> np.ndarray:
        """Good ones: classes from -1 on, places 0, other numbers above 0."""
        count = int(np.prod(shape))
        if self.dtype == "int64":
            return np.full(count, -1 if shape else 0).cumsum().reshape(shape) % SIZES["B"]
        return np.linspace(0.25, 1, count, dtype=self.dtype).reshape(shape)


@dataclass(frozen=True)
class Op:
    """What an OpDef tells."""

    name: str
    inputs: tuple[Input, ...]
    attributes: dict[str, int]  # of integers
    defaults: frozenset[str]  # those that may be left out

    def __call__(self, arguments: dict, attributes: dict) -> list:
        function = getattr(lsoftmax_op.library.load(), re.sub(r"(?<!^)(?=[A-Z])", "_", self.name).lower())
        return tf.nest.flatten(function(**arguments, **{**self.attributes, **attributes}))


@dataclass(frozen=True)
class Case:
    """A call of an op with arguments of which most are good."""

    op: Op
    kind: str
    what: str
    arguments: dict[str, np.ndarray]
    attributes: dict[str, int] = field(default_factory=dict)
    changed: str | None = None  # the input that is not good

    @property
    def name(self) -> str:
        return f"{self.op.name}, {self.what}"


@functools.cache
def registered_ops() -> tuple[Op, ...]:
    from tensorflow.core.framework import op_def_pb2
    from tensorflow.python.client import pywrap_tf_session

    def input_of(op: Any, arg: Any) -> Input:
        shape = re.match(r"\[([^\]]*)\]", arg.description)
        assert shape, f"the documentation of {op.name} does not tell the shape of {arg.name}: {arg.description!r}"
        of_attribute = {"T": "float32", "Twide": "float32", "Tlabels": "int64"}
        dtype = of_attribute.get(arg.type_attr) or tf.as_dtype(arg.type).name
        return Input(arg.name, dtype, tuple(filter(None, shape[1].split(", "))), "[0]" in arg.description)

    library = pywrap_tf_session.TF_LoadLibrary(lsoftmax_op.library_path())
    ops = []
    for op in op_def_pb2.OpList.FromString(pywrap_tf_session.TF_GetOpList(library)).op:
        numbers = [attr for attr in op.attr if attr.type == "int"]
        defaults = {attr.name: attr.default_value.i for attr in numbers if attr.HasField("default_value")}
        attributes = {attr.name: defaults.get(attr.name, max(attr.minimum, 2)) for attr in numbers}
        inputs = tuple(input_of(op, arg) for arg in op.input_arg)
        ops.append(Op(op.name, inputs, attributes, frozenset(defaults)))
    return tuple(ops)


def cases(op: Op) -> Iterator[Case]:
    both = {"bias", "class_factors"} <= {one.name for one in op.inputs}

    def good(without: str = "class_factors", **sizes: int) -> dict[str, np.ndarray]:
        """Of a bias and factors of the classes, which go not together, one is none."""
        is_none = {without} if both else set()
        return {one.name: one.values((0,) if one.name in is_none else one.sizes(**sizes)) for one in op.inputs}

    yield Case(op, "good", "as it should be", good())
    if both:
        yield Case(op, "good", "with class_factors", good(without="bias"))
    for size in SIZES:
        if any(size in one.shape for one in op.inputs):
            yield Case(op, "sizes", f"{size} = 0", good(**{size: 0}))
    for one in op.inputs:
        own, others = one.sizes(), good(without="bias") if one.name == "class_factors" else good()
        of_rank = [(size,) * rank for rank in range(4) if rank != len(own) for size in ((2, 0) if rank else (2,))]
        if one.may_be_none:
            of_rank = [shape for shape in of_rank if shape != (0,)]
            yield Case(op, "none", f"{one.name} none", {**others, one.name: one.values((0,))})
        of_size = [(*own[:d], size, *own[d + 1 :]) for d in range(len(own)) for size in (0, own[d] + 1)]
        integers = one.dtype == "int64"
        changes = [
            *(("ranks", list(shape), one.values(shape)) for shape in of_rank),
            *(("sizes", list(shape), one.values(shape)) for shape in of_size),
            *(("dtypes", dtype, np.zeros(own, dtype)) for dtype in DTYPES),
            *(("values", value, np.full(own, value, one.dtype)) for value in (INTEGERS if integers else FLOATS)),
        ]
        for kind, what, argument in changes:
            yield Case(op, kind, f"{one.name} {what}", {**others, one.name: argument}, changed=one.name)
    for attribute in op.attributes:
        for value in ATTRIBUTES:
            yield Case(op, "attributes", f"{attribute} {value}", good(), {attribute: value})


class Runner:
    """Runs a case in one of the modes. What is refused raises an error."""

    def __init__(self) -> None:
        self._functions: dict[tuple, Callable] = {}

    def eager(self, case: Case) -> None:
        case.op({name: tf.constant(value) for name, value in case.arguments.items()}, case.attributes)

    def unaligned(self, case: Case) -> None:
        """In memory that does not begin where TensorFlow's own would."""
        tensors = {}
        for name, value in case.arguments.items():
            memory = np.zeros(value.nbytes + 128, np.uint8)
            begin = -memory.ctypes.data % 64 + value.itemsize
            array = memory[begin : begin + value.nbytes].view(value.dtype).reshape(value.shape)
            array[...] = value
            tensors[name] = tf.experimental.dlpack.from_dlpack(array.__dlpack__())
        case.op(tensors, case.attributes)

    def graph(self, case: Case) -> None:
        """All shapes known, and then that of the changed input alone, where its rank is wrong."""
        known = [case.arguments, *([[case.changed]] if case.kind == "ranks" else [])]
        errors = [self._graph(case, names) for names in known]
        assert len(set(map(type, errors))) == 1, f"other shapes known, another answer: {errors}"
        if errors[0] is not None:
            raise errors[0]

    def _graph(self, case: Case, known: Any) -> Exception | None:
        with tf.Graph().as_default():
            try:
                case.op(_placeholders(case, known), case.attributes)
            except (ValueError, TypeError, tf.errors.OpError) as error:
                return error
        return None

    def imported(self, case: Case) -> None:
        graph = tf.compat.v1.GraphDef()
        graph.versions.producer = tf.version.GRAPH_DEF_VERSION
        for name, value in case.arguments.items():
            node = graph.node.add(name=name, op="Placeholder")
            node.attr["dtype"].type = tf.as_dtype(value.dtype).as_datatype_enum
            node.attr["shape"].shape.CopyFrom(tf.TensorShape(value.shape).as_proto())
        node = graph.node.add(name="op", op=case.op.name, input=list(case.arguments))
        for name, value in {**case.op.attributes, **case.attributes}.items():
            node.attr[name].i = value
        for name, dtype in (("T", tf.float32), ("Twide", tf.float32), ("Tlabels", tf.int64)):
            node.attr[name].type = dtype.as_datatype_enum
        with tf.Graph().as_default():
            tf.import_graph_def(graph)

    def function(self, case: Case, **options: Any) -> None:
        """A graph that knows no shape, so that the kernel sees them first."""
        if case.op.name not in self._functions:
            names = [one.name for one in case.op.inputs]
            specs = [tf.TensorSpec(None, one.dtype) for one in case.op.inputs]

            @tf.function(input_signature=specs, autograph=False, **options)
            def function(*arguments: tf.Tensor) -> list:
                return case.op(dict(zip(names, arguments, strict=True)), {})

            self._functions[case.op.name] = function
        self._functions[case.op.name](*map(tf.constant, case.arguments.values()))

    def gradients(self, case: Case) -> None:
        """Made of a graph that knows no shape, with every attribute that may be left out, too."""
        for attributes in ({}, *({name: 2} for name in case.op.defaults)):
            with tf.Graph().as_default():
                inputs = _placeholders(case, [])
                outputs = [y for y in case.op(inputs, attributes) if y.dtype.is_floating]
                tf.gradients(outputs, [x for x in inputs.values() if x.dtype.is_floating])

    def xla(self, case: Case) -> None:
        self.function(case, jit_compile=True)

    def xla_formulas(self, case: Case) -> None:
        os.environ["LSOFTMAX_XLA_CALLS"] = "OFF"
        self.xla(case)


def _placeholders(case: Case, known: Any) -> dict[str, tf.Tensor]:
    return {
        name: tf.compat.v1.placeholder(value.dtype, value.shape if name in known else None)
        for name, value in case.arguments.items()
    }


def run_cases(modes: list[str], answers: str) -> None:
    """The child: writes what it is about to run, and behind it what came of that."""
    with open(answers, "w", buffering=1) as file, np.errstate(all="ignore"):
        for mode in modes:
            run = getattr(Runner(), mode)
            for case in (case for op in registered_ops() for case in cases(op) if case.kind in KINDS[mode]):
                print(json.dumps([mode, case.kind, case.name, case.changed]), file=file)
                error = None
                try:
                    run(case)
                except (ValueError, TypeError, tf.errors.OpError) as proper:
                    error = str(proper)
                except Exception:
                    error = traceback.format_exc()
                print(json.dumps([error, error is not None and error.startswith("Traceback")]), file=file)


class Answer(NamedTuple):
    """What became of a case."""

    mode: str
    kind: str
    case: str
    changed: str | None
    error: str | None = None
    improper: bool = False  # an exception that is none of Python's or TensorFlow's for bad arguments


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[Answer]:
    """What all children say, of which none may have died."""
    folder = tmp_path_factory.mktemp("answers")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")]),
        "XLA_FLAGS": "--xla_backend_optimization_level=0",  # compiles faster
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "-1",
    }
    files = [folder / str(n) for n in range(len(CHILDREN))]
    children = [
        subprocess.Popen(
            [sys.executable, __file__, str(file), *modes], env=environment, stderr=subprocess.PIPE, text=True
        )
        for file, modes in zip(files, CHILDREN, strict=True)
    ]
    errors = [child.communicate()[1] for child in children]
    found = []
    for file, child, stderr in zip(files, children, errors, strict=True):
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        assert child.returncode == 0, f"exit {child.returncode} at {lines[-1:]}: {stderr[-2000:]}"
        found += [Answer(*asked, *answered) for asked, answered in zip(lines[::2], lines[1::2], strict=True)]
    return found


def test_every_case_ran(answers: list[Answer]) -> None:
    assert {answer.mode for answer in answers} == MODES
    assert {answer.case.split(",")[0] for answer in answers} == {op.name for op in registered_ops()}
    assert not [answer for answer in answers if answer.kind in ("good", "none") and answer.error]


def test_errors_are_those_of_bad_arguments(answers: list[Answer]) -> None:
    assert not [answer for answer in answers if answer.improper]


def test_a_wrong_rank_is_refused_by_name(answers: list[Answer]) -> None:
    wrong = [answer for answer in answers if answer.kind == "ranks"]
    assert not [answer for answer in wrong if f"{answer.changed}: expected shape" not in (answer.error or "")]


def test_what_the_kernel_refuses_so_does_every_other_way(answers: list[Answer]) -> None:
    """Shapes alone: values are not known while a graph is built, and XLA makes no errors of them."""
    of_eager = {answer.case: answer.error for answer in answers if answer.mode == "eager" and answer.kind == "sizes"}
    of_values = ("labels: expected values", "first_column: expected a column", "columns: expected values")
    judged = {
        case: error is not None
        for case, error in of_eager.items()
        if not (error and any(v in error for v in of_values))
    }
    others = [answer for answer in answers if answer.case in judged and answer.mode != "eager"]
    assert len(others) >= len(judged) * sum("sizes" in KINDS[mode] for mode in MODES - {"eager"}) > 0
    assert not [answer for answer in others if (answer.error is not None) != judged[answer.case]]


@pytest.mark.skipif(XLA_CALLS_ARE_CUDA, reason="not in the process that this starts")
def test_values_that_another_thread_changes() -> None:
    """An input may be the memory of a variable, or somebody else's: what is checked is what is used."""
    run_python("""
import threading
import numpy as np, tensorflow as tf, lsoftmax_op
ops = lsoftmax_op.library.load()
arrays = np.zeros(4000, np.int64), np.full([], 0.5)
labels, lam = (tf.experimental.dlpack.from_dlpack(a.__dlpack__()) for a in arrays)
x, w, b = tf.ones([4000, 2]), tf.ones([2, 50]), tf.zeros([50])
z, grad = tf.matmul(x, w), tf.ones([4000])
sums, geometry = tf.zeros([5, 4000], tf.float64), tf.ones([3, 4000], tf.float64)
no_terms, no_factors = tf.zeros([0], tf.float64), tf.zeros([0])
loss = lambda labels, lam: ops.lsoftmax_loss(z, x, w, labels, b, lam, no_terms, no_factors, margin=2)[0]
calls = [
    loss,
    tf.function(loss, jit_compile=lsoftmax_op.build_info()["xla_calls"]),  # whose formulas make NaNs
    lambda labels, lam: ops.lsoftmax_finish(sums, geometry, labels, b, lam, no_terms, margin=2, depth=2)[0],
    lambda labels, lam: ops.lsoftmax_logits(z, labels, geometry, lam, no_terms, margin=2),
    lambda labels, lam: ops.lsoftmax_weights_grad(w, x, w, labels, geometry, grad, grad, x),
]
for call in calls:
    assert np.isfinite(call(labels, lam)).all()
for changed, good, bad in ((arrays[0][-1:], 0, 10**12), (arrays[1][None], 0.5, -1.0)):
    done = []
    def change():
        while not done:
            changed[0] = bad
            changed[0] = good
    thread = threading.Thread(target=change)
    thread.start()
    try:
        for call in calls:
            for _ in range(100):
                try:
                    assert np.isfinite(call(labels, lam)).all()
                except tf.errors.InvalidArgumentError:
                    pass
    finally:
        done.append(True)
        thread.join()
""")


if __name__ == "__main__":
    run_cases(sys.argv[2:], sys.argv[1])
