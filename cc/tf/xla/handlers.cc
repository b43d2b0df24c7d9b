// Who answers the calls of calls.h on the CPU: the kernels of the core over XLA's buffers, on XLA's threads.
#include <list>
#include <string>
#include <vector>

#include "core/batch.h"
#include "core/ranges.h"
#include "tf/xla/buffers.h"

namespace lsoftmax {
namespace {

// The data of operands for a kernel that writes `result`. XLA gives the result the buffer of the first operand; where
// the same value is another operand, too, that one lies there as well, and is copied.
class OtherOperands {
 public:
  explicit OtherOperands(Any result) : result_(result) {}

  char* data_of(Any operand) {
    char* const begin = lsoftmax::data_of(operand);
    if (!overlap(operand, result_)) return begin;
    copies_.emplace_back(begin, begin + operand.size_bytes());
    return copies_.back().data();
  }

 private:
  const Any result_;
  std::list<std::vector<char>> copies_;
};

// Runs the kernel of a call; the error, or nothing.
template <typename T, const Call& kCall>
std::string run(ffi::ThreadPool* pool, const Buffers& buffers, const ffi::Dictionary& attributes) {
  JudgedArguments<T> args;
  const Any first = buffers.operands[0], result = buffers.results[0];
  OtherOperands others(result);
  const auto place = [&others](Any operand) { return others.data_of(operand); };
  std::string wrong = buffers.fill<kCall, T>(attributes, place, &args);
  if (wrong.empty()) wrong = args.judge();
  if (!wrong.empty()) return wrong;
  if (changes(kCall) && data_of(first) != data_of(result)) {
    std::copy_n(data_of(first), first.size_bytes(), data_of(result));
  }
  run_on_batch<kCall.kernel, T>(args, over(pool, pool->num_threads()));
  return "";
}

template <typename T, const Call& kCall>
ffi::Error handle(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets, ffi::Dictionary attributes) {
  Buffers buffers;
  std::string wrong = buffers.take<kCall>(args, rets);
  if (wrong.empty()) wrong = run<T, kCall>(&pool, buffers, attributes);
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

constexpr const char* kPlatform = "Host";

struct OnCpu {
  template <typename T, const Call& kCall>
  static bool add(const std::string& name) {
    XLA_FFI_DEFINE_HANDLER_EXPLICIT(handler, (handle<T, kCall>),
                                    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().RemainingArgs().RemainingRets().Attrs());
    return register_handler(name, kPlatform, handler);
  }
};

bool register_first_column() {
  XLA_FFI_DEFINE_HANDLER_EXPLICIT(handler, first_column,
                                  ffi::Ffi::Bind().Arg<Any>().Ret<Any>().Attr<int64_t>("count").Attr<int64_t>("width"));
  return register_handler(kFirstColumnHandler, kPlatform, handler);
}

// XLA's own kernels of the other ops' formulas are as fast.
bool answer() {
  if (register_call<OnCpu, kLossCall>() && register_call<OnCpu, kFeaturesGradCall>() &&
      register_call<OnCpu, kWeightsGradCall>() && register_call<OnCpu, kClassFactorsCall>() &&
      register_first_column()) {
    answers_on(/*gpu=*/false).handlers = {kLossCall.handler, kFeaturesGradCall.handler, kWeightsGradCall.handler,
                                          kClassFactorsCall.handler, kFirstColumnHandler};
  }
  return true;
}
[[maybe_unused]] const bool kRegistered = answer();

}  // namespace
}  // namespace lsoftmax
