// One persistent thread pool. Work is cut into chunks whose borders depend on the problem alone,
// never on the number of threads (but where they cannot change a bit), and reductions add the chunks
// in their order: the same bits come out at 1, 2 and 16 threads. A thread takes the same part of the
// chunks every time, which it then finds in its own cache, and only then what others left. Nested
// calls and calls from a second thread run on the caller.
#pragma once

#include "rbar/config.hpp"
#include "rbar/core/error.hpp"

#include <Eigen/Core>

#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace rbar {

namespace detail {

inline void cpu_relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

class ThreadPool {
 public:
  using Index = Eigen::Index;
  using Task = void (*)(void* context, Index step, Index index);

  static ThreadPool& instance() {
    static ThreadPool pool;
    return pool;
  }

  int num_threads() const { return static_cast<int>(workers_.size()) + 1; }
  int usable_threads() const { return inside_ ? 1 : num_threads(); }

  void set_num_threads(int count) {
    require(count >= 1, "set_num_threads", "count", "at least 1", count);
    std::lock_guard lock(run_mutex_);
    if (count == num_threads()) return;
    stop_workers();
    ranges_ = std::make_unique<Range[]>(static_cast<std::size_t>(count));
    workers_.reserve(static_cast<std::size_t>(count - 1));
    for (int i = 1; i < count; ++i) workers_.emplace_back([this, i] { work(i); });
  }

  // Calls task(context, step, i) once for every i in [0, count) of every step and returns when all are
  // done. A task starts when all of the earlier steps have started. The first exception is rethrown
  // here; the tasks after it may be skipped.
  void run(Index steps, Index count, Task task, void* context) {
    std::unique_lock lock(run_mutex_, std::defer_lock);
    if (count <= 1 || inside_ || workers_.empty() || !lock.try_lock()) {
      for (Index step = 0; step < steps; ++step)
        for (Index i = 0; i < count; ++i) task(context, step, i);
      return;
    }
    task_ = task;
    context_ = context;
    steps_ = steps;
    count_ = count;
    for (int i = 0; i < num_threads(); ++i) ranges_[static_cast<std::size_t>(i)].taken.store(0);
    failed_.store(false, std::memory_order_relaxed);
    failure_ = nullptr;
    gate_.store(gate_open, std::memory_order_release);  // from here on workers may enter
    generation_.fetch_add(1, std::memory_order_release);
    generation_.notify_all();
    inside_ = true;
    take_tasks(0);
    inside_ = false;
    // Close the gate: a worker that wakes up late finds it shut, so nobody waits for a sleeper.
    gate_.fetch_and(~gate_open, std::memory_order_acq_rel);
    for (int spins = 0; gate_.load(std::memory_order_acquire) != 0; ++spins)
      spins < spin_limit ? cpu_relax() : std::this_thread::yield();
    if (failure_) std::rethrow_exception(failure_);
  }

  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

 private:
  static constexpr std::uint32_t gate_open = 1;  // lowest bit: job accepts workers; the rest counts them
  static constexpr std::uint32_t gate_entry = 2;
  static constexpr int spin_limit = 2000;

  // A thread's own part of the tasks of every step, and how many of them are taken: step after step.
  struct alignas(64) Range {
    std::atomic<Index> taken{0};
  };

  ThreadPool() = default;
  ~ThreadPool() { stop_workers(); }

  void stop_workers() {
    stop_.store(true, std::memory_order_release);
    generation_.fetch_add(1, std::memory_order_release);
    generation_.notify_all();
    for (auto& worker : workers_) worker.join();
    workers_.clear();
    stop_.store(false, std::memory_order_release);
  }

  void work(Index own_range) {
    inside_ = true;
    std::uint32_t seen = 0;
    for (;;) {
      if (stop_.load(std::memory_order_acquire)) return;
      if (enter()) {
        take_tasks(own_range);
        gate_.fetch_sub(gate_entry, std::memory_order_release);
      }
      // A short spin catches the next layer of the same forward pass without a system call.
      int spins = 0;
      while (generation_.load(std::memory_order_acquire) == seen && ++spins < spin_limit) cpu_relax();
      if (generation_.load(std::memory_order_acquire) == seen) generation_.wait(seen, std::memory_order_acquire);
      seen = generation_.load(std::memory_order_acquire);
    }
  }

  bool enter() {
    std::uint32_t state = gate_.load(std::memory_order_acquire);
    while (state & gate_open)
      if (gate_.compare_exchange_weak(state, state + gate_entry, std::memory_order_acq_rel)) return true;
    return false;
  }

  void take_tasks(Index own_range) {
    const Index ranges = num_threads();
    for (Index step = 0; step < steps_; ++step)
      for (Index i = 0; i < ranges; ++i) {
        const Index range = (own_range + i) % ranges;
        const Index begin = count_ * range / ranges, size = count_ * (range + 1) / ranges - begin;
        std::atomic<Index>& taken = ranges_[static_cast<std::size_t>(range)].taken;
        Index number = taken.load(std::memory_order_relaxed);
        while (number < (step + 1) * size && !failed_.load(std::memory_order_relaxed)) {
          if (!taken.compare_exchange_weak(number, number + 1, std::memory_order_relaxed)) continue;
          try {
            task_(context_, step, begin + number - step * size);
          } catch (...) {
            std::lock_guard lock(failure_mutex_);
            if (!failure_) failure_ = std::current_exception();
            failed_.store(true, std::memory_order_relaxed);
          }
          number = taken.load(std::memory_order_relaxed);
        }
      }
  }

  std::mutex run_mutex_;  // one job at a time
  std::mutex failure_mutex_;
  std::vector<std::thread> workers_;
  std::atomic<bool> stop_{false};
  std::atomic<std::uint32_t> generation_{0};
  std::atomic<std::uint32_t> gate_{0};
  Task task_ = nullptr;
  void* context_ = nullptr;
  Index steps_ = 0, count_ = 0;
  std::unique_ptr<Range[]> ranges_;
  std::atomic<bool> failed_{false};
  std::exception_ptr failure_;
  static inline thread_local bool inside_ = false;
};

}  // namespace detail

// Threads used by rbar from now on, the calling one included. The library starts with 1.
inline void set_num_threads(int count) { detail::ThreadPool::instance().set_num_threads(count); }
inline int num_threads() { return detail::ThreadPool::instance().num_threads(); }
// Those that a parallel_for called here would run on: one within another.
inline int usable_threads() { return detail::ThreadPool::instance().usable_threads(); }
// Tasks that keep them all busy to the end, though some are slower than others: for work that may be cut anywhere
// without a change of a bit.
inline Eigen::Index tasks_for_threads() { return usable_threads() == 1 ? 1 : 4 * usable_threads(); }

// body(begin, end) over [0, count) in chunks of `chunk_size` (the last one shorter).
template <class Body>
void parallel_for(Eigen::Index count, Eigen::Index chunk_size, Body&& body) {
  using Index = Eigen::Index;
  if (count <= 0) return;
  struct Context {
    std::remove_reference_t<Body>* body;
    Index count, chunk_size;
  } context{&body, count, chunk_size < 1 ? 1 : chunk_size};
  const Index chunks = (count + context.chunk_size - 1) / context.chunk_size;
  detail::ThreadPool::instance().run(
      1, chunks,
      [](void* pointer, Index, Index chunk) {
        const auto& c = *static_cast<Context*>(pointer);
        const Index begin = chunk * c.chunk_size;
        const Index end = begin + c.chunk_size < c.count ? begin + c.chunk_size : c.count;
        (*c.body)(begin, end);
      },
      &context);
}

// body(step, i) for i in [0, count) of every step. It starts when all of the earlier steps have started, so that it may
// wait (TaskCounter) for those of them that it builds on: no thread idles at the end of a step. body must not throw.
template <class Body>
void parallel_steps(Eigen::Index steps, Eigen::Index count, Body&& body) {
  using Index = Eigen::Index;
  static_assert(std::is_nothrow_invocable_v<Body&, Index, Index>, "parallel_steps: body must be noexcept");
  detail::ThreadPool::instance().run(
      steps, count,
      [](void* pointer, Index step, Index index) {
        (*static_cast<std::remove_reference_t<Body>*>(pointer))(step, index);
      },
      &body);
}

// Counts what was done, for those who wait for it.
class alignas(64) TaskCounter {
 public:
  void add() { done_.fetch_add(1, std::memory_order_release); }
  void wait_for(Eigen::Index count) const {
    for (int spins = 0; done_.load(std::memory_order_acquire) < count; ++spins)
      spins < spin_limit ? detail::cpu_relax() : std::this_thread::yield();
  }

 private:
  static constexpr int spin_limit = 2000;
  std::atomic<Eigen::Index> done_{0};
};

// Sum over chunks of body(begin, end) -> double, added in chunk order: independent of the threads.
template <class Body>
double parallel_sum(Eigen::Index count, Eigen::Index chunk_size, Body&& body) {
  using Index = Eigen::Index;
  constexpr Index group = 64;  // partial sums held on the stack at a time
  double total = 0;
  const Index size = chunk_size < 1 ? 1 : chunk_size;
  for (Index first = 0; first < count; first += group * size) {
    double partial[group] = {};
    const Index last = first + group * size < count ? first + group * size : count;
    parallel_for(last - first, size,
                 [&](Index begin, Index end) { partial[begin / size] = body(first + begin, first + end); });
    for (const double value : partial) total += value;
  }
  return total;
}

}  // namespace rbar
