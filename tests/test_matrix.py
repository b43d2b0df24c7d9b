"""The matrix of wheels: its cells, the wheel of each, its table. What a cell runs is seen in `make matrix`."""

import json
import re
import sys
from pathlib import Path

import pytest
from support import ROOT

pytest.importorskip("packaging")
sys.path.insert(0, str(ROOT / "build_tools"))
import find_tensorflow
import matrix
import matrix_cells
import matrix_run
import matrix_table
import pythons
from matrix_cells import Cell

ALL = ["3.10", "3.11", "3.12", "3.13"]


def test_every_tensorflow_that_the_build_takes_has_its_cpythons():
    first, end = re.search(r"tensorflow>=2\.(\d+),<2\.(\d+)", find_tensorflow.REQUIREMENT).groups()
    assert [*matrix_cells.NEWEST_PYTHON] == [f"2.{minor}" for minor in range(int(first), int(end))]
    assert set(matrix_cells.NEWEST_PYTHON.values()) <= set(pythons.supported())


@pytest.mark.parametrize(
    ("tensorflow", "cpythons", "numpys", "expected"),
    [
        ("2.18", ALL, [], ["3.10 newest", "3.11 newest", "3.12 newest", "3.10 1.26"]),
        ("2.20", ALL, [], ["3.10 newest", "3.11 newest", "3.12 newest", "3.13 newest", "3.10 1.26"]),
        ("2.21", ["3.13"], [], ["3.13 newest"]),  # for which there is no NumPy 1.26
        ("2.21", ["3.12", "3.13"], ["1.26"], ["3.12 1.26"]),
        ("2.18", ["3.13"], [], []),
    ],
)
def test_cells(tensorflow, cpythons, numpys, expected):
    found = matrix_cells.cells([tensorflow], cpythons, numpys)
    assert [f"{cell.python} {cell.numpy}" for cell in found] == expected
    assert {cell.tensorflow for cell in found} <= {tensorflow}


def test_the_cells_of_tests_once_meet_every_cpython_and_both_numpys():
    every = [cell for tensorflow in matrix_cells.NEWEST_PYTHON for cell in matrix_cells.cells([tensorflow], ALL, [])]
    found = matrix_cells.once(every)
    assert [cell.tensorflow for cell in found] == [*matrix_cells.NEWEST_PYTHON]
    assert {cell.python for cell in found} == set(ALL)
    assert {cell.numpy for cell in found} == {"1.26", "newest"}
    assert matrix_cells.once(every[:1]) == every[:1]


@pytest.mark.parametrize(
    ("tests", "tested"), [("every", [True, True]), ("once", [False, True]), ("none", [False, False])]
)
def test_which_cells_run_the_tests(tmp_path, monkeypatch, tests, tested):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr(pythons, "chosen", lambda names: {"3.10": Path("none")})
    monkeypatch.setattr(matrix, "wheel_for", lambda *_: tmp_path / "a.whl")
    (tmp_path / "a.whl").touch()
    runs = matrix.plan(matrix.parse(["--tensorflow", "2.18", "--tests", tests]))
    assert [run.cell.numpy for run in runs] == ["newest", "1.26"]
    assert [run.tested for run in runs] == tested


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        ("lsoftmax_op-1.2.3-cp312-cp312-linux_x86_64.whl", ["3.12"]),
        ("lsoftmax_op-1.2.3-cp311-abi3-linux_x86_64.whl", ["3.11", "3.12", "3.13"]),
        ("lsoftmax_op-1.2.4-cp312-cp312-linux_x86_64.whl", []),
        ("lsoftmax_op-1.2.3-cp312-cp312-win_amd64.whl", []),
        ("lsoftmax_op-broken.whl", []),
    ],
)
def test_each_cpython_gets_the_wheel_that_pip_would_take(tmp_path, name, fits, monkeypatch):
    monkeypatch.setattr("packaging.tags.platform_tags", lambda: iter(["linux_x86_64"]))
    (tmp_path / name).touch()
    assert [python for python in ALL if matrix_cells.wheel_for(python, tmp_path, "1.2.3")] == fits


def script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_cpythons_are_found_and_shims_that_do_not_run_are_not(tmp_path, monkeypatch):
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin:/usr/bin")
    monkeypatch.setattr(pythons, "supported", lambda: ["3.97", "3.98", "3.99"])
    monkeypatch.setattr(sys, "executable", str(script(tmp_path / "running", "echo other")))
    pyenv = script(tmp_path / "pyenv/versions/3.98.10/bin/python3.98", "echo 3.98")
    script(tmp_path / "pyenv/versions/3.98.9/bin/python3.98", "echo 3.98")
    script(tmp_path / "bin/python3.98", "echo 3.98")
    script(tmp_path / "bin/python3.97", "echo 'not installed' >&2; exit 127")
    on_path = script(tmp_path / "bin/python3.99", "echo 3.99")
    assert pythons.found() == {"3.98": pyenv, "3.99": on_path}
    for name in ("3.99", "python3.99", str(on_path)):
        assert pythons.chosen([name]) == {"3.99": on_path}
    for name in ("3.97", "python3.97", "python2.99", sys.executable):
        with pytest.raises(ValueError, match=rf"--python: expected .* \(3.98, 3.99 found\), got {name}, which is none"):
            pythons.chosen([name])


def row(tensorflow, python, /, **changes):
    result = {
        "cell": {"tensorflow": tensorflow, "python": python, "numpy": "newest", "package": "tensorflow"},
        **{"tensorflow": f"{tensorflow}.1", "keras": "3.9.0", "numpy": "2.1.3", "python": f"{python}.5"},
        **{"install_s": 2.25, "checks": "passed", "tests": {"passed": 7, "failed": 0, "skipped": 2}},
        **{"error": None, "version": "1.2.3", "sha256": f"of {python}"},
    }
    return result | changes


def test_the_table(tmp_path):
    rows = [
        row("2.20", "3.10", tests=None),
        row("2.20", "3.9", error="pytest ended with 1", tests={"passed": 5, "failed": 1, "skipped": 0}),
        row("2.19", "3.12", error="no network", tensorflow=None, keras=None, install_s=None, checks=None, tests=None),
    ]
    shown = [line.strip("| ").split(" | ") for line in matrix_table.markdown(rows).splitlines()[2:]]
    assert shown == [
        ["2.19", "?", "2.1.3", "3.12.5", "-", "-", "-"],
        ["2.20.1", "3.9.0", "2.1.3", "3.9.5", "2.2 s", "passed", "1 failed, 5 passed"],
        ["2.20.1", "3.9.0", "2.1.3", "3.10.5", "2.2 s", "passed", "-"],
    ]
    page = tmp_path / "page.md"
    page.write_text(f"before\n{matrix_table.BEGIN}\nold\n{matrix_table.END}\nafter\n")
    matrix_table.show_on(page, "new")
    assert page.read_text() == f"before\n{matrix_table.BEGIN}\n\nnew\n{matrix_table.END}\nafter\n"
    page.write_text("no place")
    with pytest.raises(ValueError, match=r"page\.md: expected the lines"):
        matrix_table.show_on(page, "new")


@pytest.mark.parametrize(
    ("new", "stays"),
    [
        (row("2.21", "3.12"), True),
        (row("2.21", "3.12", sha256="of another build"), False),
        (row("2.21", "3.11", version="1.2.4"), False),
        (row("2.20", "3.12", checks="FAILED"), False),
    ],
    ids=["another cell", "another wheel", "another version", "the same cell"],
)
def test_a_later_run_replaces_its_cells_and_drops_those_of_other_wheels(tmp_path, new, stays):
    earlier = row("2.20", "3.12")
    matrix_table.save([earlier], tmp_path)
    matrix_table.save([new], tmp_path)
    assert matrix_table.load(tmp_path) == ([earlier, new] if stays else [new])


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run of a cell that makes no environment: its Python is a script."""
    monkeypatch.setattr(matrix_run, "RESULTS", tmp_path)
    wheel = tmp_path / "lsoftmax_op.whl"
    wheel.write_bytes(b"a wheel")

    def make(python, *options):
        one = matrix_run.Run(Cell("2.20", "3.12", "newest"), Path("none"), wheel, matrix.parse(list(options)), True)
        monkeypatch.setattr(one, "_make_environment", lambda: script(one.python, python))
        return one

    return make


PYTHON = """
case "$*" in
*pip*install*) ;;
*-c*) printf '{{"package": "%s/env/lib/lsoftmax_op/__init__.py", "tensorflow": "2.20.0"}}' {folder};;
*-m?lsoftmax_op*) printf '  eager  ok\\n  tf.function  ok\\n  {xla}\\nthe end\\n'
  case '{xla}' in *FAILED*) exit 1;; esac;;
*pytest*) [ -z "$PYTHONPATH$LSOFTMAX_CPU" ] && ls lsoftmax_op tests/test_docs.py pyproject.toml tests/support.py
  echo '<testsuites><testsuite tests="9" failures="{failures}" errors="0" skipped="2"/></testsuites>' >../tests.xml
  echo {failures} failed; exit {failures};;
esac
"""


@pytest.mark.parametrize(
    ("xla", "failures", "error", "tests"),
    [
        ("jit_compile  ok", 0, None, {"passed": 7, "failed": 0, "skipped": 2}),
        ("jit_compile  ok", 1, "pytest ended with 1: 1 failed", {"passed": 6, "failed": 1, "skipped": 2}),
        ("", 0, "did not check jit_compile", None),
        (
            "jit_compile  FAILED: rain",
            0,
            "python -m lsoftmax_op ended with 1: jit_compile  FAILED: rain",
            None,
        ),
    ],
)
def test_a_cell_runs_its_steps_and_says_what_failed(run, tmp_path, monkeypatch, xla, failures, error, tests):
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    monkeypatch.setenv("LSOFTMAX_CPU", "baseline")
    folder = tmp_path / Cell("2.20", "3.12", "newest").name
    result = run(PYTHON.format(folder=folder, xla=xla, failures=failures)).results()
    assert (result["error"] is None) == (error is None)
    assert error is None or error in result["error"]
    assert result["tests"] == tests
    assert result["tensorflow"] == "2.20.0"
    assert not folder.exists()
    log = (tmp_path / f"{folder.name}.log").read_text()
    assert f"$ cd {folder / 'empty'} && {folder / 'env/bin/python'} -m lsoftmax_op" in log
    if tests:  # in a folder with the tests and what they read, without the package and without tests of the clone
        assert re.findall(r"^\S+\.(?:py|toml)$", log, re.MULTILINE) == ["pyproject.toml", "tests/support.py"]


@pytest.mark.parametrize("said", ["", "rain", "{}"])
def test_what_nobody_expected_is_the_error_of_its_cell(run, said):
    result = run(f"""case "$*" in *-c*) echo '{said}';; esac""").results()
    assert re.match(r"IndexError|JSONDecodeError|KeyError", result["error"])


@pytest.mark.parametrize("report", [None, "<testsuites><testsu"])
def test_a_report_that_is_not_whole_counts_nothing(tmp_path, report):
    if report is not None:
        (tmp_path / "tests.xml").write_text(report)
    assert matrix_run.counts(tmp_path / "tests.xml") is None


def test_a_package_from_elsewhere_is_an_error(run):
    result = run("""case "$*" in *-c*) echo '{"package": "/clone/lsoftmax_op/__init__.py"}';; esac""").results()
    assert "imported from /clone/lsoftmax_op/__init__.py, which is not in the environment" in result["error"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--python", "2.7"], "--python: expected a CPython"),
        (["--python", sys.executable], "no wheel of lsoftmax_op"),
    ],
)
def test_what_cannot_be_run_is_said(tmp_path, capsys, monkeypatch, arguments, said):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert matrix.main([*arguments, "--dist", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err


def test_a_failing_cell_does_not_stop_the_others_and_the_status_tells(tmp_path, capsys, monkeypatch):
    some = [Cell("2.20", "3.12", "newest"), Cell("2.21", "3.12", "newest")]

    class Stub:
        log = tmp_path / "a.log"

        def __init__(self, cell):
            self.cell = cell

        def results(self):
            return row(self.cell.tensorflow, "3.12", error="it rained" if self.cell is some[0] else None)

    monkeypatch.setattr(matrix, "plan", lambda options: [Stub(cell) for cell in some])
    monkeypatch.setattr(matrix, "Run", Stub)
    monkeypatch.setattr(matrix, "RESULTS", tmp_path)
    assert matrix.main([]) == 1
    printed = capsys.readouterr().out
    assert "it rained" in printed
    assert "--tensorflow 2.20 --python 3.12 --numpy newest --keep" in printed
    assert printed.splitlines()[-1].startswith("1 of 2 cells passed")
    assert len(json.loads((tmp_path / "results.json").read_text())) == 2
