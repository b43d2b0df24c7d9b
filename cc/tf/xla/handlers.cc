// What the calls of calls.h call: the CPU kernels of the core over XLA's buffers, on XLA's threads.
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "core/arrays.h"
#include "core/batch.h"
#include "core/grad_unit.h"
#include "core/half.h"
#include "core/margin.h"
#include "core/validate.h"
#include "tf/xla/handlers.h"
#include "xla/ffi/api/ffi.h"

namespace lsoftmax {
namespace {

namespace ffi = ::xla::ffi;
using Any = ffi::AnyBuffer;

// Ranges that threads take one after the other. The caller takes part, and in the end waits for ranges that others have
// begun, never for a thread to come: it may itself be the last one of its pool.
class Ranges {
 public:
  Ranges(int64_t total, int64_t count, std::function<void(int64_t, int64_t)> work)
      : total_(total), count_(count), work_(std::move(work)) {}

  void take() {
    int64_t taken = 0;
    for (int64_t i = next_++; i < count_; i = next_++, ++taken) {
      work_(total_ * i / count_, total_ * (i + 1) / count_);
    }
    if (taken == 0) return;
    const std::lock_guard<std::mutex> lock(mutex_);
    done_ += taken;
    if (done_ == count_) all_done_.notify_all();
  }

  void wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    all_done_.wait(lock, [&] { return done_ == count_; });
  }

 private:
  const int64_t total_, count_;
  const std::function<void(int64_t, int64_t)> work_;
  std::atomic<int64_t> next_{0};
  std::mutex mutex_;
  std::condition_variable all_done_;
  int64_t done_ = 0;  // guarded by mutex_
};

// `over` of core/batch.h on a pool of XLA.
auto over(ffi::ThreadPool* pool) {
  return [pool](int64_t total, int64_t cost, const auto& work) {
    const int64_t threads = threads_for(total, cost, pool->num_threads());
    if (threads < 2) return work(0, total);
    const int64_t count = std::min(total, 4 * threads);  // a few for each, as threads come late
    const auto ranges = std::make_shared<Ranges>(total, count, std::cref(work));
    for (int64_t i = 1; i < threads; ++i) pool->Schedule([ranges] { ranges->take(); });
    ranges->take();
    ranges->wait();
  };
}

template <typename T>
constexpr ffi::DataType kType = ffi::F32;
template <>
constexpr ffi::DataType kType<float16> = ffi::F16;
template <>
constexpr ffi::DataType kType<bfloat16> = ffi::BF16;
template <>
constexpr ffi::DataType kType<double> = ffi::F64;

template <typename T>
ffi::DataType type_of(Element element, ffi::DataType got) {
  switch (element) {
    case Element::kDouble:
      return ffi::F64;
    case Element::kFloat:
      return ffi::F32;
    case Element::kInt32:
      return ffi::S32;
    case Element::kInt64:
      return ffi::S64;
    case Element::kLabel:
      return got == ffi::S32 ? ffi::S32 : ffi::S64;
    default:
      return kType<T>;
  }
}

// What is wrong with a buffer; empty if nothing is. Calls that calls.cc writes fit. A program that comes from somebody
// else may hold others.
template <typename T>
std::string misfit(const Array& array, Any buffer, Sizes* sizes) {
  const ffi::DataType got = buffer.element_type(), expected = type_of<T>(array.element, got);
  if (got == expected) {
    const auto dimension = [sizes = buffer.dimensions()](int d) { return sizes[d]; };
    const int rank = static_cast<int>(buffer.dimensions().size());
    return fits(array, rank, dimension, sizes) ? "" : about_misfit(array, rank, dimension, *sizes);
  }
  return std::string(array.name) + ": expected data type " + std::to_string(static_cast<int>(expected)) +
         " of XLA, got " + std::to_string(static_cast<int>(got));
}

char* data_of(Any buffer) { return static_cast<char*>(buffer.untyped_data()); }

// The data of operands for a kernel that writes `result`. XLA gives the result the buffer of the first operand; where
// the same value is another operand, too, that one lies there as well, and is copied.
class OtherOperands {
 public:
  explicit OtherOperands(Any result) : begin_(lsoftmax::data_of(result)), end_(begin_ + result.size_bytes()) {}

  char* data_of(Any operand) {
    char* const begin = lsoftmax::data_of(operand);
    if (begin >= end_ || begin + operand.size_bytes() <= begin_) return begin;
    copies_.emplace_back(begin, begin + operand.size_bytes());
    return copies_.back().data();
  }

 private:
  char* const begin_;
  char* const end_;
  std::list<std::vector<char>> copies_;
};

// Runs the kernel of a call; the error, or nothing.
template <typename T, const Call& kCall>
std::string run(ffi::ThreadPool* pool, const std::vector<Any>& operands, const std::vector<Any>& results,
                int64_t margin) {
  JudgedArguments<T> args;
  OtherOperands others(results[0]);
  Sizes sizes;
  for (size_t i = 0; i < operands.size(); ++i) {
    const int number = number_of(kCall.operands[i]);
    const std::string wrong = misfit<T>(kArrays[number], operands[i], &sizes);
    if (!wrong.empty()) return wrong;
    char* const data = i == 0 ? data_of(operands[i]) : others.data_of(operands[i]);
    take<T>(&args, number, data, operands[i].element_count(), operands[i].element_type() == ffi::S64);
  }
  for (size_t i = 0; i < results.size(); ++i) {
    const int number = number_of(kCall.results[i]);
    const std::string wrong = misfit<T>(kArrays[number], results[i], &sizes);
    if (!wrong.empty()) return wrong;
    point<T>(&args, number, results[i].element_count() > 0 ? data_of(results[i]) : nullptr);
  }
  args.rows = sizes.rows();
  args.depth = sizes.depth();
  args.classes = sizes.classes();
  if (!is_good_margin(margin)) return about_bad_margin(margin);
  args.margin.m = static_cast<int>(margin);
  const std::string wrong = args.judge();
  if (!wrong.empty()) return wrong;
  const bool changes = std::string_view(kCall.operands[0]) == kCall.results[0];
  if (changes && data_of(operands[0]) != data_of(results[0])) {
    std::copy_n(data_of(operands[0]), operands[0].size_bytes(), data_of(results[0]));
  }
  run_on_batch<kCall.kernel, T>(args, over(pool));
  return "";
}

constexpr size_t count_of(const std::array<const char*, 8>& names) {
  size_t count = 0;
  while (count < names.size() && names[count] != nullptr) ++count;
  return count;
}

template <typename T, const Call& kCall>
ffi::Error handle(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets, int64_t margin) {
  constexpr size_t kOperands = count_of(kCall.operands), kResults = count_of(kCall.results);
  if (args.size() != kOperands || rets.size() != kResults) {
    return ffi::Error::InvalidArgument(std::string(kCall.handler) + ": expected " + std::to_string(kOperands) +
                                       " operands and " + std::to_string(kResults) + " results, got " +
                                       std::to_string(args.size()) + " and " + std::to_string(rets.size()));
  }
  std::vector<Any> operands, results;
  for (size_t i = 0; i < kOperands; ++i) operands.push_back(args.get<Any>(i).value());
  for (size_t i = 0; i < kResults; ++i) results.push_back(*rets.get<Any>(i).value());
  const std::string wrong = run<T, kCall>(&pool, operands, results, margin);
  return wrong.empty() ? ffi::Error::Success() : ffi::Error::InvalidArgument(wrong);
}

// Hands on the place of the first of `count` columns among `width`, if it is one.
ffi::Error first_column(Any first, ffi::Result<Any> same, int64_t count, int64_t width) {
  constexpr Array kFirst = {"first_column", "[]", Element::kInt64};
  Sizes none;
  for (const Any buffer : {first, *same}) {
    const std::string wrong = misfit<float>(kFirst, buffer, &none);
    if (!wrong.empty()) return ffi::Error::InvalidArgument(wrong);
  }
  const int64_t value = *static_cast<const int64_t*>(first.untyped_data());
  if (!is_good_first(value, count, width)) {
    return ffi::Error::InvalidArgument(about_bad_first("first_column", value, count, width));
  }
  *static_cast<int64_t*>(same->untyped_data()) = value;
  return ffi::Error::Success();
}

bool register_handler(const std::string& name, XLA_FFI_Handler* handler) {
  ffi::Ffi::RegisterStaticHandler(XLA_FFI_GetApi(), name, "Host", handler);
  return true;
}

template <typename T, const Call& kCall>
bool register_call(const char* type) {
  XLA_FFI_DEFINE_HANDLER_EXPLICIT(
      handler, (handle<T, kCall>),
      ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().RemainingArgs().RemainingRets().Attr<int64_t>("margin"));
  return register_handler(std::string(kCall.handler) + "_" + type, handler);
}

template <const Call& kCall>
bool register_call() {
  return register_call<float16, kCall>("F16") && register_call<bfloat16, kCall>("BF16") &&
         register_call<float, kCall>("F32") && register_call<double, kCall>("F64");
}

bool register_first_column() {
  XLA_FFI_DEFINE_HANDLER_EXPLICIT(handler, first_column,
                                  ffi::Ffi::Bind().Arg<Any>().Ret<Any>().Attr<int64_t>("count").Attr<int64_t>("width"));
  return register_handler(kFirstColumnHandler, handler);
}

[[maybe_unused]] const bool kRegistered = register_call<kLossCall>() && register_call<kFeaturesGradCall>() &&
                                          register_call<kWeightsGradCall>() && register_first_column();

}  // namespace
}  // namespace lsoftmax
