// A parallel loop for callers that bring no thread pool of their own.
#ifndef LSOFTMAX_PYTHON_PARALLEL_H_
#define LSOFTMAX_PYTHON_PARALLEL_H_

#include <stdint.h>

#include <algorithm>
#include <system_error>
#include <thread>
#include <vector>

namespace lsoftmax {

// work(begin, end) over [0, total), cut into at most `threads` equal ranges. Each range costs at least kGrain
// operations, of which one index takes `cost`: below that a thread is dearer than its work. `work` must
// not throw.
template <typename Work>
void parallel_for(int64_t total, int64_t cost, int threads, const Work& work) {
  constexpr int64_t kGrain = 1 << 17;
  const int64_t ranges = std::max<int64_t>(1, std::min<int64_t>({threads, total, total * cost / kGrain}));
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
}

}  // namespace lsoftmax

#endif  // LSOFTMAX_PYTHON_PARALLEL_H_
