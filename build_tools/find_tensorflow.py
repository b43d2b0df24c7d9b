"""Finds the TensorFlow that an op library should be built against, and asks it for its flags.

Searched in this order, the first that holds a package `tensorflow` wins:

1. what this interpreter imports;
2. the site directories of this interpreter (pip hides them from a build in isolation);
3. the folder that the environment variable TENSORFLOW_ROOT names: one that holds `tensorflow/`, or that folder itself.

Or there is a folder that was named, of a TensorFlow that need not be importable: an unpacked wheel of any CPython.
Then its files are asked.

usage: find_tensorflow.py [FOLDER]     prints JSON for TensorFlow.cmake, or a reason on stderr and exits with 1
"""

from __future__ import annotations

import importlib.util
import json
import mmap
import os
import re
import site
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

# "tensorflow>=FIRST,<END", as pyproject.toml has it: by its words, as Python 3.10 has no parser of TOML.
_PYPROJECT = (Path(__file__).resolve().parent.parent / "pyproject.toml").read_text()
REQUIREMENT, *_RANGE = re.search(r'"(tensorflow>=([\d.]+),<([\d.]+))"', _PYPROJECT).groups()

# Asked of a TensorFlow that runs here, in a process of its own: nothing is guessed of its layout.
_QUESTION = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
import tensorflow as tf
library = tf.sysconfig.get_lib()
flags = tf.sysconfig.get_compile_flags()
print(json.dumps({
    "version": tf.__version__,
    "include_dir": tf.sysconfig.get_include(),
    "library": os.path.join(library, tf.sysconfig.get_link_flags()[-1].removeprefix("-l:")),
    "compile_options": ";".join(f for f in flags if not f.startswith(("-I", "--std", "-std"))),
}))
"""


def site_folders() -> list[Path]:
    """Returns this interpreter's site directories, which pip hides from a build in isolation."""
    folders = [*site.getsitepackages(), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    # pip hides the user's own folder, too, by PYTHONNOUSERSITE; a virtual environment does without it anyway.
    hidden = os.environ.get("PYTHONNOUSERSITE") and sys.prefix == sys.base_prefix
    if site.ENABLE_USER_SITE or hidden:
        folders.append(site.getusersitepackages())
    return [Path(folder) for folder in dict.fromkeys(folders)]


def find_folder() -> Path | None:
    """Returns the folder to put on `sys.path` to import TensorFlow, or None."""
    folders = []
    spec = importlib.util.find_spec("tensorflow")
    if spec is not None and spec.origin is not None:
        folders.append(Path(spec.origin).parent.parent)
    folders += site_folders()
    root = os.environ.get("TENSORFLOW_ROOT")
    if root:
        folders += [Path(root), Path(root).parent]
    for folder in folders:
        if (folder / "tensorflow" / "include" / "tensorflow").is_dir():
            return folder
    return None


def minor_version(version: str) -> tuple[int, ...]:
    """Returns (2, 18) of "2.18.1"."""
    return tuple(int(part) for part in version.split(".")[:2])


def describe(folder: Path) -> dict[str, str]:
    """Returns version, include folder, library and compile options of the TensorFlow in `folder`.

    Raises:
        RuntimeError: it cannot be imported, or its version is not supported.
    """
    # Without the paths that a build in isolation sets: they hide what TensorFlow itself imports.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHON_COLORS": "0"}
    answer = subprocess.run(
        [sys.executable, "-c", _QUESTION, str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.returncode != 0:
        last = (answer.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"The TensorFlow in {folder} cannot be imported: {last}")
    return _supported(json.loads(answer.stdout.splitlines()[-1]), folder)


def describe_files(folder: Path) -> dict[str, str]:
    """Returns what `describe` does, of files alone.

    The version is that of the package's metadata. Which std::string its interface has, the symbols of its library tell.
    How Eigen's memory is aligned, nothing in the wheel tells but its compiled code: EIGEN_MAX_ALIGN_BYTES=64 stands in
    third_party/eigen3/eigen_archive.BUILD, and so tf.sysconfig.get_compile_flags() has it in every supported version.

    Args:
        folder: holds `tensorflow/` with its headers and libtensorflow_framework.so.2, and its .dist-info.

    Raises:
        RuntimeError: a part is missing, or its version is not supported.
    """
    package = folder / "tensorflow"
    library = package / "libtensorflow_framework.so.2"
    found = [one for one in metadata.distributions(path=[str(folder)]) if _is_tensorflow(one)]
    needed = {
        "tensorflow/libtensorflow_framework.so.2": library.is_file(),
        "tensorflow/include/tensorflow": (package / "include" / "tensorflow").is_dir(),
        "one tensorflow*.dist-info, with METADATA and top_level.txt": len(found) == 1,
    }
    for part, there in needed.items():
        if not there:
            raise RuntimeError(f"{folder} does not hold an unpacked wheel of TensorFlow: it lacks {part}.")
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as symbols:
        cxx11_abi = int(symbols.find(b"St7__cxx1112basic_string") >= 0)
    info = {
        "version": found[0].version,
        "include_dir": str(package / "include"),
        "library": str(library),
        "compile_options": f"-D_GLIBCXX_USE_CXX11_ABI={cxx11_abi};-DEIGEN_MAX_ALIGN_BYTES=64",
    }
    return _supported(info, folder)


def _is_tensorflow(found: metadata.Distribution) -> bool:
    """Whether a package brings the folder `tensorflow`: it may be tensorflow-cpu."""
    return "tensorflow" in (found.read_text("top_level.txt") or "").split()


def _supported(info: dict[str, str], folder: Path) -> dict[str, str]:
    first, end = map(minor_version, _RANGE)
    if not first <= minor_version(info["version"]) < end:
        raise RuntimeError(f"The TensorFlow in {folder} is {info['version']}; supported is {REQUIREMENT}.")
    return info


def supported_minors() -> list[str]:
    """Returns the minor versions of the supported range, "2.18" and so on."""
    (major, first), (_, end) = map(minor_version, _RANGE)
    return [f"{major}.{minor}" for minor in range(first, end)]


def main(arguments: list[str]) -> int:
    """Prints the description as JSON."""
    try:
        if arguments:
            info = describe_files(Path(arguments[0]).resolve())
        else:
            folder = find_folder()
            if folder is None:
                raise RuntimeError(
                    f"No TensorFlow was found for {sys.executable}. Install it first "
                    f'(pip install "{REQUIREMENT}"), or set TENSORFLOW_ROOT to the folder that holds it.'
                )
            info = describe(folder)
        print(json.dumps(info))
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
