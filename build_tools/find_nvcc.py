"""Finds a CUDA compiler that works, and tells what it can compile for.

Where the environment variable CUDACXX is set, it is the one that it names and no other. Else it is searched in this
order, and the first that compiles and links a kernel wins:

1. nvcc on the PATH;
2. bin/nvcc in the folder that CUDA_HOME or CUDA_PATH names;
3. NVIDIA's own packages from PyPI in this interpreter's site directories: nvidia-cuda-nvcc (with nvidia-cuda-crt and
   nvidia-nvvm) and nvidia-cuda-runtime of one version;
4. /usr/local/cuda.

Run as a script it prints JSON for Cuda.cmake, or a reason on stderr and exits with 1.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from find_tensorflow import site_folders

# From Turing on: the architectures for which nvcc makes machine code where it knows them; PTX of the newest serves what
# comes after.
ARCHITECTURES = ("75", "80", "86", "89", "90", "100", "120")

# Machine code in a third of the space. The drivers that CUDA 13 asks for can unpack it; older ones may not.
_SMALLER = ["--compress-mode=size"]

_KERNEL = """
#include <cuda_runtime.h>
__global__ void add(double* x) { x[threadIdx.x] += 1; }
int run(double* x) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(1); config.blockDim = dim3(32);
  return cudaLaunchKernelEx(&config, add, x);
}
"""


def candidates() -> list[Path]:
    """Returns the compilers there are, best first; only the one that CUDACXX names, where it is set.

    Raises:
        RuntimeError: what it names is not there.
    """
    named = os.environ.get("CUDACXX")
    if named:
        found = shutil.which(named)
        if found is None:
            raise RuntimeError(
                "CUDACXX: expected a CUDA compiler, as an absolute path or as a command on the PATH, got "
                f"{named}, which is no program. Correct it, or unset it to have one searched."
            )
        return [Path(found).absolute()]
    on_path = shutil.which("nvcc")
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    for folder in site_folders():
        homes += [str(home) for home in sorted((folder / "nvidia").glob("cu[1-9]*"), reverse=True)]
        homes.append(str(folder / "nvidia" / "cuda_nvcc"))
    homes.append("/usr/local/cuda")
    paths = [Path(on_path)] if on_path else []
    paths += [Path(home) / "bin" / "nvcc" for home in homes if home]
    return list(dict.fromkeys(path for path in paths if path.is_file()))


def describe(nvcc: Path) -> dict[str, object]:
    """Returns path, version, flags and known architectures of a compiler.

    Raises:
        RuntimeError: it does not compile.
    """
    who = f"CUDACXX: {nvcc}" if os.environ.get("CUDACXX") else str(nvcc)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.cu"
        source.write_text(_KERNEL)
        options = ["-std=c++17", "-shared", "-Xcompiler", "-fPIC", *_flags(nvcc)]
        try:
            compiled = _run(nvcc, *options, source, "-o", Path(folder) / "kernel.so")
        except OSError as error:
            raise RuntimeError(f"{who} does not run: {error}") from error
        if compiled.returncode != 0:
            raise RuntimeError(f"{who} does not compile: {first_error(compiled.stderr or compiled.stdout)}")
    version = re.search(r"V(\d+)\.\d+\.\d+", _run(nvcc, "--version").stdout)
    known = re.findall(r"compute_(\d+)\b", _run(nvcc, "--list-gpu-arch").stdout)
    return {
        "nvcc": str(nvcc),
        "version": version.group(0)[1:] if version else "unknown",
        "flags": shlex.join(_flags(nvcc) + (_SMALLER if version and int(version.group(1)) >= 13 else [])),
        "architectures": [a for a in ARCHITECTURES if a in known] or known[-1:],
    }


def first_error(said: str) -> str:
    """Returns the line that tells why a compiler failed; where it is about the host's compiler, what to do about it."""
    lines = said.strip().splitlines() or ["no message"]
    line = next((line for line in lines if re.search("error|fatal", line)), lines[0])
    unsupported = re.search(r"unsupported \S+ version! .*?!", line)
    if unsupported is None:
        return line
    return f"{unsupported[0]} Name one that is by the environment variable NVCC_CCBIN, as NVCC_CCBIN=g++-12."


def _flags(nvcc: Path) -> list[str]:
    """What the compiler does not know by itself: NVIDIA's packages keep in lib/ what it looks for in lib64/."""
    home = nvcc.resolve().parent.parent
    if (home / "lib64").exists() or not (home / "lib" / "libcudart_static.a").exists():
        return []
    return [f"-L{home / 'lib'}"]


def _run(nvcc: Path, *arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run([str(nvcc), *map(str, arguments)], capture_output=True, text=True, check=False)


def main() -> int:
    """Prints the description as JSON."""
    reasons = []
    try:
        there = candidates()
    except RuntimeError as error:
        there, reasons = [], [str(error)]
    for nvcc in there:
        try:
            print(json.dumps(describe(nvcc)))
        except RuntimeError as error:
            reasons.append(str(error))
        else:
            return 0
    if not reasons:
        reasons = ["No nvcc was found (CUDACXX, PATH, CUDA_HOME, the PyPI package nvidia-cuda-nvcc, /usr/local/cuda)."]
    print(" ".join(reasons), file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
