"""How Sphinx makes a site of these pages: `make docs`. They are written to read well without it, too."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_extensions")]

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# Before autodoc, which would import TensorFlow a second time to see names that are for type checkers alone.
import tensorflow as tf  # noqa: F401

import lsoftmax_op

project = "lsoftmax-op"
author = "the authors of lsoftmax-op"
version = release = lsoftmax_op.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "api_links",
    "repository_links",
]
exclude_patterns = ["_*"]
suppress_warnings = ["toc.empty_glob"]  # a page that the table of contents names only where it exists

# Markdown: headings are anchors as on GitHub.
myst_heading_anchors = 4

# Docstrings: types stand with the arguments, so that a signature shows names and defaults alone.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_type_aliases = {"TensorLike": "TensorLike", "ArrayLike": "ArrayLike"}
napoleon_custom_sections = [("Call arguments", "params_style"), ("Returns of a call", "returns_style")]
napoleon_use_ivar = True
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
