// Dense matrix products at the shapes of a transformer's training step and of decoding. The plain
// reference (counter `speedup`) is Eigen's product in the same process, on the same threads.
#include "support.hpp"

#include "rbar/core/gemm.hpp"

#include <vector>

namespace {

using rbar::Index;
using rbar::Transpose;

// range: m, n, k, transpose_a, transpose_b
template <class T>
void product(benchmark::State& state) {
  const Index m = state.range(0), n = state.range(1), k = state.range(2);
  const auto transpose_a = state.range(3) ? Transpose::yes : Transpose::no;
  const auto transpose_b = state.range(4) ? Transpose::yes : Transpose::no;
  const std::vector<T> a(static_cast<std::size_t>(m * k), T(0.5)), b(static_cast<std::size_t>(n * k), T(0.25));
  std::vector<T> c(static_cast<std::size_t>(m * n));
  const Index lda = state.range(3) ? m : k, ldb = state.range(4) ? k : n;
  const double size = static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k);
  rbar::bench::measure<T>(
      state, {.flops = 2 * size},
      [&] { rbar::gemm(transpose_a, transpose_b, m, n, k, a.data(), lda, b.data(), ldb, c.data(), n); },
      [&] {
        rbar::detail::eigen_gemm(transpose_a, transpose_b, m, n, k, a.data(), lda, b.data(), ldb, c.data(), n, false);
      });
}

void training(benchmark::internal::Benchmark* benchmark) {
  benchmark->ArgNames({"m", "n", "k", "ta", "tb"});
  constexpr Index tokens = 1024;
  for (const auto& [in, out] : {std::pair<Index, Index>{512, 512}, {512, 1536}, {512, 2048}, {2048, 512}}) {
    benchmark->Args({tokens, out, in, 0, 1});  // forward: y = x Wᵀ
    benchmark->Args({tokens, in, out, 0, 0});  // dx = dy W
    benchmark->Args({out, in, tokens, 1, 0});  // dW = dyᵀ x
  }
  benchmark->Apply(rbar::bench::standard);
}

// A weight matrix read once for one, four or eight tokens: bound by memory, so the share is of that peak.
void decode(benchmark::State& state) {
  const Index m = state.range(0), n = state.range(1), k = state.range(2);
  const std::vector<float> x(static_cast<std::size_t>(m * k), 0.5f), weight(static_cast<std::size_t>(n * k), 0.25f);
  std::vector<float> y(static_cast<std::size_t>(m * n));
  rbar::bench::measure(
      state, {.bytes = 4.0 * static_cast<double>(m * k + n * k + m * n)},
      [&] { rbar::gemm(Transpose::no, Transpose::yes, m, n, k, x.data(), k, weight.data(), k, y.data(), n); },
      [&] {
        rbar::detail::eigen_gemm(Transpose::no, Transpose::yes, m, n, k, x.data(), k, weight.data(), k, y.data(), n,
                                 false);
      });
}

BENCHMARK_TEMPLATE(product, float)->Apply(training);
BENCHMARK_TEMPLATE(product, double)
    ->ArgNames({"m", "n", "k", "ta", "tb"})
    ->Args({1024, 512, 512, 0, 1})
    ->Apply(rbar::bench::standard);
BENCHMARK(decode)
    ->ArgNames({"m", "n", "k"})
    ->Args({1, 2048, 512})
    ->Args({4, 2048, 512})
    ->Args({8, 2048, 512})
    ->Args({16, 2048, 512})
    ->Args({1, 50257, 768})
    ->Apply(rbar::bench::standard);

}  // namespace

int main(int argc, char** argv) { return rbar::bench::run(argc, argv); }
