"""The compiled parts of lsoftmax_op; everything else is in pyproject.toml."""

import sys
from pathlib import Path

from setuptools import Extension, setup

sys.path.insert(0, str(Path(__file__).parent / "build_tools"))
from cmake_build import CMakeBuild, CMakeExtension

setup(
    ext_modules=[
        CMakeExtension("lsoftmax_op._core"),  # first: it says what is missing
        Extension("lsoftmax_op.reference", ["lsoftmax_op/reference.pyx"]),
    ],
    cmdclass={"build_ext": CMakeBuild},
)
