"""What `make wheels` asks: which TensorFlows to build against, which compiler, and what came out."""

import json
import shlex
import site
import sys
import zipfile
from pathlib import Path

import pytest
from support import ROOT

sys.path.insert(0, str(ROOT / "build_tools"))
import find_tensorflow
import tensorflow_wheels
import wheel_contents
import wheels


def tensorflow_files(version):
    """The files of a wheel of TensorFlow, by their names: what a build reads, and what it does not."""
    info = f"tensorflow-{version}.dist-info"
    return {
        "tensorflow/__init__.py": "raise AssertionError('imported')",
        "tensorflow/include/tensorflow/core/ops.h": "",
        "tensorflow/libtensorflow_framework.so.2": "..._ZNKSt7__cxx1112basic_stringIc...",
        "tensorflow/libtensorflow_cc.so.2": "",
        "tensorflow/python/_pywrap_tensorflow_internal.so": "",
        f"{info}/METADATA": f"Name: tensorflow\nVersion: {version}\n",
        f"{info}/top_level.txt": "tensorflow\n",
        f"{info}/RECORD": "",
    }


def zipped(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


@pytest.fixture
def kept(tmp_path):
    """A folder of TensorFlows, with one unpacked."""
    tensorflow_wheels.unpack(zipped(tmp_path / "tensorflow-2.20.1-cp39-none.whl", tensorflow_files("2.20.1")), tmp_path)
    return tmp_path


def test_of_a_wheel_what_a_build_reads_is_unpacked(kept):
    names = {str(path.relative_to(kept / "2.20.1")) for path in (kept / "2.20.1").rglob("*") if path.is_file()}
    assert names == {
        "tensorflow/include/tensorflow/core/ops.h",
        "tensorflow/libtensorflow_framework.so.2",
        "tensorflow/libtensorflow_cc.so.2",
        "tensorflow-2.20.1.dist-info/METADATA",
        "tensorflow-2.20.1.dist-info/top_level.txt",
    }


def test_the_newest_that_is_kept_is_taken(kept, monkeypatch):
    monkeypatch.setattr(tensorflow_wheels, "_download", None)
    for other in ("2.20.0", "2.20.10", "2.20.11.part", "2.2.0", "2.21.0"):
        (kept / other).mkdir()
    assert tensorflow_wheels.fetch("2.20", kept) == kept / "2.20.10"
    assert tensorflow_wheels.fetch("2.21", kept) == kept / "2.21.0"


def test_a_wheel_that_is_at_hand_is_not_downloaded(kept, monkeypatch):
    monkeypatch.setattr(tensorflow_wheels, "_download", None)
    wheel = zipped(kept / "tensorflow-2.18.2-cp311-cp311-any.whl", tensorflow_files("2.18.2"))
    assert tensorflow_wheels.fetch("2.18", kept) == kept / "2.18.2"
    assert find_tensorflow.describe_files(kept / "2.18.2")["version"] == "2.18.2"
    assert wheel.exists()


def test_a_wheel_that_was_downloaded_does_not_stay(kept, monkeypatch):
    def download(minor, folder):
        return zipped(folder / f"tensorflow-{minor}.2-cp311-cp311-any.whl", tensorflow_files(f"{minor}.2"))

    monkeypatch.setattr(tensorflow_wheels, "_download", download)
    assert tensorflow_wheels.fetch("2.18", kept) == kept / "2.18.2"
    assert not list(kept.glob("tensorflow-2.18.*"))


def test_a_wheel_that_is_not_whole_is_named(tmp_path):
    wheel = zipped(tmp_path / "tensorflow-2.18.2-cp311-cp311-any.whl", tensorflow_files("2.18.2"))
    wheel.write_bytes(wheel.read_bytes()[:-100])
    with pytest.raises(RuntimeError, match=f"{wheel} cannot be unpacked .* copy it anew, or remove it"):
        tensorflow_wheels.fetch("2.18", tmp_path)
    assert wheel.exists()


def test_why_nothing_was_downloaded(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setattr(tensorflow_wheels, "_PYTHONS", ("3.12",))
    with pytest.raises(RuntimeError, match="TensorFlow 2.18 for .* could not be downloaded") as error:
        tensorflow_wheels.fetch("2.18", tmp_path)
    assert "No matching distribution found for tensorflow==2.18.*" in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_an_unpacked_tensorflow_is_described_by_its_files(kept):
    folder = kept / "2.20.1"
    assert find_tensorflow.describe_files(folder) == {
        "version": "2.20.1",
        "include_dir": str(folder / "tensorflow" / "include"),
        "library": str(folder / "tensorflow" / "libtensorflow_framework.so.2"),
        "compile_options": "-D_GLIBCXX_USE_CXX11_ABI=1;-DEIGEN_MAX_ALIGN_BYTES=64",
    }
    (folder / "tensorflow" / "libtensorflow_framework.so.2").write_text("_ZNKSs7compareERKSs")
    assert find_tensorflow.describe_files(folder)["compile_options"].startswith("-D_GLIBCXX_USE_CXX11_ABI=0;")


def test_files_say_what_tensorflow_says_itself():
    tf = pytest.importorskip("tensorflow")
    info = find_tensorflow.describe_files(Path(tf.__file__).parent.parent)
    flags = [flag for flag in tf.sysconfig.get_compile_flags() if flag.startswith("-D")]
    assert info["version"] == tf.__version__
    assert info["include_dir"] == tf.sysconfig.get_include()
    assert info["compile_options"].split(";") == flags
    assert Path(info["library"]).name == tf.sysconfig.get_link_flags()[-1].removeprefix("-l:")


@pytest.mark.parametrize(
    ("removed", "said"),
    [
        ("tensorflow/libtensorflow_framework.so.2", "it lacks tensorflow/libtensorflow_framework.so.2"),
        ("tensorflow/include/tensorflow/core", "it lacks tensorflow/include/tensorflow"),
        ("tensorflow-2.20.1.dist-info/top_level.txt", "it lacks one tensorflow*.dist-info"),
    ],
)
def test_what_an_unpacked_tensorflow_lacks_is_named(kept, removed, said):
    path = kept / "2.20.1" / removed
    if path.is_dir():
        (path / "ops.h").unlink()
        path.rmdir()
        path.parent.rmdir()
    else:
        path.unlink()
    with pytest.raises(RuntimeError) as error:
        find_tensorflow.describe_files(kept / "2.20.1")
    assert said in str(error.value)


@pytest.mark.parametrize("version", ["2.5.0", "99.0.0"])
def test_a_tensorflow_that_is_not_supported(tmp_path, version):
    wheel = zipped(tmp_path / f"tensorflow-{version}-cp311.whl", tensorflow_files(version))
    with pytest.raises(RuntimeError, match=f"is {version}; supported is tensorflow>=2"):
        find_tensorflow.describe_files(tensorflow_wheels.unpack(wheel, tmp_path))


def test_the_minor_versions_that_are_supported():
    minors = find_tensorflow.supported_minors()
    assert minors == sorted(minors, key=find_tensorflow.minor_version)
    assert find_tensorflow.REQUIREMENT.startswith(f"tensorflow>={minors[0]},<")
    assert len(minors) >= 4


@pytest.mark.parametrize("prefix", [sys.base_prefix, "/venv"])
def test_the_users_own_packages_are_seen_though_pip_hides_them(monkeypatch, prefix):
    monkeypatch.setenv("PYTHONNOUSERSITE", "1")
    monkeypatch.setattr(site, "ENABLE_USER_SITE", False)
    monkeypatch.setattr(sys, "prefix", prefix)
    seen = Path(site.getusersitepackages()) in find_tensorflow.site_folders()
    assert seen == (prefix == sys.base_prefix)


COMPILERS = {"/a/nvcc": "13.0.88", "/b/nvcc": "12.4.131", "/c/nvcc": None}


@pytest.mark.parametrize(
    ("wanted", "named", "there", "chosen"),
    [
        ("12", None, ["/a/nvcc", "/c/nvcc", "/b/nvcc"], "/b/nvcc"),
        ("12", "/b/nvcc", ["/a/nvcc"], "/b/nvcc"),
        ("any", None, ["/c/nvcc", "/a/nvcc", "/b/nvcc"], "/a/nvcc"),
        ("none", "/a/nvcc", ["/a/nvcc"], None),
        ("12", "/a/nvcc", ["/b/nvcc"], RuntimeError("/a/nvcc is of CUDA 13.0.88.")),
        ("12", None, ["/a/nvcc", "/c/nvcc"], RuntimeError("/c/nvcc does not compile")),
        ("any", "/c/nvcc", ["/b/nvcc"], RuntimeError("/c/nvcc does not compile")),
        ("any", "/d/nvcc", ["/b/nvcc"], RuntimeError("CUDACXX: expected a CUDA compiler, ")),
        ("any", None, [], RuntimeError("No nvcc was found. Bring one with build_tools/fetch_nvcc.sh")),
    ],
)
def test_which_compiler_is_chosen(monkeypatch, wanted, named, there, chosen):
    def describe(nvcc):
        if COMPILERS[str(nvcc)] is None:
            raise RuntimeError(f"{nvcc} does not compile")
        return {"version": COMPILERS[str(nvcc)]}

    monkeypatch.setattr(wheels.find_nvcc, "describe", describe)
    monkeypatch.setattr(wheels, "NVCC_12", Path("/none"))
    if named:
        monkeypatch.setenv("CUDACXX", named)
        monkeypatch.setattr(wheels.find_nvcc.shutil, "which", lambda name: name if name in COMPILERS else None)
    else:
        monkeypatch.delenv("CUDACXX", raising=False)
        monkeypatch.setattr(wheels.find_nvcc, "candidates", lambda: [Path(path) for path in there])
    if isinstance(chosen, RuntimeError):
        with pytest.raises(RuntimeError) as error:
            wheels.choose_nvcc(wanted)
        assert str(chosen) in str(error.value)
    else:
        assert wheels.choose_nvcc(wanted) == (Path(chosen) if chosen else None)


def test_a_dry_run_says_what_would_be_built_and_builds_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(wheels.requirements, "is_met", lambda requirement: True)
    monkeypatch.setattr(wheels, "FOLDER", tmp_path / "wheels")
    monkeypatch.setattr(wheels, "build", None)
    assert wheels.main(["--dry-run", "--cuda", "none", "--tensorflow", "2.20"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "CUDA compiler: None",
        f"CPythons: {sys.executable}",
        "TensorFlow: 2.20",
    ]
    assert not wheels.FOLDER.exists()


def test_a_dry_run_says_what_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(wheels.requirements, "is_met", lambda requirement: True)
    monkeypatch.setattr(wheels.pythons, "found", dict)
    assert wheels.main(["--dry-run", "--every-python"]) == 1
    assert "--every-python: expected CPython 3.10" in capsys.readouterr().err


@pytest.mark.parametrize("python", ["no-such-python", "/bin/cat"])
def test_what_is_no_python(monkeypatch, capsys, python):
    monkeypatch.setattr(wheels.requirements, "is_met", lambda requirement: True)
    assert wheels.main(["--dry-run", "--cuda", "none", "--python", python]) == 1
    assert f"got {python}, which is none" in capsys.readouterr().err


def test_an_environment_whose_interpreter_is_gone_is_made_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(wheels, "FOLDER", tmp_path)
    commands = []
    monkeypatch.setattr(wheels, "_run", lambda command, *_: commands.append(command))
    own = tmp_path / "cpython-312" / "bin" / "python"
    own.parent.mkdir(parents=True)
    own.symlink_to(sys.executable)
    (tmp_path / "cpython-312" / "ready").touch()
    assert wheels._environment("cpython-312", Path("python3.12")) == own
    assert not commands
    own.unlink()
    own.symlink_to("gone")
    wheels._environment("cpython-312", Path("python3.12"))
    assert commands[0] == [Path("python3.12"), "-m", "venv", "--clear", tmp_path / "cpython-312"]


def test_a_program_that_does_not_run_is_named(tmp_path):
    with pytest.raises(RuntimeError, match=r"compiling failed: /no/python does not run: .*No such file"):
        wheels._run(["/no/python"], "compiling", tmp_path / "log")


def test_a_build_keeps_the_users_flags_and_takes_folders_with_spaces(monkeypatch):
    monkeypatch.setattr(wheels, "ROOT", Path("/a clone"))
    monkeypatch.setenv("CXXFLAGS", "-O1 -g")
    monkeypatch.delenv("LDFLAGS", raising=False)
    environment = wheels._build_environment(Path(sys.executable), [], None)
    assert shlex.split(environment["CXXFLAGS"]) == ["-O1", "-g", "-ffile-prefix-map=/a clone=."]
    assert environment["LDFLAGS"] == "-Wl,-s"


def test_a_step_shows_how_far_it_is_and_keeps_what_it_said(tmp_path, capsys):
    log = tmp_path / "log"
    code = "for i in range(1, 41): print(f'[{i}/40] Building')"
    wheels._run([sys.executable, "-c", code], "compiling", log)
    shown = capsys.readouterr().out.splitlines()
    assert shown[:3] == ["compiling ...", "compiling ... [4/40]", "compiling ... [8/40]"]
    assert len(shown) == 12
    assert shown[-1].startswith("compiling: done, ")
    assert len(log.read_text().splitlines()) == 40


def test_a_step_that_fails_says_its_last_words_and_where_all_of_them_are(tmp_path):
    code = "import sys; print('first'); print(*range(99), sep='\\n'); sys.exit('no such header')"
    with pytest.raises(RuntimeError, match="no such header") as error:
        wheels._run([sys.executable, "-c", code], "compiling", tmp_path / "log")
    assert f"all of it in {tmp_path / 'log'}" in str(error.value)
    assert "first" not in str(error.value)
    assert "first" in (tmp_path / "log").read_text()


MINORS = ("2.9", "2.10")


def our_files():
    """The files of a wheel of ours that is in order."""
    names = ["_core.so", "_lsoftmax_core.so", "reference.so", "_cuda.so", "_lsoftmax_cuda.so"]
    names += [f"tf-{minor}/{name}" for minor in MINORS for name in ("_lsoftmax_ops.so", "_lsoftmax_xla.so")]
    cuda = {"nvcc": "12.4.131", "architectures": ["75-real", "90"]}
    return {
        **{f"lsoftmax_op/{name}": "" for name in names},
        "lsoftmax_op/_build_info.json": json.dumps({"cuda": cuda}),
        "lsoftmax_op/tf-2.10/_build_info.json": json.dumps({"tensorflow": "2.10.0"}),
        "lsoftmax_op/tf-2.9/_build_info.json": json.dumps({"tensorflow": "2.9.3"}),
    }


def test_a_wheel_that_is_in_order(tmp_path):
    wheel = zipped(tmp_path / "lsoftmax_op-1.0-cp312-cp312-manylinux_2_34_x86_64.whl", our_files())
    assert wheel_contents.problems(wheel, MINORS) == []
    line = wheel_contents.table([wheel]).splitlines()[-1]
    assert [cell.strip() for cell in line.strip("|").split("|")] == [
        "cp312",
        "0.0",
        "manylinux_2_34_x86_64",
        "2.9.3, 2.10.0",
        "12.4.131: 75-real 90",
    ]


@pytest.mark.parametrize(
    ("platform", "without", "extra", "said"),
    [
        ("linux_x86_64", "none", None, "its platform is linux_x86_64"),
        ("manylinux_2_35_x86_64", "none", None, "manylinux_2_34 or an older one was expected"),
        ("manylinux_2_17_x86_64", "_core.", None, "lsoftmax_op/_core. is missing"),
        ("manylinux_2_17_x86_64", "_lsoftmax_cuda", None, "lsoftmax_op/_lsoftmax_cuda.so is missing"),
        ("manylinux_2_17_x86_64", "tf-2.10/_lsoftmax_xla", None, "lsoftmax_op/tf-2.10/_lsoftmax_xla.so is missing"),
        ("manylinux_2_17_x86_64", "tf-2.9/", None, "there is no op library for TensorFlow 2.9 in it"),
        ("manylinux_2_17_x86_64", "tf-", None, "there is no op library for TensorFlow 2.9, 2.10 in it"),
        ("manylinux_2_17_x86_64", "none", "lsoftmax_op.libs/libcudart.so", "it should not hold lsoftmax_op.libs"),
        ("manylinux_2_17_x86_64", "none", "lsoftmax_op/_cuda_on_cpu.so", "it should not hold lsoftmax_op/_cuda_on_cpu"),
    ],
)
def test_what_a_released_wheel_must_not_be(tmp_path, platform, without, extra, said):
    files = {name: text for name, text in our_files().items() if not name.startswith(f"lsoftmax_op/{without}")}
    wheel = zipped(tmp_path / f"lsoftmax_op-1.0-cp312-cp312-{platform}.whl", files | ({extra: ""} if extra else {}))
    (problem,) = wheel_contents.problems(wheel, MINORS)
    assert said in problem


def test_a_wheel_that_is_too_large(tmp_path, monkeypatch):
    wheel = zipped(tmp_path / "lsoftmax_op-1.0-cp312-cp312-manylinux_2_34_x86_64.whl", our_files())
    monkeypatch.setattr(wheel_contents, "MOST_BYTES", 1000)
    (problem,) = wheel_contents.problems(wheel, MINORS)
    assert "where 0 are the most" in problem
