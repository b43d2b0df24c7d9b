"""Runs CMake for setuptools, so that `pip install` and plain CMake build the very same thing."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
from pathlib import Path

import diagnose
import systems
from setuptools import Extension
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent.parent

# What a user chooses by environment variables, because pip has no other way to hand it on.
FROM_ENVIRONMENT = (
    "LSOFTMAX_TF",
    "LSOFTMAX_TENSORFLOWS",
    "LSOFTMAX_XLA",
    "LSOFTMAX_CUDA",
    "LSOFTMAX_CUDA_ARCHITECTURES",
    "LSOFTMAX_TESTING",
)


class CMakeExtension(Extension):
    """An extension module that CMakeLists.txt builds, with everything that it installs beside it."""

    def __init__(self, name: str) -> None:
        super().__init__(name, sources=[])


class CMakeBuild(build_ext):
    """Builds and installs the CMake project; other extensions are built as ever.

    The build folder is kept in build/, so that a second build compiles only what changed; LSOFTMAX_BUILD_FOLDER names
    another, which several CPythons may share: each compiles its own modules there, and what does not depend on it once.
    """

    def run(self) -> None:
        """Builds all extensions, for `build_ext --inplace` and editable installs in the clone itself."""
        # Asked here, as setuptools clears self.inplace while it builds; what it built itself it copies afterwards.
        self.root = ROOT if self.inplace else Path(self.build_lib).resolve()
        systems.check()
        _check_tools()
        _choose_c_compiler()
        super().run()

    def build_extension(self, ext: Extension) -> None:
        """Builds one extension."""
        if not isinstance(ext, CMakeExtension):
            super().build_extension(ext)
            return
        destination = self.root.joinpath(*ext.name.split(".")[:-1])
        build = Path(
            os.environ.get("LSOFTMAX_BUILD_FOLDER") or ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        )
        # An isolated build comes with another CMake, Ninja and pybind11 each time: find them anew, keep the objects.
        (build / "CMakeCache.txt").unlink(missing_ok=True)
        options = {
            "CMAKE_BUILD_TYPE": "Debug" if self.debug else "Release",
            "Python_EXECUTABLE": sys.executable,
            "LSOFTMAX_VERSION": self.distribution.get_version(),
        }
        options |= {name: os.environ[name] for name in FROM_ENVIRONMENT if name in os.environ}
        diagnose.run("cmake", "-S", ROOT, "-B", build, "-G", "Ninja", *[f"-D{k}={v}" for k, v in options.items()])
        diagnose.run("cmake", "--build", build)
        remove_stale(destination)
        diagnose.run("cmake", "--install", build, "--prefix", destination)

    def copy_extensions_to_source(self) -> None:
        """Copies what setuptools built itself; CMake has installed its own in place."""
        everything = self.extensions
        self.extensions = [ext for ext in everything if not isinstance(ext, CMakeExtension)]
        super().copy_extensions_to_source()
        self.extensions = everything


def remove_stale(package: Path) -> None:
    """Removes the compiled parts of an earlier build, of which the next may make fewer, or have them in other folders.

    The modules of other CPythons stay.
    """
    for part in ("_lsoftmax_*.so", f"_cuda*{sysconfig.get_config_var('EXT_SUFFIX')}", "tf-*/*"):
        for stale in package.glob(part):
            if not stale.is_dir():
                stale.unlink()


def _check_tools() -> None:
    """Ends the build where a tool is missing that CMake does not ask for; an isolated build brings all along."""
    here = {"cmake": shutil.which("cmake"), "cython": importlib.util.find_spec("Cython")}
    missing = " ".join(name for name, found in here.items() if found is None)
    if missing:
        sys.exit(f"error: The build wants what is not installed: pip install {missing}.")


def _choose_c_compiler() -> None:
    """Has setuptools take `cc` where the compiler that CPython itself was built by is not here."""
    command = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
    if "CC" not in os.environ and shutil.which(command.split()[0]) is None and shutil.which("cc") is not None:
        os.environ["CC"] = "cc"
