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

#include "core/batch.h"
#include "core/grad_unit.h"
#include "core/half.h"
#include "core/margin.h"
#include "core/validate.h"
#include "xla/ffi/api/ffi.h"

namespace lsoftmax {
namespace {

namespace ffi = ::xla::ffi;
using Any = ffi::AnyBuffer;
using Result = ffi::Result<Any>;

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

// The data of operands for a kernel that writes `result`. XLA gives the result the buffer of one operand; where the same value
// is another operand, too, that one lies there as well, and is copied.
class Operands {
 public:
  explicit Operands(Result result) : begin_(bytes_of(*result)), end_(begin_ + result->size_bytes()) {}

  template <typename T>
  T* data_of(Any operand) {
    char* const begin = bytes_of(operand);
    if (begin >= end_ || begin + operand.size_bytes() <= begin_) return reinterpret_cast<T*>(begin);
    copies_.emplace_back(begin, begin + operand.size_bytes());
    return reinterpret_cast<T*>(copies_.back().data());
  }

 private:
  static char* bytes_of(Any buffer) { return static_cast<char*>(buffer.untyped_data()); }

  char* const begin_;
  char* const end_;
  std::list<std::vector<char>> copies_;
};

template <typename T>
constexpr ffi::DataType kType = ffi::F32;
template <>
constexpr ffi::DataType kType<float16> = ffi::F16;
template <>
constexpr ffi::DataType kType<bfloat16> = ffi::BF16;
template <>
constexpr ffi::DataType kType<double> = ffi::F64;

// An operand or a result, and what it has to be; -1 is any size.
struct Expected {
  const char* name;
  Any buffer;
  ffi::DataType type;
  std::vector<int64_t> sizes;
};

template <typename Sizes>
std::string text_of(const Sizes& sizes) {
  std::string text;
  for (const int64_t size : sizes) text += (text.empty() ? "" : ",") + (size < 0 ? "?" : std::to_string(size));
  return "[" + text + "]";
}

// Calls that calls.cc writes fit. A program that comes from somebody else may hold others.
ffi::Error check(const std::vector<Expected>& buffers) {
  for (const auto& [name, buffer, type, sizes] : buffers) {
    const auto got = buffer.dimensions();
    const auto fits = [](int64_t size, int64_t expected) { return expected < 0 || size == expected; };
    if (buffer.element_type() != type) {
      return ffi::Error::InvalidArgument(std::string(name) + ": expected data type " +
                                         std::to_string(static_cast<int>(type)) + " of XLA, got " +
                                         std::to_string(static_cast<int>(buffer.element_type())));
    }
    if (got.size() != sizes.size() || !std::equal(got.begin(), got.end(), sizes.begin(), fits)) {
      return ffi::Error::InvalidArgument(std::string(name) + ": expected shape " + text_of(sizes) + ", got " +
                                         text_of(got));
    }
  }
  return ffi::Error::Success();
}

bool is_none(Any buffer) { return buffer.element_count() == 0; }

// The inputs "features", "weights" and "labels"; the labels are good, and of the caller's own, since others may write to where
// they came from.
template <typename T>
ffi::Error read_batch(Any features, Any weights, Any labels, Operands* operands, std::vector<int64_t>* own_labels,
                      Arguments<T>* args) {
  ffi::Error error = check({{"features", features, kType<T>, {-1, -1}}, {"weights", weights, kType<T>, {-1, -1}}});
  if (error.failure()) return error;
  args->rows = features.dimensions()[0];
  args->depth = features.dimensions()[1];
  args->classes = weights.dimensions()[1];
  const bool wide = labels.element_type() == ffi::S64;
  error = check({{"weights", weights, kType<T>, {args->depth, -1}},
                 {"labels", labels, wide ? ffi::S64 : ffi::S32, {args->rows}}});
  if (error.failure()) return error;
  args->features = operands->data_of<T>(features);
  args->weights = operands->data_of<T>(weights);
  *own_labels = copy_of({labels.untyped_data(), wide}, args->rows);
  args->labels = {own_labels->data(), true};
  const int64_t row = first_bad_label(args->labels, args->rows, args->classes);
  if (row < 0) return ffi::Error::Success();
  return ffi::Error::InvalidArgument(about_bad_label(args->labels, row, args->classes));
}

template <typename T>
T* data_of(Result buffer) {
  return static_cast<T*>(buffer->untyped_data());
}

template <typename T>
ffi::Error loss(ffi::ThreadPool pool, Any products, Any features, Any weights, Any labels, Any bias, Any lambda,
                Result loss, Result products_grad, Result geometry, Result geometry_grad, Result target_grad,
                Result target_weights, Result predicted, Result grad_unit, int64_t margin) {
  Arguments<T> args;
  Operands operands(products_grad);
  std::vector<int64_t> own_labels;
  ffi::Error error = read_batch(features, weights, labels, &operands, &own_labels, &args);
  if (error.failure()) return error;
  const int64_t rows = args.rows, classes = args.classes;
  error = check({{"products", products, kType<T>, {rows, classes}},
                 {"bias", bias, kType<T>, {is_none(bias) ? 0 : classes}},
                 {"lam", lambda, ffi::F64, {}},
                 {"loss", *loss, kType<T>, {rows}},
                 {"products_grad", *products_grad, kType<T>, {rows, classes}},
                 {"geometry", *geometry, ffi::F64, {3, rows}},
                 {"geometry_grad", *geometry_grad, ffi::F64, {3, rows}},
                 {"target_grad", *target_grad, ffi::F64, {rows}},
                 {"target_weights", *target_weights, kType<T>, {rows, args.depth}},
                 {"predicted", *predicted, ffi::S64, {rows}},
                 {"grad_unit", *grad_unit, ffi::F32, {rows}}});
  if (error.failure()) return error;
  if (margin < 1 || margin > kMaxMargin)
    return ffi::Error::InvalidArgument("margin: expected an integer from 1 to 64, got " + std::to_string(margin));
  const double own_lambda = *static_cast<const double*>(lambda.untyped_data());
  if (!is_good_lambda(own_lambda)) return ffi::Error::InvalidArgument(about_bad_lambda(own_lambda));
  args.lambda = &own_lambda;
  args.margin = static_cast<int>(margin);
  args.products = static_cast<const T*>(products.untyped_data());
  if (!is_none(bias)) args.bias = operands.data_of<T>(bias);
  args.loss = data_of<T>(loss);
  args.logits_grad = data_of<T>(products_grad);
  args.geometry = data_of<double>(geometry);
  args.geometry_grad = data_of<double>(geometry_grad);
  args.target_grad = data_of<double>(target_grad);
  args.target_weights = data_of<T>(target_weights);
  args.predicted = data_of<int64_t>(predicted);
  args.grad_unit = data_of<float>(grad_unit);
  geometry_and_loss_of_batch(args, over(&pool));
  return ffi::Error::Success();
}

// The product and `result` have one buffer in calls that calls.cc writes.
template <typename T, bool kOfFeatures>
ffi::Error grad(ffi::ThreadPool pool, Any product, Any features, Any weights, Any labels, Any loss_grad,
                Any geometry_grad, Any target_weights, Any grad_unit, Result result) {
  Arguments<T> args;
  Operands operands(result);
  std::vector<int64_t> own_labels;
  ffi::Error error = read_batch(features, weights, labels, &operands, &own_labels, &args);
  if (error.failure()) return error;
  const int64_t rows = args.rows, depth = args.depth;
  const int64_t height = kOfFeatures ? rows : depth, width = kOfFeatures ? depth : args.classes;
  const bool copied = !is_none(target_weights);
  error = check({{"product", product, kType<T>, {height, width}},
                 {"loss_grad", loss_grad, kType<T>, {rows}},
                 {"geometry_grad", geometry_grad, ffi::F64, {3, rows}},
                 {"target_weights", target_weights, kType<T>, {copied ? rows : -1, copied ? depth : -1}},
                 {"grad_unit", grad_unit, ffi::F32, {rows}},
                 {"result", *result, kType<T>, {height, width}}});
  if (error.failure()) return error;
  const auto* const from = static_cast<const char*>(product.untyped_data());
  if (from != result->untyped_data()) std::copy_n(from, product.size_bytes(), data_of<char>(result));
  args.loss_grad = operands.data_of<T>(loss_grad);
  args.geometry_grad = operands.data_of<double>(geometry_grad);
  if (copied) args.target_weights = operands.data_of<T>(target_weights);
  if (kHasGradUnit<T>) args.grad_unit = operands.data_of<float>(grad_unit);
  if constexpr (kOfFeatures) {
    args.features_grad = data_of<T>(result);
    features_grad_of_batch(args, over(&pool));
  } else {
    args.weights_grad = data_of<T>(result);
    weights_grad_of_batch(args, over(&pool));
  }
  return error;
}

// Hands on the place of the first of `count` columns among `width`, if it is one.
ffi::Error first_column(Any first, Result same, int64_t count, int64_t width) {
  const ffi::Error error = check({{"first_column", first, ffi::S64, {}}, {"first_column", *same, ffi::S64, {}}});
  if (error.failure()) return error;
  const int64_t value = *static_cast<const int64_t*>(first.untyped_data());
  if (!is_good_first(value, count, width)) {
    return ffi::Error::InvalidArgument(about_bad_first("first_column", value, count, width));
  }
  *data_of<int64_t>(same) = value;
  return ffi::Error::Success();
}

void register_handler(const std::string& name, XLA_FFI_Handler* handler) {
  ffi::Ffi::RegisterStaticHandler(XLA_FFI_GetApi(), name, "Host", handler);
}

// The threads, and the first five operands of any call.
auto operands() {
  return ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Any>().Arg<Any>().Arg<Any>().Arg<Any>().Arg<Any>();
}

// Under the names that calls.cc gives them: of the op, and of XLA's word for the data type.
template <typename T>
bool register_handlers(const std::string& type) {
  XLA_FFI_DEFINE_HANDLER_EXPLICIT(of_loss, loss<T>,
                                  operands()
                                      .Arg<Any>()
                                      .Ret<Any>()
                                      .Ret<Any>()
                                      .Ret<Any>()
                                      .Ret<Any>()
                                      .Ret<Any>()
                                      .Ret<Any>()
                                      .Ret<Any>()
                                      .Ret<Any>()
                                      .Attr<int64_t>("margin"));
  XLA_FFI_DEFINE_HANDLER_EXPLICIT(of_features, (grad<T, true>), operands().Arg<Any>().Arg<Any>().Arg<Any>().Ret<Any>());
  XLA_FFI_DEFINE_HANDLER_EXPLICIT(of_weights, (grad<T, false>), operands().Arg<Any>().Arg<Any>().Arg<Any>().Ret<Any>());
  register_handler("lsoftmax_loss_" + type, of_loss);
  register_handler("lsoftmax_features_grad_" + type, of_features);
  register_handler("lsoftmax_weights_grad_" + type, of_weights);
  return true;
}

bool register_untyped_handler() {
  XLA_FFI_DEFINE_HANDLER_EXPLICIT(of_first_column, first_column,
                                  ffi::Ffi::Bind().Arg<Any>().Ret<Any>().Attr<int64_t>("count").Attr<int64_t>("width"));
  register_handler("lsoftmax_first_column", of_first_column);
  return true;
}

[[maybe_unused]] const bool kRegistered = register_untyped_handler() && register_handlers<float16>("F16") &&
                                          register_handlers<bfloat16>("BF16") && register_handlers<float>("F32") &&
                                          register_handlers<double>("F64");

}  // namespace
}  // namespace lsoftmax
