#include "tf/gpu.h"

#include "absl/strings/str_cat.h"
#include "xla/stream_executor/stream.h"

namespace lsoftmax {

cuda::Stream Gpu::stream_of(tensorflow::OpKernelContext* context) {
  return context->op_device_context()->stream()->platform_specific_handle().stream;
}

absl::Status Gpu::status_of(cuda::Status status) {
  if (status == 0) return absl::Status();
  return absl::InternalError(absl::StrCat("CUDA: ", cuda::message_of(status)));
}

}  // namespace lsoftmax
