// What the kernels around the label columns ask memory for, in sectors of 32 bytes.
//
//     sectors N D C        prints, for float and for bfloat16, the bytes of geometry and of weights_grad, label order
//                          included, of a batch whose labels are random, all as likely
//
// The .cu files are compiled for the emulation with -fsanitize=thread, which has each access to memory call a function
// of that sanitizer. Here are functions of these names, and the sanitizer's library is not linked. What the lanes of a
// warp do at one place of the code, each for the n-th time, is the warp's n-th request there, and asks for each sector
// once.
#include <stdint.h>
#include <stdio.h>

#include <cuda_runtime.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <unordered_map>
#include <vector>

#include "cuda/kernels.h"

namespace {

constexpr uintptr_t kSector = 32;

class Requests {
 public:
  // The device's memory: only what lies there counts.
  void watch(const void* begin, size_t bytes) {
    const uintptr_t first = reinterpret_cast<uintptr_t>(begin);
    ranges_[first + bytes] = first;
  }

  void add(uintptr_t address, size_t bytes, uintptr_t code) {
    if (busy_) return;  // the containers' own accesses
    busy_ = true;
    const auto range = ranges_.upper_bound(address);
    if (range != ranges_.end() && range->second <= address) {
      if (blockIdx.x != block_ || blockIdx.y != tile_) end_block();
      block_ = blockIdx.x;
      tile_ = blockIdx.y;
      const uint64_t times = times_[{threadIdx.x, code}]++;
      std::vector<uintptr_t>& sectors = sectors_[{{threadIdx.x / 32, times}, code}];
      for (uintptr_t s = address / kSector; s <= (address + bytes - 1) / kSector; ++s) sectors.push_back(s);
    }
    busy_ = false;
  }

  // The bytes asked for since the last call.
  uint64_t take() {
    busy_ = true;
    end_block();
    const uint64_t bytes = bytes_;
    bytes_ = 0;
    busy_ = false;
    return bytes;
  }

 private:
  struct Hash {
    size_t operator()(const std::pair<uint64_t, uintptr_t>& key) const {
      return (key.first * 0x9e3779b97f4a7c15u) ^ (key.second * 0xc2b2ae3d27d4eb4fu);
    }
    size_t operator()(const std::pair<std::pair<uint64_t, uint64_t>, uintptr_t>& key) const {
      return (*this)(std::make_pair(key.first.first + (key.first.second << 10), key.second));
    }
  };

  void end_block() {
    for (auto& [request, sectors] : sectors_) {
      std::sort(sectors.begin(), sectors.end());
      bytes_ += kSector * static_cast<uint64_t>(std::unique(sectors.begin(), sectors.end()) - sectors.begin());
    }
    sectors_.clear();
    times_.clear();
  }

  bool busy_ = false;
  uint64_t bytes_ = 0;
  unsigned block_ = 0, tile_ = 0;
  std::map<uintptr_t, uintptr_t> ranges_;                                     // end -> begin
  std::unordered_map<std::pair<uint64_t, uintptr_t>, uint64_t, Hash> times_;  // thread, code
  std::unordered_map<std::pair<std::pair<uint64_t, uint64_t>, uintptr_t>, std::vector<uintptr_t>, Hash> sectors_;
} requests;

using namespace lsoftmax;

// Zeros, which begin on 256 bytes, as the device's allocations do.
template <typename Value>
class Array {
 public:
  explicit Array(int64_t count) : count_(static_cast<size_t>(count)), memory_(count_ * sizeof(Value) + kAlignment) {
    requests.watch(begin(), count_ * sizeof(Value));
  }
  Value* begin() {
    const uintptr_t address = reinterpret_cast<uintptr_t>(memory_.data());
    return reinterpret_cast<Value*>((address + kAlignment - 1) / kAlignment * kAlignment);
  }
  Value* end() { return begin() + count_; }

 private:
  static constexpr size_t kAlignment = 256;
  size_t count_;
  std::vector<char> memory_;
};

template <typename T>
void measure(const char* name, int64_t rows, int64_t depth, int64_t classes) {
  Array<T> features(rows * depth), weights(depth * classes), target_weights(rows * depth), loss_grad(rows);
  Array<T> weights_grad(depth * classes);
  Array<double> geometry(3 * rows), geometry_grad(3 * rows);
  Array<int32_t> labels(rows);
  Array<int64_t> label_order(2 * rows);
  Array<char> workspace(cuda::weights_grad_workspace(rows, depth));  // geometry's is no larger
  std::mt19937 random(0);
  for (int32_t& y : labels) y = static_cast<int32_t>(random() % static_cast<uint64_t>(classes));
  for (T& g : loss_grad) assign(g, 1.0);
  for (double& g : geometry_grad) g = 1;
  Arguments<T> args;
  args.rows = rows;
  args.depth = depth;
  args.classes = classes;
  args.features = features.begin();
  args.weights = weights.begin();
  args.labels.data = labels.begin();
  args.geometry = geometry.begin();
  args.geometry_grad = geometry_grad.begin();
  args.target_weights = target_weights.begin();
  args.weights_grad = weights_grad.begin();
  args.loss_grad = loss_grad.begin();
  args.label_order = label_order.begin();
  args.workspace = workspace.begin();
  requests.take();
  const cuda::Status first = cuda::geometry(args, nullptr);
  const uint64_t of_geometry = requests.take();
  const cuda::Status second = cuda::weights_grad(args, nullptr);
  if (first == 0 && second == 0) {
    printf("%s %llu %llu\n", name, static_cast<unsigned long long>(of_geometry),
           static_cast<unsigned long long>(requests.take()));
  }
}

}  // namespace

#define ACCESS(NAME, BYTES)                                                                                         \
  extern "C" void NAME(void* at) {                                                                                  \
    requests.add(reinterpret_cast<uintptr_t>(at), BYTES, reinterpret_cast<uintptr_t>(__builtin_return_address(0))); \
  }
#define ACCESSES(BYTES)                       \
  ACCESS(__tsan_read##BYTES, BYTES)           \
  ACCESS(__tsan_write##BYTES, BYTES)          \
  ACCESS(__tsan_unaligned_read##BYTES, BYTES) \
  ACCESS(__tsan_unaligned_write##BYTES, BYTES)
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)

extern "C" {
void __tsan_read_range(void* at, unsigned long bytes) {
  requests.add(reinterpret_cast<uintptr_t>(at), bytes, reinterpret_cast<uintptr_t>(__builtin_return_address(0)));
}
void __tsan_write_range(void* at, unsigned long bytes) {
  requests.add(reinterpret_cast<uintptr_t>(at), bytes, reinterpret_cast<uintptr_t>(__builtin_return_address(0)));
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
unsigned char __tsan_atomic8_load(const volatile unsigned char* at, int) { return *at; }
}

int main(int, char** arguments) {
  const int64_t rows = atoll(arguments[1]), depth = atoll(arguments[2]), classes = atoll(arguments[3]);
  measure<float>("float32", rows, depth, classes);
  measure<bfloat16>("bfloat16", rows, depth, classes);
}
