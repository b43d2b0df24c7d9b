// What a host asks of the device of cuda_runtime.h, which includes this: its limits, its last error, copies.
//
//   CUDA_ON_CPU_SHARED            bytes of shared memory a block; 64 KB
//   CUDA_ON_CPU_CLUSTER           the most blocks of a cluster: 1, 2, 4, 8 or 16; 0, as it is: none
//   CUDA_ON_CPU_MULTIPROCESSORS   16
//   CUDA_ON_CPU_FULL              1: whoever asks is told that it has room for no block; 0
//
// A device by other numbers is another device, with a number of its own.
#ifndef LSOFTMAX_CUDA_TESTING_HOST_API_H_
#define LSOFTMAX_CUDA_TESTING_HOST_API_H_

enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
  cudaFuncAttributeNonPortableClusterSizeAllowed = 13,
};
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16, cudaDevAttrMaxSharedMemoryPerBlockOptin = 97 };

struct cudaFuncAttributes {
  size_t sharedSizeBytes;
  int maxDynamicSharedSizeBytes;
  int ptxVersion;
};

namespace cuda_on_cpu {

inline uint64_t multiprocessors_of_device() { return wish("CUDA_ON_CPU_MULTIPROCESSORS", 16); }
inline uint64_t is_full() { return wish("CUDA_ON_CPU_FULL", 0); }

// Of the shared memory that the blocks ask for, and no other resource.
inline int blocks_at_once(size_t shared) {
  constexpr uint64_t kMost = 8;
  if (is_full() != 0) return 0;
  return static_cast<int>(std::min(kMost, shared_of_device() / std::max(shared, size_t{1})));
}

}  // namespace cuda_on_cpu

template <typename... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute attribute, int value) {
  ::cuda_on_cpu::Machine& machine = ::cuda_on_cpu::Machine::instance();
  const void* const key = reinterpret_cast<const void*>(kernel);
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) return machine.ask_for_shared(key, value);
  return machine.ask_for_clusters(key, value != 0);
}

template <typename... Parameters>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, void (*kernel)(Parameters...)) {
  const size_t allowed = ::cuda_on_cpu::Machine::instance().shared_allowed(reinterpret_cast<const void*>(kernel));
  *attributes = {0, static_cast<int>(allowed), ::cuda_on_cpu::cluster_of_device() > 0 ? 90 : 75};
  return cudaSuccess;
}

template <typename... Parameters>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void (*)(Parameters...), int, size_t shared) {
  *blocks = ::cuda_on_cpu::blocks_at_once(shared);
  return cudaSuccess;
}

template <typename... Parameters>
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, void (*kernel)(Parameters...),
                                           const cudaLaunchConfig_t* config) {
  const unsigned blocks = config->numAttrs > 0 ? config->attrs[0].val.clusterDim.x : 1;
  ::cuda_on_cpu::Machine& machine = ::cuda_on_cpu::Machine::instance();
  if (!machine.may_have(reinterpret_cast<const void*>(kernel), blocks)) {
    return machine.last_error = cudaErrorInvalidClusterSize;
  }
  const uint64_t all = ::cuda_on_cpu::multiprocessors_of_device();
  *clusters =
      static_cast<int>(all) * ::cuda_on_cpu::blocks_at_once(config->dynamicSmemBytes) / static_cast<int>(blocks);
  return cudaSuccess;
}

inline cudaError_t cudaGetDevice(int* device) {
  static std::mutex mutex;
  static std::vector<std::vector<uint64_t>> devices;
  const std::vector<uint64_t> now = {::cuda_on_cpu::shared_of_device(), ::cuda_on_cpu::cluster_of_device(),
                                     ::cuda_on_cpu::multiprocessors_of_device(), ::cuda_on_cpu::is_full()};
  const std::lock_guard<std::mutex> lock(mutex);
  *device = static_cast<int>(std::find(devices.begin(), devices.end(), now) - devices.begin());
  if (*device == static_cast<int>(devices.size())) devices.push_back(now);
  return cudaSuccess;
}

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = static_cast<int>(attribute == cudaDevAttrMultiProcessorCount ? ::cuda_on_cpu::multiprocessors_of_device()
                                                                        : ::cuda_on_cpu::shared_of_device());
  return cudaSuccess;
}

inline cudaError_t cudaGetLastError() {
  const cudaError_t last = ::cuda_on_cpu::Machine::instance().last_error;
  ::cuda_on_cpu::Machine::instance().last_error = cudaSuccess;
  return last;
}

inline const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInvalidClusterSize:
      return "invalid size of clusters";
    case cudaErrorLaunchFailure:
      return "threads wait at a barrier that others never reach";
    default:
      return "invalid argument";
  }
}

enum cudaMemcpyKind { cudaMemcpyDeviceToDevice = 3 };

inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  memcpy(to, from, bytes);
  return cudaSuccess;
}

inline cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                                     size_t rows, cudaMemcpyKind, cudaStream_t) {
  if (width > to_pitch || width > from_pitch) return cudaErrorInvalidPitchValue;
  for (size_t row = 0; row < rows; ++row) {
    memcpy(static_cast<char*>(to) + row * to_pitch, static_cast<const char*>(from) + row * from_pitch, width);
  }
  return cudaSuccess;
}

#endif  // LSOFTMAX_CUDA_TESTING_HOST_API_H_
