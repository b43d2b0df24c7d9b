#!/usr/bin/env bash
# Brings CUDA 12's compiler, as Debian packages it, into a folder of its own: what wheels are compiled with, on a machine
# that has another CUDA or none. Debian, or Ubuntu with debian-archive-keyring; amd64; no root, and the system's own packages
# and sources stay as they are.
# usage: build_tools/fetch_nvcc.sh [FOLDER]      build/cuda12, if none is given: bin/nvcc in it, 1 GB to download
#
# It is nvcc 12.4, which knows the architectures up to sm_90; PTX serves what came later, after the driver has compiled it
# once. An nvcc of CUDA 12.8 or 12.9 from NVIDIA's own packages makes machine code for sm_100 and sm_120, too.
# NVIDIA's licence holds: https://docs.nvidia.com/cuda/eula
set -euo pipefail
folder=$(realpath -m "${1:-$(dirname "$0")/../build/cuda12}")
cd "$(dirname "$0")/.."
if [ -d "$folder" ] && [ -n "$(ls -A "$folder")" ] && [ ! -e "$folder/bin/nvcc.profile" ]; then
  echo "fetch_nvcc.sh: $folder holds something else; name an empty folder, or a new one." >&2
  exit 1
fi
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian} keyring=/usr/share/keyrings/debian-archive-keyring.gpg
for tool in apt-get dpkg-deb $keyring; do
  [ -e "$tool" ] || command -v "$tool" >/dev/null || {
    echo "fetch_nvcc.sh wants $tool (Debian's packages apt, dpkg and debian-archive-keyring). Where there is none, install" \
      "CUDA 12 from https://developer.nvidia.com/cuda-toolkit-archive and name its nvcc by CUDACXX." >&2
    exit 1
  }
done

# apt with folders of its own.
apt=$folder-packages
mkdir -p "$apt"/{lists/partial,cache/archives/partial}
echo "deb [arch=amd64 signed-by=$keyring] $mirror trixie non-free" >"$apt/sources.list"
options=(-q -o Dir::Etc::sourcelist="$apt/sources.list" -o Dir::Etc::sourceparts=/dev/null -o Dir::State::status=/dev/null
  -o Dir::State::lists="$apt/lists" -o Dir::Cache="$apt/cache" -o APT::Architecture=amd64 -o APT::Sandbox::User=)
apt-get "${options[@]}" update
(cd "$apt" && apt-get "${options[@]}" download nvidia-cuda-toolkit nvidia-cuda-dev)

# Laid out as NVIDIA does, with a profile that tells nvcc so: what Debian's says holds for /usr alone.
echo "Unpacking into $folder ..."
rm -rf "$folder" && mkdir -p "$folder"
dpkg-deb --fsys-tarfile "$apt"/nvidia-cuda-toolkit_*.deb | tar -x -C "$folder" ./usr/bin ./usr/lib/nvidia-cuda-toolkit
dpkg-deb --fsys-tarfile "$apt"/nvidia-cuda-dev_*.deb |
  tar -x -C "$folder" --wildcards ./usr/include './usr/lib/*/libcudart_static.a' './usr/lib/*/libcudadevrt.a'
cd "$folder"
mkdir -p bin nvvm/bin lib64
mv usr/bin/{cudafe++,fatbinary,nvlink,ptxas,cuobjdump,bin2c} usr/lib/nvidia-cuda-toolkit/bin/{nvcc,crt} bin
mv usr/lib/nvidia-cuda-toolkit/bin/cicc nvvm/bin
mv usr/lib/nvidia-cuda-toolkit/libdevice nvvm
mv usr/include .
mv usr/lib/*/libcuda*.a lib64
rm -r usr
cat >bin/nvcc.profile <<'P'
TOP = $(_HERE_)/..
NVVMIR_LIBRARY_DIR = $(TOP)/nvvm/libdevice
PATH += $(TOP)/nvvm/bin:$(_HERE_):
INCLUDES += "-I$(TOP)/include" $(_SPACE_)
LIBRARIES =+ $(_SPACE_) "-L$(TOP)/lib64"
P
rm -r "$apt"
bin/nvcc --version | tail -n 2
echo "CUDACXX=$PWD/bin/nvcc names it to any build; make wheels finds it in build/cuda12 by itself."
