// lsoftmax_op._core: the CPU kernels; `where` is the number of threads, at most.
#include "core/groups.h"
#include "core/loss.h"
#include "core/rows.h"
#include "core/validate.h"
#include "python/bindings.h"
#include "python/parallel.h"

namespace lsoftmax {
namespace {

struct Cpu {
  using Where = int;

  template <typename T>
  static void geometry(const Call&, const Arguments<T>& args, int threads) {
    over_rows(row_kernels<T>().geometry, args, kColumnCost * args.depth, threads);
  }
  template <typename T>
  static void logits(const Call&, const Arguments<T>& args, int threads) {
    over_rows(row_kernels<T>().logits, args, kTargetCost, threads);
  }
  template <typename T>
  static void logits_grad(const Call&, const Arguments<T>& args, int threads) {
    over_rows(row_kernels<T>().logits_grad, args, kTargetCost, threads);
  }
  template <typename T>
  static void angles(const Call&, const Arguments<T>& args, int threads) {
    over_rows(row_kernels<T>().angles, args, kTargetCost, threads);
  }
  template <typename T>
  static void features_grad(const Call&, const Arguments<T>& args, int threads) {
    over_rows(row_kernels<T>().features_grad, args, kEntryCost * args.depth, threads);
  }
  template <typename T>
  static void weights_grad(const Call&, const Arguments<T>& args, int threads) {
    const RowGrouping grouping(args.labels, args.rows);
    const Groups groups = grouping.groups();
    parallel_for(args.depth, kColumnCost * args.rows, threads,
                 [&](int64_t begin, int64_t end) { row_kernels<T>().weights_grad(args, groups, begin, end); });
  }
  static int64_t weights_grad_workspace(int64_t, int64_t) { return 0; }
  template <typename T>
  static void loss(const Call&, const Arguments<T>& args, int threads) {
    over_rows(loss_kernels<T>().loss, args, kLogitCost * args.classes, threads);
  }
  template <typename T>
  static void sums(const Call&, const Arguments<T>& args, int threads) {
    over_rows(loss_kernels<T>().sums, args, kLogitCost * args.classes, threads);
  }
  template <typename T>
  static void finish(const Call&, const Arguments<T>& args, int threads) {
    over_rows(loss_kernels<T>().finish, args, kTargetCost, threads);
  }
  template <typename T>
  static void products_grad(const Call&, const Arguments<T>& args, int threads) {
    over_rows(loss_kernels<T>().products_grad, args, kLogitCost * args.classes, threads);
  }
  template <typename T>
  static void bias_grad(const Call&, const Arguments<T>& args, int threads) {
    parallel_for(args.classes, args.rows, threads,
                 [&](int64_t begin, int64_t end) { loss_kernels<T>().bias_grad(args, begin, end); });
  }
  static int64_t loss_workspace(int64_t, int64_t) { return 0; }

 private:
  template <typename T>
  static void over_rows(void (*kernel)(const Arguments<T>&, int64_t, int64_t), const Arguments<T>& args, int64_t cost,
                        int threads) {
    parallel_for(args.rows, cost, threads, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  }
};

}  // namespace

PYBIND11_MODULE(_core, module) {
  module.doc() = "The CPU kernels of lsoftmax_op; lsoftmax_op.arrays is the door to them.";
  define_kernels<Cpu>(module);
  module.def(
      "first_bad_label", [](const Call& call) { return first_bad_label(call.labels_of(), call.rows, call.classes); },
      pybind11::arg("call"), "The first row whose label is neither -1 nor in [0, classes), or -1.");
  module.def("cpu_variant", cpu_variant);
}

}  // namespace lsoftmax
