"""Brings TensorFlows to build against without installing them: of a wheel, what a build reads.

A folder of them has one for each version, `2.21.0` and the like, as find_tensorflow.describe_files wants it. What is
there is not downloaded again.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from packaging.version import Version

# Headers, the two libraries that op libraries link, and what tells the version.
_READ_BY_A_BUILD = re.compile(
    r"tensorflow/include/|tensorflow/libtensorflow_(framework|cc)\.so\.|[^/]+\.dist-info/(METADATA|top_level\.txt)$"
)

# Of which CPython the wheel is does not matter: each supported TensorFlow has one for one of these.
_PYTHONS = ("3.12", "3.13", "3.11", "3.10")


def fetch(minor: str, folder: Path) -> Path:
    """Returns a folder that holds a TensorFlow of a minor version: the one that is kept, or else the newest.

    Args:
        minor: "2.21".
        folder: where TensorFlows are kept.

    Raises:
        RuntimeError: there is no wheel of it, or it cannot be downloaded or unpacked.
    """
    kept = find(minor, folder)
    if kept is not None:
        return kept
    folder.mkdir(parents=True, exist_ok=True)
    at_hand = next(iter(folder.glob(f"tensorflow-{minor}.*.whl")), None)
    if at_hand is not None:
        return unpack(at_hand, folder)
    downloaded = _download(minor, folder)
    unpacked = unpack(downloaded, folder)
    downloaded.unlink()
    return unpacked


def find(minor: str, folder: Path) -> Path | None:
    """Returns the newest TensorFlow of a minor version that is kept, or None."""
    patches = [path for path in folder.glob(f"{minor}.*") if path.is_dir() and path.suffix != ".part"]
    return max(patches, key=lambda path: Version(path.name), default=None)


def unpack(wheel: Path, folder: Path) -> Path:
    """Unpacks what a build reads of `tensorflow-2.21.0-*.whl` into `2.21.0`, wholly or not at all, and returns it.

    Raises:
        RuntimeError: it is not whole, or there is no room.
    """
    unpacked = folder / wheel.name.split("-")[1]
    part = unpacked.with_name(unpacked.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(part, [name for name in archive.namelist() if _READ_BY_A_BUILD.match(name)])
        part.rename(unpacked)
    except (zipfile.BadZipFile, OSError) as error:
        raise RuntimeError(
            f"{wheel} cannot be unpacked into {folder}: {error}. If it is not whole, copy it anew, or remove it to "
            "have one downloaded."
        ) from error
    return unpacked


def _download(minor: str, folder: Path) -> Path:
    machine = platform.machine()
    platforms = [f"--platform=manylinux_2_{glibc}_{machine}" for glibc in range(17, 36)]
    said = ""
    for python in _PYTHONS:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += [*platforms, "--implementation=cp", f"--python-version={python}", f"--dest={folder}"]
        answer = subprocess.run(
            [*command, f"tensorflow=={minor}.*"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if answer.returncode == 0:
            return next(folder.glob(f"tensorflow-{minor}.*.whl"))
        said = "\n".join(line for line in answer.stderr.splitlines() if line.startswith("ERROR")) or answer.stderr
    raise RuntimeError(
        f"TensorFlow {minor} for {machine} could not be downloaded by pip, as a wheel of any CPython of "
        f"{', '.join(sorted(_PYTHONS))}. Is the package index there, and does it have it? pip said:\n{said.strip()}\n"
        f"A wheel that you have, tensorflow-{minor}.*.whl, may also be put into {folder}."
    )
