"""Prints the requirements that pyproject.toml lists, one a line.

usage: requirements.py [--missing] [build] [EXTRA ...]     `build` is the build system's own list

With --missing only those that this interpreter's environment lacks. CMake and Ninja may be the system's own.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import sys
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    from pip._vendor import tomli as tomllib

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())


def listed(groups: list[str]) -> list[str]:
    """Returns the requirements of some groups."""
    extras = {"build": project["build-system"]["requires"], **project["project"]["optional-dependencies"]}
    return [requirement.replace(" ", "") for group in groups for requirement in extras[group]]


def is_met(requirement: str) -> bool:
    """Returns whether this environment has a package as it is required."""
    from pip._vendor.packaging.requirements import Requirement

    required = Requirement(requirement)
    try:
        return required.specifier.contains(importlib.metadata.version(required.name), prereleases=True)
    except importlib.metadata.PackageNotFoundError:
        return required.name in ("cmake", "ninja") and shutil.which(required.name) is not None


def main(arguments: list[str]) -> None:
    """Prints them."""
    requirements = listed([argument for argument in arguments if argument != "--missing"])
    if "--missing" in arguments:
        requirements = [requirement for requirement in requirements if not is_met(requirement)]
    print("\n".join(requirements))


if __name__ == "__main__":
    main(sys.argv[1:])
