"""What a source build says last where it fails: what was missing, and what to do."""

import fnmatch
import shlex
import sys

import pytest
from support import ROOT

sys.path.insert(0, str(ROOT / "build_tools"))
import diagnose
import find_nvcc
import jobs
import systems

# What the tools said, and a part of the sentence that it is answered with.
SAID = {
    "no compiler": (
        """CMake Error at CMakeLists.txt:12 (project):
  No CMAKE_CXX_COMPILER could be found.

  Tell CMake where to find the compiler by setting either the environment
  variable "CXX" or the CMake cache entry CMAKE_CXX_COMPILER to the full path
""",
        "No C++ compiler was found. Install one (Debian, Ubuntu: apt install g++;",
    ),
    "a compiler that is not there": (
        """CMake Error at cmake/Modules/CMakeDetermineCXXCompiler.cmake:47 (message):
  Could not find the compiler specified in the environment variable CXX:

  no-such.

CMake Error: CMAKE_CXX_COMPILER not set, after EnableLanguage
""",
        "The C++ compiler no-such, which the environment variable CXX names, was not found.",
    ),
    "no linker": (
        """CMake Error at cmake/Modules/CMakeTestCXXCompiler.cmake:73 (message):
  The C++ compiler

    "/usr/bin/c++"

  is not able to compile a simple test program.
""",
        "The C++ compiler /usr/bin/c++ does not compile an empty program",
    ),
    "no headers of CPython": (
        """CMake Error at cmake/Modules/FindPackageHandleStandardArgs.cmake:290 (message):
  Could NOT find Python (missing: Python_INCLUDE_DIRS Interpreter
  Development.Module)
Call Stack (most recent call first):
""",
        f"The headers of CPython {sys.version_info.major}.{sys.version_info.minor} (Python.h) were not found.",
    ),
    "a full disk, where CMake tries the compiler": (
        """  The C++ compiler "/usr/bin/c++" is not able to compile a simple test program.
    /tmp/ccqahmfr.s: Fatal error: can't write 451 bytes to section .text: 'No space left on device'
""",
        "The disk is full.",
    ),
    "a compiler that the kernel killed": (
        """FAILED: [code=1] CMakeFiles/lsoftmax_xla_ops.dir/cc/tf/xla/loss.cc.o
c++: fatal error: Killed signal terminated program cc1plus
compilation terminated.
ninja: build stopped: subcommand failed.
""",
        "The memory did not suffice: a compiler takes up to",
    ),
    "a limit of memory": (
        "cc1plus: out of memory allocating 65536 bytes after a total of 104865792 bytes\n",
        "CMAKE_BUILD_PARALLEL_LEVEL=1",
    ),
    "Clang without memory": ("clang: error: unable to execute command: Killed\n", "LSOFTMAX_XLA=OFF"),
    "nvcc without memory": ("nvcc error   : 'cicc' died due to signal 9 (Kill signal)\n", "The memory did not suffice"),
    "a compiler that fails itself": (
        "rows.cc:7:1: internal compiler error: in tree_to_shwi, at tree.cc:7329\n",
        "The compiler itself failed. Compile one file at a time",
    ),
    "no Ninja": (
        """CMake Error: CMake was unable to find a build program corresponding to "Ninja".
CMAKE_MAKE_PROGRAM is not set.  You probably need to select a different build tool.
""",
        "Ninja was not found: pip install ninja",
    ),
    "no pybind11": (
        """CMake Error at CMakeLists.txt:66 (find_package):
  Could not find a package configuration file provided by "pybind11"
  with any of the following names:

    pybind11Config.cmake
    pybind11-config.cmake
""",
        "pybind11 was not found: pip install pybind11",
    ),
    "no TensorFlow that is supported": (
        """CMake Error at CMakeLists.txt:89 (message):
  LSOFTMAX_TF=ON, but: The TensorFlow in /venv/lib/python3.11/site-packages
  is 2.17.1; supported is tensorflow>=2.18,<2.22.


-- Configuring incomplete, errors occurred!
""",
        "LSOFTMAX_TF=ON, but: The TensorFlow in /venv/lib/python3.11/site-packages is 2.17.1; supported is "
        "tensorflow>=2.18,<2.22.",
    ),
    "anything else": (
        """[1/9] Building CXX object rows.cc.o
FAILED: [code=1] CMakeFiles/lsoftmax_core.dir/cc/core/rows.cc.o
cc/core/rows.cc:12:3: error: 'x' was not declared in this scope
ninja: build stopped: subcommand failed.
""",
        "lsoftmax_op was not built. The first error was: cc/core/rows.cc:12:3: error: 'x' was not declared in this",
    ),
    "nothing": ("", "lsoftmax_op was not built. The first error was: nothing was said"),
}


@pytest.mark.parametrize(("said", "sentence"), SAID.values(), ids=SAID)
def test_a_failed_step_is_explained(said, sentence):
    explained = diagnose.explain(said)
    assert sentence in explained
    assert "\n" not in explained
    assert "{" not in explained


def test_a_step_that_fails_ends_in_the_sentence(capfd):
    with pytest.raises(SystemExit) as ended:
        diagnose.run(
            sys.executable, "-c", "print('c++: fatal error: Killed signal terminated program cc1plus'); exit(1)"
        )
    assert str(ended.value).startswith("\nerror: The memory did not suffice")
    assert "cc1plus" in capfd.readouterr().out
    diagnose.run(sys.executable, "-c", "print('good')")
    assert capfd.readouterr().out == "good\n"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            """In file included from /usr/local/cuda/include/cuda_runtime.h:82,
                 from <command-line>:
/usr/local/cuda/include/crt/host_config.h:137:2: error: #error -- unsupported GNU version! gcc versions later than \
15 are not supported! The nvcc flag '-allow-unsupported-compiler' can be used to override this version check.
""",
            "unsupported GNU version! gcc versions later than 15 are not supported! Name one that is by the "
            "environment variable NVCC_CCBIN, as NVCC_CCBIN=g++-12.",
        ),
        (
            "nvcc warning : old\nnvcc fatal   : Cannot find compiler 'g++' in PATH\n",
            "nvcc fatal   : Cannot find compiler 'g++' in PATH",
        ),
        ("", "no message"),
    ],
)
def test_what_keeps_nvcc_from_compiling_is_told(said, reason):
    assert find_nvcc.first_error(said) == reason


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("no-such-nvcc", "CUDACXX: expected a CUDA compiler, * got no-such-nvcc, which is no program."),
        ("an-nvcc", "CUDACXX: */an-nvcc does not compile: it rains"),
        ("not-for-here", "CUDACXX: */not-for-here does not run: *"),
    ],
)
def test_the_compiler_that_cudacxx_names_is_the_only_one(tmp_path, monkeypatch, capsys, named, said):
    programs = {"nvcc": "#!/bin/sh\n", "an-nvcc": "#!/bin/sh\necho it rains; exit 1\n", "not-for-here": "\x7fELF"}
    for name, text in programs.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("CUDACXX", named)
    assert find_nvcc.main() == 1
    assert fnmatch.fnmatch(capsys.readouterr().err, f"{said}*")


def test_the_flags_of_nvcc_take_folders_with_spaces(tmp_path):
    home = tmp_path / "a folder"
    for folder in ("bin", "lib"):
        (home / folder).mkdir(parents=True)
    (home / "lib" / "libcudart_static.a").touch()
    nvcc = home / "bin" / "nvcc"
    nvcc.write_text("#!/bin/sh\n")
    nvcc.chmod(0o755)
    assert shlex.split(find_nvcc.describe(nvcc)["flags"]) == [f"-L{home / 'lib'}"]


@pytest.mark.parametrize(
    ("system", "bits", "library", "named"),
    [
        ("Darwin", 64, "no glibc", "this is macOS"),
        ("Windows", 64, "no glibc", "this is Windows"),
        ("Linux", 32, "glibc 2.36", "this CPython has 32 bits"),
        ("Linux", 64, "no glibc", "Alpine"),
    ],
)
def test_other_systems_are_refused(system, bits, library, named):
    reason = systems.refusal(system, bits, library)
    assert reason.startswith("lsoftmax_op supports Linux with glibc")
    assert named in reason


def test_this_system_is_not_refused():
    assert systems.refusal("Linux", 64, systems.libc()) is None
    systems.check()


# Files that tell what memory is left on a machine that has 10 GB free. Of a group: what it may take, what it takes, and
# how much of that holds files, in gigabytes.
MACHINE = {"proc/meminfo": f"MemTotal: 99 kB\nMemAvailable: {10 * 10**9 // 1024} kB\n", "proc/self/cgroup": "0::/\n"}
UNLIMITED = str(2**63 - 4096)


def group(folder, limit, taken, files):
    """A group of cgroups v2."""
    stat = f"anon 5\ninactive_file {files * 10**9}\nactive_file 0\n"
    return {
        f"{folder}/memory.max": limit,
        f"{folder}/memory.current": f"{taken * 10**9}\n",
        f"{folder}/memory.stat": stat,
    }


def group_of_v1(folder, limit, taken, files):
    """A group of cgroups v1."""
    stat = f"inactive_file 7\ntotal_inactive_file 0\ntotal_active_file {files * 10**9}\n"
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat")
    return {f"{folder}/{name}": text for name, text in zip(names, (limit, f"{taken * 10**9}\n", stat), strict=True)}


V2 = "sys/fs/cgroup"
V1 = "sys/fs/cgroup/memory"
FREE = {
    "no limit": (MACHINE, 10),
    "a container": (MACHINE | group(V2, f"{4 * 10**9}\n", 3, 1), 2),
    "a container without a limit": (MACHINE | group(V2, "max\n", 3, 1), 10),
    "a limit above": (
        MACHINE
        | {"proc/self/cgroup": "0::/batch/job\n"}
        | group(f"{V2}/batch", f"{6 * 10**9}\n", 1, 0)
        | group(f"{V2}/batch/job", "max\n", 1, 0),
        5,
    ),
    "version 1": (
        MACHINE
        | {"proc/self/cgroup": "5:cpu:/\n4:memory:/job\n0::/\n"}
        | group_of_v1(V1, UNLIMITED, 9, 1)
        | group_of_v1(f"{V1}/job", str(8 * 10**9), 7, 2),
        3,
    ),
    "version 1, of which a container sees its own": (
        MACHINE | {"proc/self/cgroup": "4:memory:/docker/1f\n"} | group_of_v1(V1, str(2 * 10**9), 1, 0),
        1,
    ),
    "more is taken than is allowed": (MACHINE | group(V2, f"{2 * 10**9}\n", 3, 0), 0),
}


@pytest.mark.parametrize(("files", "expected"), FREE.values(), ids=FREE)
def test_the_free_memory_is_what_the_process_is_granted(files, expected, tmp_path):
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert jobs.free_memory(tmp_path) == pytest.approx(expected * 10**9, abs=1024)


def test_where_nothing_tells_the_free_memory_is_unknown(tmp_path):
    assert jobs.free_memory(tmp_path) is None


@pytest.mark.parametrize(("part", "gigabytes", "expected"), [("xla", 0.1, 1), ("arrays", 1e3, 1000), ("xla", 25, 10)])
def test_no_more_compilers_run_than_the_memory_holds(part, gigabytes, expected, monkeypatch):
    monkeypatch.setitem(jobs.PEAK_GB, "xla", 2.5)
    monkeypatch.setitem(jobs.PEAK_GB, "arrays", 1.0)
    assert jobs.jobs(part, int(gigabytes * 10**9)) == expected
