"""The pages tell the truth: their Python prints what they show, their links lead somewhere, no name is left out."""

import ast
import importlib.util
import re
import subprocess
import sys

import pages
import pytest
from support import PACKAGE, ROOT

RUNNING = (
    "README.md",
    "docs/keras.md",
    "docs/margins.md",
    "docs/verification.md",
    "docs/lambda.md",
    "docs/arrays.md",
    "docs/scale.md",
    "docs/migration.md",
)
PAGES = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    *(f"docs/{page.name}" for page in sorted(ROOT.glob("docs/*.md"))),
)

# Another processor, or another TensorFlow, rounds otherwise, and a training amplifies that. Integers are mostly counts.
NUMBER = re.compile(r"-?\d+\.?\d*(?:e[+-]?\d+)?")
TOLERANCE = {True: 0.3, False: 0.05}


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    pytest.importorskip("tensorflow")
    if not hasattr(pytest.importorskip("keras"), "wrappers"):
        pytest.skip("Keras before 3.9 has no wrappers, which docs/keras.md shows")
    return pages.run(RUNNING, tmp_path_factory.mktemp("pages"))


@pytest.mark.slow
@pytest.mark.parametrize("page", RUNNING)
def test_every_block_runs_and_prints_what_the_page_shows(page, printed):
    blocks = pages.blocks(page)
    assert any(block.shown for block in blocks)
    for block, got in zip(blocks, printed[page], strict=True):
        if block.shown is not None:
            same_words = NUMBER.sub("0", got).split() == NUMBER.sub("0", block.shown).split()
            pairs = list(zip(NUMBER.findall(got), NUMBER.findall(block.shown), strict=False))
            near = [float(x) == pytest.approx(float(y), rel=TOLERANCE["." in y]) for x, y in pairs]
            assert all([same_words, *near]), f"{page} shows\n{block.shown}where its code prints\n{got}"


def prose(page):
    """The text of a page without its code."""
    return re.sub(r"^```.*?^```$|`[^`\n]+`", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page):
    """The anchors that GitHub gives the headings of a page."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    found = []
    for title in re.findall(r"^#+ (.+?)\s*$", text, re.MULTILINE):
        title = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title)
        anchor = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        found.append(f"{anchor}-{found.count(anchor)}" if anchor in found else anchor)
    return found


@pytest.mark.parametrize("page", PAGES)
def test_every_link_and_picture_exists(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), f"{page}: {link}"
        assert not anchor or anchor in anchors(target), f"{page}: {link} is none of {anchors(target)}"


def test_the_readme_names_the_tensorflow_that_the_build_takes():
    requirement, first, end = re.search(
        r'"(tensorflow>=(2\.\d+),<2\.(\d+))"', (ROOT / "pyproject.toml").read_text()
    ).groups()
    readme = (ROOT / "README.md").read_text()
    assert f'pip install "{requirement}"' in readme
    assert f"TensorFlow {first} to 2.{int(end) - 1} on Linux" in readme


def documented():
    """The names that the API pages give a place."""
    names = set()
    for page in (ROOT / "docs" / "api").glob("*.rst"):
        text = page.read_text()
        (module,) = re.findall(r"^\.\. (?:auto)?module:: (\S+)$", text, re.MULTILINE)
        names |= {module, *(f"{module}.{name}" for name in re.findall(r"^\.\. auto\w+:: (\w+)$", text, re.MULTILINE))}
    return names


def public(module):
    """The names without an underscore that a module, or its stub, defines; its __all__ where it has one."""
    body = ast.parse((PACKAGE / module).read_text()).body
    for node in body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "__all__":
            return set(ast.literal_eval(node.value))
    defined = {node.name for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    return {name for name in defined if not name.startswith("_")}


@pytest.mark.parametrize(
    ("prefix", "module"),
    [
        ("", "__init__.py"),
        ("arrays.", "arrays.py"),
        ("keras.", "keras/__init__.py"),
        ("margins.", "margins.py"),
        ("reference.", "reference.pyi"),
        ("scale.", "scale.py"),
        ("torch.", "torch/__init__.py"),
    ],
)
def test_every_public_name_is_on_a_page_of_the_api(prefix, module):
    names = {f"lsoftmax_op.{prefix}{name}" for name in public(module)}
    assert names
    assert names <= documented(), names - documented()


def test_the_site_builds_without_a_warning(tmp_path):
    for module in ("tensorflow", "sphinx", "myst_parser", "furo", "sphinx_copybutton"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed; `make docs` installs the extra `docs`")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "--quiet", "-d", tmp_path / "doctrees"]
    built = subprocess.run([*command, ROOT / "docs", tmp_path / "site"], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    for name in ("index.html", "api/lsoftmax_op.html", "_images/features.png"):
        assert (tmp_path / "site" / name).exists()
