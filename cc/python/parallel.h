// `over` of core/batch.h for callers that bring no thread pool of their own.
#ifndef LSOFTMAX_PYTHON_PARALLEL_H_
#define LSOFTMAX_PYTHON_PARALLEL_H_

#include <pthread.h>
#include <stdint.h>

#include <atomic>
#include <exception>
#include <thread>
#include <utility>

#include "core/ranges.h"

namespace lsoftmax {

// A thread for every task. Nobody waits for one that comes late: PyTorch's own threads, say, may still hold its core,
// as they wait awake for milliseconds when a product has ended. But where many have not come yet, none is made.
struct NewThreads {
  int most;
  inline static std::atomic<int> alive{0};

  template <typename Task>
  void Schedule(Task task) const {
    if (++alive <= 4 * most) {
      try {
        std::thread([task = std::move(task)] {
          task();
          --alive;
        }).detach();
        return;
      } catch (const std::exception&) {
        // The system gives no more threads, or no memory for one.
      }
    }
    --alive;  // the others take what is left
  }
};

// Of the threads that a process had, none is in what it forks.
inline const int forgotten_by_a_fork = pthread_atfork(nullptr, nullptr, [] { NewThreads::alive = 0; });

// By at most so many threads. `work` must not throw.
inline auto over(int threads) {
  return [threads](int64_t total, int64_t cost, const auto& work) {
    const NewThreads pool{threads};
    over(&pool, threads)(total, cost, work);
  };
}

}  // namespace lsoftmax

#endif  // LSOFTMAX_PYTHON_PARALLEL_H_
