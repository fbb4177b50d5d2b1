// Memory for the length of a scope, and loops over threads.
#ifndef ADDER_THREADS_H
#define ADDER_THREADS_H

#include "parallel.h"
#include "shape.h"

namespace ADDER_NAMESPACE {

// Memory that is freed at the end of the scope; null if there was not enough memory.
template <class E> struct Scratch {
  E *data;
  explicit Scratch(int64_t count) : data(static_cast<E *>(adder::allocate(static_cast<size_t>(count) * sizeof(E)))) {}
  ~Scratch() { adder::release(data); }
  Scratch(const Scratch &) = delete;
  Scratch &operator=(const Scratch &) = delete;
  operator E *() const { return data; }
};

// Set by any thread, read when all are done.
struct Flag {
  int value = 0;
  void set() { __atomic_store_n(&value, 1, __ATOMIC_RELAXED); }
};

// Calls f(begin, end) over [0, count) on several threads, each with at least `grain` of them. A thread takes an eighth
// of its share at a time, so that a thread on a faster core, or on a core without other work, does more than its share.
template <class F> void parallel(int64_t count, int64_t grain, F f) {
  struct Shared {
    F *f;
    int64_t count, next;
  } shared = {&f, count, 0};
  adder::parallel_for(
      count, grain,
      [](int64_t begin, int64_t end, void *context) {
        Shared &s = *static_cast<Shared *>(context);
        if (end - begin == s.count) return (*s.f)(begin, end);
        const int64_t piece = max64(1, (end - begin) / 8);
        for (int64_t i; (i = __atomic_fetch_add(&s.next, piece, __ATOMIC_RELAXED)) < s.count;)
          (*s.f)(i, min64(s.count, i + piece));
      },
      &shared);
}

// Vector operations below which handing work to another thread costs more than it saves (some 10 us).
constexpr double WORTH_A_THREAD = 32e3;
static inline int64_t grain_for(double operations, int64_t tasks) {
  const double per_task = operations / static_cast<double>(max64(1, tasks));
  return per_task >= WORTH_A_THREAD ? 1 : static_cast<int64_t>(WORTH_A_THREAD / (per_task + 1)) + 1;
}

// Calls f(i) for each i < count; `operations`: vector operations of all of them.
template <class F> void for_each(int64_t count, double operations, F f) {
  parallel(count, grain_for(operations, count), [&](int64_t begin, int64_t end) {
    for (; begin < end; ++begin) f(begin);
  });
}

// Runs a kernel, which is a struct with
//   int64_t tasks() const               into which its work is cut: depends on the shape, not on the threads
//   double operations() const           vector operations of all of it
//   void run(int64_t begin, end)        those tasks, on one thread
//   Flag failed                         set by run where there is no memory
// and returns a status of the C interface.
template <class Kernel> int launch(Kernel &kernel) {
  parallel(kernel.tasks(), grain_for(kernel.operations(), kernel.tasks()),
           [&](int64_t begin, int64_t end) { kernel.run(begin, end); });
  return kernel.failed.value ? ADDER_NO_MEMORY : ADDER_OK;
}

} // namespace ADDER_NAMESPACE
#endif
