// What every benchmark shares: the machine's FMA peak and copy bandwidth, measured in the same process
// and interleaved with the benchmark itself (the clock moves and neighbours come and go), and the
// counters derived from them:
//   peak_share  work rate / measured peak of the same moment, median over the iterations
//   speedup     plain reference time / our time
//   GFLOP/s, GB/s, Gelem/s
// Use:
//   void engine(benchmark::State& state) {
//     ... rbar::bench::measure(state, {.flops = 4.0 * n * n * d}, [&] { attend(...); }, [&] { plain(...); });
//   }
//   BENCHMARK(engine)->Apply(rbar::bench::standard);
//   int main(int argc, char** argv) { return rbar::bench::run(argc, argv); }   // takes --threads=N
#pragma once

#include "rbar/core/parallel.hpp"
#include "rbar/core/tensor.hpp"
#include "rbar/simd/batch.hpp"

#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace rbar::bench {

inline double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

inline double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values.empty() ? 0.0 : values[values.size() / 2];
}

namespace detail {

inline constexpr Index groups = simd::register_count / 4;  // of three registers each

// As many independent chains of multiply-add as registers allow: 2·lanes FLOP each and nothing else.
template <class T>
RBAR_NOINLINE T multiply_add_chains(Index steps) {
  simd::Batch<T> accumulator[groups][3];
  RBAR_UNROLL
  for (Index i = 0; i < groups; ++i) {
    RBAR_UNROLL
    for (Index j = 0; j < 3; ++j) accumulator[i][j] = simd::broadcast(static_cast<T>(3 * i + j));
  }
  const auto factor = simd::broadcast(T(0.999)), term = simd::broadcast(T(0.001));
  for (Index step = 0; step < steps; ++step) {
    RBAR_UNROLL
    for (Index i = 0; i < groups; ++i) {
      RBAR_UNROLL
      for (Index j = 0; j < 3; ++j) accumulator[i][j] = simd::multiply_add(accumulator[i][j], factor, term);
    }
  }
  benchmark::ClobberMemory();  // else calls with the same argument would be merged
  auto sum = simd::zero<T>();
  RBAR_UNROLL
  for (Index i = 0; i < groups; ++i) {
    RBAR_UNROLL
    for (Index j = 0; j < 3; ++j) sum = sum + accumulator[i][j];
  }
  return simd::reduce_add(sum);
}

}  // namespace detail

// FLOP/s of `num_threads()` threads that only multiply and add, best of `rounds` short runs.
template <class T = float>
double fma_peak(int rounds = 3) {
  constexpr Index steps = 20000;  // well under a millisecond
  const Index threads = num_threads();
  double best = 0;
  for (int round = 0; round < rounds; ++round) {
    const double start = now();
    parallel_for(threads * 4, 1, [&](Index, Index) {
      T sum = detail::multiply_add_chains<T>(steps / 4);
      benchmark::DoNotOptimize(sum);
    });
    const double flops = 2.0 * static_cast<double>(simd::lanes<T> * 3 * detail::groups * steps * threads);
    best = std::max(best, flops / (now() - start));
  }
  return best;
}

// Bytes/s read plus written by a copy that fits no cache, best of `rounds`.
inline double copy_bandwidth(int rounds = 2) {
  constexpr Index size = Index{1} << 26, block = Index{1} << 20;
  static const std::unique_ptr<char[]> source(new char[size]()), target(new char[size]());
  double best = 0;
  for (int round = 0; round < rounds; ++round) {
    const double start = now();
    parallel_for(size, block, [&](Index begin, Index end) {
      std::memcpy(target.get() + begin, source.get() + begin, static_cast<std::size_t>(end - begin));
    });
    benchmark::ClobberMemory();
    best = std::max(best, 2.0 * static_cast<double>(size) / (now() - start));
  }
  return best;
}

// What one call of the benchmarked body does. With flops, peak_share is of the FMA peak; with bytes
// alone, of the copy bandwidth.
struct Work {
  double flops = 0;
  double bytes = 0;
  double elements = 0;
};

// Best of a few calls, at most about a fifth of a second of them.
template <class Body>
double best_seconds(Body&& body, int calls = 5) {
  double best = 1e300, total = 0;
  for (int i = 0; i < calls && (i == 0 || total < 0.2); ++i) {
    const double start = now();
    body();
    const double seconds = now() - start;
    best = std::min(best, seconds);
    total += seconds;
  }
  return best;
}

// Median of the ratios of pairs that follow each other, each side first every other time.
template <class Ours, class Theirs>
double paired_ratio(Ours&& ours, Theirs&& theirs) {
  const auto seconds = [](auto&& body, int repeats) {
    const double start = now();
    for (int i = 0; i < repeats; ++i) body();
    return now() - start;
  };
  ours(), theirs();
  const double once = seconds(theirs, 1);
  const int repeats = static_cast<int>(std::clamp(4e-3 / once, 1.0, 1e6));
  std::vector<double> ratios;
  for (int pair = 0; pair < (once < 0.1 ? 21 : 11); ++pair) {
    const double before = pair % 2 == 0 ? seconds(theirs, repeats) : 0, mine = seconds(ours, repeats);
    ratios.push_back(mine / (pair % 2 == 0 ? before : seconds(theirs, repeats)));
  }
  return median(ratios);
}

// Runs `body` in slices of a few milliseconds, the peak measured before and after each slice.
// `reference`, if given, is the plain way to compute the same: speedup = its time / ours.
template <class T = float, class Body>
void measure(benchmark::State& state, const Work& work, Body&& body, const std::function<void()>& reference = {}) {
  const auto peak = [&] { return work.flops > 0 ? fma_peak<T>() : work.bytes > 0 ? copy_bandwidth(1) : 1.0; };
  const double amount = work.flops > 0 ? work.flops : work.bytes;
  body();  // buffers grow and caches warm outside the clock
  const double once = best_seconds(body, 3);
  const int repeats = static_cast<int>(std::clamp(4e-3 / once, 1.0, 1e6));
  std::vector<double> seconds, shares;
  double before = peak();
  for (auto _ : state) {
    const double start = now();
    for (int i = 0; i < repeats; ++i) body();
    const double slice = (now() - start) / repeats;
    const double after = peak();
    seconds.push_back(slice);
    shares.push_back(amount / slice / (0.5 * (before + after)));
    before = after;
    state.SetIterationTime(slice);
  }
  const double typical = median(seconds);
  if (amount > 0) state.counters["peak_share"] = median(shares);
  if (work.flops > 0) state.counters["GFLOP/s"] = work.flops / typical * 1e-9;
  if (work.bytes > 0) state.counters["GB/s"] = work.bytes / typical * 1e-9;
  if (work.elements > 0) state.counters["Gelem/s"] = work.elements / typical * 1e-9;
  if (reference)
    state.counters["speedup"] = best_seconds(reference, 3) / *std::min_element(seconds.begin(), seconds.end());
}

// A fixed number of slices, so that a noisy machine cannot stretch a run.
inline void standard(benchmark::internal::Benchmark* benchmark) {
  benchmark->UseManualTime()->Iterations(25)->Unit(benchmark::kMicrosecond);
}

inline std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "g++ " __VERSION__;
#else
  return "unknown";
#endif
}

// The flags as CMake passed them; without CMake, what the compiler admits to.
inline std::string flags() {
#if defined(RBAR_BENCH_FLAGS)
  return RBAR_BENCH_FLAGS;
#elif defined(__OPTIMIZE__)
  return "optimised (flags not recorded)";
#else
  return "NOT OPTIMISED";
#endif
}

// Prints what the numbers stand on, takes --threads=N out of the arguments, runs the benchmarks.
inline int run(int argc, char** argv) {
  int kept = 1;
  for (int i = 1; i < argc; ++i) {
    constexpr char option[] = "--threads=";
    if (std::strncmp(argv[i], option, sizeof(option) - 1) == 0)
      set_num_threads(std::max(1, std::atoi(argv[i] + sizeof(option) - 1)));
    else
      argv[kept++] = argv[i];
  }
  argc = kept;
  const auto giga = [](double value) { return std::to_string(static_cast<int>(value * 1e-9)); };
  benchmark::AddCustomContext("architecture", simd::architecture());
  benchmark::AddCustomContext("compiler", compiler());
  benchmark::AddCustomContext("flags", flags());
  benchmark::AddCustomContext("threads", std::to_string(num_threads()));
  benchmark::AddCustomContext("fp32 FMA peak, GFLOP/s", giga(fma_peak<float>(5)));
  benchmark::AddCustomContext("copy bandwidth, GB/s", giga(copy_bandwidth(3)));
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}

}  // namespace rbar::bench
