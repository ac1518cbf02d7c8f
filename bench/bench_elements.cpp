// The element-wise kernels that softmax, gates and energies live on. The plain reference (counter `speedup`) is the
// loop a textbook would program, with the functions of <cmath> in the same precision. FLOP are counted as written: a
// multiply-add is 2, each of compare, shift and divide is 1. 2,048 elements in and out lie in L1; 2^22 in no cache.
#include "support.hpp"

#include "rbar/core/random.hpp"
#include "rbar/simd/energy.hpp"
#include "rbar/simd/softmax.hpp"

#include <cmath>

namespace {

using namespace rbar;
using bench::measure;

constexpr double exp_flops = 21, exp2_flops = 17;

Tensor<float, 3> random_hidden(Index batch, Index tokens, Index features) {
  Tensor<float, 3> hidden(batch, tokens, features);
  Rng rng(1);
  for (float& value : elements(hidden)) value = static_cast<float>(rng.normal());
  return hidden;
}

template <class Function>
void power(benchmark::State& state, double flops, Function function, float (*plain)(float)) {
  const auto x = random_hidden(1, 1, state.range(0));
  Tensor<float, 3> y = x;
  const auto size = static_cast<double>(x.size());
  measure(
      state, {.flops = flops * size, .elements = size},
      [&] {
        for (Index i = 0; i < x.size(); i += simd::lanes<float>)
          simd::store(y.data() + i, function(simd::load(x.data() + i)));
        benchmark::ClobberMemory();
      },
      [&] {
        for (Index i = 0; i < x.size(); ++i) y.data()[i] = plain(x.data()[i]);
        benchmark::ClobberMemory();
      });
}
void exponential(benchmark::State& state) {
  power(
      state, exp_flops, [](const auto& x) { return simd::exp(x); }, [](float x) { return std::exp(x); });
}
void power_of_two(benchmark::State& state) {
  power(
      state, exp2_flops, [](const auto& x) { return simd::exp2(x); }, [](float x) { return std::exp2(x); });
}
BENCHMARK(exponential)->ArgName("elements")->Arg(2048)->Arg(1 << 22)->Apply(bench::standard);
BENCHMARK(power_of_two)->ArgName("elements")->Arg(2048)->Arg(1 << 22)->Apply(bench::standard);

void softmax(benchmark::State& state) {
  const auto x = random_hidden(1, 64, state.range(0));
  Tensor<float, 3> y = x;
  const Index count = x.dimension(2);
  const auto size = static_cast<double>(x.size());
  measure(
      state, {.flops = (exp2_flops + 4) * size, .elements = size},
      [&] {
        for (Index row = 0; row < 64; ++row) simd::softmax_row(x.data() + row * count, count, y.data() + row * count);
      },
      [&] {
        for (Index row = 0; row < 64; ++row) {
          const float* in = x.data() + row * count;
          float *out = y.data() + row * count, largest = in[0], sum = 0;
          for (Index i = 1; i < count; ++i) largest = std::max(largest, in[i]);
          for (Index i = 0; i < count; ++i) sum += out[i] = std::exp(in[i] - largest);
          for (Index i = 0; i < count; ++i) out[i] /= sum;
        }
      });
}
BENCHMARK(softmax)->ArgName("columns")->Arg(8)->Arg(64)->Arg(1024)->Apply(bench::standard);

void energy(benchmark::State& state) {
  const auto a = random_hidden(1, 1, state.range(0)), b = random_hidden(1, 2, state.range(0));
  const auto size = static_cast<double>(a.size());
  const float* other = b.data() + a.size();
  double sum = 0;
  measure(
      state, {.bytes = 8 * size, .elements = size}, [&] { sum += simd::residual_energy(a.data(), other, a.size()); },
      [&] {
        float plain = 0;
        for (Index i = 0; i < a.size(); ++i) {
          const float difference = a.data()[i] - other[i];
          plain += difference * difference;
        }
        benchmark::DoNotOptimize(plain);
      });
  benchmark::DoNotOptimize(sum);
}
BENCHMARK(energy)->ArgName("elements")->Arg(4096)->Arg(1 << 16)->Arg(1 << 24)->Apply(bench::standard);

}  // namespace

int main(int argc, char** argv) { return bench::run(argc, argv); }
