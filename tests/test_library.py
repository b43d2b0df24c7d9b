"""Finding and loading the op library, and what is said where that fails."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support import ROOT, run_python

import lsoftmax_op
from lsoftmax_op import __main__, library

PACKAGE = Path(lsoftmax_op.__file__).parent

# What a variant of the CPU kernels asks of a processor (cc/core/dispatch.cc), as /proc/cpuinfo names it.
FLAGS = {"baseline": (), "avx2": ("avx2", "fma", "bmi1", "bmi2")}
FLAGS["avx512"] = (*FLAGS["avx2"], "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")


@pytest.fixture
def copy(tmp_path):
    """A second copy of the installed package, and the code that imports it."""
    folder = tmp_path / "lsoftmax_op"
    shutil.copytree(PACKAGE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    return folder, f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"


def of_this_tensorflow(folder):
    """Removes from a copy what is there for other TensorFlows, as in a wheel, and returns the folder that stays."""
    own = Path(lsoftmax_op.library_path()).parent.name
    for other in folder.glob("tf-*"):
        if other.name != own:
            shutil.rmtree(other)
    return folder / own


def test_build_info():
    info = lsoftmax_op.build_info()
    assert info["version"] == lsoftmax_op.__version__
    assert info["cpu_variant"] in info["cpu_variants"]
    assert info["cuda"] is None or (info["cuda"]["nvcc"] and info["cuda"]["architectures"])
    assert info["xla"] == "yes" or info["xla"].startswith("no: ")
    beside = [Path(info["library"]).parent] if info["library"] else []
    files = {file.name: file for folder in (PACKAGE, *beside) for file in folder.glob("_lsoftmax_*.so")}
    assert set(info["sizes"]) == set(files)
    assert all(0 < size <= files[name].stat().st_size for name, size in info["sizes"].items())


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
    has_it = all(re.search(rf"\b{flag}\b", Path("/proc/cpuinfo").read_text()) for flag in FLAGS[variant])
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
    if has_it:
        assert finished.stdout.strip() == variant
    else:
        assert variant in finished.stderr


def test_an_unknown_cpu_variant_is_named():
    finished = run_python("import lsoftmax_op; lsoftmax_op.build_info()", LSOFTMAX_CPU="sse9")
    assert "LSOFTMAX_CPU=sse9" in finished.stderr
    assert "baseline" in finished.stderr


def test_the_self_check():
    finished = subprocess.run(
        [sys.executable, "-m", "lsoftmax_op"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert "All checks passed." in finished.stdout


@pytest.mark.parametrize("place", [0, 1, -1])
@pytest.mark.parametrize(("spoil", "said"), [(lambda a: a * np.nan, "by nan"), (lambda a: a[:1], "of shape [1")])
def test_the_self_check_fails_for_any_part(place, spoil, said):
    expected = [np.ones((3, 2)), np.ones(3), np.ones((4, 5))]
    got = [part.copy() for part in expected]
    assert __main__._compare(got, expected).startswith("ok, within 0.0e+00")
    got[place] = spoil(got[place])
    with pytest.raises(AssertionError, match=re.escape(said)):
        __main__._compare(got, expected)


@pytest.mark.parametrize("tensorflow", ["is installed", "is not"])
def test_the_self_check_of_a_build_without_ops(package, monkeypatch, capsys, tensorflow):
    folder = package([], "2.22.0")
    reason = "The TensorFlow in /venv is 2.22.0; supported is tensorflow>=2.18,<2.22."
    (folder / "_build_info.json").write_text(json.dumps({"version": "0", "sizes": {}, "no_tensorflow": reason}))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name if tensorflow == "is installed" else None)
    monkeypatch.setattr(__main__, "_check_arrays", lambda: "ok")
    assert __main__.main() == 0
    said = f"  tensorflow    is installed, but there are no ops for it. {reason}"
    assert (said in capsys.readouterr().out) == (tensorflow == "is installed")


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
    pytest.importorskip("tensorflow")
    run_python("from lsoftmax_op import library; assert library.load() is library.load()")


def test_the_package_may_be_imported_anew():
    pytest.importorskip("tensorflow")
    run_python("""
import importlib, sys
import lsoftmax_op
from lsoftmax_op import library
lsoftmax_op.lsoftmax_loss([[1.0]], [[1.0]], [0])
importlib.reload(library).load()
for name in [name for name in sys.modules if name.split(".")[0] == "lsoftmax_op"]:
    del sys.modules[name]
import lsoftmax_op, tensorflow as tf
with tf.GradientTape() as tape:
    weights = tf.Variable([[1.0, 2.0]])
    loss = lsoftmax_op.lsoftmax_loss([[1.0]], weights, [0])
assert tape.gradient(loss, weights).shape == (1, 2)
""")


def test_finders_and_loaders_of_others():
    pytest.importorskip("tensorflow")
    run_python("""
import importlib.machinery, importlib.util, sys
class Old:
    def find_module(self, name, path=None):  # as before Python 3.4
        return None
class Shared:  # one loader, of several modules
    create_module = staticmethod(lambda spec: None)
    def exec_module(self, module):
        module.ran = True
class New:
    loader = Shared()
    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, self.loader) if name in ("tensorflow", "another") else None
sys.meta_path[:0] = [Old(), New()]
import lsoftmax_op._import_hook as hook
ran = []
hook.after_import("tensorflow", lambda: ran.append("hook"))
sys.modules.pop("tensorflow", None)
importlib.util.find_spec("tensorflow")
import another
assert ran == []
import tensorflow
assert tensorflow.ran and ran == ["hook"], ran
""")


def test_a_library_for_another_tensorflow(copy):
    tf = pytest.importorskip("tensorflow")
    folder, prelude = copy
    written = of_this_tensorflow(folder) / "_build_info.json"
    written.write_text(json.dumps(json.loads(written.read_text()) | {"tensorflow": "2.5.0"}))
    finished = run_python(prelude + "import lsoftmax_op; lsoftmax_op.lsoftmax_logits([[1.]], [[1.]], [0])", check=False)
    assert finished.returncode == 1
    said = f"lsoftmax_op was built for TensorFlow 2.5.0, and this is TensorFlow {tf.__version__}"
    assert f"UserWarning: The ops of lsoftmax_op are not available. {said}" in finished.stderr
    assert f"ImportError: {said}" in finished.stderr


def test_a_truncated_library(copy):
    """However much of it is left, it is refused by name, and never mapped."""
    pytest.importorskip("tensorflow")
    folder, prelude = copy
    of_this_tensorflow(folder)
    names = ("_lsoftmax_ops.so", "_lsoftmax_core.so", "_lsoftmax_cuda.so")
    files = [file for name in names for file in folder.rglob(name)]
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


def test_a_truncated_library_of_kernels_is_not_mapped_by_anybody(copy):
    folder, prelude = copy
    library = next(folder.rglob("_lsoftmax_core.so"))
    library.write_bytes(library.read_bytes()[:100_000])
    run_python(
        prelude
        + """
import lsoftmax_op
for call in (lsoftmax_op.build_info, lambda: lsoftmax_op.arrays.logits([[1.0]], [[1.0]], [0])):
    try:
        call()
    except ImportError as error:
        assert "_lsoftmax_core.so is truncated: it has 100000 of" in str(error), error
    else:
        raise AssertionError("it was taken")
"""
    )


def test_a_missing_library(copy):
    pytest.importorskip("tensorflow")
    folder, prelude = copy
    for file in folder.glob("tf-*/_lsoftmax_ops.so"):
        file.unlink()
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
    for ops in folder.glob("tf-*/_lsoftmax_ops.so"):
        xla = ops.with_name("_lsoftmax_xla.so")
        xla.write_bytes(b"" if keep is None or not xla.exists() else xla.read_bytes()[:keep])
        if keep is None:
            xla.unlink()
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


VERSIONS = ("2.18.1", "2.19.1", "2.20.0", "2.21.0")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Makes a package with op libraries for some versions of TensorFlow, in a process that has a certain one."""

    def make(built, running):
        (tmp_path / "_build_info.json").write_text('{"version": "0", "sizes": {"_lsoftmax_cuda.so": 7}}')
        for version in built:
            folder = tmp_path / f"tf-{'.'.join(version.split('.')[:2])}"
            folder.mkdir()
            (folder / "_lsoftmax_ops.so").touch()
            info = {
                "tensorflow": version,
                "xla": f"no: {version}",
                "xla_calls": False,
                "sizes": {"_lsoftmax_ops.so": 0},
            }
            (folder / "_build_info.json").write_text(json.dumps(info))
        monkeypatch.setattr(library, "_PACKAGE", tmp_path)
        monkeypatch.setitem(sys.modules, "tensorflow", SimpleNamespace(__version__=running) if running else None)
        monkeypatch.setattr(library, "_installed_version", lambda: None)
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("running", "folder"),
    [("2.18.0", "tf-2.18"), ("2.20.7", "tf-2.20"), ("2.21.0-rc1", "tf-2.21"), ("2.19.0.dev20250101", "tf-2.19")],
)
def test_the_library_that_fits_is_chosen(package, running, folder):
    chosen = package(VERSIONS, running) / folder / "_lsoftmax_ops.so"
    assert library.library_path() == str(chosen)
    info = library.build_info()
    assert info["library"] == str(chosen)
    assert info["tensorflow"] in VERSIONS
    assert folder == f"tf-{info['tensorflow'][:4]}"
    assert info["xla"] == f"no: {info['tensorflow']}"
    assert info["tensorflows"] == list(VERSIONS)
    assert info["sizes"] == {"_lsoftmax_cuda.so": 7, "_lsoftmax_ops.so": 0}


@pytest.mark.parametrize(
    ("built", "running", "said"),
    [
        (VERSIONS, "2.22.0", "built for TensorFlow 2.18.1, 2.19.1, 2.20.0, 2.21.0, and this is TensorFlow 2.22.0"),
        (VERSIONS, "3.18.0", "and this is TensorFlow 3.18.0"),
        (["2.21.0"], "2.1.0", "built for TensorFlow 2.21.0, and this is TensorFlow 2.1.0"),
        (VERSIONS, None, "2.21.0, and no TensorFlow is installed here that tells its version"),
        ([], "2.21.0", "lsoftmax_op has no TensorFlow op library"),
    ],
)
def test_no_library_fits(package, built, running, said):
    package(built, running)
    with pytest.raises(ImportError, match=said) as error:
        library.library_path()
    assert ("LSOFTMAX_TF=ON pip install" in str(error.value)) == (running is not None)
    info = library.build_info()
    assert info["tensorflows"] == list(built)
    assert info["tensorflow"] == (built[-1] if built else None)
    assert (info["library"] is None) == (not built)


def test_a_package_without_the_ops_says_why(package):
    folder = package([], "2.17.1")
    assert "no_tensorflow" not in library.build_info()
    reason = 'The TensorFlow in /venv is 2.17.1; supported is "tensorflow>=2.18,<2.22".'
    info = {"version": "0", "sizes": {}, "no_tensorflow": reason}
    (folder / "_build_info.json").write_text(json.dumps(info))
    assert library.build_info()["no_tensorflow"] == reason
    with pytest.raises(
        ImportError, match=re.escape(f"{reason} Rebuild where the TensorFlow is that you want: LSOFTMAX_TF=ON pip")
    ):
        library.library_path()


def test_the_only_library_is_taken_where_no_version_is_known(package):
    only = package(["2.20.0"], None) / "tf-2.20" / "_lsoftmax_ops.so"
    assert library.library_path() == str(only)


@pytest.mark.parametrize(("other", "version"), [(None, "2.19.1"), ("2.19.0", "2.19"), ("2.18.1", None)])
def test_an_installed_tensorflow_is_not_imported_for_its_version(tmp_path, monkeypatch, other, version):
    """Where two packages say that they brought it, as one that was not removed wholly, they may disagree."""
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("raise AssertionError('imported')")
    packages = [("tensorflow_io-0.37.1", "tensorflow_io"), ("tensorflow_cpu-2.19.1", "tensorflow")]
    if other is not None:
        packages.append((f"tensorflow-{other}", "tensorflow"))
    for name, top in packages:
        folder = tmp_path / f"{name}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text("Name: {}\nVersion: {}\n".format(*name.split("-")))
        (folder / "top_level.txt").write_text(top + "\n")
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    found = library._installed_version()
    assert found == version if version is None else found.startswith(version)


def test_the_path_is_told_without_tensorflow():
    if lsoftmax_op.build_info()["library"] is None:
        pytest.skip("built without TensorFlow")
    code = "import sys, lsoftmax_op; print(lsoftmax_op.library_path()); assert 'tensorflow' not in sys.modules"
    assert run_python(code).stdout.strip() == lsoftmax_op.library_path()


def test_no_tensorflow_at_all():
    code = "import sys; sys.modules['tensorflow'] = None; import lsoftmax_op; lsoftmax_op.lsoftmax_logits"
    finished = run_python(code, check=False)
    assert "ImportError: lsoftmax_op.lsoftmax_logits needs TensorFlow" in finished.stderr


@pytest.mark.parametrize("of_a_clone", [False, True])
def test_missing_compiled_parts(copy, of_a_clone):
    folder, prelude = copy
    if of_a_clone:
        (folder.parent / "CMakeLists.txt").touch()
    for file in folder.glob("_core*"):
        file.write_bytes(b"")  # an import hook of an editable install would find a missing one elsewhere
    finished = run_python(prelude + "import lsoftmax_op; lsoftmax_op.build_info()", check=False)
    assert "The compiled parts of lsoftmax_op are missing or damaged" in finished.stderr
    assert ("start Python in another folder" in finished.stderr) == of_a_clone
    assert ("pip install --force-reinstall" in finished.stderr) != of_a_clone


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
