"""The fields below a function: the type of a result stands above the errors, and none says Any.

autodoc puts it last, below the errors.
"""

from __future__ import annotations

from docutils import nodes
from sphinx.application import Sphinx


def _tidy(app: Sphinx, domain: str, kind: str, content: nodes.Element) -> None:
    for fields in list(content.findall(nodes.field_list)):
        for field in list(fields):
            if _subject(field) in ("type", "rtype") and field[1].astext().endswith("Any"):
                fields.remove(field)
        fields[:] = sorted(fields, key=lambda field: _subject(field) == "raises")


def _subject(field: nodes.field) -> str:
    return field[0].astext().split()[0]


def setup(app: Sphinx) -> dict[str, bool]:
    """Has the fields of every object looked through, after autodoc has added its own."""
    app.connect("object-description-transform", _tidy, priority=900)
    return {"parallel_read_safe": True}
