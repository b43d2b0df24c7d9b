"""Finding and loading the op library, and what is said where that fails."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT, run_python

import lsoftmax_op

PACKAGE = Path(lsoftmax_op.__file__).parent


@pytest.fixture
def copy(tmp_path):
    """A second copy of the installed package, and the code that imports it."""
    folder = tmp_path / "lsoftmax_op"
    shutil.copytree(PACKAGE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    return folder, f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"


def test_build_info():
    info = lsoftmax_op.build_info()
    assert info["version"] == lsoftmax_op.__version__
    assert info["cpu_variant"] in info["cpu_variants"]
    assert info["cuda"] is None or (info["cuda"]["nvcc"] and info["cuda"]["architectures"])
    assert info["xla"] == "yes" or info["xla"].startswith("no: ")
    assert set(info["sizes"]) == {file.name for file in PACKAGE.glob("_lsoftmax_*.so")}
    assert all(0 < size <= (PACKAGE / name).stat().st_size for name, size in info["sizes"].items())


def test_importing_the_package_imports_nothing_else():
    run_python("""
import sys, lsoftmax_op
assert not {"tensorflow", "numpy", "lsoftmax_op._core"} & set(sys.modules), sorted(sys.modules)
assert {"lsoftmax_logits", "arrays", "L_softmax"} <= set(dir(lsoftmax_op))
lsoftmax_op.arrays, lsoftmax_op.reference, lsoftmax_op.LambdaSchedule
assert "tensorflow" not in sys.modules
try:
    lsoftmax_op.nonsense
except AttributeError as error:
    assert "nonsense" in str(error)
""")


@pytest.mark.parametrize("variant", ["baseline", "avx2", "avx512"])
def test_every_cpu_variant_is_right(variant):
    finished = run_python(
        """
import sys; sys.path.insert(0, "tests")
import lsoftmax_op
from conftest import LAYERS
from support import angle_batch, assert_close_to_oracle, random_batch
for dtype in ("float16", "bfloat16", "float32", "float64"):
    for batch in (angle_batch(4, dtype), random_batch((13, 33, 7), dtype)):
        assert_close_to_oracle(batch, dtype, LAYERS["arrays"], 4, 0.5)
print(lsoftmax_op.build_info()["cpu_variant"])
""",
        LSOFTMAX_CPU=variant,
    )
    if variant not in finished.stderr:  # else this machine does not run it, and says so
        assert finished.stdout.strip() == variant


def test_an_unknown_cpu_variant_is_named():
    finished = run_python("import lsoftmax_op; lsoftmax_op.build_info()", LSOFTMAX_CPU="sse9")
    assert "LSOFTMAX_CPU=sse9" in finished.stderr
    assert "baseline" in finished.stderr


def test_the_self_check():
    finished = subprocess.run(
        [sys.executable, "-m", "lsoftmax_op"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert "All checks passed." in finished.stdout


def test_plain_load_op_library():
    pytest.importorskip("tensorflow")
    run_python(
        """
import tensorflow as tf
path = PATH
ops = tf.load_op_library(path)
x, w, geometry = ops.lsoftmax_target_geometry([[3.0, 4.0]], [[1.0], [0.0]], [0])
print(ops.lsoftmax_logits(tf.matmul(x, w), [0], geometry, 0.0, tf.zeros([0], tf.float64), margin=2))
assert "lsoftmax" in ops.lsoftmax_logits.__name__ and "products" in ops.lsoftmax_logits.__doc__
""".replace("PATH", repr(lsoftmax_op.library_path()))
    )


def test_loading_imports_tensorflow():
    """Before and after it: tests/test_tensorflow.py."""
    run_python("from lsoftmax_op import library; assert library.load() is library.load()")


def test_a_library_for_another_tensorflow(copy):
    tf = pytest.importorskip("tensorflow")
    folder, prelude = copy
    info = json.loads((folder / "_build_info.json").read_text())
    info["tensorflow"] = "2.5.0"
    (folder / "_build_info.json").write_text(json.dumps(info))
    finished = run_python(prelude + "import lsoftmax_op; lsoftmax_op.lsoftmax_logits", check=False)
    warned = finished.stderr
    assert f"built for TensorFlow 2.5.0, and this is TensorFlow {tf.__version__}" in warned
    code = prelude + "import lsoftmax_op; lsoftmax_op.lsoftmax_logits([[1.]], [[1.]], [0])"
    finished = run_python(code, check=False)
    assert finished.returncode == 1
    assert "ImportError: lsoftmax_op was built for TensorFlow 2.5.0" in finished.stderr


def test_a_truncated_library(copy):
    """However much of it is left, it is refused by name, and never mapped."""
    pytest.importorskip("tensorflow")
    folder, prelude = copy
    files = [file for name in ("ops", "core", "cuda") for file in folder.rglob(f"_lsoftmax_{name}.so")]
    assert files
    run_python(
        f"{prelude}files = {list(map(str, files))!r}"
        + """
import pathlib, warnings
for file in map(pathlib.Path, files):
    whole = file.read_bytes()
    for size in (0, 10, 1000, len(whole) // 2, 99 * len(whole) // 100):
        file.write_bytes(whole[:size])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # once, as TensorFlow is imported
            import lsoftmax_op
            try:
                lsoftmax_op.lsoftmax_logits([[1.]], [[1.]], [0])
            except ImportError as error:
                assert f"{file} is truncated: it has {size} of" in str(error), error
            else:
                raise AssertionError(f"{size} bytes of {file} were taken")
    file.write_bytes(whole)
lsoftmax_op.lsoftmax_logits([[1.]], [[1.]], [0])
"""
    )


def test_a_missing_library(copy):
    pytest.importorskip("tensorflow")
    folder, prelude = copy
    (folder / "_lsoftmax_ops.so").unlink()
    finished = run_python(
        prelude
        + """
import numpy as np, tensorflow as tf, lsoftmax_op
print(lsoftmax_op.arrays.logits(np.ones((1, 2)), np.ones((2, 3)), [0]))
lsoftmax_op.lsoftmax_logits([[1.]], [[1.]], [0])
""",
        check=False,
    )
    assert finished.returncode == 1
    assert "has no TensorFlow op library" in finished.stderr.splitlines()[-1]
    assert "pip install" in finished.stderr.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("keep", [None, 1000])
def test_xla_kernels_that_are_missing_or_truncated(copy, keep):
    """What does not need them works, jit_compile=True is refused by name, and Keras does without."""
    pytest.importorskip("keras")
    folder, prelude = copy
    library = folder / "_lsoftmax_xla.so"
    library.write_bytes(b"" if keep is None or not library.exists() else library.read_bytes()[:keep])
    if keep is None:
        library.unlink()
    finished = run_python(
        prelude
        + """
import tensorflow as tf, lsoftmax_op
from lsoftmax_op.keras import LSoftmaxDense
arguments = tf.ones([1, 2]), tf.eye(2), tf.constant([0])
assert lsoftmax_op.lsoftmax_loss(*arguments).shape == 1
assert not LSoftmaxDense(2).supports_jit
tf.function(lsoftmax_op.lsoftmax_loss, jit_compile=True)(*arguments)
""",
        check=False,
    )
    assert finished.returncode == 1
    assert "No registered 'Lsoftmax" in finished.stderr
    assert ("XLA (jit_compile=True) cannot compile the ops of lsoftmax_op" in finished.stderr) == (keep is not None)


def test_no_tensorflow_at_all():
    code = "import sys; sys.modules['tensorflow'] = None; import lsoftmax_op; lsoftmax_op.lsoftmax_logits"
    finished = run_python(code, check=False)
    assert "ImportError: lsoftmax_op.lsoftmax_logits needs TensorFlow" in finished.stderr


def test_missing_compiled_parts(copy):
    folder, prelude = copy
    for file in folder.glob("_core*"):
        file.write_bytes(b"")  # an import hook of an editable install would find a missing one elsewhere
    finished = run_python(prelude + "import lsoftmax_op; lsoftmax_op.build_info()", check=False)
    assert "The compiled parts of lsoftmax_op are missing or damaged" in finished.stderr


def test_the_same_ops_from_two_files(copy):
    pytest.importorskip("tensorflow")
    folder, prelude = copy
    code = f"""
import tensorflow as tf
tf.load_op_library({lsoftmax_op.library_path()!r})
import lsoftmax_op
lsoftmax_op.lsoftmax_logits([[1.]], [[1.]], [0])
"""
    finished = run_python(prelude + code, check=False)
    last = finished.stderr.splitlines()[-1]
    assert "are loaded already" in last
    assert lsoftmax_op.library_path() in last
    assert str(folder) in last
