"""The signature of a Keras class is that of its constructor; Keras' own __new__(*args, **kwargs) hides it."""

from __future__ import annotations

from sphinx.application import Sphinx
from sphinx.util import inspect


def _of_init(
    app: Sphinx, what: str, name: str, object: object, options: object, signature: str | None, returns: str | None
) -> tuple[str, str | None] | None:
    if what != "class" or signature != "(*args, **kwargs)":
        return None
    constructor = inspect.signature(object.__init__, bound_method=True)
    return inspect.stringify_signature(constructor, show_annotation=False, show_return_annotation=False), returns


def setup(app: Sphinx) -> dict[str, bool]:
    """Has every signature looked at."""
    app.connect("autodoc-process-signature", _of_init)
    return {"parallel_read_safe": True}
