"""Says which systems the library is built for, and refuses the others before anything is compiled.

TensorFlow's wheels for Linux are what the ops are built against and run with, so it is Linux with glibc, in 64 bits.
"""

from __future__ import annotations

import os
import platform
import struct
import sys

_SUPPORTED = "lsoftmax_op supports Linux with glibc and a 64-bit CPython"


def libc() -> str:
    """Returns the C library and its version, as "glibc 2.36", or "no glibc"."""
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or "no glibc"
    except (AttributeError, OSError, ValueError):  # Windows; and musl, which does not know the name
        return "no glibc"


def refusal(system: str, bits: int, library: str) -> str | None:
    """Returns why a system cannot build the library, or None where it can.

    Args:
        system: as `platform.system()` names it.
        bits: of a pointer.
        library: the C library, as `libc` gives it.
    """
    if system != "Linux":
        name = {"Darwin": "macOS"}.get(system, system)
        return f"{_SUPPORTED}; this is {name}. It builds and runs in a Linux container or virtual machine, or in WSL 2."
    if bits != 64:
        return f"{_SUPPORTED}; this CPython has {bits} bits. Install a 64-bit one."
    if not library.startswith("glibc"):
        return (
            f"{_SUPPORTED}; this is Linux without glibc, as Alpine is. It builds and runs on Debian, Ubuntu, Fedora "
            "and their like, also in a container: python:3.12 instead of python:3.12-alpine."
        )
    return None


def check() -> None:
    """Ends the build where this system is not supported.

    Raises:
        SystemExit: with the sentence that says so.
    """
    reason = refusal(platform.system(), 8 * struct.calcsize("P"), libc())
    if reason is not None:
        sys.exit(f"error: {reason}")
