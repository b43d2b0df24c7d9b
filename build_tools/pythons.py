"""The CPythons of this machine: the running one, pyenv's, and python3.X on the PATH, one of each minor version."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

OLDEST, NEWEST = 10, 13  # of the CPythons 3.X that wheels are made for
NAMED = "a minor version that is found here, a command on the PATH, or a path"  # how a user names a CPython

_QUESTION = """
import sys, sysconfig
free_threaded = sysconfig.get_config_var("Py_GIL_DISABLED")
print("other" if sys.implementation.name != "cpython" or free_threaded else "%d.%d" % sys.version_info[:2])
"""


def found() -> dict[str, Path]:
    """Returns the executable of each minor version that is supported, such as "3.12", the oldest first."""
    versions: dict[str, Path] = {}
    for executable in _candidates():
        versions.setdefault(version_of(executable) or "", executable)
    return {minor: versions[minor] for minor in supported() if minor in versions}


def supported() -> list[str]:
    """Returns "3.10" and so on."""
    return [f"3.{minor}" for minor in range(OLDEST, NEWEST + 1)]


def chosen(names: list[str]) -> dict[str, Path]:
    """Returns those that a user named, each as NAMED says, by minor version; all of them, if none.

    Raises:
        ValueError: a name is none.
    """
    every = found()
    picked = {}
    for name in names:
        path = every.get(name) or shutil.which(os.path.expanduser(name))
        minor = version_of(Path(path)) if path else None
        if minor not in supported():
            raise ValueError(
                f"--python: expected a CPython of {', '.join(supported())}, none that is free-threaded, as {NAMED} "
                f"({', '.join(every) or 'none'} found), got {name}, which is {minor or 'none'}"
            )
        picked[minor] = Path(path).absolute()
    return picked or every


def version_of(executable: Path) -> str | None:
    """Returns "3.12" of a CPython 3.12; None of what is none, is free-threaded, or does not run, as a shim of pyenv."""
    try:
        answer = subprocess.run([executable, "-c", _QUESTION], capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    said = answer.stdout.strip()
    return said if answer.returncode == 0 and said != "other" else None


def _numbers(path: Path) -> list[int]:
    """By which 3.10.13 is later than 3.10.9."""
    return [int(number) for number in re.findall(r"\d+", path.parts[-3])]


def _candidates() -> list[Path]:
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    paths = [Path(sys.executable)]
    for minor in supported():
        paths += sorted(pyenv.glob(f"versions/{minor}.*/bin/python{minor}"), key=_numbers, reverse=True)
        on_path = shutil.which(f"python{minor}")
        paths += [Path(on_path)] if on_path else []
    return paths
