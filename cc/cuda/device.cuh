// What the kernels share: how they are launched, how a warp adds up, and how it walks a row beside a weight column.
#ifndef LSOFTMAX_CUDA_DEVICE_CUH_
#define LSOFTMAX_CUDA_DEVICE_CUH_

#include <cuda_runtime.h>
#include <stdint.h>

#include "core/half.h"
#include "core/inline.h"
#include "cuda/kernels.h"

namespace lsoftmax {
namespace cuda {

constexpr int kWarp = 32;
constexpr int kBlock = 256;             // threads
constexpr int kWarps = kBlock / kWarp;  // a block

LSOFTMAX_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Launches kernel(args...) on `blocks` x `tiles` blocks, if there are any.
template <typename... Parameters>
Status launch(void (*kernel)(Parameters...), int64_t blocks, int64_t tiles, int threads, Stream stream,
              Parameters... args) {
  if (blocks == 0 || tiles == 0) return cudaSuccess;
  if (blocks > INT32_MAX || tiles > UINT16_MAX) return cudaErrorInvalidConfiguration;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(tiles));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = static_cast<cudaStream_t>(stream);
  const cudaError_t launched = cudaLaunchKernelEx(&config, kernel, args...);
  const cudaError_t last = cudaGetLastError();  // takes the error off this thread's record
  return launched != cudaSuccess ? launched : last;
}

// 16 bytes of a row.
template <typename T>
constexpr int kWide = 16 / sizeof(T);

// Whether rows of `depth` entries from these addresses on can be read 16 bytes at a time.
template <typename T, typename... Pointers>
bool is_wide(int64_t depth, Pointers... rows) {
  bool wide = depth % kWide<T> == 0;
  for (const void* row : {static_cast<const void*>(rows)...}) wide = wide && reinterpret_cast<uintptr_t>(row) % 16 == 0;
  return wide;
}

// kCount neighbours, in one access.
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Vector {
  T at[kCount];
};

template <int kCount, typename T>
LSOFTMAX_INLINE Vector<T, kCount>& vector_at(T* address) {
  return *reinterpret_cast<Vector<T, kCount>*>(address);
}
template <int kCount, typename T>
LSOFTMAX_INLINE const Vector<T, kCount>& vector_at(const T* address) {
  return *reinterpret_cast<const Vector<T, kCount>*>(address);
}

#if defined(__CUDACC__) || defined(LSOFTMAX_CUDA_ON_CPU)

// The warp's own row, of `rows`; every lane has the same.
__device__ inline int64_t row_of_warp() { return static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp; }
__device__ inline int lane_of_warp() { return static_cast<int>(threadIdx.x % kWarp); }
__device__ inline int64_t row_of_thread() { return static_cast<int64_t>(blockIdx.x) * kBlock + threadIdx.x; }

// The sum over the warp's lanes, on every lane, always added in the same order.
__device__ inline double warp_sum(double value) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, distance);
  }
  return value;
}

// Walks a row x [depth] and a weight column w (entries `stride` apart), its lanes side by side along the row:
// calls work(d, x[d .. d + kVector), w[d .. d + kVector)) for every kVector-th d. A column's entries lie in as many
// cache lines, so a lane asks for kInFlight of them before it uses the first.
template <int kVector, typename T, typename Work>
__device__ inline void walk(const T* x, const T* w, int64_t stride, int64_t depth, const Work& work) {
  constexpr int kInFlight = 8;
  constexpr int kSteps = kInFlight / kVector;
  constexpr int64_t kStep = kWarp * kVector;
  for (int64_t first = lane_of_warp() * kVector; first < depth; first += kSteps * kStep) {
    Vector<T, kVector> xs[kSteps] = {}, ws[kSteps] = {};
#pragma unroll
    for (int n = 0; n < kSteps; ++n) {
      const int64_t d = first + n * kStep;
      if (d >= depth) continue;
      xs[n] = vector_at<kVector>(x + d);
#pragma unroll
      for (int l = 0; l < kVector; ++l) ws[n].at[l] = w[(d + l) * stride];
    }
#pragma unroll
    for (int n = 0; n < kSteps; ++n) {
      const int64_t d = first + n * kStep;
      if (d < depth) work(d, xs[n], ws[n]);
    }
  }
}

#endif

// Says that a template over the data type is compiled for each of them.
#define LSOFTMAX_FOR_EACH_TYPE(INSTANTIATE) \
  INSTANTIATE(float16);                     \
  INSTANTIATE(bfloat16);                    \
  INSTANTIATE(float);                       \
  INSTANTIATE(double)

}  // namespace cuda
}  // namespace lsoftmax

#endif  // LSOFTMAX_CUDA_DEVICE_CUH_
