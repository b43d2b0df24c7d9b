// `over` of core/batch.h for callers that bring no thread pool of their own.
#ifndef LSOFTMAX_PYTHON_PARALLEL_H_
#define LSOFTMAX_PYTHON_PARALLEL_H_

#include <stdint.h>

#include <system_error>
#include <thread>
#include <vector>

#include "core/batch.h"

namespace lsoftmax {

// On equal ranges, by at most so many threads, which are made for it. `work` must not throw.
inline auto over(int threads) {
  return [threads](int64_t total, int64_t cost, const auto& work) {
    const int64_t ranges = threads_for(total, cost, threads);
    std::vector<std::thread> others;
    int64_t begun = 1;  // ranges given away, and the caller's own: range 0
    try {
      for (; begun < ranges; ++begun) {
        others.emplace_back(work, total * begun / ranges, total * (begun + 1) / ranges);
      }
    } catch (const std::system_error&) {
      // The system gives no more threads: the caller does the rest.
      work(total * begun / ranges, total);
    }
    work(0, total / ranges);
    for (std::thread& other : others) other.join();
  };
}

}  // namespace lsoftmax

#endif  // LSOFTMAX_PYTHON_PARALLEL_H_
