"""The PEP 517 build backend: setuptools, and one question more.

LSOFTMAX_TF=AUTO (the default) builds against the TensorFlow of the environment that asked, or without where there is
none. LSOFTMAX_TF=ON must have one: where none is found, TensorFlow becomes a requirement of the (isolated) build.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  (the hooks that need no change)

sys.path.insert(0, str(Path(__file__).parent))
import find_tensorflow
import systems


def _with_tensorflow(requirements: list[str]) -> list[str]:
    systems.check()
    if os.environ.get("LSOFTMAX_TF", "AUTO") == "ON" and find_tensorflow.find_folder() is None:
        return [*requirements, find_tensorflow.REQUIREMENT]
    return requirements


def get_requires_for_build_wheel(config_settings=None) -> list[str]:
    """Returns what an isolated build of a wheel needs beside pyproject.toml's own list."""
    return _with_tensorflow(build_meta.get_requires_for_build_wheel(config_settings))


def get_requires_for_build_editable(config_settings=None) -> list[str]:
    """Returns what an isolated editable build needs beside pyproject.toml's own list."""
    return _with_tensorflow(build_meta.get_requires_for_build_editable(config_settings))
