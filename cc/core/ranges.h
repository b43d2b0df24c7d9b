// `over` of batch.h on the threads of a pool.
//
// Threads take ranges one after the other, and the caller takes part. In the end it waits for ranges that others have
// begun, never for a thread to come: it may itself be the last one of its pool; and to wake a thread can take as long
// as a kernel.
#ifndef LSOFTMAX_CORE_RANGES_H_
#define LSOFTMAX_CORE_RANGES_H_

#include <stdint.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <future>
#include <memory>
#include <utility>

#include "core/batch.h"

namespace lsoftmax {

class Ranges {
 public:
  Ranges(int64_t total, int64_t count, std::function<void(int64_t, int64_t)> work)
      : total_(total), count_(count), work_(std::move(work)) {}

  void take() {
    int64_t taken = 0;
    for (int64_t i = next_++; i < count_; i = next_++, ++taken) {
      if (first(i) < first(i + 1)) work_(first(i), first(i + 1));
    }
    if (taken > 0 && (done_ += taken) == count_) all_done_.set_value();
  }

  void wait() { all_done_.get_future().wait(); }

 private:
  // Where range i begins: each is smaller than the one before, so that nobody waits long for the last; or all are of one.
  int64_t first(int64_t i) const {
    if (count_ == total_) return i;
    return total_ - total_ * (count_ - i) * (count_ - i) / (count_ * count_);
  }

  const int64_t total_, count_;
  const std::function<void(int64_t, int64_t)> work_;
  std::atomic<int64_t> next_{0}, done_{0};
  // No std::condition_variable: waiting for one wants the libstdc++ of GCC 12, which manylinux_2_34 has not.
  std::promise<void> all_done_;
};

// On at most `most` threads, the caller and those of the pool, which has Schedule(task).
template <typename Pool>
auto over(Pool* pool, int64_t most) {
  return [pool, most](int64_t total, int64_t cost, const auto& work) {
    const int64_t threads = threads_for(total, cost, most);
    if (threads < 2) return work(0, total);
    const int64_t count = std::min(total, 4 * threads);  // a few for each, as threads come late
    const auto ranges = std::make_shared<Ranges>(total, count, std::cref(work));
    for (int64_t i = 1; i < threads; ++i) pool->Schedule([ranges] { ranges->take(); });
    ranges->take();
    ranges->wait();
  };
}

}  // namespace lsoftmax

#endif  // LSOFTMAX_CORE_RANGES_H_
