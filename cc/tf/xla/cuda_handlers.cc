// Who answers the calls of calls.h on the GPU: the CUDA kernels over XLA's buffers, on XLA's stream. Needs no CUDA
// header.
//
// A handler launches, and that is all: it reads no value of the device's, allocates nothing and waits for nothing. So
// XLA may record it in a CUDA graph (a command buffer) and run that again. Values are judged on the device, as
// cuda/kernels.h has it: a bad one makes NaNs. The workspace is a result of the call, after the kernel's own: memory
// that a handler asked for itself would be somebody else's when a graph runs again.
//
// Compiled with LSOFTMAX_XLA_CUDA_ON_CPU these are the CPU's handlers, over the kernels that run on the CPU
// (cuda/testing): so the tests run this file without a GPU.
#include <string>

#include "cuda/kernels.h"
#include "tf/xla/buffers.h"

namespace lsoftmax {
namespace {

#ifdef LSOFTMAX_XLA_CUDA_ON_CPU
constexpr bool kOnGpu = false;
constexpr const char* kPlatform = "Host";
struct StreamOfCall {};  // there is none
#else
constexpr bool kOnGpu = true;
constexpr const char* kPlatform = "CUDA";
using StreamOfCall = ffi::PlatformStream<cuda::Stream>;
#endif

}  // namespace
}  // namespace lsoftmax

#ifdef LSOFTMAX_XLA_CUDA_ON_CPU
template <>
struct xla::ffi::CtxDecoding<lsoftmax::StreamOfCall> {
  using Type = lsoftmax::cuda::Stream;
  static std::optional<Type> Decode(const XLA_FFI_Api*, XLA_FFI_ExecutionContext*, DiagnosticEngine&) {
    return std::optional<Type>(nullptr);
  }
};
#endif

namespace lsoftmax {
namespace {

// What is wrong with the workspace; empty if nothing is.
template <Kernel kernel, typename T>
std::string misfit(Any workspace, const Arguments<T>& args) {
  const int64_t wanted = cuda::workspace_of(kernel, args.rows, args.depth, args.classes);
  const int64_t got = static_cast<int64_t>(workspace.size_bytes());
  if (got >= wanted) return "";
  return "workspace: expected " + std::to_string(wanted) + " bytes, got " + std::to_string(got);
}

// An operand that lies where the kernel writes. calls.cc lets XLA give the first result the first operand's buffer
// where no other operand is the same array; a kernel of the GPU has nowhere to copy one to.
std::string overlapping(const Call& call, const Buffers& buffers) {
  for (size_t i = 1; i < buffers.operands.size(); ++i) {
    if (!overlap(buffers.operands[i], buffers.results[0])) continue;
    return std::string(call.operands[i]) + ": expected a buffer of its own, got that of " + call.results[0];
  }
  return "";
}

ffi::Error error_of(cuda::Status status) {
  if (status == 0) return ffi::Error::Success();
  return ffi::Error::Internal(std::string("CUDA: ") + cuda::message_of(status));
}

template <typename T, const Call& kCall>
ffi::Error handle(cuda::Stream stream, ffi::RemainingArgs operands, ffi::RemainingRets results,
                  ffi::Dictionary attributes) {
  Buffers buffers;
  Arguments<T> args;
  std::string wrong = buffers.take<kCall>(operands, results, /*more=*/1);
  if (wrong.empty()) wrong = overlapping(kCall, buffers);
  if (wrong.empty()) wrong = buffers.fill<kCall, T>(attributes, data_of, &args);
  if (wrong.empty()) wrong = misfit<kCall.kernel, T>(buffers.results.back(), args);
  if (!wrong.empty()) return ffi::Error::InvalidArgument(wrong);
  args.depth = attribute_in(attributes, "depth", args.depth);
  args.workspace = buffers.results.back().untyped_data();
  const Any first = buffers.operands[0], result = buffers.results[0];
  if (changes(kCall) && data_of(first) != data_of(result)) {
    const cuda::Status copied = cuda::copy(data_of(first), data_of(result), first.size_bytes(), stream);
    if (copied != 0) return error_of(copied);
  }
  return error_of(cuda::run<kCall.kernel>(args, stream));
}

struct OnGpu {
  template <typename T, const Call& kCall>
  static bool add(const std::string& name) {
    XLA_FFI_DEFINE_HANDLER_EXPLICIT(handler, (handle<T, kCall>),
                                    ffi::Ffi::Bind().Ctx<StreamOfCall>().RemainingArgs().RemainingRets().Attrs());
    return register_handler(name, kPlatform, handler, XLA_FFI_HANDLER_TRAITS_COMMAND_BUFFER_COMPATIBLE);
  }
};

template <const Call&... kCalls>
bool answer() {
  if ((register_call<OnGpu, kCalls>() && ...)) answers_on(kOnGpu) = {{kCalls.handler...}, cuda::workspace_of};
  return true;
}

// All but SetColumns, which XLA does in place by itself.
[[maybe_unused]] const bool kRegistered =
    answer<kGeometryCall, kClassFactorsCall, kFeaturesGradCall, kWeightsGradCall, kLogitsCall, kLogitsGradCall,
           kLossCall, kBiasGradCall, kSumsCall, kFinishCall, kProductsGradCall>();

}  // namespace
}  // namespace lsoftmax
