// How the buffers that XLA hands to a handler become the arrays of core/arguments.h, by the names that the call has for
// them: said once, for the handlers of the CPU and of the GPU.
//
// Calls that calls.cc writes fit. A program that comes from somebody else may hold others, so everything is checked
// that the host can see.
#ifndef LSOFTMAX_TF_XLA_BUFFERS_H_
#define LSOFTMAX_TF_XLA_BUFFERS_H_

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "core/arrays.h"
#include "core/half.h"
#include "core/validate.h"
#include "tf/xla/handlers.h"
#include "xla/ffi/api/ffi.h"

namespace lsoftmax {

namespace ffi = ::xla::ffi;
using Any = ffi::AnyBuffer;

template <typename T>
constexpr ffi::DataType kType = ffi::F32;
template <>
inline constexpr ffi::DataType kType<float16> = ffi::F16;
template <>
inline constexpr ffi::DataType kType<bfloat16> = ffi::BF16;
template <>
inline constexpr ffi::DataType kType<double> = ffi::F64;

template <typename T>
ffi::DataType type_of(Element element, ffi::DataType got) {
  switch (element) {
    case Element::kDouble:
      return ffi::F64;
    case Element::kFloat:
      return ffi::F32;
    case Element::kWide:
      return kType<Real<T>>;
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

// What is wrong with a buffer; empty if nothing is.
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

// An attribute of a call, if it is there.
template <typename Value>
Value attribute_in(const ffi::Dictionary& attributes, const char* name, Value otherwise) {
  if (!attributes.contains(name)) return otherwise;
  const ffi::ErrorOr<Value> value = attributes.get<Value>(name);
  return value.has_value() ? value.value() : otherwise;
}

// The margin of a call; says what is wrong with it.
inline std::string read_margin(const ffi::Dictionary& attributes, Margin* margin) {
  const int64_t m = attribute_in<int64_t>(attributes, "margin", 1);
  if (!is_good_margin(m)) return about_bad_margin(m);
  *margin = {static_cast<int>(m), attribute_in(attributes, "normalize_features", false),
             attribute_in(attributes, "normalize_weights", false),
             attribute_in(attributes, "linear_continuation", false)};
  return judge(*margin);
}

// The range of a call's classes.
inline ClassRange range_of(const ffi::Dictionary& attributes) {
  return {attribute_in<int64_t>(attributes, "first_class", 0), attribute_in<int64_t>(attributes, "num_classes", 0)};
}

inline char* data_of(Any buffer) { return static_cast<char*>(buffer.untyped_data()); }

inline bool overlap(Any one, Any other) {
  const char *a = data_of(one), *b = data_of(other);
  const size_t a_size = one.size_bytes(), b_size = other.size_bytes();
  return a_size > 0 && b_size > 0 && a < b + b_size && b < a + a_size;
}

constexpr size_t count_of(const Names& names) {
  size_t count = 0;
  while (count < names.size() && names[count] != nullptr) ++count;
  return count;
}

// Whether the kernel of a call begins with its first operand's values where it is to leave its first result.
constexpr bool changes(const Call& call) {
  return call.in_place && std::string_view(call.operands[0]) == call.results[0];
}

constexpr bool has_operand(const Call& call, std::string_view name) {
  for (const char* operand : call.operands) {
    if (operand != nullptr && name == operand) return true;
  }
  return false;
}

struct Buffers {
  std::vector<Any> operands, results;

  // Those of a call, and `more` results that are none of the kernel's arrays. Says what is wrong with their number.
  template <const Call& kCall>
  std::string take(const ffi::RemainingArgs& args, const ffi::RemainingRets& rets, size_t more = 0) {
    constexpr size_t kOperands = count_of(kCall.operands), kResults = count_of(kCall.results);
    if (args.size() != kOperands || rets.size() != kResults + more) {
      return std::string(kCall.handler) + ": expected " + std::to_string(kOperands) + " operands and " +
             std::to_string(kResults + more) + " results, got " + std::to_string(args.size()) + " and " +
             std::to_string(rets.size());
    }
    for (size_t i = 0; i < kOperands; ++i) operands.push_back(args.get<Any>(i).value());
    for (size_t i = 0; i < kResults + more; ++i) results.push_back(*rets.get<Any>(i).value());
    return "";
  }

  // Fills in a kernel's arguments. place(buffer) is where an operand but the first one lies. Says what does not fit.
  template <const Call& kCall, typename T, typename Place>
  std::string fill(const ffi::Dictionary& attributes, const Place& place, Arguments<T>* args) const {
    Sizes sizes;
    args->class_major = attribute_in(attributes, "class_major", false);
    for (size_t i = 0; i < count_of(kCall.operands); ++i) {
      const int number = number_of(kCall.operands[i]);
      const std::string wrong = misfit<T>(kArrays[number].in_layout(args->class_major), operands[i], &sizes);
      if (!wrong.empty()) return wrong;
      void* const data = i == 0 ? data_of(operands[i]) : place(operands[i]);
      lsoftmax::take<T>(args, number, data, operands[i].element_count(), operands[i].element_type() == ffi::S64);
    }
    const Given terms = {has_operand(kCall, "terms"), args->terms != nullptr};
    const Given factors = {has_operand(kCall, "class_factors"), args->class_factors != nullptr};
    std::string bad = read_margin(attributes, &args->margin);
    if (bad.empty()) bad = judge(args->margin, terms, factors, args->bias != nullptr);
    if (!bad.empty()) return bad;
    for (size_t i = 0; i < count_of(kCall.results); ++i) {
      const int number = number_of(kCall.results[i]);
      const std::string wrong = misfit<T>(kArrays[number].in_layout(args->class_major), results[i], &sizes);
      if (!wrong.empty()) return wrong;
      point<T>(args, number, results[i].element_count() > 0 ? data_of(results[i]) : nullptr);
    }
    args->rows = sizes.rows();
    args->depth = sizes.depth();
    args->classes = std::max<int64_t>(0, sizes.classes());
    if (takes_range(kCall.kernel)) args->range = range_of(attributes);
    return judge(args->range, args->classes);
  }
};

// Registers handle<T, kCall> of a struct Handlers for every data type T, under the names that calls.cc writes; whether
// the registry took them.
template <typename Handlers, const Call& kCall>
bool register_call() {
  const std::string name = std::string(kCall.handler) + "_";
  return Handlers::template add<float16, kCall>(name + "F16") &&
         Handlers::template add<bfloat16, kCall>(name + "BF16") && Handlers::template add<float, kCall>(name + "F32") &&
         Handlers::template add<double, kCall>(name + "F64");
}

// Whether the registry took a handler.
inline bool register_handler(const std::string& name, const char* platform, XLA_FFI_Handler* handler,
                             XLA_FFI_Handler_Traits traits = 0) {
  const XLA_FFI_Api* const api = XLA_FFI_GetApi();
  XLA_FFI_Error* const error = ffi::Ffi::RegisterStaticHandler(api, name, platform, handler, traits);
  if (error != nullptr) ffi::internal::DestroyError(api, error);
  return error == nullptr;
}

}  // namespace lsoftmax

#endif  // LSOFTMAX_TF_XLA_BUFFERS_H_
