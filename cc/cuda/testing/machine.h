// The threads of cuda_runtime.h: a fiber each (fibers.h), all those of a cluster of blocks side by side.
//
// One block runs until each of its threads waits or has ended, then the next, so that whoever does not wait for another
// block is far ahead of it, or behind. Once all wait, a bulk copy is made that is due (bulk_copies.h); if none is, they
// wait in vain, and the launch fails.
#ifndef LSOFTMAX_CUDA_TESTING_MACHINE_H_
#define LSOFTMAX_CUDA_TESTING_MACHINE_H_

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <vector>

#include "bulk_copies.h"
#include "fibers.h"
#include "shared_memory.h"

namespace cuda_on_cpu {

constexpr unsigned kWarp = 32;
constexpr size_t kSharedUnasked = 48 << 10, kLeastShared = 64 << 10;  // bytes a block

constexpr unsigned kClusterUnasked = 8;  // blocks

// A number of the environment.
inline uint64_t wish(const char* name, uint64_t otherwise) {
  const char* const text = getenv(name);
  return text != nullptr ? strtoull(text, nullptr, 10) : otherwise;
}
inline size_t shared_of_device() { return wish("CUDA_ON_CPU_SHARED", kLeastShared); }
inline unsigned cluster_of_device() { return static_cast<unsigned>(wish("CUDA_ON_CPU_CLUSTER", 0)); }

class Machine {
 public:
  static Machine& instance() {
    static Machine machine;
    return machine;
  }

  // Runs body() once for every thread of every block. `kernel` tells what it may have of shared memory and clusters.
  cudaError_t launch(const void* kernel, const cudaLaunchConfig_t& config, const std::function<void()>& body) {
    const dim3 grid = config.gridDim, block = config.blockDim;
    const uint64_t threads = uint64_t{block.x} * block.y * block.z;
    const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
    if (threads == 0 || threads > 1024 || blocks == 0 || grid.x > INT32_MAX || grid.y > UINT16_MAX ||
        grid.z > UINT16_MAX) {
      return last_error = cudaErrorInvalidConfiguration;
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    const Asked asked = asked_[kernel];
    if (config.dynamicSmemBytes > asked.shared) return last_error = cudaErrorInvalidValue;
    unsigned cluster = 1;
    for (unsigned n = 0; n < config.numAttrs; ++n) {
      if (config.attrs[n].id == cudaLaunchAttributeClusterDimension) cluster = config.attrs[n].val.clusterDim.x;
    }
    if (!allows(asked, cluster) || grid.x % cluster != 0) return last_error = cudaErrorInvalidClusterSize;
    const char* const log = getenv("CUDA_ON_CPU_LOG");
    if (log != nullptr) {
      std::ofstream file(log, std::ios::app);
      file << blocks << ' ' << threads;
      if (cluster > 1) file << " in clusters of " << cluster;
      file << '\n';
    }
    gridDim = grid;
    blockDim = block;
    body_ = &body;
    prepare(static_cast<unsigned>(threads), cluster);
    const uint64_t last = wish("CUDA_ON_CPU_LAST", blocks);
    uint64_t skipped = last < blocks ? blocks - last : 0;
    for (unsigned z = 0; z < grid.z; ++z) {
      for (unsigned y = 0; y < grid.y; ++y) {
        for (unsigned x = 0; x < grid.x; x += cluster) {
          if (skipped >= cluster) {
            skipped -= cluster;
            continue;
          }
          if (!run_cluster(dim3(x, y, z), config.dynamicSmemBytes)) return last_error = cudaErrorLaunchFailure;
        }
      }
    }
    return cudaSuccess;
  }

  // Until every thread of the block that has not ended is here.
  void wait_for_block() {
    Block& block = block_of_current();
    block.barrier.arrived += 1;
    if (!release(block.barrier, block.live)) wait(block.barrier.passed);
  }

  // The same of the cluster.
  void wait_for_cluster() {
    cluster_.arrived += 1;
    if (!release(cluster_, live_)) wait(cluster_.passed);
  }

  // Until every lane that `mask` names is here. The last one hands out what they asked each other for, so that nobody
  // has to wait once more for the others to have taken it.
  void wait_for_warp(unsigned mask) {
    Warp& warp = warp_of_current();
    warp.arrived |= 1u << lane();
    if ((warp.arrived & mask) == mask) {
      for (unsigned to = 0; to < kWarp; ++to) {
        if (mask >> to & 1u) warp.taken[to] = warp.brought[warp.from[to]];
      }
      warp.arrived &= ~mask;
      warp.passed += 1;
    } else {
      wait(warp.passed);
    }
  }

  // What the lane `from` brought, which is as large as `value`.
  template <typename T>
  T exchange(unsigned mask, const T& value, unsigned from) {
    static_assert(sizeof(T) <= sizeof(uint64_t), "a shuffle moves at most 8 bytes");
    Warp& warp = warp_of_current();
    const unsigned own = lane();
    memcpy(&warp.brought[own], &value, sizeof(T));
    warp.from[own] = from < kWarp && (mask >> from & 1u) ? from : own;
    wait_for_warp(mask);
    T result;
    memcpy(&result, &warp.taken[own], sizeof(T));
    return result;
  }

  unsigned lane() const { return current_ % threads_ % kWarp; }
  unsigned rank() const { return current_ / threads_; }
  unsigned cluster() const { return static_cast<unsigned>(blocks_.size()); }

  SharedMemory& shared() { return *block_of_current().shared; }

  // What block `rank` of the cluster has where the caller has `own`. It is there as long as the block.
  void* of_rank(const void* own, unsigned rank) {
    void* const there =
        rank < blocks_.size() && blocks_[rank].live > 0 ? shared().like(own, *blocks_[rank].shared) : nullptr;
    if (there == nullptr) fail();
    return there;
  }

  void init_arrival(const void* arrival) {
    if (!shared().holds(arrival) || !copies_.init(arrival)) fail();
  }
  void announce(const void* arrival, int bytes) {
    if (!copies_.announce(arrival, bytes)) fail();
  }
  void bulk_copy(void* to, const void* from, int bytes, const void* arrival) {
    const bool has_room = shared().holds(to) && shared().holds(static_cast<char*>(to) + bytes - 1);
    if (!has_room || !copies_.copy(to, from, bytes, arrival)) fail();
  }
  void await(const void* arrival, unsigned parity) {
    bool is_known = false;
    const uint64_t* const turn = copies_.turn(arrival, parity, &is_known);
    if (!is_known) fail();
    if (turn != nullptr) wait(*turn);
  }

  // The last wish counts, even if it is for less.
  cudaError_t ask_for_shared(const void* kernel, int bytes) {
    if (bytes < 0 || static_cast<size_t>(bytes) > shared_of_device()) return last_error = cudaErrorInvalidValue;
    const std::lock_guard<std::mutex> lock(mutex_);
    asked_[kernel].shared = static_cast<size_t>(bytes);
    return cudaSuccess;
  }
  cudaError_t ask_for_clusters(const void* kernel, bool beyond_usual) {
    if (beyond_usual && cluster_of_device() <= kClusterUnasked) return last_error = cudaErrorInvalidValue;
    const std::lock_guard<std::mutex> lock(mutex_);
    asked_[kernel].cluster = beyond_usual ? 16 : kClusterUnasked;
    return cudaSuccess;
  }
  size_t shared_allowed(const void* kernel) {
    const std::lock_guard<std::mutex> lock(mutex_);
    return asked_[kernel].shared;
  }
  // Blocks a cluster.
  bool may_have(const void* kernel, unsigned cluster) {
    const std::lock_guard<std::mutex> lock(mutex_);
    return allows(asked_[kernel], cluster);
  }

  static inline thread_local cudaError_t last_error = cudaSuccess;

 private:
  struct Asked {
    size_t shared = kSharedUnasked;
    unsigned cluster = kClusterUnasked;
  };

  static bool allows(const Asked& asked, unsigned cluster) {
    const bool is_power = cluster != 0 && (cluster & (cluster - 1)) == 0;
    return is_power && (cluster == 1 || (cluster <= asked.cluster && cluster <= cluster_of_device()));
  }

  // Once begun, its fiber runs it in one block after the other.
  struct Thread {
    Fiber fiber;
    dim3 thread, block;
    bool ended = true;
    const uint64_t* waits_for = nullptr;  // runs again once this is no longer `seen`
    uint64_t seen = 0;
  };
  struct Warp {
    unsigned arrived = 0;
    uint64_t passed = 0;
    uint64_t brought[kWarp] = {}, taken[kWarp] = {};
    unsigned from[kWarp] = {};
  };
  struct Barrier {
    unsigned arrived = 0;
    uint64_t passed = 0;
  };
  struct Block {
    Barrier barrier;
    std::vector<Warp> warps;
    unsigned live;  // threads
    std::unique_ptr<SharedMemory> shared;
  };

  Block& block_of_current() { return blocks_[current_ / threads_]; }
  Warp& warp_of_current() { return block_of_current().warps[current_ % threads_ / kWarp]; }

  void prepare(unsigned threads, unsigned cluster) {
    while (all_.size() < threads * cluster) all_.push_back(std::make_unique<Thread>());
    threads_ = threads;
    blocks_.resize(cluster);
    order_.resize(threads);
    order_of_blocks_.resize(cluster);
    for (unsigned t = 0; t < threads; ++t) order_[t] = t;
    for (unsigned b = 0; b < cluster; ++b) order_of_blocks_[b] = b;
    const char* const order = getenv("CUDA_ON_CPU_ORDER");
    shuffled_ = order != nullptr && *order >= '0' && *order <= '9';
    const bool reversed = order != nullptr && strcmp(order, "reverse") == 0;
    seed_ = shuffled_ ? static_cast<unsigned>(atoi(order)) : 0;
    random_.seed(seed_);
    if (reversed) std::reverse(order_.begin(), order_.end());
    if (reversed) std::reverse(order_of_blocks_.begin(), order_of_blocks_.end());
    when_ = reversed ? BulkCopies::When::kAtOnce : shuffled_ ? BulkCopies::When::kAny : BulkCopies::When::kLate;
  }

  // From block `first` on. False where threads wait for others in vain, or do what leads a device astray.
  bool run_cluster(const dim3& first, size_t shared) {
    begin(first, shared);
    while (live_ > 0) {
      bool moved = false;
      if (shuffled_) std::shuffle(order_of_blocks_.begin(), order_of_blocks_.end(), random_);
      for (const unsigned b : order_of_blocks_) {
        while (!failed_ && run_some_of(b)) moved = true;
      }
      if (failed_ || (!moved && !copies_.make_one())) {
        all_.clear();  // some stand in the middle of their kernel
        return false;
      }
    }
    return !failed_;
  }

  void begin(const dim3& first, size_t shared) {
    if (shuffled_) std::shuffle(order_.begin(), order_.end(), random_);
    failed_ = false;
    cluster_ = Barrier();
    live_ = threads_ * cluster();
    copies_.begin(when_, ++seed_);
    for (unsigned b = 0; b < cluster(); ++b) {
      Block& block = blocks_[b];
      block.barrier = Barrier();
      block.warps.assign((threads_ + kWarp - 1) / kWarp, Warp());
      block.live = threads_;
      block.shared = std::make_unique<SharedMemory>(shared);
      for (unsigned t = 0; t < threads_; ++t) {
        Thread& thread = *all_[b * threads_ + t];
        thread.thread = dim3(t % blockDim.x, t / blockDim.x % blockDim.y, t / blockDim.x / blockDim.y);
        thread.block = dim3(first.x + b, first.y, first.z);
        thread.ended = false;
        thread.waits_for = nullptr;
      }
    }
  }

  // Each thread of the block that does not wait goes on once; false where there is none.
  bool run_some_of(unsigned block) {
    bool moved = false;
    for (const unsigned t : order_) {
      Thread& thread = *all_[block * threads_ + t];
      if (thread.ended || (thread.waits_for != nullptr && *thread.waits_for == thread.seen)) continue;
      thread.waits_for = nullptr;
      moved = true;
      current_ = block * threads_ + t;
      threadIdx = thread.thread;
      blockIdx = thread.block;
      thread.fiber.resume(&home_, &Machine::run_threads);
      if (failed_) break;
    }
    return moved;
  }

  // Opens a barrier where all threads that have not ended have arrived.
  static bool release(Barrier& barrier, unsigned live) {
    if (barrier.arrived == 0 || barrier.arrived < live) return false;
    barrier.arrived = 0;
    barrier.passed += 1;
    return true;
  }

  // The launch fails, and the thread goes no further.
  void fail() {
    static const uint64_t never = 0;
    failed_ = true;
    wait(never);
  }

  void end_thread() {
    Block& block = block_of_current();
    all_[current_]->ended = true;
    live_ -= 1;
    block.live -= 1;
    release(block.barrier, block.live);
    release(cluster_, live_);
    if (block.live > 0) return;
    if (copies_.is_pending([&](const void* to) { return block.shared->holds(to); })) failed_ = true;
    block.shared->overwrite();
  }

  void wait(const uint64_t& passed) {
    Thread& thread = *all_[current_];
    thread.waits_for = &passed;
    thread.seen = passed;
    thread.fiber.yield();
  }

  // What a fiber runs.
  static void run_threads() {
    Machine& machine = instance();
    for (;;) {
      (*machine.body_)();
      machine.end_thread();
      machine.all_[machine.current_]->fiber.yield();
    }
  }

  std::mutex mutex_;
  std::map<const void*, Asked> asked_;
  const std::function<void()>* body_ = nullptr;
  std::vector<std::unique_ptr<Thread>> all_;  // of all blocks, one block after the other
  std::vector<Block> blocks_;                 // of the cluster
  std::vector<unsigned> order_, order_of_blocks_;
  Barrier cluster_;
  BulkCopies copies_;
  BulkCopies::When when_ = BulkCopies::When::kLate;
  Fiber::Home home_;
  unsigned threads_ = 0, live_ = 0, current_ = 0, seed_ = 0;
  bool shuffled_ = false, failed_ = false;
  std::mt19937 random_;
};

}  // namespace cuda_on_cpu

#endif  // LSOFTMAX_CUDA_TESTING_MACHINE_H_
