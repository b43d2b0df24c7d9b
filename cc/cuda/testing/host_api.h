// What a host asks of the device of cuda_runtime.h, which includes this: its limits, its last error, copies.
#ifndef LSOFTMAX_CUDA_TESTING_HOST_API_H_
#define LSOFTMAX_CUDA_TESTING_HOST_API_H_

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaDeviceAttr { cudaDevAttrMaxSharedMemoryPerBlockOptin = 97 };

template <typename... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute, int value) {
  return ::cuda_on_cpu::Machine::instance().ask_for_shared(reinterpret_cast<const void*>(kernel), value);
}

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = static_cast<int>(::cuda_on_cpu::shared_of_device());
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
