"""What a release says of itself is said once, or alike: version, citation, changes, check list, reports."""

import re
import sys

import pytest
from support import ROOT, run_python

import lsoftmax_op
from lsoftmax_op import _environment


def text(path):
    return (ROOT / path).read_text()


def test_the_version_is_said_once():
    assert '\ndynamic = ["version"]\n' in text("pyproject.toml")
    assert 'attr = "lsoftmax_op.__version__"' in text("pyproject.toml")
    number = re.compile(rf"(?<![\d.]){re.escape(lsoftmax_op.__version__)}(?![\d.])")
    code = [*ROOT.glob("*.py"), *ROOT.glob("build_tools/**/*.*"), *ROOT.glob("cc/**/*.*"), ROOT / "CMakeLists.txt"]
    code += [path for path in (ROOT / "lsoftmax_op").rglob("*.py") if path.name != "__init__.py"]
    assert len(code) > 100
    assert [path.name for path in code if path.suffix != ".pyc" and number.search(path.read_text())] == []


def test_make_compiles_anew_for_a_new_version():
    (sources,) = re.findall(r"^SOURCES := (?:.*\\\n)*.*", text("Makefile"), re.MULTILINE)
    assert "lsoftmax_op/__init__.py" in sources.split()


def test_the_newest_change_is_that_of_the_version_and_so_is_the_citation():
    version, date = re.search(
        r"^## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)$", text("CHANGELOG.md"), re.MULTILINE
    ).groups()
    assert version == lsoftmax_op.__version__
    citation = text("CITATION.cff")
    assert f"\nversion: {version}\n" in citation
    assert f'\ndate-released: "{date}"\n' in citation


def test_readme_and_citation_cite_the_same_paper():
    entry = re.search(r"^@inproceedings\{.*?^\}", text("README.md"), re.MULTILINE | re.DOTALL).group()
    fields = dict(re.findall(r"^  (\w+)\s+= \{(.*)\},?$", entry, re.MULTILINE))
    citation = text("CITATION.cff")
    paper = citation[citation.index("preferred-citation:") :]
    families, given = re.findall(r"family-names: (.+)", paper), re.findall(r"given-names: (.+)", paper)
    assert " and ".join(map("{}, {}".format, families, given)) == fields["author"]
    assert f"title: {fields['title']}\n" in paper
    assert f"collection-title: {fields['booktitle']}\n" in paper
    assert re.findall(r"(?:start|end|year): (\d+)", paper) == [*fields["pages"].split("--"), fields["year"]]


def test_every_step_of_a_release_is_a_target_and_in_the_check_list():
    makefile, page = text("Makefile"), text("CONTRIBUTING.md")
    (steps,) = re.findall(r"^RELEASE_STEPS := (.+)$", makefile, re.MULTILINE)
    check_list = page[page.index("## To make a release") :]
    for step in steps.split():
        assert re.search(rf"^{step}:.*## ", makefile, re.MULTILINE), step
        assert re.search(rf"`(?:make )?{step}`", check_list), step


def test_a_bug_form_asks_for_the_report():
    form = text(".github/ISSUE_TEMPLATE/bug.yml")
    assert "python -m lsoftmax_op" in form
    assert form.count("required: true") == 4


def test_the_report_names_what_surrounds_the_package(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("TF_VAR_password", "a secret of another program")
    said = _environment.describe()
    assert sys.executable in said["python"]
    assert re.search(r"\bnumpy \d", said["packages"])
    assert "OMP_NUM_THREADS=3" in said["settings"]
    assert "secret" not in str(said)
    assert all(said.values())


@pytest.mark.parametrize("driver", [None, "580.159"])
def test_the_report_names_the_driver(tmp_path, monkeypatch, driver):
    path = tmp_path / "version"
    monkeypatch.setattr(_environment, "_DRIVER", path)
    if driver is not None:
        path.write_text(f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {driver}  Tue Nov 1 UTC 2026\nGCC version:\n")
    expected = f"none of NVIDIA's ({path} does not exist)" if driver is None else f"NVIDIA {driver}"
    assert _environment.describe()["driver"] == expected


METADATA = {"METADATA": "Metadata-Version: 2.1\nName: lsoftmax-op\nVersion: 9.8.7\n", "INSTALLER": "pip\n"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            {"WHEEL": "Wheel-Version: 1.0\nTag: cp312-cp312-manylinux_2_34_x86_64\n"},
            "cp312-cp312-manylinux_2_34_x86_64",
        ),
        (
            {"direct_url.json": '{"url": "file:///a%20clone", "dir_info": {"editable": true}}'},
            "editable, from file:///a%20",
        ),
        ({"direct_url.json": '{"url": "file:///dist/a.whl", "archive_info": {}}'}, "from file:///dist/a.whl"),
    ],
)
def test_the_report_says_how_the_package_came_here(tmp_path, monkeypatch, files, expected):
    folder = tmp_path / "lsoftmax_op-9.8.7.dist-info"
    folder.mkdir()
    for name, content in {**METADATA, **files}.items():
        (folder / name).write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    said = _environment.describe()["installed"]
    assert said.startswith("9.8.7 by pip, ")
    assert expected in said
    assert said.endswith(f"but imported from {_environment._PACKAGE}")
    monkeypatch.setattr(_environment, "_PACKAGE", tmp_path / "lsoftmax_op")
    assert ("imported from" in _environment.describe()["installed"]) == ("editable" in expected)


def test_the_self_check_does_without_tensorflow():
    hidden = "import importlib.util, sys; found = importlib.util.find_spec\n"
    hidden += "importlib.util.find_spec = lambda name, *a: None if name == 'tensorflow' else found(name, *a)\n"
    hidden += "sys.modules['tensorflow'] = None\n"
    said = run_python(hidden + "from lsoftmax_op.__main__ import main; sys.exit(main())").stdout
    assert "checks" in said
    assert said.endswith("All checks passed.\n")
