// Coherence (the element-wise kernels under it: bench_elements). The plain reference (counter `speedup`) is the loop a
// textbook would program, with std::exp, std::sin and std::cos in the same precision. FLOP are counted as written: a
// multiply-add is 2, each of compare, divide and square root is 1.
#include "support.hpp"

#include "rbar/coherence/circular.hpp"
#include "rbar/coherence/phase_coherence.hpp"
#include "rbar/core/random.hpp"

#include <cmath>
#include <vector>

namespace {

using namespace rbar;
using bench::measure;

constexpr double phasor_flops = 44;  // sigmoid_phase: cos and sin

Tensor<float, 3> random_hidden(Index batch, Index tokens, Index features) {
  Tensor<float, 3> hidden(batch, tokens, features);
  Rng rng(1);
  for (float& value : elements(hidden)) value = static_cast<float>(rng.normal());
  return hidden;
}

struct PlainPhasor {
  float cosine, sine;
  explicit PlainPhasor(float x) {
    const float angle = 2 * std::numbers::pi_v<float> / (1 + std::exp(-x));
    cosine = std::cos(angle);
    sine = std::sin(angle);
  }
};

// --- coherence ----------------------------------------------------------------------------------

void plain_token(const Tensor<float, 3>& hidden, Tensor<float, 2>& r) {
  const Index features = hidden.dimension(2);
  for (Index row = 0; row < r.size(); ++row) {
    float c = 0, s = 0;
    for (Index d = 0; d < features; ++d) {
      const PlainPhasor z(hidden.data()[row * features + d]);
      c += z.cosine;
      s += z.sine;
    }
    r.data()[row] = std::sqrt(c * c + s * s) / static_cast<float>(features);
  }
}

// max_error: largest difference from R̄ in double.
void token(benchmark::State& state) {
  const auto hidden = random_hidden(8, 1024, state.range(0));
  Tensor<float, 2> r(8, 1024);
  CoherenceCache<float> cache;
  const CoherenceConfig config{.mode = CoherenceMode::token};
  const auto size = static_cast<double>(hidden.size());
  measure(
      state, {.flops = (phasor_flops + 2) * size, .elements = size},
      [&] { coherence_forward(hidden, config, r, cache); },
      [&] {
        Tensor<float, 2> plain(8, 1024);
        plain_token(hidden, plain);
      });
  double error = 0;
  const Index features = hidden.dimension(2);
  for (Index row = 0; row < r.size(); row += 16) {
    double c = 0, s = 0;
    for (Index d = 0; d < features; ++d) {
      const double angle =
          2 * std::numbers::pi / (1 + std::exp(-static_cast<double>(hidden.data()[row * features + d])));
      c += std::cos(angle);
      s += std::sin(angle);
    }
    error = std::max(error,
                     std::abs(std::hypot(c, s) / static_cast<double>(features) - static_cast<double>(r.data()[row])));
  }
  state.counters["max_error"] = error;
}
BENCHMARK(token)->ArgName("features")->Arg(64)->Arg(512)->Apply(bench::standard);

// Plain local coherence: phasors once, then a sum over the window for every token.
void plain_local(const Tensor<float, 3>& hidden, Index window, std::vector<float>& phasors, Tensor<float, 2>& r) {
  const Index tokens = hidden.dimension(1), features = hidden.dimension(2);
  phasors.resize(static_cast<std::size_t>(2 * hidden.size()));
  float *cosine = phasors.data(), *sine = cosine + hidden.size();
  for (Index i = 0; i < hidden.size(); ++i) {
    const PlainPhasor z(hidden.data()[i]);
    cosine[i] = z.cosine;
    sine[i] = z.sine;
  }
  for (Index row = 0; row < r.size(); ++row) {
    const Index count = std::min(row % tokens + 1, window);
    float total = 0;
    for (Index d = 0; d < features; ++d) {
      float c = 0, s = 0;
      for (Index i = row - count + 1; i <= row; ++i) {
        c += cosine[i * features + d];
        s += sine[i * features + d];
      }
      total += std::sqrt(c * c + s * s);
    }
    r.data()[row] = total / static_cast<float>(count * features);
  }
}

void forward(benchmark::State& state, CoherenceMode mode) {
  const auto hidden = random_hidden(8, 1024, 512);
  Tensor<float, 2> r;
  CoherenceCache<float> cache;
  const CoherenceConfig config{.mode = mode, .window = state.range(0), .offsets = state.range(0)};
  std::function<void()> reference;
  std::vector<float> phasors;
  Tensor<float, 2> plain(8, 1024);
  if (mode == CoherenceMode::local) reference = [&] { plain_local(hidden, config.window, phasors, plain); };
  measure(
      state, {.elements = static_cast<double>(hidden.size())}, [&] { coherence_forward(hidden, config, r, cache); },
      reference);
}
void local(benchmark::State& state) { forward(state, CoherenceMode::local); }
void combined(benchmark::State& state) { forward(state, CoherenceMode::combined); }
void cross(benchmark::State& state) { forward(state, CoherenceMode::cross); }
BENCHMARK(local)->ArgName("window")->Arg(4)->Arg(8)->Arg(64)->Arg(512)->Apply(bench::standard);
BENCHMARK(combined)->ArgName("window")->Arg(8)->Apply(bench::standard);
BENCHMARK(cross)->ArgName("offsets")->Arg(4)->Apply(bench::standard);

void backward(benchmark::State& state, CoherenceMode mode) {
  const auto hidden = random_hidden(8, 1024, 512);
  Tensor<float, 2> r;
  auto gradient = zeros<float, 3>(shape_of(hidden));
  CoherenceCache<float> cache;
  const CoherenceConfig config{.mode = mode};
  coherence_forward(hidden, config, r, cache);
  measure(state, {.elements = static_cast<double>(hidden.size())},
          [&] { coherence_backward(r, hidden, config, cache, gradient); });
}
BENCHMARK_CAPTURE(backward, token, CoherenceMode::token)->Apply(bench::standard);
BENCHMARK_CAPTURE(backward, combined, CoherenceMode::combined)->Apply(bench::standard);
BENCHMARK_CAPTURE(backward, cross, CoherenceMode::cross)->Apply(bench::standard);

void circular(benchmark::State& state) {
  const auto angles = random_hidden(1, 1024, state.range(0));
  const auto size = static_cast<double>(angles.size());
  double kappa = 0, p_value = 0;
  measure(
      state, {.elements = size},
      [&] {
        const auto s = circular_statistics(elements(angles));
        kappa += von_mises_kappa(s.resultant_length);
        p_value += rayleigh_test(s.resultant_length, size).p_value;
      },
      [&] {
        float c = 0, s = 0;
        for (const float angle : elements(angles)) {
          c += std::cos(angle);
          s += std::sin(angle);
        }
        benchmark::DoNotOptimize(c + s);
      });
  benchmark::DoNotOptimize(kappa + p_value);
}
BENCHMARK(circular)->ArgName("thousands")->Arg(64)->Apply(bench::standard);

}  // namespace

int main(int argc, char** argv) { return bench::run(argc, argv); }
