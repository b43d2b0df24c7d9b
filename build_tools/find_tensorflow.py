"""Finds the TensorFlow that an op library should be built against, and asks it for its flags.

Searched in this order, the first that holds a package `tensorflow` wins:

1. what this interpreter imports;
2. the site directories of this interpreter (pip hides them from a build in isolation);
3. the folder that the environment variable TENSORFLOW_ROOT names: one that holds `tensorflow/`, or that folder itself.

Run as a script it prints JSON for FindTensorFlow.cmake, or a reason on stderr and exits with 1.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import site
import subprocess
import sys
import sysconfig
from pathlib import Path

# "tensorflow>=FIRST,<END", as pyproject.toml has it: by its words, as Python 3.10 has no parser of TOML.
_PYPROJECT = (Path(__file__).resolve().parent.parent / "pyproject.toml").read_text()
REQUIREMENT, *_RANGE = re.search(r'"(tensorflow>=([\d.]+),<([\d.]+))"', _PYPROJECT).groups()

# Asked of TensorFlow itself, in a process of its own: nothing is guessed of its layout.
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
    if site.ENABLE_USER_SITE:
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
    environment["TF_CPP_MIN_LOG_LEVEL"] = "3"
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
    info = json.loads(answer.stdout.splitlines()[-1])
    first, end = map(minor_version, _RANGE)
    if not first <= minor_version(info["version"]) < end:
        raise RuntimeError(f"The TensorFlow in {folder} is {info['version']}; supported is {REQUIREMENT}.")
    return info


def main() -> int:
    """Prints the description as JSON."""
    folder = find_folder()
    try:
        if folder is None:
            raise RuntimeError(
                f"No TensorFlow was found for {sys.executable}. Install it first "
                f'(pip install "{REQUIREMENT}"), or set TENSORFLOW_ROOT to the folder that holds it.'
            )
        print(json.dumps(describe(folder)))
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
