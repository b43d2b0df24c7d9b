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
// too large to be walked through. To the file CUDA_ON_CPU_LOG each launch adds a line: its blocks and threads.
//
// What it is not: fast, or a model of memory. __shared__ arrays are static, so that one block runs at a time, and hold
// what the last block left; asynchrony and caches do not exist. The device has as much shared memory as the least of
// those that the library is built for, or as many bytes a block as CUDA_ON_CPU_SHARED says, and wants to be asked for
// more than 48 KB, as they do.
#ifndef LSOFTMAX_CUDA_TESTING_CUDA_RUNTIME_H_
#define LSOFTMAX_CUDA_TESTING_CUDA_RUNTIME_H_

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

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
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;  // of the thread that runs

using cudaStream_t = struct CUstream_st*;

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

namespace cuda_on_cpu {

constexpr unsigned kWarp = 32;
constexpr size_t kSharedUnasked = 48 << 10, kLeastShared = 64 << 10;  // bytes a block

inline size_t shared_of_device() {
  const char* const wish = getenv("CUDA_ON_CPU_SHARED");
  return wish != nullptr ? strtoull(wish, nullptr, 10) : kLeastShared;
}

class Machine {
 public:
  static Machine& instance() {
    static Machine machine;
    return machine;
  }

  // Runs body() once for every thread of every block. `kernel` tells what it may have of shared memory.
  cudaError_t launch(const void* kernel, const cudaLaunchConfig_t& config, const std::function<void()>& body) {
    const dim3 grid = config.gridDim, block = config.blockDim;
    const uint64_t threads = uint64_t{block.x} * block.y * block.z;
    const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
    if (threads == 0 || threads > 1024 || blocks == 0 || grid.x > INT32_MAX || grid.y > UINT16_MAX ||
        grid.z > UINT16_MAX) {
      return last_error = cudaErrorInvalidConfiguration;
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto asked = shared_asked_.find(kernel);
    if (config.dynamicSmemBytes > (asked != shared_asked_.end() ? asked->second : kSharedUnasked)) {
      return last_error = cudaErrorInvalidValue;
    }
    const char* const log = getenv("CUDA_ON_CPU_LOG");
    if (log != nullptr) std::ofstream(log, std::ios::app) << blocks << ' ' << threads << '\n';
    shared_.reset(new char[config.dynamicSmemBytes]);  // as large as asked for: the sanitizer sees its end
    gridDim = grid;
    blockDim = block;
    body_ = &body;
    prepare(static_cast<unsigned>(threads));
    const char* const wish = getenv("CUDA_ON_CPU_LAST");
    const uint64_t last = wish != nullptr ? strtoull(wish, nullptr, 10) : blocks;
    uint64_t skipped = last < blocks ? blocks - last : 0;
    for (unsigned z = 0; z < grid.z; ++z) {
      for (unsigned y = 0; y < grid.y; ++y) {
        for (unsigned x = 0; x < grid.x; ++x) {
          if (skipped > 0) {
            --skipped;
            continue;
          }
          blockIdx = dim3(x, y, z);
          if (!run_block()) return last_error = cudaErrorLaunchFailure;
        }
      }
    }
    return cudaSuccess;
  }

  // Until every thread of the block that has not ended is here.
  void wait_for_block() {
    block_.arrived += 1;
    if (!release_block()) wait(block_.passed);
  }

  // Until every lane that `mask` names is here.
  void wait_for_warp(unsigned mask) {
    Warp& warp = warps_[current_ / kWarp];
    warp.arrived |= 1u << lane();
    if ((warp.arrived & mask) == mask) {
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
    Warp& warp = warps_[current_ / kWarp];
    memcpy(&warp.brought[lane()], &value, sizeof(T));
    wait_for_warp(mask);
    T result = value;
    if (from < kWarp && (mask >> from & 1u)) memcpy(&result, &warp.brought[from], sizeof(T));
    wait_for_warp(mask);
    return result;
  }

  unsigned lane() const { return current_ % kWarp; }

  void* shared() const { return shared_.get(); }

  cudaError_t ask_for_shared(const void* kernel, int bytes) {
    if (bytes < 0 || static_cast<size_t>(bytes) > shared_of_device()) return last_error = cudaErrorInvalidValue;
    const std::lock_guard<std::mutex> lock(mutex_);
    shared_asked_[kernel] = static_cast<size_t>(bytes);
    return cudaSuccess;
  }

  cudaError_t last_error = cudaSuccess;

 private:
  static constexpr size_t kStack = 256 * 1024;

  // Once begun, a fiber runs its thread of one block after the other.
  struct Fiber {
    ucontext_t context;
    void* place[5];  // where it goes on
    std::unique_ptr<char[]> stack{new char[kStack]};
    dim3 index;
    bool begun = false;
    bool ended = true;
    const uint64_t* waits_for = nullptr;  // runs again once this is no longer `seen`
    uint64_t seen = 0;
    void* fake_stack = nullptr;  // the address sanitizer's
  };
  struct Warp {
    unsigned arrived = 0;
    uint64_t passed = 0;
    uint64_t brought[kWarp] = {};
  };
  struct Barrier {
    unsigned arrived = 0;
    uint64_t passed = 0;
  };

  void prepare(unsigned threads) {
    while (fibers_.size() < threads) fibers_.push_back(std::make_unique<Fiber>());
    threads_ = threads;
    order_.resize(threads);
    for (unsigned t = 0; t < threads; ++t) {
      order_[t] = t;
      fibers_[t]->index = dim3(t % blockDim.x, t / blockDim.x % blockDim.y, t / blockDim.x / blockDim.y);
    }
    const char* const wish = getenv("CUDA_ON_CPU_ORDER");
    shuffled_ = wish != nullptr && *wish >= '0' && *wish <= '9';
    if (shuffled_) random_.seed(static_cast<unsigned>(atoi(wish)));
    if (wish != nullptr && strcmp(wish, "reverse") == 0) std::reverse(order_.begin(), order_.end());
  }

  // False where threads wait for others in vain.
  bool run_block() {
    if (shuffled_) std::shuffle(order_.begin(), order_.end(), random_);
    block_ = Barrier();
    warps_.assign((threads_ + kWarp - 1) / kWarp, Warp());
    live_ = threads_;
    for (unsigned t = 0; t < threads_; ++t) {
      Fiber& fiber = *fibers_[t];
      fiber.ended = false;
      fiber.waits_for = nullptr;
      if (fiber.begun) continue;
      fiber.fake_stack = nullptr;
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.get();
      fiber.context.uc_stack.ss_size = kStack;
      fiber.context.uc_link = nullptr;
      makecontext(&fiber.context, &Machine::enter, 0);
    }
    while (live_ > 0) {
      bool moved = false;
      for (const unsigned t : order_) {
        Fiber& fiber = *fibers_[t];
        if (fiber.ended || (fiber.waits_for != nullptr && *fiber.waits_for == fiber.seen)) continue;
        fiber.waits_for = nullptr;
        moved = true;
        current_ = t;
        threadIdx = fiber.index;
        resume(fiber);
      }
      if (!moved) {
        fibers_.clear();  // some stand in the middle of their kernel
        return false;
      }
    }
    return true;
  }

  bool release_block() {
    if (block_.arrived == 0 || block_.arrived < live_) return false;
    block_.arrived = 0;
    block_.passed += 1;
    return true;
  }

  void wait(const uint64_t& passed) {
    Fiber& fiber = *fibers_[current_];
    fiber.waits_for = &passed;
    fiber.seen = passed;
    yield(fiber);
  }

  static void enter() {
    Machine& machine = instance();
    machine.arrive(nullptr);
    for (;;) {
      (*machine.body_)();
      Fiber& fiber = *machine.fibers_[machine.current_];
      fiber.ended = true;
      machine.live_ -= 1;
      machine.release_block();
      machine.yield(fiber);
    }
  }

#if defined(__SANITIZE_ADDRESS__)
  void resume(Fiber& fiber) {
    void* fake_stack = nullptr;
    __sanitizer_start_switch_fiber(&fake_stack, fiber.stack.get(), kStack);
    enter_or_go_on(fiber);
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
  }
  void yield(Fiber& fiber) {
    __sanitizer_start_switch_fiber(&fiber.fake_stack, home_stack_, home_size_);
    swap(fiber.place, home_place_);
    arrive(fiber.fake_stack);
  }
  void arrive(void* fake_stack) { __sanitizer_finish_switch_fiber(fake_stack, &home_stack_, &home_size_); }
  const void* home_stack_ = nullptr;
  size_t home_size_ = 0;
#else
  void resume(Fiber& fiber) { enter_or_go_on(fiber); }
  void yield(Fiber& fiber) { swap(fiber.place, home_place_); }
  void arrive(void*) {}
#endif

  // swapcontext would ask the system for the signal mask each time: a context is used to begin a fiber, and no more.
  // The sanitizer has been told, and must not take the jumps for the end of a stack.
  void enter_or_go_on(Fiber& fiber) {
    if (fiber.begun) return swap(home_place_, fiber.place);
    fiber.begun = true;
    begin(home_place_, &fiber.context);
  }
  __attribute__((noinline, no_sanitize("address"))) static void begin(void** from, const ucontext_t* context) {
    if (__builtin_setjmp(from) == 0) setcontext(context);
  }
  __attribute__((noinline, no_sanitize("address"))) static void swap(void** from, void** to) {
    if (__builtin_setjmp(from) == 0) jump(to);
  }
  __attribute__((noinline, noreturn, no_sanitize("address"))) static void jump(void** to) { __builtin_longjmp(to, 1); }

  std::mutex mutex_;
  std::map<const void*, size_t> shared_asked_;
  std::unique_ptr<char[]> shared_;
  const std::function<void()>* body_ = nullptr;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<unsigned> order_;
  std::vector<Warp> warps_;
  Barrier block_;
  void* home_place_[5];
  unsigned threads_ = 0, live_ = 0, current_ = 0;
  bool shuffled_ = false;
  std::mt19937 random_;
};

inline void* dynamic_shared() { return Machine::instance().shared(); }

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
