#!/usr/bin/env bash
# On a machine with an NVIDIA GPU: builds the package in place, checks the CUDA kernels on the device, times them.
# usage: build_tools/gpu.sh [PYTHON]
#
# PYTHON's environment has the build and test requirements (build_tools/requirements.py build test), PyTorch, and CuPy
# and TensorFlow where they are to be checked, too. compute-sanitizer is run where it is found.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3}
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
LSOFTMAX_CUDA=ON LSOFTMAX_TESTING=ON "$python" setup.py --quiet build_ext --inplace
"$python" -m lsoftmax_op

LSOFTMAX_REQUIRE_GPU=1 "$python" -m pytest -q -p no:cacheprovider tests/test_gpu.py tests/test_layer.py -k "not eager"
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    compute-sanitizer --tool "$tool" --error-exitcode 9 "$python" -m pytest -q -p no:cacheprovider \
      "tests/test_layer.py::test_every_shape" -k "cuda and not cpu and float32 and 130"
  done
fi
"$python" -m benchmarks.gpu
