#!/usr/bin/env bash
# Compiles core, arrays and the oracle for aarch64 by a cross compiler, and runs their tests on an emulated processor.
# usage: build_tools/aarch64.sh [PYTHON]      (an environment with the build and test requirements, on Debian 12 or later)
#
# Asks for g++-aarch64-linux-gnu and qemu-user-static, and for a PYTHON of the distribution's own minor version, of which
# the packages for arm64 are unpacked into build/aarch64/root: nothing is installed, and no rights are wanted.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(realpath -s "${1:-python3}")
work=$PWD/build/aarch64
root=$work/root site=$work/site package=$work/package
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')

for tool in aarch64-linux-gnu-g++ qemu-aarch64-static; do
  command -v $tool >/dev/null || { echo "$tool was not found: apt install g++-aarch64-linux-gnu qemu-user-static" >&2; exit 1; }
done

# CPython with its headers, and the C library under it: apt resolves what they need for a system that has nothing.
if [ ! -x "$root/usr/bin/python$version" ]; then
  apt=$work/apt
  mkdir -p "$apt/lists/partial" "$apt/archives/partial" "$root" && : >"$apt/status"
  apt_get() {
    apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Sandbox::User= -o APT::Install-Recommends=false \
      -o Dir::State="$apt" -o Dir::State::status="$apt/status" -o Dir::Cache="$apt" -o Debug::NoLocking=1 "$@"
  }
  apt_get update
  apt_get install --yes --download-only "python$version" "libpython$version-dev" libstdc++6
  for archive in "$apt"/archives/*.deb; do dpkg -x "$archive" "$root"; done
fi

# NumPy for aarch64, in the version at hand, and what the tests import.
if [ ! -d "$site/numpy" ]; then
  numpy=$("$python" -c 'import numpy; print(numpy.__version__)')
  platforms=$(for glibc in 17 24 26 27 28; do echo "--platform manylinux_2_${glibc}_aarch64"; done)
  "$python" -m pip install --quiet --target "$site" --only-binary=:all: --python-version "$version" \
    --platform manylinux2014_aarch64 $platforms "numpy==$numpy" ml_dtypes mpmath hypothesis pytest
fi

headers=$root/usr/include/python$version
config=(-idirafter "$root/usr/include")  # where Debian's Python.h looks for pyconfig.h
cmake -S . -B "$work/cmake" -G Ninja --toolchain build_tools/cmake/aarch64-linux-gnu.cmake \
  -DLSOFTMAX_TF=OFF -DLSOFTMAX_CUDA=OFF -DLSOFTMAX_VERSION=aarch64 -DPython_EXECUTABLE="$python" \
  -DPython_INCLUDE_DIR="$headers" -DCMAKE_CXX_FLAGS="${config[*]@Q}" -DPYTHON_MODULE_EXTENSION=".cpython-${version/./}-aarch64-linux-gnu.so"
cmake --build "$work/cmake"
rm -rf "$package" && mkdir -p "$package/lsoftmax_op" && cp lsoftmax_op/*.py "$package/lsoftmax_op/"
cmake --install "$work/cmake" --prefix "$package/lsoftmax_op"
"$python" -m cython -3 lsoftmax_op/reference.pyx -o "$work/reference.c"
aarch64-linux-gnu-gcc -O2 -shared -fPIC -I"$headers" "${config[@]}" "$work/reference.c" \
  -o "$package/lsoftmax_op/reference.cpython-${version/./}-aarch64-linux-gnu.so"

emulated() {
  qemu-aarch64-static -L "$root" -E PYTHONPATH="$package:$site" -E PYTHONHOME="$root/usr" -E PYTHONDONTWRITEBYTECODE=1 \
    "$root/usr/bin/python$version" "$@"
}
emulated -P -m lsoftmax_op
emulated - <<'P'
import sys

sys.path.remove("")  # the package of the clone
sys.modules["tensorflow"] = None  # what needs TensorFlow skips
import pytest

import lsoftmax_op

assert "aarch64" in lsoftmax_op.__file__ and lsoftmax_op.build_info()["version"] == "aarch64"
files = [f"tests/test_{name}.py" for name in ("core", "properties", "layer", "loss")]
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-k", "not cuda", *files]))
P
