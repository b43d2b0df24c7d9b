"""The calls of our kernels that XLA makes: which ops become one, and what a handler refuses."""

import itertools

import numpy as np
import pytest
from support import XLA_CALLS_ARE_CUDA, random_batch

import lsoftmax_op

tf = pytest.importorskip("tensorflow")
if lsoftmax_op.build_info()["xla"] != "yes":
    pytest.skip(f"XLA: {lsoftmax_op.build_info()['xla']}", allow_module_level=True)


def compiled(function):
    return tf.function(function, jit_compile=True)


def random_inputs(of_op):
    """Inputs of a raw op by their names, for N = 3, D = 2 and C = 4, or a block of 4 classes."""
    shapes = {
        "NC": "products logits_grad products_grad",
        "ND": "features products_features_grad target_weights",
        "DC": "weights products_weights_grad matrix",
        "DB": "block",
        "N": "labels loss_grad target_grad grad_unit",
        "C": "bias",
        "": "lam depth first_class first_column",
        "5N": "sums sums_before",
        "3N": "geometry geometry_grad normalizer",
        "0": "terms class_factors",
    }
    shape_of = {name: shape for shape, names in shapes.items() for name in names.split()}
    sizes = {"N": 3, "D": 2, "C": 4, "B": 2, "0": 0, "3": 3, "5": 5}
    integers = {"labels": [0, 3, -1], "depth": 2, "first_class": 0, "first_column": 1}
    wide = {"geometry", "geometry_grad", "sums", "sums_before", "normalizer", "target_grad", "lam", "terms"}

    def value(name):
        if name in integers:
            return tf.constant(integers[name], tf.int64)
        shape = [sizes[letter] for letter in shape_of[name]]
        return tf.random.stateless_uniform(shape, [1, len(name)], 0.5, 1, tf.float64 if name in wide else tf.float32)

    return {name: value(name) for name in of_op}


# The raw ops that XLA calls a handler of ours for: their inputs, and the handler.
OPS_OF_CALLS = {
    "target_geometry": ("features weights labels", "geometry"),
    "class_factors": ("weights", "class_factors"),
    "features_grad": (
        "products_features_grad features weights labels geometry_grad loss_grad grad_unit target_weights",
        "features_grad",
    ),
    "weights_grad": (
        "products_weights_grad features weights labels geometry_grad loss_grad grad_unit target_weights",
        "weights_grad",
    ),
    "logits": ("products labels geometry lam terms", "logits"),
    "logits_grad": ("logits_grad labels geometry lam terms", "logits_grad"),
    "loss": ("products features weights labels bias lam terms class_factors", "loss"),
    "bias_grad": ("products_grad labels first_class loss_grad target_grad grad_unit", "bias_grad"),
    "sums": ("products labels bias first_class class_factors terms geometry sums_before", "sums"),
    "finish": ("sums geometry labels bias lam terms depth", "finish"),
    "products_grad": ("products labels bias first_class class_factors terms geometry normalizer", "products_grad"),
    "set_columns": ("matrix block first_column", "first_column"),
}
CALLED_ON_CPU = {"loss", "class_factors", "features_grad", "weights_grad", "set_columns"}
CALLED_ON_GPU = OPS_OF_CALLS.keys() - {"set_columns"}


def called_ops(platform):
    """Those that XLA has calls for. What it compiles for a GPU, it tells without one."""
    info = lsoftmax_op.build_info()
    if not info["xla_calls"]:
        return set()
    if XLA_CALLS_ARE_CUDA:
        return CALLED_ON_GPU if platform == "CPU" else set()
    return CALLED_ON_CPU if platform == "CPU" else CALLED_ON_GPU if info["cuda"] else set()


PLATFORMS = pytest.mark.parametrize("platform", ["CPU", "GPU"])


@PLATFORMS
@pytest.mark.parametrize("op", OPS_OF_CALLS)
def test_which_ops_are_calls(op, platform, monkeypatch):
    names, handler = OPS_OF_CALLS[op]
    inputs = random_inputs(names.split())
    host = {name: int(inputs.pop(name)) for name in ("depth",) if name in inputs}  # known when XLA compiles
    margin = {"margin": 2} if "lam" in inputs else {}

    def hlo():
        function = getattr(lsoftmax_op.library.load(), f"lsoftmax_{op}")
        call = compiled(lambda *values: function(**dict(zip(inputs, values, strict=True)), **host, **margin))
        return call.experimental_get_compiler_ir(*inputs.values())(stage="hlo", platform_name=platform)

    assert (f'custom_call_target="lsoftmax_{handler}' in hlo()) == (op in called_ops(platform))
    monkeypatch.setenv("LSOFTMAX_XLA_CALLS", "OFF")
    assert "lsoftmax_" not in hlo()


@PLATFORMS
def test_blocks_in_a_loop_are_calls(platform):
    """Where first_class is another one each time, and the depth is a shape's."""
    batch = random_batch((9, 5, 7), "float32")

    @compiled
    def gradients(x, w, b):
        with tf.GradientTape() as tape:
            tape.watch([x, w, b])
            loss = lsoftmax_op.lsoftmax_loss(x, w, batch.labels, b, class_block_size=3)
        return tape.gradient(loss, [x, w, b])

    arguments = map(tf.constant, (batch.features, batch.weights, batch.bias))
    hlo = gradients.experimental_get_compiler_ir(*arguments)(stage="hlo", platform_name=platform)
    for op in {"target_geometry", "sums", "finish", "products_grad", "bias_grad", "features_grad", "weights_grad"}:
        call = f'custom_call_target="lsoftmax_{OPS_OF_CALLS[op][1]}_F32"'
        assert (call in hlo) == (op in called_ops(platform)), op


# Of the calls of our kernels in float32: operands and results, by data type and shape, for N = 3, D = 2 and C = 4.
ROW, ROW_OF_DOUBLES, GEOMETRY, FEATURES, WEIGHTS, LOGITS = "3xf32", "3xf64", "3x3xf64", "3x2xf32", "2x4xf32", "3x4xf32"
LAYER_OPERANDS = [FEATURES, WEIGHTS, "3xi64"]
TERMS, FACTORS = "7xf64", "4xf32"
GRAD_OPERANDS = [*LAYER_OPERANDS, GEOMETRY, ROW, ROW, FEATURES]
OF_TARGETS = ["3xi64", GEOMETRY, "f64", TERMS]
NORMALISED = "{margin = 2 : i64, normalize_features = true, normalize_weights = true}"
CALLS = {
    "lsoftmax_loss_F32": (
        [LOGITS, *LAYER_OPERANDS, "0xf32", "f64", TERMS, FACTORS],
        [LOGITS, ROW, GEOMETRY, GEOMETRY, ROW_OF_DOUBLES, FEATURES, "3xi64", ROW],
        NORMALISED,
    ),
    "lsoftmax_class_factors_F32": ([WEIGHTS], [FACTORS], "{margin = 1 : i64}"),
    "lsoftmax_features_grad_F32": ([FEATURES, *GRAD_OPERANDS], [FEATURES], NORMALISED),
    "lsoftmax_weights_grad_F32": ([WEIGHTS, *GRAD_OPERANDS], [WEIGHTS], NORMALISED),
}
if XLA_CALLS_ARE_CUDA:
    block = ["3xi64", "0xf32", FACTORS, TERMS, GEOMETRY]
    CALLS |= {
        "lsoftmax_geometry_F32": (LAYER_OPERANDS, [GEOMETRY], "{margin = 1 : i64}"),
        "lsoftmax_logits_F32": ([LOGITS, *OF_TARGETS], [LOGITS], NORMALISED),
        "lsoftmax_logits_grad_F32": ([LOGITS, *OF_TARGETS], [LOGITS, GEOMETRY], NORMALISED),
        "lsoftmax_bias_grad_F32": ([LOGITS, "3xi64", ROW, ROW_OF_DOUBLES, ROW], ["4xf32"], "{margin = 1 : i64}"),
        "lsoftmax_sums_F32": (["5x3xf64", LOGITS, *block], ["5x3xf64"], NORMALISED),
        "lsoftmax_finish_F32": (
            ["5x3xf64", GEOMETRY, "3xi64", "4xf32", "f64", TERMS],
            [ROW, GEOMETRY, GEOMETRY, ROW_OF_DOUBLES, "3xi64", ROW],
            "{margin = 2 : i64, depth = 2 : i64}",
        ),
        "lsoftmax_products_grad_F32": ([LOGITS, *block, GEOMETRY], [LOGITS], NORMALISED),
    }
else:
    CALLS["lsoftmax_first_column"] = (["i64"], ["i64"], "{count = 2 : i64, width = 4 : i64}")


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_calls_that_we_did_not_write(name):
    """A SavedModel may hold a program for XLA, and that a call of our kernels with arrays that do not fit."""
    if not lsoftmax_op.build_info()["xla_calls"]:
        pytest.skip("this TensorFlow came without what custom calls are made of")
    xla_ops = pytest.importorskip("tensorflow.compiler.tf2xla.ops.gen_xla_ops")
    operands, results, attributes = CALLS[name]

    def call(operands, results, attributes=attributes, workspace=1 << 16):
        """All operands are 0; of the results, the first."""
        if XLA_CALLS_ARE_CUDA:
            results = [*results, f"{workspace}xui8"]
        takes, gives = ([f"tensor<{one}>" for one in side] for side in (operands, results))
        zeros = [
            f"%{i} = stablehlo.constant dense<0{'' if 'i' in one else '.0'}> : {one}" for i, one in enumerate(takes)
        ]
        names, r = ", ".join(f"%{i}" for i in range(len(takes))), "%r#0" if len(gives) > 1 else "%r"
        signature = f"({', '.join(takes)}) -> ({', '.join(gives)})"
        options = f"{{api_version = 4 : i32, backend_config = {attributes}}}"
        module = f"""module @m {{ func.func public @main() -> {gives[0]} {{
            {" ".join(zeros)}
            {r.replace("#0", f":{len(gives)}")} = stablehlo.custom_call @{name}({names}) {options} : {signature}
            return {r} : {gives[0]} }} }}"""
        *sizes, dtype = results[0].split("x")
        dtype = {"f32": tf.float32, "f64": tf.float64, "i64": tf.int64, "i8": tf.int8}[dtype]
        what = {"module": module, "Sout": [list(map(int, sizes))], "Tout": [dtype]}
        with tf.device("CPU"):
            return compiled(lambda: xla_ops.xla_call_module([], 9, platforms=["CPU"], **what))()[0]

    assert np.isfinite(call(operands, results)).all()
    if XLA_CALLS_ARE_CUDA and name in ("lsoftmax_loss_F32", "lsoftmax_weights_grad_F32", "lsoftmax_sums_F32"):
        with pytest.raises(tf.errors.OpError, match="workspace: expected .* bytes, got 1"):
            call(operands, results, workspace=1)
    if name in ("lsoftmax_features_grad_F32", "lsoftmax_weights_grad_F32"):
        for first, count in ((1, 4), (-1, 9), (2**62, 2**62 + 3), (0, -1)):
            message = f"first_class, num_classes: expected .* got {first} and {count}"
            with pytest.raises(tf.errors.OpError, match=message):
                call(operands, results, f"{{first_class = {first} : i64, num_classes = {count} : i64}}")
    if name == "lsoftmax_loss_F32":
        other_attributes = {
            "{margin = 65 : i64}": "margin: expected an integer from 1 to 64, got 65",
            "{margin = 2 : i64, linear_continuation = true}": "margin: expected 1 for a linear continuation, got 2",
        }
        for other, message in other_attributes.items():
            with pytest.raises(tf.errors.OpError, match=message):
                call(operands, results, other)
        for own, other, message in (("0xf32", "4xf32", "bias: expected none"), (TERMS, "0xf64", "terms: expected")):
            with pytest.raises(tf.errors.OpError, match=message):
                call([other if one == own else one for one in operands], results)
    shapes = itertools.cycle(("7x{own}", "{dtype}", "5x2x{dtype}"))
    for side, sizes in enumerate((operands, results)):
        for place, own in enumerate(sizes):
            dtype = own.split("x")[-1]
            others = (shape.format(own=own, dtype=dtype) for shape in shapes)
            for bad in (next(other for other in others if other != own), own.replace(dtype, "i8")):
                changed = [list(operands), list(results)]
                changed[side][place] = bad
                with pytest.raises(tf.errors.OpError, match="expected (shape|data type)"):
                    call(*changed)
