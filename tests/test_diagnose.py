"""What a source build says last where it fails: what was missing, and what to do."""

import sys

import pytest
from support import ROOT

sys.path.insert(0, str(ROOT / "build_tools"))
import diagnose
import jobs
import systems

# What the tools said, and a part of the sentence that it is answered with.
SAID = {
    "no compiler": (
        """CMake Error at CMakeLists.txt:13 (project):
  No CMAKE_CXX_COMPILER could be found.

  Tell CMake where to find the compiler by setting either the environment
  variable "CXX" or the CMake cache entry CMAKE_CXX_COMPILER to the full path
""",
        "No C++ compiler was found. Install one (Debian, Ubuntu: apt install g++;",
    ),
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
