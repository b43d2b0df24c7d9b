"""Links of the pages that leave docs/: on GitHub they show a file of the repository, and here they lead on as well.

README, CHANGELOG and CONTRIBUTING are pages of the site, which include them. Other files are handed out with it.
"""

from __future__ import annotations

import re

from sphinx.application import Sphinx

_PAGES = {"README": "index", "CHANGELOG": "changelog", "CONTRIBUTING": "contributing"}
_LINK = re.compile(r"\]\(\.\./(" + "|".join(_PAGES) + r")\.md")


def _to_pages(app: Sphinx, page: str, source: list[str]) -> None:
    source[0] = _LINK.sub(lambda link: f"]({_PAGES[link[1]]}.md", source[0])


def setup(app: Sphinx) -> dict[str, bool]:
    """Has every page looked through when it is read."""
    app.connect("source-read", _to_pages)
    return {"parallel_read_safe": True}
