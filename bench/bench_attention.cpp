// The attention engine: share of the FMA peak forward, backward and under a causal mask (whose FLOPs are only those of
// visible pairs), with one head and with several side by side in a row; what a score functor costs; decoding from a
// cache. `speedup` is over the same tiles made of Eigen products, of a score functor over the dot product (1: free), of
// decoding over the plain loop. The whole run takes a few minutes on a core of 100 GFLOP/s; --benchmark_filter picks.
#include "rbar/attention/engine.hpp"
#include "rbar/attention/multi_head_attention.hpp"
#include "rbar/core/random.hpp"
#include "rbar/kuramoto/phase_modulated_attention.hpp"
#include "rbar/sheaf/sheaf_score.hpp"
#include "support.hpp"

#include <cmath>

namespace {

using namespace rbar;

// Heads side by side in every row, as a projection writes them.
struct Setting {
  Index tokens, dim, heads;
  Tensor<float, 3> query, key, value, output, doutput, dquery, dkey, dvalue, lse;

  Setting(Index tokens_, Index dim_, Index heads_) : tokens(tokens_), dim(dim_), heads(heads_) {
    // Drawing so many numbers would take longer than what is timed, so they repeat.
    static const std::vector<float> noise = [] {
      Rng rng(1);
      std::vector<float> numbers(65537);
      for (float& x : numbers) x = static_cast<float>(rng.normal());
      return numbers;
    }();
    std::size_t next = 0;
    for (auto* tensor : {&query, &key, &value, &output, &doutput, &dquery, &dkey, &dvalue}) {
      tensor->resize(1, tokens, heads * dim);
      for (float& x : elements(*tensor)) x = noise[next++ % noise.size()];
    }
    lse.resize(1, tokens, heads);
  }
  DotProductScore score() const { return {1 / std::sqrt(static_cast<double>(dim))}; }
  // 2 FLOPs a multiply-add, two products forward.
  double flops(bool causal) const {
    const double t = static_cast<double>(tokens);
    return 4.0 * static_cast<double>(heads * dim) * (causal ? t * (t + 1) / 2 : t * t);
  }
  template <class Score, class Mask>
  void forward(const Score& s, const Mask& mask) {
    attend<float>(heads_view(std::as_const(query), heads), heads_view(std::as_const(key), heads),
                  heads_view(std::as_const(value), heads), s, mask, heads_view(output, heads), lse.data());
  }
  template <class Score, class Mask, class Gradient = NoScoreGradient>
  void backward(const Score& s, const Mask& mask, Gradient gradient = {}) {
    attend_backward<float>(heads_view(query, heads), heads_view(key, heads), heads_view(value, heads),
                           heads_view(output, heads), heads_view(doutput, heads), lse.data(), s, mask,
                           heads_view(dquery, heads), heads_view(dkey, heads), heads_view(dvalue, heads), gradient);
  }
};

// What one would write with Eigen: tiles of 64 queries, softmax over whole rows of [64, tokens].
void eigen_forward(Setting& x, bool causal) {
  using Strided = Eigen::Map<const Matrix<float>, 0, Eigen::OuterStride<>>;
  constexpr Index tile = 64;
  static Matrix<float> scores;
  const Index stride = x.heads * x.dim;
  for (Index h = 0; h < x.heads; ++h)
    for (Index first = 0; first < x.tokens; first += tile) {
      const Index count = std::min(tile, x.tokens - first), keys = causal ? first + count : x.tokens;
      const Strided q(x.query.data() + first * stride + h * x.dim, count, x.dim, Eigen::OuterStride<>(stride));
      const Strided k(x.key.data() + h * x.dim, keys, x.dim, Eigen::OuterStride<>(stride));
      const Strided v(x.value.data() + h * x.dim, keys, x.dim, Eigen::OuterStride<>(stride));
      scores.resize(count, keys);
      scores.noalias() = q * k.transpose() * static_cast<float>(x.score().scale);
      for (Index i = 0; i < count; ++i) {
        auto row = scores.row(i).head(causal ? first + i + 1 : keys);
        row = (row.array() - row.maxCoeff()).exp();
        row /= row.sum();
        if (causal) scores.row(i).tail(keys - row.size()).setZero();
      }
      Eigen::Map<Matrix<float>, 0, Eigen::OuterStride<>>(x.output.data() + first * stride + h * x.dim, count, x.dim,
                                                         Eigen::OuterStride<>(stride))
          .noalias() = scores * v;
    }
}

void forward(benchmark::State& state, bool causal) {
  Setting x(state.range(0), state.range(1), state.range(2));
  const auto run = [&] { causal ? x.forward(x.score(), CausalMask{}) : x.forward(x.score(), FullMask{}); };
  if (x.tokens <= 1024)
    bench::measure(state, {.flops = x.flops(causal)}, run, [&] { eigen_forward(x, causal); });
  else
    bench::measure(state, {.flops = x.flops(causal)}, run);
}
void forward_full(benchmark::State& state) { forward(state, false); }
void forward_causal(benchmark::State& state) { forward(state, true); }

void backward(benchmark::State& state, bool causal) {
  Setting x(state.range(0), state.range(1), state.range(2));
  causal ? x.forward(x.score(), CausalMask{}) : x.forward(x.score(), FullMask{});
  bench::measure(state, {.flops = 2.5 * x.flops(causal)},
                 [&] { causal ? x.backward(x.score(), CausalMask{}) : x.backward(x.score(), FullMask{}); });
}
void backward_full(benchmark::State& state) { backward(state, false); }
void backward_causal(benchmark::State& state) { backward(state, true); }

void score_sheaf(benchmark::State& state) {
  Setting x(state.range(0), state.range(1), state.range(2));
  std::vector<float> norms(static_cast<std::size_t>(x.tokens * x.heads), static_cast<float>(x.dim));
  const std::vector<float> beta(static_cast<std::size_t>(x.heads), 0.05f);
  const SheafScore<float> score{beta.data(), norms.data(), x.heads};
  bench::measure(
      state, {.flops = x.flops(false)}, [&] { x.forward(score, FullMask{}); },
      [&] { x.forward(x.score(), FullMask{}); });
}
// Phase-modulated attention over dot-product attention on the same numbers, causal, the two measured in turns:
// `time_ratio` 1 would be phases for free. For the engine, forward and backward with all sums of the gradient,
void phase_engine(benchmark::State& state, bool backward) {
  Setting x(state.range(0), state.range(1), state.range(2)), y(x);
  Tensor<float, 2> phasor[2], temperature(x.tokens, x.heads), row_sums(x.tokens, 3 * x.heads);
  for (auto& part : phasor) part.resize(x.tokens, x.heads);
  temperature.setConstant(1.1f);
  std::vector<float> positions(static_cast<std::size_t>(2 * x.tokens)),
      position_sums(positions.size() * std::size_t(x.heads));
  for (Index t = 0; t < x.tokens; ++t) {
    const float angle = 0.01f * static_cast<float>(t);
    positions[static_cast<std::size_t>(2 * t)] = std::cos(angle);
    positions[static_cast<std::size_t>(2 * t + 1)] = std::sin(angle);
    for (Index h = 0; h < x.heads; ++h) {
      phasor[0](t, h) = std::cos(angle + static_cast<float>(h));
      phasor[1](t, h) = std::sin(angle + static_cast<float>(h));
    }
  }
  const PhaseScore<float> score{phasor[0].data(), phasor[1].data(), temperature.data(), positions.data(), x.heads, 0.5f,
                                x.score().scale};
  x.forward(score, CausalMask{});
  y.forward(y.score(), CausalMask{});
  const auto ours = [&] {
    if (!backward) return x.forward(score, CausalMask{});
    std::fill(position_sums.begin(), position_sums.end(), 0.0f);
    x.backward(score, CausalMask{},
               PhaseScoreGradient<float>{row_sums.data(), position_sums.data(), x.heads, x.tokens});
  };
  const auto theirs = [&] { backward ? y.backward(y.score(), CausalMask{}) : y.forward(y.score(), CausalMask{}); };
  state.counters["time_ratio"] = bench::paired_ratio(ours, theirs);
  bench::measure(state, {.flops = (backward ? 2.5 : 1.0) * x.flops(true)}, ours);
}
void phase_engine_forward(benchmark::State& state) { phase_engine(state, false); }
void phase_engine_backward(benchmark::State& state) { phase_engine(state, true); }

// and for whole layers: projections, oscillators, temperatures and the gradients of all of them.
void phase_layer(benchmark::State& state, bool backward) {
  const Index tokens = state.range(0), heads = state.range(2), width = heads * state.range(1);
  Rng rng(1);
  PhaseModulatedAttentionConfig config;
  config.d_model = width;
  config.n_heads = heads;
  config.max_seq_len = tokens;
  MultiHeadAttentionConfig like;
  like.d_model = width;
  like.n_heads = heads;
  like.bias = false;
  const PhaseModulatedAttention<float> ours(config, rng);
  const MultiHeadAttention<float> theirs(like, rng);
  const Setting noise(tokens, width, 1);
  Tensor<float, 3> y, other, dx, other_dx, dstate;
  PhaseModulatedAttention<float>::Cache cache;
  MultiHeadAttention<float>::Cache other_cache;
  auto grad = zeros_like(ours);
  auto other_grad = zeros_like(theirs);
  ours.forward(noise.query, noise.key, y, cache);
  theirs.forward(noise.query, other, other_cache);
  const auto run = [&] {
    backward ? ours.backward(noise.doutput, cache, dx, dstate, grad) : ours.forward(noise.query, noise.key, y, cache);
  };
  const auto standard = [&] {
    backward ? theirs.backward(noise.doutput, other_cache, other_dx, other_grad)
             : theirs.forward(noise.query, other, other_cache);
  };
  state.counters["time_ratio"] = bench::paired_ratio(run, standard);
  const double projections = 8.0 * static_cast<double>(tokens * width * width);
  const double pairs = 4.0 * static_cast<double>(width) * static_cast<double>(tokens * (tokens + 1) / 2);
  bench::measure(state, {.flops = backward ? 2 * projections + 2.5 * pairs : projections + pairs}, run);
}
void phase_layer_forward(benchmark::State& state) { phase_layer(state, false); }
void phase_layer_backward(benchmark::State& state) { phase_layer(state, true); }

// One new token: range(0) cached tokens, range(2) query heads on range(3) K/V heads. Counted in bytes of the cache
// read; the reference is the plain loop.
void decode(benchmark::State& state) {
  const Index tokens = state.range(0), dim = state.range(1), heads = state.range(2), kv_heads = state.range(3);
  Setting cache(tokens, dim, kv_heads), step(1, dim, heads);
  const auto run = [&] {
    attend<float>(heads_view(step.query, heads), heads_view(cache.key, kv_heads), heads_view(cache.value, kv_heads),
                  step.score(), CausalMask{tokens - 1}, heads_view(step.output, heads));
  };
  std::vector<float> weight(static_cast<std::size_t>(tokens));
  const auto plain = [&] {
    for (Index h = 0; h < heads; ++h) {
      const float* q = step.query.data() + h * dim;
      float* out = step.output.data() + h * dim;
      const Index kv = h / (heads / kv_heads) * dim, stride = kv_heads * dim;
      float largest = -INFINITY, sum = 0;
      for (Index j = 0; j < tokens; ++j) {
        float dot = 0;
        for (Index d = 0; d < dim; ++d) dot += q[d] * cache.key.data()[j * stride + kv + d];
        weight[static_cast<std::size_t>(j)] = dot * static_cast<float>(step.score().scale);
        largest = std::max(largest, weight[static_cast<std::size_t>(j)]);
      }
      for (float& w : weight) sum += w = std::exp(w - largest);
      std::fill_n(out, dim, 0.0f);
      for (Index j = 0; j < tokens; ++j)
        for (Index d = 0; d < dim; ++d)
          out[d] += weight[static_cast<std::size_t>(j)] / sum * cache.value.data()[j * stride + kv + d];
    }
    benchmark::ClobberMemory();
  };
  bench::measure(state, {.bytes = 8.0 * static_cast<double>(tokens * kv_heads * dim)}, run, plain);
}

// Every shape that is timed; the largest take too long for as many repetitions as the others.
void add_shapes(const char* name, void (*function)(benchmark::State&)) {
  for (const Index heads : {1, 8})
    for (const Index dim : {64, 128})
      for (const Index tokens : {512, 1024, 2048, 4096, 8192}) {
        const Index size = tokens * tokens * heads * dim / (1024 * 1024 * 64);
        benchmark::RegisterBenchmark(name, function)
            ->ArgNames({"tokens", "dim", "heads"})
            ->Args({tokens, dim, heads})
            ->UseManualTime()
            ->Iterations(std::clamp<Index>(128 / std::max<Index>(size, 1), 2, 15))
            ->Unit(benchmark::kMicrosecond);
      }
}

void one_shape(benchmark::internal::Benchmark* b) {
  b->ArgNames({"tokens", "dim", "heads"})->Args({1024, 64, 8});
  bench::standard(b);
}
void phase_shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"tokens", "dim", "heads"})->Args({1024, 64, 8})->Args({4096, 64, 8});
  b->UseManualTime()->Iterations(3)->Unit(benchmark::kMicrosecond);
}
void caches(benchmark::internal::Benchmark* b) {
  b->ArgNames({"tokens", "dim", "heads", "kv_heads"});
  for (const Index tokens : {256, 1024, 4096})
    for (const Index kv_heads : {8, 2}) b->Args({tokens, 64, 8, kv_heads});
  bench::standard(b);
}

BENCHMARK(score_sheaf)->Apply(one_shape);
BENCHMARK(phase_engine_forward)->Apply(phase_shapes);
BENCHMARK(phase_engine_backward)->Apply(phase_shapes);
BENCHMARK(phase_layer_forward)->Apply(phase_shapes);
BENCHMARK(phase_layer_backward)->Apply(phase_shapes);
BENCHMARK(decode)->Apply(caches);

}  // namespace

int main(int argc, char** argv) {
  add_shapes("forward_full", forward_full);
  add_shapes("forward_causal", forward_causal);
  add_shapes("backward_full", backward_full);
  add_shapes("backward_causal", backward_causal);
  return bench::run(argc, argv);
}
