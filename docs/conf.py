"""How Sphinx makes a site of these pages: `make docs`. They are written to read well without it, too."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_extensions")]

# TensorFlow greets with notes of its C++ runtime on stderr, where they look like the warnings of a build.
stderr = os.dup(2)
with open(os.devnull, "w") as nowhere:
    os.dup2(nowhere.fileno(), 2)
try:
    import tensorflow as tf  # noqa: F401
finally:
    os.dup2(stderr, 2)
    os.close(stderr)

import lsoftmax_op

# Before autodoc, which would look at its stub file instead, where no docstrings are.
import lsoftmax_op.reference

project = "lsoftmax-op"
author = "the authors of lsoftmax-op"
version = release = lsoftmax_op.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "api_links",
    "constructors",
    "fields",
    "repository_links",
]
exclude_patterns = ["_*"]

# Markdown: headings are anchors as on GitHub.
myst_heading_anchors = 4

# Docstrings: types stand with the arguments, so that a signature shows names and defaults alone.
default_role = "py:obj"
highlight_language = "text"  # what shows no language is a formula or an output
autodoc_member_order = "bysource"
# PyTorch is large, and nothing here computes with it.
autodoc_mock_imports = [] if importlib.util.find_spec("torch") else ["torch"]
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
napoleon_custom_sections = [
    ("Attributes", "params_style"),
    ("Call arguments", "params_style"),
    ("Returns of a call", "returns_style"),
]
toc_object_entries_show_parents = "hide"
python_maximum_signature_line_length = 100
add_module_names = False

html_theme = "furo"
html_title = "lsoftmax-op"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
copybutton_selector = ".highlight-python pre, .highlight-sh pre, .highlight-bibtex pre"
