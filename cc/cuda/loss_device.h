// What the current device has for the plans of the fused loss, and how many clusters of a plan it holds at once. Asked
// for once a device and data type: the questions take microseconds, and none of them waits for a stream.
#ifndef LSOFTMAX_CUDA_LOSS_DEVICE_H_
#define LSOFTMAX_CUDA_LOSS_DEVICE_H_

#include <map>
#include <mutex>
#include <utility>

#include "cuda/cluster.cuh"
#include "cuda/loss_plan.h"

namespace lsoftmax {
namespace cuda {

// The clusters of a shape that the current device holds at once; 0 where none fits.
template <typename Kernel>
Status clusters_of_device(Kernel kernel, const Shape& shape, int multiprocessors, int* clusters) {
  const Status refused = allow(kernel, shape.shared, shape.cluster);
  if (refused != 0) return refused;
  if (shape.cluster > 1) {
    const LaunchConfig config(shape);
    if (cudaOccupancyMaxActiveClusters(clusters, kernel, &config) != cudaSuccess) *clusters = 0;
    cudaGetLastError();  // a size that the device has not is none that fits
    return cudaSuccess;
  }
  const size_t shared = static_cast<size_t>(shape.shared);
  const Status status = cudaOccupancyMaxActiveBlocksPerMultiprocessor(clusters, kernel, shape.threads, shared);
  *clusters *= multiprocessors;
  return status;
}

// Of a kernel of clusters.
template <typename Kernel>
Status ask_device(Kernel kernel, int number, LossDevice* device) {
  int shared = 0;
  cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, number);
  cudaDeviceGetAttribute(&device->multiprocessors, cudaDevAttrMultiProcessorCount, number);
  cudaFuncAttributes code = {};
  cudaFuncGetAttributes(&code, kernel);
  const Status status = cudaGetLastError();
  device->shared = shared;
  device->most_blocks = 0;
  if (status != 0 || code.ptxVersion < kClusterCode) return status;
  device->most_blocks = 1;
  const int64_t bytes = room_of_block(*device, 1) * 16;
  for (int blocks = 2; blocks <= 16; blocks *= 2) {
    int clusters = 0;
    const Status failed =
        clusters_of_device(kernel, {blocks, 1, 1024, bytes, blocks}, device->multiprocessors, &clusters);
    if (failed != 0) break;  // a device that refuses a size has those below
    if (clusters > 0) device->most_blocks = blocks;
  }
  return cudaSuccess;
}

// Answers kept by the device's number, and what else they depend on.
template <typename Key, typename Answer>
class Answers {
 public:
  template <typename Ask>
  Status look_up(const Key& key, Answer* answer, const Ask& ask) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto known = known_.find(key);
    if (known != known_.end()) {
      *answer = known->second;
      return cudaSuccess;
    }
    const Status status = ask(answer);
    if (status == 0) known_[key] = *answer;
    return status;
  }

 private:
  std::mutex mutex_;
  std::map<Key, Answer> known_;
};

// What is true of `kernel` is of all kernels of clusters: each may have as many registers, and as much shared memory,
// as none declares more than kOtherShared.
template <typename Kernel>
Status look_at_device(Kernel kernel, LossDevice* device) {
  static Answers<int, LossDevice> answers;
  int number = 0;
  const Status status = cudaGetDevice(&number);
  if (status != 0) return status;
  return answers.look_up(number, device, [&](LossDevice* found) { return ask_device(kernel, number, found); });
}

// The clusters of a plan that the device holds at once, each block with as much shared memory as its number of threads
// leaves it: so there are few different answers.
template <typename Kernel>
Status count_clusters(Kernel kernel, const LossPlan& plan, int* clusters) {
  static Answers<std::pair<int, std::pair<int, int>>, int> answers;
  int number = 0;
  LossDevice device;
  const Status failed = cudaGetDevice(&number);
  if (failed != 0) return failed;
  const Status status = look_at_device(kernel, &device);
  if (status != 0) return status;
  return answers.look_up({number, {plan.blocks, plan.threads}}, clusters, [&](int* found) {
    const int64_t bytes = room_of_block(device, 1024 / plan.threads) * 16;
    const Shape shape = {plan.blocks, 1, plan.threads, bytes, plan.blocks};
    return clusters_of_device(kernel, shape, device.multiprocessors, found);
  });
}

}  // namespace cuda
}  // namespace lsoftmax

#endif  // LSOFTMAX_CUDA_LOSS_DEVICE_H_
