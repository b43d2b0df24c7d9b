"""The Python in the pages of docs/ runs, block after block, as a reader would type it."""

import re

import pytest
from support import ROOT, run_python

pytest.importorskip("tensorflow")


def test_every_block_runs(tmp_path):
    pages = [(ROOT / "docs" / f"{page}.md").read_text() for page in ("keras", "lambda")]
    blocks = [re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL) for page in pages]
    assert all(blocks)
    enter = f"import os, sys; sys.path.insert(0, {str(ROOT)!r}); os.chdir({str(tmp_path)!r})\n"
    run_python(enter + "\n".join(block for page in blocks for block in page), MPLBACKEND="Agg")
