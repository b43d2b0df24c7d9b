// An op that is one kernel of the core: its inputs and outputs are arrays of the kernel's Arguments, found by their
// names.
#ifndef LSOFTMAX_TF_KERNEL_OP_H_
#define LSOFTMAX_TF_KERNEL_OP_H_

#include <algorithm>

#include "tf/register.h"

namespace lsoftmax {

// An output that takes the buffer of an input, where TensorFlow gives it away.
struct InPlace {
  enum Content { kOverwritten, kChanged };  // a kernel that changes it begins with the input's values
  const char* input;
  const char* output;
  Content content = kOverwritten;
};
inline constexpr InPlace kNowhere = {"", ""};
inline constexpr InPlace kProductsGrad = {"products", "products_grad", InPlace::kOverwritten};

template <typename Backend, typename T, Kernel kernel, const InPlace& kInPlace>
class KernelOp : public OpKernel {
 public:
  explicit KernelOp(OpKernelConstruction* construction)
      : OpKernel(construction),
        signature_(*this, construction),
        taken_input_(signature_.input(kInPlace.input)),
        taking_output_(signature_.output(kInPlace.output)),
        first_class_(signature_.input("first_class")),
        depth_(signature_.input("depth")) {
    OP_REQUIRES_OK(construction, check_wide(construction));
    OP_REQUIRES_OK(construction, read_margin(construction, &margin_));
    OP_REQUIRES_OK(construction, read_range(construction, &range_));
  }

  void Compute(OpKernelContext* context) override {
    JudgedArguments<Core<T>> args;
    Sizes sizes;
    args.margin = margin_;
    args.range = range_;
    args.class_major = signature_.class_major();
    OP_REQUIRES_OK(context, read_inputs(context, &sizes, &args));
    OP_REQUIRES_OK(context, make_outputs(context, sizes, &args));
    OP_REQUIRES_OK(context, Backend::template run<kernel>(context, &args));
  }

 private:
  absl::Status read_inputs(OpKernelContext* context, Sizes* sizes, JudgedArguments<Core<T>>* args) {
    TF_RETURN_IF_ERROR(signature_.check(context, sizes));
    args->rows = sizes->rows();
    args->depth = sizes->depth();
    args->classes = std::max<int64_t>(0, sizes->classes());
    TF_RETURN_IF_ERROR(status_of(lsoftmax::judge(args->range, args->classes)));
    for (const Signature::Place& place : signature_.inputs()) {
      if (place.number < 0) continue;
      const Tensor& input = context->input(place.index);
      const bool wide = input.dtype() == tensorflow::DT_INT64;
      take<Core<T>>(args, place.number, input.data(), input.NumElements(), wide);
    }
    const Given terms = {signature_.input("terms") >= 0, args->terms != nullptr};
    const Given factors = {signature_.input("class_factors") >= 0, args->class_factors != nullptr};
    TF_RETURN_IF_ERROR(status_of(lsoftmax::judge(args->margin, terms, factors, args->bias != nullptr)));
    if (depth_ >= 0) args->depth = *data_of<int64_t>(context->input(depth_));
    if (first_class_ >= 0) {
      args->range.first = *data_of<int64_t>(context->input(first_class_));
      return check_first("first_class", args->range.first, args->classes, std::numeric_limits<int64_t>::max());
    }
    return Backend::judge(/*knows_classes=*/sizes->classes() >= 0, args);
  }

  absl::Status make_outputs(OpKernelContext* context, const Sizes& sizes, Arguments<Core<T>>* args) {
    for (const auto& [array, number, index, same] : signature_.outputs()) {
      if (same >= 0) {
        context->set_output(index, context->input(same));
        continue;
      }
      Tensor* output = nullptr;
      if (index == taking_output_) {
        TF_RETURN_IF_ERROR(Backend::take(context, taken_input_, index, kInPlace.content == InPlace::kChanged, &output));
      } else {
        TF_RETURN_IF_ERROR(context->allocate_output(index, shape_in(array, sizes), &output));
      }
      point(args, number, output->data());
    }
    return absl::Status();
  }

  const Signature signature_;
  const int taken_input_, taking_output_, first_class_, depth_;
  Margin margin_;
  ClassRange range_;
};

}  // namespace lsoftmax

#endif  // LSOFTMAX_TF_KERNEL_OP_H_
