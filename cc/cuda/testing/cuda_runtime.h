// CUDA on the CPU, for tests: compiles the .cu sources with a host compiler and runs them where there is no GPU.
//
// Put this folder before CUDA's own on the include path and compile a .cu file as C++. A launch then runs at once,
// block after block; each CUDA thread is a fiber of its own with its own stack, and gives way to the others only where
// CUDA lets threads wait for each other: __syncthreads, __syncwarp and the warp shuffles are real barriers. So every
// line of a kernel runs, under the sanitizers too, and a barrier that some thread never reaches is an error.
//
// Threads run in the order of their index, or as the environment variable CUDA_ON_CPU_ORDER says: `reverse`, or a
// number that seeds a shuffle for each block. A kernel without races gives the same result in every order. Where
// CUDA_ON_CPU_LAST is a number, only so many blocks of each launch run, the last ones: the far end of arrays that are
// too large to be walked through. To the file CUDA_ON_CPU_LOG each launch adds a line: its blocks and threads,
// and the size of its clusters.
//
// Of a cluster all blocks are in flight at once, one runs until it has to wait for another, in the same orders, and
// what it leaves in shared memory is overwritten when it ends. Bulk copies take their time (machine.h).
//
// What it is not: fast, or a model of memory: caches do not exist. __shared__ arrays are static, and hold what the last
// block left; only what of_block() and dynamic_shared() of cuda/device.cuh give is each block's own, as kernels of
// clusters want it. The device (host_api.h) has as much shared memory as the least of those that the library is built
// for, and no clusters; the environment may give it both.
#ifndef LSOFTMAX_CUDA_TESTING_CUDA_RUNTIME_H_
#define LSOFTMAX_CUDA_TESTING_CUDA_RUNTIME_H_

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LSOFTMAX_CUDA_ON_CPU 1

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __launch_bounds__(...)
#define __grid_constant__

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidPitchValue = 12,
  cudaErrorLaunchFailure = 719,
  cudaErrorInvalidClusterSize = 912,
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;  // of the thread that runs

using cudaStream_t = struct CUstream_st*;

enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension = 4 };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    struct {
      unsigned x, y, z;
    } clusterDim;
  } val;
};

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

#include "machine.h"

// What cuda/device.cuh and cuda/cluster.cuh have in other words on a GPU.
namespace cuda_on_cpu {

inline void* dynamic_shared() { return Machine::instance().shared().dynamic(); }
template <typename V>
void* of_block() {
  static const char key = 0;
  return Machine::instance().shared().variable(&key, sizeof(V));
}

inline int cluster_rank() { return static_cast<int>(Machine::instance().rank()); }
inline int cluster_blocks() { return static_cast<int>(Machine::instance().cluster()); }
inline void wait_for_cluster() { Machine::instance().wait_for_cluster(); }
inline void* of_rank(const void* own, int rank) {
  return Machine::instance().of_rank(own, static_cast<unsigned>(rank));
}
inline void init_arrival(const void* arrival) { Machine::instance().init_arrival(arrival); }
inline void announce(const void* arrival, int bytes) { Machine::instance().announce(arrival, bytes); }
inline void await(const void* arrival, unsigned parity) { Machine::instance().await(arrival, parity); }
inline void bulk_copy(void* to, const void* from, int bytes, const void* arrival) {
  Machine::instance().bulk_copy(to, from, bytes, arrival);
}

}  // namespace cuda_on_cpu

inline void __syncthreads() { ::cuda_on_cpu::Machine::instance().wait_for_block(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { ::cuda_on_cpu::Machine::instance().wait_for_warp(mask); }

template <typename T>
T __shfl_sync(unsigned mask, T value, int lane) {
  return ::cuda_on_cpu::Machine::instance().exchange(mask, value, static_cast<unsigned>(lane) % 32);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
  ::cuda_on_cpu::Machine& machine = ::cuda_on_cpu::Machine::instance();
  return machine.exchange(mask, value, machine.lane() ^ static_cast<unsigned>(lanes));
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance) {
  ::cuda_on_cpu::Machine& machine = ::cuda_on_cpu::Machine::instance();
  return machine.exchange(mask, value, machine.lane() + distance);
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), Arguments&&... args) {
  return ::cuda_on_cpu::Machine::instance().launch(reinterpret_cast<const void*>(kernel), *config,
                                                   [&] { kernel(args...); });
}

#include "host_api.h"

#endif  // LSOFTMAX_CUDA_TESTING_CUDA_RUNTIME_H_
