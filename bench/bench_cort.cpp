// The attention sub-layer of CoRT (router, attention of the routed, mixer of the others) against that of the
// standard transformer: `speedup` is the standard one's time over ours, both of d = 512 with 8 heads,
// `flop_ratio` what the counted operations promise. `training` is forward and backward.
#include "rbar/model/cort_layer.hpp"
#include "support.hpp"

#include <algorithm>

namespace {

using namespace rbar;

constexpr Index d_model = 512;
constexpr double share = 0.15;

CoRTConfig cort_config(KeyValues key_values) {
  CoRTConfig config = CoRTConfig::small();  // d = 512, 8 heads
  config.n_layers = 1;
  config.route_frac = share;
  config.key_values = key_values;
  config.dropout = 0;
  return config;
}

Tensor<float, 3> random_tokens(Index tokens) {
  Tensor<float, 3> x(1, tokens, d_model);
  Rng rng(1);
  for (float& value : elements(x)) value = static_cast<float>(rng.normal());
  return x;
}

double sublayer_flops(const CoRTConfig& config, Index tokens, double attention_share) {
  const CoRTFlops per_token = flops(config, tokens, attention_share);
  return static_cast<double>(tokens) * (per_token.router + per_token.attention + per_token.mixer);
}
double standard_flops(Index tokens) {
  return static_cast<double>(tokens) * flops(cort_config(KeyValues::all), tokens, 1.0).attention;
}

// A sub-layer whose threshold has learned from the very tokens it is timed on, and the standard one.
struct Pair {
  RoutedAttention<float> routed;
  MultiHeadAttention<float> standard;
  RoutedAttention<float>::Cache cache;
  MultiHeadAttention<float>::Cache standard_cache;
  Tensor<float, 3> x, y, dx;

  Pair(Index tokens, KeyValues key_values) : x(random_tokens(tokens)) {
    Rng rng(2);
    const auto config = cort_config(key_values).routed_attention();
    routed = RoutedAttention<float>(config, rng);
    standard = MultiHeadAttention<float>(config.attention(), rng);
    routed.forward(x, y, cache);
    routed.adapt(cache);
    routed.forward(x, y, cache);
  }
  double flops(KeyValues key_values) const {
    return sublayer_flops(cort_config(key_values), x.dimension(1), cache.router.stats.attention_share);
  }
  void report(benchmark::State& state, KeyValues key_values) const {
    state.counters["attention_share"] = cache.router.stats.attention_share;
    state.counters["flop_ratio"] = standard_flops(x.dimension(1)) / flops(key_values);
  }
};

void sublayer_forward(benchmark::State& state, KeyValues key_values) {
  Pair pair(state.range(0), key_values);
  bench::measure(
      state, {.flops = pair.flops(key_values)}, [&] { pair.routed.forward(pair.x, pair.y, pair.cache); },
      [&] { pair.standard.forward(pair.x, pair.y, pair.standard_cache); });
  pair.report(state, key_values);
}

void sublayer_training(benchmark::State& state, KeyValues key_values) {
  Pair pair(state.range(0), key_values);
  auto routed_gradient = zeros_like(pair.routed);
  auto standard_gradient = zeros_like(pair.standard);
  const auto& x = pair.x;
  bench::measure(
      state, {.flops = 3 * pair.flops(key_values)},
      [&] {
        pair.routed.forward(x, pair.y, pair.cache);
        pair.routed.backward(view(x), pair.cache, pair.dx, routed_gradient);
      },
      [&] {
        pair.standard.forward(x, pair.y, pair.standard_cache);
        pair.standard.backward(view(x), pair.standard_cache, pair.dx, standard_gradient);
      });
  pair.report(state, key_values);
}

void standard_forward(benchmark::State& state) {
  Pair pair(state.range(0), KeyValues::all);
  bench::measure(state, {.flops = standard_flops(state.range(0))},
                 [&] { pair.standard.forward(pair.x, pair.y, pair.standard_cache); });
}

// Where the time of the routed sub-layer goes.
void router_forward(benchmark::State& state) {
  Pair pair(state.range(0), KeyValues::routed);
  CoherentRouter<float>::Cache cache;
  bench::measure(state, {.elements = static_cast<double>(pair.x.size())},
                 [&] { pair.routed.router.router.forward(pair.x, cache); });
}
void mixer_forward(benchmark::State& state) {
  Pair pair(state.range(0), KeyValues::routed);
  const auto& routing = pair.cache.router.routing;
  const double mixed = static_cast<double>(routing.mixing.size()) * static_cast<double>(d_model);
  bench::measure(state, {.flops = mixed * (6.0 * static_cast<double>(d_model) + 4.0)}, [&] {
    pair.routed.mixer.forward(pair.x, routing.mixing, view(std::as_const(pair.cache.router.scores)),
                              top_rows(pair.cache.packed, static_cast<Index>(routing.mixing.size())), pair.cache.mixer);
  });
}

void sweep(benchmark::internal::Benchmark* benchmark) {
  bench::standard(benchmark);
  benchmark->Iterations(5)->Unit(benchmark::kMillisecond);
  for (const Index tokens : {512, 1024, 2048, 4096}) benchmark->Arg(tokens);
}

BENCHMARK(standard_forward)->Apply(sweep);
BENCHMARK_CAPTURE(sublayer_forward, kv_all, KeyValues::all)->Apply(sweep);
BENCHMARK_CAPTURE(sublayer_forward, kv_routed, KeyValues::routed)->Apply(sweep);
BENCHMARK_CAPTURE(sublayer_training, kv_all, KeyValues::all)->Apply(sweep);
BENCHMARK_CAPTURE(sublayer_training, kv_routed, KeyValues::routed)->Apply(sweep);
BENCHMARK(router_forward)->Apply(sweep);
BENCHMARK(mixer_forward)->Apply(sweep);

}  // namespace

int main(int argc, char** argv) { return rbar::bench::run(argc, argv); }
