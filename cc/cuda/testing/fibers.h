// Fibers: functions that run side by side in one thread, each on a stack of its own, and give way where they say so.
//
// swapcontext would ask the system for the signal mask each time: a context is used to begin a fiber, and no more. The
// address sanitizer is told of each switch, and must not take the jumps for the end of a stack.
#ifndef LSOFTMAX_CUDA_TESTING_FIBERS_H_
#define LSOFTMAX_CUDA_TESTING_FIBERS_H_

#include <stddef.h>
#include <ucontext.h>

#include <memory>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace cuda_on_cpu {

class Fiber {
 public:
  // Who resumes fibers, and where they return to.
  struct Home {
    void* place[5];
    const void* stack = nullptr;
    size_t size = 0;
  };

  // Runs the fiber until it yields: where it stood, or from the beginning of work(), which never returns.
  void resume(Home* home, void (*work)()) {
    home_ = home;
    if (!begun_) prepare(work);
    void* fake_stack = nullptr;
    leave(&fake_stack, stack_.get(), kStack);
    begun_ ? swap(home->place, place_) : begin(home->place, &context_);
    arrive(fake_stack, nullptr, nullptr);
  }

  // On the fiber: back to who resumed it.
  void yield() {
    leave(&fake_stack_, home_->stack, home_->size);
    swap(place_, home_->place);
    arrive(fake_stack_, &home_->stack, &home_->size);
  }

 private:
  static constexpr size_t kStack = 256 * 1024;

  __attribute__((noinline)) void prepare(void (*work)()) {
    work_ = work;
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack_.get();
    context_.uc_stack.ss_size = kStack;
    context_.uc_link = nullptr;
    makecontext(&context_, &Fiber::enter, 0);
    beginning = this;
  }
  static void enter() {
    Fiber* const self = beginning;
    self->begun_ = true;
    arrive(nullptr, &self->home_->stack, &self->home_->size);
    self->work_();
  }

#if defined(__SANITIZE_ADDRESS__)
  static void leave(void** fake_stack, const void* stack, size_t size) {
    __sanitizer_start_switch_fiber(fake_stack, stack, size);
  }
  static void arrive(void* fake_stack, const void** stack, size_t* size) {
    __sanitizer_finish_switch_fiber(fake_stack, stack, size);
  }
#else
  static void leave(void**, const void*, size_t) {}
  static void arrive(void*, const void**, size_t*) {}
#endif

  __attribute__((noinline, no_sanitize("address"))) static void begin(void** from, const ucontext_t* context) {
    if (__builtin_setjmp(from) == 0) setcontext(context);
  }
  __attribute__((noinline, no_sanitize("address"))) static void swap(void** from, void** to) {
    if (__builtin_setjmp(from) == 0) jump(to);
  }
  __attribute__((noinline, noreturn, no_sanitize("address"))) static void jump(void** to) { __builtin_longjmp(to, 1); }

  static inline thread_local Fiber* beginning = nullptr;

  std::unique_ptr<char[]> stack_{new char[kStack]};
  ucontext_t context_;
  void* place_[5];  // where it goes on
  Home* home_ = nullptr;
  void (*work_)() = nullptr;
  void* fake_stack_ = nullptr;  // the sanitizer's
  bool begun_ = false;
};

}  // namespace cuda_on_cpu

#endif  // LSOFTMAX_CUDA_TESTING_FIBERS_H_
