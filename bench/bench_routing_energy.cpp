// What routing by token energy costs: the energies of one point and the decisions, d = 512 with 8 heads and an
// energy_dim of 32. Its time as a share of the layer it decides about, measured in turns:
//   share_of_layer    a standard lane's layer: sheaf attention, feed-forward of 4d
//   share_of_window   a reflex lane's layer: sheaf attention in a window of 64, no feed-forward
// `speedup` is against the energies' definition, all pairs.
#include "rbar/nn/feed_forward.hpp"
#include "rbar/routing/lane_router.hpp"
#include "rbar/sheaf/sheaf_attention.hpp"
#include "rbar/simd/energy.hpp"
#include "support.hpp"

#include <cmath>

namespace {

using namespace rbar;

constexpr Index d_model = 512, heads = 8;

SheafAttention<float> attention_of(Index window, Rng& rng) {
  SheafAttentionConfig config;
  config.d_model = d_model;
  config.n_heads = heads;
  config.window = window;
  return SheafAttention<float>(config, rng);
}

struct Setting {
  Rng rng{1};
  Tensor<float, 3> x, y, dx;
  SheafAttention<float> attention = attention_of(0, rng), window = attention_of(64, rng);
  FeedForward<float> feed_forward{d_model, 4 * d_model, true, rng};
  LaneRouter<float> router;
  SheafAttention<float>::Cache attention_cache, window_cache;
  FeedForward<float>::Cache feed_forward_cache;
  LaneRouter<float>::Cache router_cache;
  Tensor<float, 2> energy;
  Index gone_on = 0;

  explicit Setting(Index tokens)
      : x(1, tokens, d_model), y(1, tokens, d_model), dx(zeros<float, 3>({1, tokens, d_model})) {
    for (float& value : elements(x)) value = static_cast<float>(rng.normal());
    LaneRouterConfig config;
    config.d_model = d_model;
    router = LaneRouter<float>(config, rng);
    router.energies(1, x, energy, router_cache);
    router.adapt(1, elements(energy));
  }

  void route() {
    router.energies(1, x, energy, router_cache);
    const CoherenceThresholds in_force = router.thresholds_in_force();
    gone_on = 0;
    for (const float e : elements(energy)) gone_on += router.continues(1, static_cast<double>(e), in_force) ? 1 : 0;
    benchmark::DoNotOptimize(gone_on);
  }
  void layer() {
    attention.forward(x, y, attention_cache);
    feed_forward.forward(rows(std::as_const(x)), rows(y), feed_forward_cache);
  }
  void window_layer() { window.forward(x, y, window_cache); }

  // The definition on queries and keys that are there: the products are not counted against it.
  void all_pairs() {
    const Tensor<float, 3>& query = router_cache.energy.query;
    const Tensor<float, 3>& key = router_cache.energy.key;
    const Index dim = key.dimension(2);
    for (Index i = 0; i < x.dimension(1); ++i) {
      double sum = 0;
      for (Index j = 0; j <= i; ++j) sum += simd::residual_energy(query.data() + i * dim, key.data() + j * dim, dim);
      energy(0, i) = static_cast<float>(sum / static_cast<double>(i + 1));
    }
  }
};

// Median of the ratios of neighbours in time; the part is repeated until it takes as long as the whole, so that
// interruptions meet both alike.
template <class Part, class Whole>
double share(Part&& part, Whole&& whole) {
  part(), whole();
  const double once = bench::best_seconds(part), repeats = std::max(1.0, std::round(bench::best_seconds(whole) / once));
  std::vector<double> ratios;
  for (int round = 0; round < 15; ++round) {
    const double start = bench::now();
    for (int i = 0; i < static_cast<int>(repeats); ++i) part();
    const double middle = bench::now();
    whole();
    ratios.push_back((middle - start) / repeats / (bench::now() - middle));
  }
  return bench::median(ratios);
}

double energy_flops(Index tokens) {
  const double width = 32, maps = 2 * 2 * static_cast<double>(d_model) * width;
  return static_cast<double>(tokens) * (maps + 8 * width);
}

void routing(benchmark::State& state) {
  Setting setting(state.range(0));
  bench::measure(
      state, {.flops = energy_flops(state.range(0))}, [&] { setting.route(); }, [&] { setting.all_pairs(); });
  state.counters["share_of_layer"] = share([&] { setting.route(); }, [&] { setting.layer(); });
  state.counters["share_of_window"] = share([&] { setting.route(); }, [&] { setting.window_layer(); });
}

void routing_backward(benchmark::State& state) {
  Setting setting(state.range(0));
  setting.route();
  auto gradient = zeros_like(setting.router);
  bench::measure(state, {.flops = 2 * energy_flops(state.range(0))}, [&] {
    setting.router.energies_backward(1, view(std::as_const(setting.energy)), setting.x, setting.router_cache,
                                     setting.dx, gradient);
  });
}

// One new token of a stream.
void routing_step(benchmark::State& state) {
  Setting setting(1);
  LaneRouter<float>::State stream;
  bench::measure(state, {.flops = energy_flops(1)},
                 [&] { setting.router.energies_step(1, setting.x, setting.energy, stream); });
}

BENCHMARK(routing)->Apply(bench::standard)->Arg(128)->Arg(1024)->Arg(4096);
BENCHMARK(routing_backward)->Apply(bench::standard)->Arg(128)->Arg(1024)->Arg(4096);
BENCHMARK(routing_step)->Apply(bench::standard);

}  // namespace

int main(int argc, char** argv) { return bench::run(argc, argv); }
