// Dense matrix products at the shapes of a transformer's training step and of decoding: our kernels, whichever library
// the build takes for rbar::gemm. The plain reference (counter `speedup`) is Eigen's product in the same process, on
// the same threads; in a build with -DRBAR_GEMM=onednn the counter `over_onednn` is oneDNN's time / ours (its threads
// are OpenMP's: OMP_NUM_THREADS). Operands begin at a cache line, as those of layers do: for all of them it is worth
// 1-6%.
#include "support.hpp"

#include "rbar/core/gemm.hpp"
#include "rbar/simd/gemm.hpp"

#include <algorithm>
#include <type_traits>

namespace {

using rbar::Index;
using rbar::Transpose;

// C = op(A)·op(B) with dense rows, by our kernels and by oneDNN.
template <class T>
struct Product {
  Index m, n, k;
  bool transpose_a, transpose_b;

  Index lda() const { return transpose_a ? m : k; }
  Index ldb() const { return transpose_b ? k : n; }
  double flops() const { return 2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k); }
  void ours(const T* a, const T* b, T* c) const {
    rbar::simd::blocked_gemm(transpose_a, transpose_b, m, n, k, a, lda(), b, ldb(), c, n, /*accumulate=*/false);
  }
  void eigen(const T* a, const T* b, T* c) const {
    rbar::detail::eigen_gemm(transpose_a ? Transpose::yes : Transpose::no, transpose_b ? Transpose::yes : Transpose::no,
                             m, n, k, a, lda(), b, ldb(), c, n, false);
  }
  void compare_with_onednn([[maybe_unused]] benchmark::State& state, [[maybe_unused]] const T* a,
                           [[maybe_unused]] const T* b, [[maybe_unused]] T* c) const {
#if defined(RBAR_GEMM_ONEDNN)
    if constexpr (std::is_same_v<T, float>)
      state.counters["over_onednn"] =
          1 / rbar::bench::paired_ratio([&] { ours(a, b, c); },
                                        [&] {
                                          dnnl_sgemm(transpose_a ? 'T' : 'N', transpose_b ? 'T' : 'N', m, n, k, 1.0f, a,
                                                     lda(), b, ldb(), 0.0f, c, n);
                                        });
#endif
  }
};

template <class T>
rbar::Tensor<T, 1> filled(Index size, T value) {
  rbar::Tensor<T, 1> result(size);
  result.setConstant(value);
  return result;
}

// range: m, n, k, transpose_a, transpose_b
template <class T>
void product(benchmark::State& state) {
  const Index m = state.range(0), n = state.range(1), k = state.range(2);
  const Product<T> product{m, n, k, state.range(3) != 0, state.range(4) != 0};
  const auto a = filled(m * k, T(0.5)), b = filled(n * k, T(0.25));
  auto c = filled(m * n, T(0));
  rbar::bench::measure<T>(
      state, {.flops = product.flops()}, [&] { product.ours(a.data(), b.data(), c.data()); },
      [&] { product.eigen(a.data(), b.data(), c.data()); });
  product.compare_with_onednn(state, a.data(), b.data(), c.data());
}

void training(benchmark::internal::Benchmark* benchmark) {
  benchmark->ArgNames({"m", "n", "k", "ta", "tb"});
  for (const Index tokens : {32, 128, 1024})
    for (const auto& [in, out] : {std::pair<Index, Index>{512, 512}, {512, 2048}, {2048, 512}, {768, 3072}}) {
      benchmark->Args({tokens, out, in, 0, 1});  // forward: y = x Wᵀ
      benchmark->Args({tokens, in, out, 0, 0});  // dx = dy W
      benchmark->Args({out, in, tokens, 1, 0});  // dW = dyᵀ x
    }
  benchmark->Apply(rbar::bench::standard);
}

// Weights read once for a few tokens. They fit no cache, as those of a model do not, so the bound is memory: GB/s and
// peak_share count the weights alone, the share being of the copy bandwidth, which one reading thread may exceed.
void decode(benchmark::State& state) {
  const Index m = state.range(0), n = state.range(1), k = state.range(2);
  const Product<float> product{m, n, k, false, true};
  const Index layers = std::max<Index>(1, (Index{40} << 20) / (n * k));
  const auto x = filled(m * k, 0.5f), weights = filled(layers * n * k, 0.25f);
  auto y = filled(m * n, 0.0f);
  Index layer = 0;
  const auto next = [&] { return weights.data() + (layer = (layer + 1) % layers) * n * k; };
  rbar::bench::measure(
      state, {.bytes = 4.0 * static_cast<double>(n * k)}, [&] { product.ours(x.data(), next(), y.data()); },
      [&] { product.eigen(x.data(), next(), y.data()); });
  product.compare_with_onednn(state, x.data(), weights.data(), y.data());  // one layer: from the third cache
}

BENCHMARK_TEMPLATE(product, float)->Apply(training);
BENCHMARK_TEMPLATE(product, double)
    ->ArgNames({"m", "n", "k", "ta", "tb"})
    ->Args({1024, 512, 512, 0, 1})
    ->Apply(rbar::bench::standard);
BENCHMARK(decode)
    ->ArgNames({"m", "n", "k"})
    ->ArgsProduct({{1, 4, 8, 16}, {768, 3072}, {768}})
    ->Args({1, 768, 3072})
    ->Args({8, 768, 3072})
    ->Args({1, 50257, 768})
    ->Apply(rbar::bench::standard);

}  // namespace

int main(int argc, char** argv) { return rbar::bench::run(argc, argv); }
