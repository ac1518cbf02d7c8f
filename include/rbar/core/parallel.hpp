// One persistent thread pool. Work is cut into chunks whose borders depend on the problem alone,
// never on the number of threads, and reductions add the chunks in their order: the same bits come
// out at 1, 2 and 16 threads. Nested calls and calls from a second thread run on the caller.
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
  using Task = void (*)(void* context, Index chunk);

  static ThreadPool& instance() {
    static ThreadPool pool;
    return pool;
  }

  int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

  void set_num_threads(int count) {
    require(count >= 1, "set_num_threads", "count", "at least 1", count);
    std::lock_guard lock(run_mutex_);
    if (count == num_threads()) return;
    stop_workers();
    workers_.reserve(static_cast<std::size_t>(count - 1));
    for (int i = 1; i < count; ++i) workers_.emplace_back([this] { work(); });
  }

  // Calls task(context, i) once for every i in [0, chunks) and returns when all are done. The first
  // exception is rethrown here; the chunks after it may be skipped.
  void run(Index chunks, Task task, void* context) {
    std::unique_lock lock(run_mutex_, std::defer_lock);
    if (chunks <= 1 || inside_ || workers_.empty() || !lock.try_lock()) {
      for (Index i = 0; i < chunks; ++i) task(context, i);
      return;
    }
    task_ = task;
    context_ = context;
    chunks_ = chunks;
    next_.store(0, std::memory_order_relaxed);
    failure_ = nullptr;
    gate_.store(gate_open, std::memory_order_release);  // from here on workers may enter
    generation_.fetch_add(1, std::memory_order_release);
    generation_.notify_all();
    inside_ = true;
    take_chunks();
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

  void work() {
    inside_ = true;
    std::uint32_t seen = 0;
    for (;;) {
      if (stop_.load(std::memory_order_acquire)) return;
      if (enter()) {
        take_chunks();
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

  void take_chunks() {
    for (Index i = next_.fetch_add(1, std::memory_order_relaxed); i < chunks_;
         i = next_.fetch_add(1, std::memory_order_relaxed)) {
      try {
        task_(context_, i);
      } catch (...) {
        std::lock_guard lock(failure_mutex_);
        if (!failure_) failure_ = std::current_exception();
        next_.store(chunks_, std::memory_order_relaxed);
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
  Index chunks_ = 0;
  std::atomic<Index> next_{0};
  std::exception_ptr failure_;
  static inline thread_local bool inside_ = false;
};

}  // namespace detail

// Threads used by rbar from now on, the calling one included. The library starts with 1.
inline void set_num_threads(int count) { detail::ThreadPool::instance().set_num_threads(count); }
inline int num_threads() { return detail::ThreadPool::instance().num_threads(); }

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
      chunks,
      [](void* pointer, Index chunk) {
        const auto& c = *static_cast<Context*>(pointer);
        const Index begin = chunk * c.chunk_size;
        const Index end = begin + c.chunk_size < c.count ? begin + c.chunk_size : c.count;
        (*c.body)(begin, end);
      },
      &context);
}

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
