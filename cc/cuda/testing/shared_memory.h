// The shared memory of one block of cuda_runtime.h: what the launch gave it, and its variables. Full of NaNs when the
// block begins, and again when it has ended.
#ifndef LSOFTMAX_CUDA_TESTING_SHARED_MEMORY_H_
#define LSOFTMAX_CUDA_TESTING_SHARED_MEMORY_H_

#include <stddef.h>
#include <string.h>

#include <map>
#include <memory>

namespace cuda_on_cpu {

class SharedMemory {
 public:
  // As large as asked for: the sanitizer sees its end.
  explicit SharedMemory(size_t dynamic) : dynamic_(dynamic) { make(nullptr, dynamic); }

  void* dynamic() { return places_[nullptr].bytes.get(); }

  // The variable that belongs to `key`.
  void* variable(const void* key, size_t size) {
    if (places_.count(key) == 0) make(key, size);
    return places_[key].bytes.get();
  }

  // What another block has where this one has `own`, or null.
  void* like(const void* own, SharedMemory& other) const {
    for (const auto& [key, place] : places_) {
      const char* const begin = place.bytes.get();
      if (own < begin || own >= begin + place.size) continue;
      return static_cast<char*>(other.variable(key, place.size)) + (static_cast<const char*>(own) - begin);
    }
    return nullptr;
  }

  bool holds(const void* address) const {
    for (const auto& [key, place] : places_) {
      if (address >= place.bytes.get() && address < place.bytes.get() + place.size) return true;
    }
    return false;
  }

  void overwrite() {
    for (auto& [key, place] : places_) memset(place.bytes.get(), 0xff, place.size);
  }

 private:
  struct Place {
    std::unique_ptr<char[]> bytes;
    size_t size = 0;
  };

  void make(const void* key, size_t size) {
    Place& place = places_[key];
    place.bytes.reset(new char[size]);
    place.size = size;
    memset(place.bytes.get(), 0xff, size);
  }

  const size_t dynamic_;
  std::map<const void*, Place> places_;
};

}  // namespace cuda_on_cpu

#endif  // LSOFTMAX_CUDA_TESTING_SHARED_MEMORY_H_
