// Bulk copies into the shared memory of cuda_runtime.h's blocks, and the arrivals (mbarriers) that tell of them.
//
//   an arrival has turns; one is complete when one thread has announced it and the bytes that it announced are there
//
// A copy is made at once, as `reverse` has it, or not before all threads wait, as in the order of their index; of a
// shuffle, one or the other, and the next that is made is any of them. So what is read without waiting is not there,
// and what is asked for before others have read what was there is gone.
#ifndef LSOFTMAX_CUDA_TESTING_BULK_COPIES_H_
#define LSOFTMAX_CUDA_TESTING_BULK_COPIES_H_

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cstddef>
#include <map>
#include <random>
#include <vector>

namespace cuda_on_cpu {

class BulkCopies {
 public:
  enum class When { kLate, kAtOnce, kAny };

  void begin(When when, unsigned seed) {
    when_ = when;
    random_.seed(seed);
    arrivals_.clear();
    pending_.clear();
  }

  // Each is false where a device would be led astray.
  bool init(const void* arrival) { return arrivals_.emplace(arrival, Arrival()).second; }
  bool announce(const void* arrival, int bytes) {
    const auto known = arrivals_.find(arrival);
    if (known == arrivals_.end() || known->second.is_announced || bytes < 0 || bytes >= 1 << 20) return false;
    known->second.is_announced = true;
    known->second.missing += bytes;
    known->second.look();
    return true;
  }
  bool copy(void* to, const void* from, int bytes, const void* arrival) {
    const auto known = arrivals_.find(arrival);
    const uintptr_t places = reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from);
    if (known == arrivals_.end() || bytes <= 0 || bytes % 16 != 0 || places % 16 != 0) return false;
    pending_.push_back({to, from, bytes, &known->second});
    if (when_ == When::kAtOnce || (when_ == When::kAny && random_() % 2 == 0)) make(pending_.size() - 1);
    return true;
  }

  // A number that changes when the turn of this parity is complete; null if it is; *is_known: the arrival was made.
  const uint64_t* turn(const void* arrival, unsigned parity, bool* is_known) const {
    const auto known = arrivals_.find(arrival);
    *is_known = known != arrivals_.end();
    return *is_known && known->second.turn % 2 == parity ? &known->second.turn : nullptr;
  }

  // Makes one that is due; false where none is.
  bool make_one() {
    if (pending_.empty()) return false;
    make(when_ == When::kAny ? random_() % pending_.size() : 0);
    return true;
  }

  template <typename Holds>
  bool is_pending(const Holds& holds) const {
    for (const Copy& copy : pending_) {
      if (holds(copy.to)) return true;
    }
    return false;
  }

 private:
  struct Arrival {
    uint64_t turn = 0;
    bool is_announced = false;
    int64_t missing = 0;  // bytes

    void look() {
      if (!is_announced || missing != 0) return;
      is_announced = false;
      turn += 1;
    }
  };
  struct Copy {
    void* to;
    const void* from;
    int bytes;
    Arrival* arrival;
  };

  void make(size_t which) {
    const Copy copy = pending_[which];
    pending_.erase(pending_.begin() + static_cast<std::ptrdiff_t>(which));
    memcpy(copy.to, copy.from, static_cast<size_t>(copy.bytes));
    copy.arrival->missing -= copy.bytes;
    copy.arrival->look();
  }

  When when_ = When::kLate;
  std::mt19937 random_;
  std::map<const void*, Arrival> arrivals_;
  std::vector<Copy> pending_;
};

}  // namespace cuda_on_cpu

#endif  // LSOFTMAX_CUDA_TESTING_BULK_COPIES_H_
