// What the kernels share: how they are launched, how a warp adds up, and how it walks a row beside a row's weights.
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

// Of a launch: `blocks` x `tiles` blocks, each with `shared` bytes of dynamic_shared(); `cluster` neighbours a cluster.
struct Shape {
  int64_t blocks, tiles;
  int threads;
  int64_t shared = 0;
  int cluster = 1;
};

// Asks for what a kernel may not have unasked. The limit of its shared memory becomes the device's own, and never less,
// as another host thread may be about to launch the same kernel with more.
template <typename... Parameters>
Status allow(void (*kernel)(Parameters...), int64_t shared, int cluster) {
  constexpr int64_t kSharedUnasked = 48 << 10;
  constexpr int kClusterUnasked = 8;
  if (shared > kSharedUnasked) {
    cudaFuncAttributes code = {};
    cudaFuncGetAttributes(&code, kernel);
    if (code.maxDynamicSharedSizeBytes < shared) {
      int device = 0, most = 0;
      cudaGetDevice(&device);
      cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
      most -= static_cast<int>(code.sharedSizeBytes);
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
    }
  }
  if (cluster > kClusterUnasked) cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  return cudaGetLastError();
}

// The shape in CUDA's words. Not to be copied: it points into itself.
struct LaunchConfig : cudaLaunchConfig_t {
  explicit LaunchConfig(const Shape& shape, Stream on = nullptr) : cudaLaunchConfig_t() {
    gridDim = dim3(static_cast<unsigned>(shape.blocks), static_cast<unsigned>(shape.tiles));
    blockDim = dim3(static_cast<unsigned>(shape.threads));
    dynamicSmemBytes = static_cast<size_t>(shape.shared);
    stream = static_cast<cudaStream_t>(on);
    if (shape.cluster == 1) return;
    cluster_.id = cudaLaunchAttributeClusterDimension;
    cluster_.val.clusterDim = {static_cast<unsigned>(shape.cluster), 1, 1};
    attrs = &cluster_;
    numAttrs = 1;
  }
  LaunchConfig(const LaunchConfig&) = delete;

 private:
  cudaLaunchAttribute cluster_ = {};
};

// Launches kernel(args...), if there are any blocks.
template <typename... Parameters>
Status launch_shape(void (*kernel)(Parameters...), const Shape& shape, Stream stream, Parameters... args) {
  if (shape.blocks == 0 || shape.tiles == 0) return cudaSuccess;
  if (shape.blocks > INT32_MAX || shape.tiles > UINT16_MAX) return cudaErrorInvalidConfiguration;
  const Status refused = allow(kernel, shape.shared, shape.cluster);
  if (refused != 0) return refused;
  const LaunchConfig config(shape, stream);
  const cudaError_t launched = cudaLaunchKernelEx(static_cast<const cudaLaunchConfig_t*>(&config), kernel, args...);
  const cudaError_t last = cudaGetLastError();  // takes the error off this thread's record
  return launched != cudaSuccess ? launched : last;
}
template <typename... Parameters>
Status launch(void (*kernel)(Parameters...), int64_t blocks, int64_t tiles, int threads, Stream stream,
              Parameters... args) {
  return launch_shape(kernel, {blocks, tiles, threads}, stream, args...);
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

// The memory that the launch gave the block.
template <typename T>
__device__ inline T* dynamic_shared() {
#if defined(LSOFTMAX_CUDA_ON_CPU)
  return static_cast<T*>(cuda_on_cpu::dynamic_shared());
#else
  extern __shared__ __align__(16) unsigned char memory[];
  return reinterpret_cast<T*>(memory);
#endif
}

// A variable of the block, one a type, as `__shared__ V variable` would be. Blocks of a cluster share no other, as on
// the CPU each must have its own.
template <typename V>
__device__ inline V& of_block() {
#if defined(LSOFTMAX_CUDA_ON_CPU)
  return *static_cast<V*>(cuda_on_cpu::of_block<V>());
#else
  __shared__ __align__(alignof(V)) unsigned char variable[sizeof(V)];  // as V may have initial values
  return *reinterpret_cast<V*>(variable);
#endif
}

// The sum over `lanes` neighbours, 2 to 32, on each of them, always added in the same order. Every lane of the warp
// takes part.
__device__ inline double sum_in_lanes(double value, int lanes) {
  for (int distance = lanes / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, distance);
  }
  return value;
}

// The lanes that take kTileDepth neighbouring features of a row, kVector at a time, in kSteps; a block has kGroups such
// groups.
constexpr int kTileDepth = 128;
template <int kVector>
struct LanesOfTile {
  static constexpr int kLanes = kTileDepth / kVector < kWarp ? kTileDepth / kVector : kWarp;
  static constexpr int kSteps = kTileDepth / (kLanes * kVector);
  static constexpr int kGroups = kBlock / kLanes;

  const int index = static_cast<int>(threadIdx.x) / kLanes;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;

  // Of the tile's features, the first that is the lane's own in a step, and the `own`th of all.
  __device__ int depth(int step) const { return (step * kLanes + lane) * kVector; }
  __device__ int feature(int own) const { return depth(own / kVector) + own % kVector; }
};

// The weights of a row's class: a column of W, entries `stride` apart, or a copy of it.
template <typename T>
struct Column {
  const T* begin;
  int64_t stride;

  template <int kVector>
  __device__ Vector<T, kVector> at(int64_t d) const {
    Vector<T, kVector> w;
#pragma unroll
    for (int l = 0; l < kVector; ++l) w.at[l] = begin[(d + l) * stride];
    return w;
  }
};
template <typename T>
struct Copy {
  const T* begin;

  template <int kVector>
  __device__ Vector<T, kVector> at(int64_t d) const {
    return vector_at<kVector>(begin + d);
  }
};

// Walks a row x [depth] beside its weights w, a Column or a Copy, its lanes side by side along the row:
// calls work(d, x[d .. d + kVector), w[d .. d + kVector)) for every kVector-th d. A column's entries lie in as many
// cache lines, so a lane asks for kInFlight of them before it uses the first.
template <int kVector, typename T, typename Weights, typename Work>
__device__ inline void walk(const T* x, const Weights& w, int64_t depth, const Work& work) {
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
      ws[n] = w.template at<kVector>(d);
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
