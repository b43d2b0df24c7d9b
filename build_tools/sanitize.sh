#!/usr/bin/env bash
# Builds core, bindings and the CUDA kernels (as they run on the CPU) with the address and undefined-behaviour sanitizers and runs their tests.
# usage: build_tools/sanitize.sh [PYTHON]      (an environment with the test requirements)
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(realpath -s "${1:-python3}")
build=build/sanitize package=build/sanitize-package
rm -rf "$package" && mkdir -p "$package/lsoftmax_op"
cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DLSOFTMAX_SANITIZE=ON -DLSOFTMAX_TF=OFF \
  -DLSOFTMAX_CUDA=OFF -DLSOFTMAX_TESTING=ON \
  -DPython_EXECUTABLE="$python" -DLSOFTMAX_VERSION=sanitized
cmake --build "$build"
cp lsoftmax_op/*.py lsoftmax_op/reference.*.so "$package/lsoftmax_op/"
cmake --install "$build" --prefix "$package/lsoftmax_op"

# Python itself is not instrumented: the runtime comes first, and what Python never frees is no leak of ours.
export LD_PRELOAD=$(g++ -print-file-name=libasan.so):$(g++ -print-file-name=libstdc++.so.6)
export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1
for variant in baseline avx2 avx512; do
  what="not cuda"  # those know no CPU variant: once is enough
  [ $variant = avx512 ] && what=""
  echo "sanitized, LSOFTMAX_CPU=$variant"
  LSOFTMAX_CPU=$variant PYTHONPATH="$PWD/$package" "$python" - "$what" <<'P'
import sys

sys.path.remove("")  # the package of the clone
sys.meta_path = [f for f in sys.meta_path if "editable" not in repr(f).lower()]  # the sanitized copy, not the installed one
sys.modules["tensorflow"] = None  # what needs TensorFlow skips
import lsoftmax_op, pytest

assert "sanitize" in lsoftmax_op.__file__ and lsoftmax_op.build_info()["version"] == "sanitized"
names = ("layer", "loss", "class_major_arrays", "properties", "core", "cuda", "cuda_columns", "cuda_clusters", "cuda_margins")
files = [f"tests/test_{name}.py" for name in names]
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-k", sys.argv[1], *files]))
P
done
