"""Names of the API lead to it: `LambdaSchedule` in a docstring, `keras.LSoftmaxDense` in the text of a page.

A docstring may leave off the module, and so does a page, which says `lsoftmax_loss` or `arrays.loss`.
"""

from __future__ import annotations

import re

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.domains.python import PythonDomain
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.nodes import make_refnode

_PREFIXES = ("lsoftmax_op.", "lsoftmax_op.keras.", "")


def _find(domain: PythonDomain, name: str) -> tuple[str, object] | None:
    """Returns the full name, and where it is documented, of a name as people write it."""
    for prefix in _PREFIXES:
        if prefix + name in domain.objects:
            return prefix + name, domain.objects[prefix + name]
    return None


def _link(app: Sphinx, page: str, name: str, content: nodes.Node) -> nodes.Node | None:
    found = _find(app.env.domains["py"], name)
    if found is None:
        return None
    full, entry = found
    return make_refnode(app.builder, page, entry.docname, entry.node_id, content, full)


def _missing(app: Sphinx, env: object, node: nodes.Element, content: nodes.Node) -> nodes.Node | None:
    if node.get("refdomain") != "py":
        return None
    return _link(app, node["refdoc"], node["reftarget"], content)


class _Literals(SphinxPostTransform):
    """Makes links of the code in running text that is, or calls, a name of the API."""

    default_priority = 400

    def run(self, **_: object) -> None:
        if self.env.docname.startswith("api/"):
            return
        for code in list(self.document.findall(nodes.literal)):
            if isinstance(code.parent, nodes.reference) or _within(code, nodes.title):
                continue
            name = re.match(r"(?:\w+\.)*\w+(?=\(|$)", code.astext())
            link = name and _link(self.app, self.env.docname, name[0], code.deepcopy())
            if link:
                code.parent.replace(code, link)


def _within(node: nodes.Node, kind: type) -> bool:
    while node is not None and not isinstance(node, kind):
        node = node.parent
    return node is not None


def setup(app: Sphinx) -> dict[str, bool]:
    """Has both kinds of names looked up when a page is written."""
    app.connect("missing-reference", _missing)
    app.add_post_transform(_Literals)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
