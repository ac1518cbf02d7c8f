// A dense layer whose weights lie in bf16 against the same with fp32 weights, at the sizes of the 130 M preset, with as
// many layers as leave the caches: decoding reads every weight from memory. `speedup` is over fp32; GB/s counts the
// weights as they lie, peak_share is of the copy bandwidth below 64 rows and of the FMA peak from there on.
#include "rbar/core/gemm.hpp"
#include "rbar/core/random.hpp"
#include "rbar/simd/bf16_gemm.hpp"
#include "support.hpp"

namespace {

using namespace rbar;

// range: rows, out, in
void dense(benchmark::State& state) {
  const Index m = state.range(0), n = state.range(1), k = state.range(2);
  const Index layers = std::max<Index>(2, (Index{96} << 20) / (n * k * 2));
  std::vector<float> weights(static_cast<std::size_t>(layers * n * k)), x(static_cast<std::size_t>(m * k)),
      y(static_cast<std::size_t>(m * n));
  Rng rng(1);
  for (float& value : x) value = static_cast<float>(rng.uniform(-1, 1));
  for (std::size_t i = 0; i < weights.size(); ++i) weights[i] = x[i % x.size()];
  std::vector<BFloat16> rounded(weights.size());
  to_bf16(weights, rounded.data());
  Index layer = 0, plain = 0;
  bench::Work work;
  if (m < 64)
    work.bytes = 2.0 * static_cast<double>(n * k);
  else
    work.flops = 2.0 * static_cast<double>(m * n * k);
  bench::measure(
      state, work,
      [&] {
        simd::bf16_gemm(m, n, k, x.data(), k, rounded.data() + layer * n * k, k, y.data(), n, false);
        layer = (layer + 1) % layers;
      },
      [&] {
        gemm(Transpose::no, Transpose::yes, m, n, k, x.data(), k, weights.data() + plain * n * k, k, y.data(), n);
        plain = (plain + 1) % layers;
      });
}
BENCHMARK(dense)
    ->ArgNames({"rows", "out", "in"})
    ->ArgsProduct({{1, 4, 16, 64, 256}, {3072}, {768}})
    ->ArgsProduct({{1, 16, 128}, {768}, {3072}})
    ->Apply(bench::standard);

}  // namespace

int main(int argc, char** argv) { return bench::run(argc, argv); }
