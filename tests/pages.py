"""The Python in the pages, block after block, as a reader would type it: what does each block print?

A block shows what it prints in a block of text right below.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

from support import ROOT, run_python

# What the fragments of a page take for given.
GIVEN = {
    "docs/migration.md": """
import tensorflow as tf
import lsoftmax_op
from lsoftmax_op import L_softmax
feature, labels, softmax_w, softmax_b = tf.ones([3, 2]), tf.constant([0, 1, 0]), tf.eye(2), tf.zeros([2])
batch_size, step, total_steps = 3, 0, 100
"""
}
_BLOCK = re.compile(r"^```python\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)
_RUN = """
import contextlib, io, json, os, sys
sys.path.insert(0, {root!r})
os.chdir({folder!r})
printed = {{}}
for page, given, blocks in {pages!r}:
    names = {{"__name__": "__main__"}}
    exec(given, names)
    for n, block in enumerate(blocks):
        with contextlib.redirect_stdout(io.StringIO()) as output:
            exec(compile(block, f"{{page}}, block {{n + 1}}", "exec"), names)
        printed.setdefault(page, []).append(output.getvalue())
with open("printed.json", "w") as file:
    json.dump(printed, file)
"""


class Block(NamedTuple):
    """A block of Python, and what the page says that it prints, None where it says nothing."""

    code: str
    shown: str | None


def blocks(page: str) -> list[Block]:
    """Returns the blocks of a page that need none of the libraries that the tests do without."""
    return [block for block in _all_blocks(page) if not re.match("import (torch|cupy)", block.code)]


def torch_blocks(page: str) -> list[Block]:
    """Returns the blocks of a page that open with the import of PyTorch."""
    return [block for block in _all_blocks(page) if block.code.startswith("import torch\n")]


def _all_blocks(page: str) -> list[Block]:
    return [Block(code, shown or None) for code, shown in _BLOCK.findall((ROOT / page).read_text())]


def run(pages: tuple[str, ...], folder: Path) -> dict[str, list[str]]:
    """Runs every block of the pages, each page from a fresh start, in a new process that works in a folder."""
    code = [(page, GIVEN.get(page, ""), [block.code for block in blocks(page)]) for page in pages]
    run_python(_RUN.format(root=str(ROOT), folder=str(folder), pages=code), MPLBACKEND="Agg")
    return json.loads((folder / "printed.json").read_text())
