// `over` of core/batch.h for callers that bring no thread pool of their own.
#ifndef LSOFTMAX_PYTHON_PARALLEL_H_
#define LSOFTMAX_PYTHON_PARALLEL_H_

#include <stdint.h>

#include <system_error>
#include <thread>
#include <utility>

#include "core/ranges.h"

namespace lsoftmax {

// A thread for every task. Nobody waits for one that comes late: PyTorch's own threads, say, may still hold its core,
// as they wait awake for milliseconds when a product has ended.
struct NewThreads {
  template <typename Task>
  void Schedule(Task task) const {
    try {
      std::thread(std::move(task)).detach();
    } catch (const std::system_error&) {
      // The system gives no more threads: the others take what is left.
    }
  }
};

// By at most so many threads. `work` must not throw.
inline auto over(int threads) {
  static const NewThreads pool;
  return over(&pool, threads);
}

}  // namespace lsoftmax

#endif  // LSOFTMAX_PYTHON_PARALLEL_H_
