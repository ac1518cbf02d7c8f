// Oscillators along a sequence and attention on the torus.
//
// dynamics_*: ten Euler steps of 12 heads × 32 oscillators. Gelem/s counts phases moved once; the FLOPs behind
// peak_share are what an evaluation costs as written (a multiply-add is two): 44 forward (all to all: 33), and backward
// those again and 27 (13) more.
//
// phase_attention: the layer of d = 768 around them, forward and backward. `heap_bytes_per_token` is what its cache and
// gradients take at once (the same at every length: O(tokens)), `dynamics_share` the oscillators' part of the time.
//
// torus_*: one layer of torus attention of `heads` heads with `angles` angles. `over_engine` is its time over that of
// bare dot-product attention of head dimension 2·angles on queries, keys and values that lie ready. With gate 1
// (static) that is attention against attention; with 0 (query) and 2 (query_key) one or two products with a [d, 2d]
// matrix count against the torus. `over_layer` and `over_narrow_layer` are over a MultiHeadAttention of as
// many heads, four projections and all: the first of d_model = 2d, whose heads are as wide as the engine's and whose
// projections have 16d² weights against 2d² of each map of the torus; the second of d_model = d = heads·angles, the
// torus's own width, with 4d² weights and half the dimensions of a head.
#include "rbar/attention/multi_head_attention.hpp"
#include "rbar/core/random.hpp"
#include "rbar/kuramoto/phase_attention.hpp"
#include "rbar/kuramoto/torus_attention.hpp"
#include "support.hpp"

#include <cmath>
#include <numbers>

#include "heap_meter.hpp"  // after all else: it defines malloc

namespace {

using namespace rbar;

constexpr Index heads = 12, oscillators = 32, phase_model = 768;
// Of an evaluation.
constexpr double forward_flops(bool causal) { return causal ? 44 : 33; }
constexpr double backward_flops(bool causal) { return forward_flops(causal) + (causal ? 27 : 13); }

Tensor<float, 3> random_angles(Index tokens, Index width) {
  Tensor<float, 3> angles(1, tokens, width);
  Rng rng(1);
  for (float& angle : elements(angles)) angle = static_cast<float>(rng.uniform(-std::numbers::pi, std::numbers::pi));
  return angles;
}

KuramotoConfig kuramoto(bool causal) {
  KuramotoConfig config{.n_heads = heads, .n_oscillators = oscillators};
  config.causality = causal ? Causality::causal : Causality::reference;
  return config;
}

struct Dynamics {
  Rng rng{2};
  KuramotoDynamics<float> layer, grad;
  KuramotoDynamics<float>::Cache cache;
  Tensor<float, 3> initial, angles, dinitial;

  Dynamics(Index tokens, bool causal)
      : layer(kuramoto(causal), rng), grad(zeros_like(layer)), initial(random_angles(tokens, layer.config.width())) {
    forward();
  }
  void forward() { layer.forward(initial, angles, cache); }
  void backward() { layer.backward(angles, cache, dinitial, grad); }
  double evaluations() const { return static_cast<double>(initial.size() * layer.config.steps().evaluations()); }
};

void dynamics_forward(benchmark::State& state) {
  Dynamics x(state.range(0), state.range(1) != 0);
  bench::measure(state, {.flops = forward_flops(state.range(1) != 0) * x.evaluations(), .elements = x.evaluations()},
                 [&] { x.forward(); });
}
void dynamics_backward(benchmark::State& state) {
  Dynamics x(state.range(0), state.range(1) != 0);
  bench::measure(state, {.flops = backward_flops(state.range(1) != 0) * x.evaluations(), .elements = x.evaluations()},
                 [&] { x.backward(); });
}

void phase_attention(benchmark::State& state) {
  const Index tokens = state.range(0);
  PhaseAttentionConfig config;
  config.d_model = phase_model;
  config.kuramoto = kuramoto(state.range(1) != 0);
  Rng rng(3);
  const PhaseAttention<float> layer(config, rng);
  const auto x = random_angles(tokens, phase_model);
  const auto both = [&](Tensor<float, 3>& y, Tensor<float, 3>& dx, PhaseAttention<float>::Cache& cache, auto& grad) {
    layer.forward(x, y, cache);
    layer.backward(y, cache, dx, grad);
  };
  auto grad = zeros_like(layer);
  Tensor<float, 3> y, dx;
  PhaseAttention<float>::Cache cache;
  both(y, dx, cache, grad);  // scratch of the threads has grown
  if (bench::measures_heap)
    state.counters["heap_bytes_per_token"] = bench::heap_needed_by([&] {
                                               Tensor<float, 3> fresh_y, fresh_dx;
                                               PhaseAttention<float>::Cache fresh;
                                               both(fresh_y, fresh_dx, fresh, grad);
                                             }) /
                                             static_cast<double>(tokens);
  Dynamics only(tokens, state.range(1) != 0);
  state.counters["dynamics_share"] =
      bench::paired_ratio([&] { only.forward(), only.backward(); }, [&] { both(y, dx, cache, grad); });
  const double maps = 3 * 2 * static_cast<double>(tokens * phase_model) *
                      static_cast<double>(config.kuramoto.width() + config.read_width());
  bench::measure(
      state,
      {.flops = maps + (forward_flops(state.range(1) != 0) + backward_flops(state.range(1) != 0)) * only.evaluations()},
      [&] { both(y, dx, cache, grad); });
}

// Bare dot-product attention of head dimension 2·d_h.
struct Engine {
  Index tokens, heads, dim;
  Tensor<float, 3> query, key, value, output, doutput, dquery, dkey, dvalue;
  std::vector<float> log_sum_exp;

  Engine(Index tokens_, Index heads_, Index dim_)
      : tokens(tokens_), heads(heads_), dim(dim_), log_sum_exp(static_cast<std::size_t>(tokens * heads)) {
    Rng rng(1);
    for (auto* tensor : {&query, &key, &value, &output, &doutput, &dquery, &dkey, &dvalue}) {
      tensor->resize(1, tokens, heads * dim);
      for (float& number : elements(*tensor)) number = static_cast<float>(rng.normal());
    }
    forward();
  }
  auto view(Tensor<float, 3>& tensor) { return heads_view(tensor, heads); }
  DotProductScore score() const { return {1 / std::sqrt(static_cast<double>(dim))}; }
  void forward() {
    attend<float>(view(query), view(key), view(value), score(), CausalMask{}, view(output), log_sum_exp.data());
  }
  void backward() {
    attend_backward<float>(view(query), view(key), view(value), view(output), view(doutput), log_sum_exp.data(),
                           score(), CausalMask{}, view(dquery), view(dkey), view(dvalue));
  }
};

template <class Layer>
struct Passes {
  const Layer& layer;
  Tensor<float, 3> x, y, dx;
  typename Layer::Cache cache;
  Layer grad;

  Passes(const Layer& layer_, Index tokens, Index width)
      : layer(layer_), x(random_angles(tokens, width)), grad(zeros_like(layer_)) {
    forward();
  }
  void forward() { layer.forward(x, y, cache); }
  void backward() { layer.backward(y, cache, dx, grad); }
};

void torus(benchmark::State& state, bool backward) {
  const Index tokens = state.range(0), n_heads = state.range(1), dim = state.range(2), width = n_heads * dim;
  Rng rng(4);
  const KuramotoAttention<float> layer(
      {.d_model = width, .n_heads = n_heads, .gate = all_torus_gates[state.range(3)], .drift_base = 10000}, rng);
  const auto dot_product = [&](Index d_model) {
    MultiHeadAttentionConfig config;
    config.d_model = d_model;
    config.n_heads = n_heads;
    return MultiHeadAttention<float>(config, rng);
  };
  const MultiHeadAttention<float> wide = dot_product(2 * width), narrow = dot_product(width);
  Passes ours(layer, tokens, width);
  Passes theirs(wide, tokens, 2 * width), theirs_narrow(narrow, tokens, width);
  Engine engine(tokens, n_heads, 2 * dim);
  const auto run = [backward](auto& side) { backward ? side.backward() : side.forward(); };
  state.counters["over_engine"] = bench::paired_ratio([&] { run(ours); }, [&] { run(engine); });
  state.counters["over_layer"] = bench::paired_ratio([&] { run(ours); }, [&] { run(theirs); });
  state.counters["over_narrow_layer"] = bench::paired_ratio([&] { run(ours); }, [&] { run(theirs_narrow); });
  const double t = static_cast<double>(tokens), d = static_cast<double>(width);
  const double maps = 4 * t * d * d * static_cast<double>(state.range(3) == 0 ? 1 : state.range(3) == 2 ? 2 : 0);
  const double attention = 4 * 2 * d * t * (t + 1) / 2;
  bench::measure(state, {.flops = backward ? 2.5 * attention + 2 * maps : attention + maps}, [&] { run(ours); });
}
void torus_forward(benchmark::State& state) { torus(state, false); }
void torus_backward(benchmark::State& state) { torus(state, true); }

void lengths(benchmark::internal::Benchmark* b) {
  b->ArgNames({"tokens", "causal"})->UseManualTime()->Unit(benchmark::kMicrosecond)->Iterations(11);
  for (const Index tokens : {512, 4096})
    for (const Index causal : {1, 0}) b->Args({tokens, causal});
}
void torus_shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"tokens", "heads", "angles", "gate"})->UseManualTime()->Unit(benchmark::kMicrosecond)->Iterations(5);
  for (const Index gate : {0, 1, 2})  // query, fixed, query_key
    for (const Index tokens : {512, 1024, 4096}) b->Args({tokens, 8, 32, gate});
  b->Args({256, 4, 32, 0});  // the language model of a million parameters
  b->Args({1024, 4, 64, 0});
}

BENCHMARK(dynamics_forward)->Apply(lengths);
BENCHMARK(dynamics_backward)->Apply(lengths);
BENCHMARK(phase_attention)->Apply(lengths);
BENCHMARK(torus_forward)->Apply(torus_shapes);
BENCHMARK(torus_backward)->Apply(torus_shapes);

}  // namespace

int main(int argc, char** argv) { return bench::run(argc, argv); }
