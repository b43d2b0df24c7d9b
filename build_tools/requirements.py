"""Prints the requirements that pyproject.toml lists, one a line.

usage: requirements.py [build] [EXTRA ...]     `build` is the build system's own list
"""

from __future__ import annotations

import sys
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    from pip._vendor import tomli as tomllib

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
extras = project["project"]["optional-dependencies"]
for group in sys.argv[1:]:
    requirements = project["build-system"]["requires"] if group == "build" else extras[group]
    print("\n".join(requirement.replace(" ", "") for requirement in requirements))
