"""The fields below a function: the type of a result stands beside what is said of the result, and none says Any.

autodoc puts the type of the result last, below the errors.
"""

from __future__ import annotations

from docutils import nodes
from sphinx.application import Sphinx


def _tidy(app: Sphinx, domain: str, kind: str, content: nodes.Element) -> None:
    for fields in content.findall(nodes.field_list):
        for field in list(fields):
            if field[0].astext().split()[0] in ("type", "rtype") and field[1].astext() == "Any":
                fields.remove(field)
        named = {field[0].astext(): field for field in fields}
        if "rtype" in named and "returns" in named:
            fields.remove(named["rtype"])
            fields.insert(fields.index(named["returns"]) + 1, named["rtype"])


def setup(app: Sphinx) -> dict[str, bool]:
    """Has the fields of every object looked through, after autodoc has added its own."""
    app.connect("object-description-transform", _tidy, priority=900)
    return {"parallel_read_safe": True}
