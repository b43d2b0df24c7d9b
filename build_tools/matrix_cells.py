"""Which cells the matrix has, and which wheel each of them installs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from find_tensorflow import minor_version
from packaging import tags
from packaging.utils import InvalidWheelFilename, parse_wheel_filename

ROOT = Path(__file__).resolve().parent.parent

# The newest CPython that each TensorFlow has a wheel for on PyPI.
NEWEST_PYTHON = {"2.18": "3.12", "2.19": "3.12", "2.20": "3.13", "2.21": "3.13"}

# Each TensorFlow meets it once, with the oldest CPython; all other cells have the newest NumPy that TensorFlow allows.
NEWEST = "newest"
OLDEST_NUMPY, ITS_NEWEST_PYTHON = "1.26", "3.12"


@dataclass(frozen=True)
class Cell:
    """A TensorFlow, a CPython and a NumPy, by minor versions; of NumPy maybe "newest"; and who brings TensorFlow."""

    tensorflow: str
    python: str
    numpy: str
    package: str = "tensorflow"

    @property
    def name(self) -> str:
        """As of files: tensorflow-2.20-python-3.13-numpy-newest."""
        return f"{self.package}-{self.tensorflow}-python-{self.python}-numpy-{self.numpy}"

    @property
    def options(self) -> str:
        """What has matrix.py run the cell again."""
        return f"--package {self.package} --tensorflow {self.tensorflow} --python {self.python} --numpy {self.numpy}"


def cells(tensorflows: list[str], cpythons: list[str], numpys: list[str], package: str = "tensorflow") -> list[Cell]:
    """Returns the cells there are of some versions.

    Args:
        tensorflows: minor versions.
        cpythons: likewise.
        numpys: "newest", "1.26", both; or empty: the newest with each CPython, and 1.26 with the oldest.
        package: who brings TensorFlow.
    """
    every = []
    for tensorflow in tensorflows:
        fitting = [python for python in cpythons if minor_version(python) <= minor_version(NEWEST_PYTHON[tensorflow])]
        old = [python for python in fitting if minor_version(python) <= minor_version(ITS_NEWEST_PYTHON)]
        for numpy in numpys or (NEWEST, OLDEST_NUMPY):
            some = fitting if numpy == NEWEST else old if numpys else old[:1]
            every += [Cell(tensorflow, python, numpy, package) for python in some]
    return every


def once(every: list[Cell]) -> list[Cell]:
    """Returns one cell of each TensorFlow, with as many different CPythons and NumPys as there are."""
    chosen: list[Cell] = []

    def met(cell: Cell) -> tuple[int, int]:
        return sum(cell.python == one.python for one in chosen), sum(cell.numpy == one.numpy for one in chosen)

    for tensorflow in dict.fromkeys(cell.tensorflow for cell in every):
        chosen.append(min((cell for cell in reversed(every) if cell.tensorflow == tensorflow), key=met))
    return chosen


def wheel_for(python: str, folder: Path, version: str) -> Path | None:
    """Returns the wheel of a version of this package that a CPython of this machine installs, or None."""
    fitting = set(tags.cpython_tags(minor_version(python), abis=[f"cp{python.replace('.', '')}"]))
    for path in sorted(folder.glob("lsoftmax_op-*.whl")):
        try:
            _, found, _, its_tags = parse_wheel_filename(path.name)
        except InvalidWheelFilename:
            continue
        if str(found) == version and its_tags & fitting:
            return path
    return None


def package_version() -> str:
    """Returns the version of the package of this clone, without importing it."""
    text = (ROOT / "lsoftmax_op" / "__init__.py").read_text()
    return re.search(r'^__version__ = "(.+?)"', text, re.MULTILINE).group(1)
