#!/usr/bin/env bash
# On a machine with an NVIDIA GPU, from a clone as it is: builds the package in place, checks the CUDA kernels on the
# device, times them; prints a page of it, build/gpu.txt, and keeps everything else that was said in build/gpu.log.
# usage: build_tools/gpu.sh [PYTHON]
#
# PYTHON has PyTorch, and CuPy, TensorFlow and other peers where they are to be looked at, too. What is missing to build
# and test is installed into .venv-gpu, beside all that PYTHON sees. compute-sanitizer is run where it is found.
# Once it is built every check is made, also after one that failed; the exit status tells.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(command -v "${1:-python3}")
page=build/gpu.txt log=build/gpu.log failed=0
mkdir -p build && : >"$log"

# check NAME COMMAND...: runs a command, and says in one line how it ended and what it said last.
check() {
  local name=$1 result=ok said
  shift
  said=$(mktemp)
  "$@" >"$said" 2>&1 || { result=FAILED failed=1; }
  { echo "== $name: $*" && cat "$said"; } >>"$log"
  printf '%-12s %-7s %s\n' "$name" "$result" "$(grep -v '^ *$' "$said" | tail -n 1)"
  if [ $result = FAILED ]; then { grep -E -m 12 '^(FAILED|ERROR) ' "$said" || tail -n 15 "$said"; } | sed 's/^/    /'; fi
  rm "$said"
}

tests() { LSOFTMAX_REQUIRE_GPU=1 "$python" -m pytest -q -p no:cacheprovider "$@"; }

build() { LSOFTMAX_CUDA=ON "$python" setup.py --quiet build_ext --inplace && find lsoftmax_op -name '*.so' -exec du -ch {} +; }

checks_and_tables() {
  echo "lsoftmax_op $(git describe --always --dirty 2>/dev/null || echo 'of no commit'), $(date -u +%F)"
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
  echo
  check build build
  [ $failed = 0 ] || { echo "Not built: $log has all that was said."; return 1; }
  check self-check "$python" -m lsoftmax_op
  check tests tests tests/test_gpu.py tests/test_gpu_arrays.py
  check kernels tests tests/test_layer.py tests/test_loss.py tests/test_float16.py tests/test_class_major_arrays.py \
    -k "cuda and not cpu"
  for tool in memcheck racecheck; do
    if command -v compute-sanitizer >/dev/null; then
      check $tool compute-sanitizer --tool $tool --error-exitcode 9 "$python" -m pytest -q -p no:cacheprovider \
        tests/test_layer.py::test_every_shape tests/test_loss.py::test_every_shape \
        -k "cuda and not cpu and float32 and (130 or 1030)"
    fi
  done
  "$python" -m benchmarks gpu --output build/gpu 2>>"$log" || { echo "the tables FAILED: see $log"; failed=1; }
  echo
  [ $failed = 0 ] && echo "All checks passed." || echo "Some checks FAILED: $log has all that they said."
  return $failed
}

missing() { "$python" build_tools/requirements.py --missing build gpu; }
lacking=$(missing)  # a statement: its failure ends the script
if [ -n "$lacking" ]; then
  "$python" -m venv --system-site-packages .venv-gpu
  # It sees the system's packages; where PYTHON is in an environment of its own, it is to see those, too.
  "$python" -c 'import site; [print(f"import site; site.addsitedir({one!r})") for one in site.getsitepackages()]' \
    >"$(echo .venv-gpu/lib/python3*/site-packages)/parent.pth"
  python=$PWD/.venv-gpu/bin/python
  lacking=$(missing)  # which may be more: a new environment comes with a setuptools of its own
  [ -z "$lacking" ] || { echo "Installing into .venv-gpu:" $lacking && "$python" -m pip install --quiet $lacking; }
fi
# CMake and Ninja of this environment, and machine code for the GPUs at hand alone.
export PATH="$(dirname "$python"):$PATH"
architectures=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | tr -d . | sort -u | paste -sd';')
export LSOFTMAX_CUDA_ARCHITECTURES=$architectures
checks_and_tables | tee "$page"
