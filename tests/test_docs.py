"""The Python in the pages of docs/ runs, block after block, as a reader would type it."""

import re

import pytest
from support import ROOT, run_python

pytest.importorskip("tensorflow")


@pytest.mark.parametrize("page", ["keras", "lambda"])
def test_every_block_runs(page, tmp_path):
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / f"{page}.md").read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    enter = f"import os, sys; sys.path.insert(0, {str(ROOT)!r}); os.chdir({str(tmp_path)!r})\n"
    run_python(enter + "\n".join(blocks), MPLBACKEND="Agg")
