"""Runs a function right after a module is first imported, however much later that is.

Who needs it: whoever loads a SavedModel that holds our ops. ``import lsoftmax_op`` is all they have to add, before or
after TensorFlow's own import: it learns the ops as soon as it is there. If this package imported TensorFlow instead,
the users of `lsoftmax_op.arrays` would pay its seconds, and they may not have it at all.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType


class _Finder:
    """Finds one module as the other finders do, and has its loader call back once it has executed it."""

    def __init__(self, module: str, callback: Callable[[], None]) -> None:
        self.module = module
        self.callback = callback

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self.module:
            return None
        for finder in list(itertools.dropwhile(lambda finder: finder is not self, sys.meta_path))[1:]:
            find_spec = getattr(finder, "find_spec", None)  # Python, too, passes over one without
            spec: ModuleSpec | None = None if find_spec is None else find_spec(name, path, target)
            if spec is not None:
                break
        else:
            return None
        loader = spec.loader
        if loader is None:
            return spec
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            loader.exec_module = execute  # type: ignore[method-assign]
            execute(module)
            if module.__name__ == self.module and self in sys.meta_path:
                sys.meta_path.remove(self)
                self.callback()

        loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def after_import(module: str, callback: Callable[[], None]) -> None:
    """Calls `callback` once, right after the first import of `module` (which is not imported yet)."""
    sys.meta_path.insert(0, _Finder(module, callback))
