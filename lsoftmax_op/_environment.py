"""What a bug report must say of the machine and the environment, beside what was built: asked of files alone."""

from __future__ import annotations

import json
import os
import platform
import re
import sys
import urllib.parse
import urllib.request
from importlib import metadata
from pathlib import Path

# Who brings `tensorflow`, of which an environment should have one; and who else matters to this package.
_TENSORFLOWS = (
    "tensorflow",
    "tensorflow-cpu",
    "tensorflow-gpu",
    "tensorflow-intel",
    "tensorflow-rocm",
    "tensorflow-aarch64",
    "tf-nightly",
)
_OTHERS = ("keras", "tf-keras", "numpy", "ml_dtypes", "torch", "cupy-cuda12x", "cupy-cuda13x")
_DRIVER = Path("/proc/driver/nvidia/version")
_CPUINFO = Path("/proc/cpuinfo")
_PACKAGE = Path(__file__).resolve().parent

# By their whole names, as a report is public and other programs keep secrets in variables that begin alike.
_SETTINGS = (
    "LSOFTMAX_CPU",
    "LSOFTMAX_XLA_CALLS",
    "CUDA_VISIBLE_DEVICES",
    "KERAS_BACKEND",
    "LD_PRELOAD",
    "NVIDIA_TF32_OVERRIDE",
    "OMP_NUM_THREADS",
    "TF_DETERMINISTIC_OPS",
    "TF_ENABLE_ONEDNN_OPTS",
    "TF_FORCE_GPU_ALLOW_GROWTH",
    "TF_GPU_ALLOCATOR",
    "TF_NUM_INTEROP_THREADS",
    "TF_NUM_INTRAOP_THREADS",
    "TF_USE_LEGACY_KERAS",
    "TF_XLA_FLAGS",
    "XLA_FLAGS",
)


def describe() -> dict[str, str]:
    """Returns, by a short name each, what surrounds the package.

    Returns:
        ``system``, with its C library; ``processor``; ``driver``, NVIDIA's; ``python``; ``packages``, with versions;
        ``installed``, how this package came here; ``settings``, environment variables that change what runs.
    """
    return {
        "system": _system(),
        "processor": _processor(),
        "driver": _driver(),
        "python": f"{platform.python_implementation()} {platform.python_version()}, {sys.executable}",
        "packages": ", ".join(_packages()),
        "installed": _installed(),
        "settings": " ".join(f"{name}={os.environ[name]}" for name in _SETTINGS if name in os.environ) or "none",
    }


def _system() -> str:
    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        name = platform.system()
    return f"{name}, {platform.platform()}"


def _processor() -> str:
    text = _CPUINFO.read_text(errors="replace") if _CPUINFO.exists() else ""
    names = re.findall(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{names[0] if names else platform.machine()}, {usable} of {os.cpu_count()} cores"


def _driver() -> str:
    """The kernel module tells its version in a file; there is none without a driver."""
    try:
        text = _DRIVER.read_text()
    except OSError:
        return f"none of NVIDIA's ({_DRIVER} does not exist)"
    found = re.search(r"\b\d{3,}\.\d+(?:\.\d+)?\b", text)
    return f"NVIDIA {found.group()}" if found else text.splitlines()[0]


def _packages() -> list[str]:
    found = []
    for name in (*_TENSORFLOWS, *_OTHERS):
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return found


def _installed() -> str:
    """Which file an installer put here, or that none did, as in a clone that stands on the path."""
    try:
        distribution = metadata.distribution("lsoftmax-op")
    except metadata.PackageNotFoundError:
        return f"by no installer: {_PACKAGE} stands on the path"
    by = (distribution.read_text("INSTALLER") or "an unknown installer").strip()
    tags = re.findall(r"^Tag: (\S+)$", distribution.read_text("WHEEL") or "", re.MULTILINE)
    parts = [f"{distribution.version} by {by}", *tags[:1]]
    folder = Path(str(distribution.locate_file("lsoftmax_op")))
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    if origin:
        parts.append(f"from {origin['url']}")
    if origin.get("dir_info", {}).get("editable"):
        parts[-1] = f"editable, {parts[-1]}"
        folder = Path(urllib.request.url2pathname(urllib.parse.urlsplit(origin["url"]).path), "lsoftmax_op")
    if folder.resolve() != _PACKAGE:
        parts.append(f"but imported from {_PACKAGE}")
    return ", ".join(parts)
